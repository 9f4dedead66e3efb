//! `outrigger qmp`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use api::client::Client as Daemon;
use api::types::{GuestParameter, QmpSocket};
use qmp::{Kind, Member, Message};
use serde_json::json;

use crate::cli::Qmp;
use crate::qmp::client::Client;
use crate::qmp::line::{self, Typed};
use crate::qmp::prompt::Prompt;
use crate::qmp::schema::Schema;
use crate::qmp::session::{Ended, News, Session};

/// How long QEMU may take for an answer; the daemon gives up a little earlier.
const ANSWER: Duration = Duration::from_secs(70);

/// Does what the command line asks.
pub(crate) fn qmp(daemon: &mut Daemon, args: &Qmp) -> Result<ExitCode> {
    let asked = GuestParameter { guest: args.guest.clone() };
    let QmpSocket { socket } = daemon.call("Qmp", &asked)?;
    let mut client = Client::connect(&PathBuf::from(socket), scaled(ANSWER))?;
    if args.role.is_some() || args.toolstack {
        let mut wanted = json!({ "unsafe": args.toolstack });
        if let Some(role) = &args.role {
            wanted["role"] = json!(role);
        }
        client.call("__io.outrigger_role", Some(&wanted.to_string()))?;
    }
    match args.command.as_slice() {
        [] if args.events => events(&mut client),
        [] if io::stdin().is_terminal() => interactive(client, args),
        [] => messages(&mut client),
        [only] if only == "-" => messages(&mut client),
        [only] if only.trim_start().starts_with('{') => {
            client.send(&format!("{only}\n"))?;
            show_message(&client.answer()?, args.json)?;
            after(&mut client, args)
        }
        words => {
            let typed = line::words(words.iter().map(String::as_str))?;
            show(&execute(&mut client, &typed)?, args.json)?;
            after(&mut client, args)
        }
    }
}

/// A deadline stretched for slow machines, as the daemon stretches its own.
fn scaled(deadline: Duration) -> Duration {
    let scale = std::env::var("OUTRIGGER_TIME_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    deadline.mul_f64(f64::clamp(scale, 0.1, 100.0))
}

fn execute(client: &mut Client, typed: &Typed) -> Result<String> {
    let answer = client
        .call(&typed.command, typed.arguments.as_deref())
        .with_context(|| format!("{} failed", typed.command))?;
    Ok(answer.get().to_owned())
}

/// After a command: events, if they were asked for.
fn after(client: &mut Client, args: &Qmp) -> Result<ExitCode> {
    if args.events { events(client) } else { Ok(ExitCode::SUCCESS) }
}

/// Prints events, one a line, until the guest is gone.
fn events(client: &mut Client) -> Result<ExitCode> {
    client.set_deadline(None)?;
    loop {
        let message = client.event()?;
        if message.kind() == Kind::Event {
            say(message.text())?;
        }
    }
}

/// Sends messages from standard input, prints each answer as one line.
fn messages(client: &mut Client) -> Result<ExitCode> {
    let mut failed = false;
    let mut decoder = qmp::Decoder::new(qmp::Limits::CLIENT);
    let mut input = io::stdin().lock();
    loop {
        let bytes = input.fill_buf().context("Cannot read standard input")?;
        if bytes.is_empty() {
            break;
        }
        decoder.push(bytes);
        let count = bytes.len();
        input.consume(count);
        while let Some(message) = decoder.next_message() {
            let message = message.context("Standard input has no QMP requests")?;
            client.send(&format!("{}\n", message.text()))?;
            let answer = client.answer()?;
            failed |= answer.kind() == Kind::Error;
            say(answer.text())?;
        }
    }
    if decoder.is_inside() {
        bail!("Standard input ends in the middle of a request");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn interactive(mut client: Client, args: &Qmp) -> Result<ExitCode> {
    // Without it there is no completion, which is no reason to give up.
    let schema =
        client.call("query-qmp-schema", None).map(|answer| Schema::read(answer.get())).unwrap_or_default();
    let mut prompt = Prompt::new(&args.guest, schema)?;
    let mut print = prompt.printer()?;
    let mut session = Session::start(client, scaled(ANSWER), move |news| match news {
        News::Event(event) => print(&escaped(event.text())),
        News::End(error) => print(&format!("{error:#}")),
    })?;
    eprintln!("Tab completes, Ctrl-D leaves; arguments are name=value or one JSON object");
    while let Some(text) = prompt.next()? {
        if session.has_ended() {
            // Why was said when it happened.
            return Ok(ExitCode::FAILURE);
        }
        if text.trim().is_empty() {
            continue;
        }
        let outcome = line::line(&text).and_then(|typed| {
            let answer = session.call(&typed.command, typed.arguments.as_deref());
            answer.with_context(|| format!("{} failed", typed.command))
        });
        match outcome {
            Ok(answer) => show(answer.get(), args.json)?,
            Err(error) if error.is::<Ended>() => return Ok(ExitCode::FAILURE),
            // The next line may be right.
            Err(error) => eprintln!("{error:#}"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_message(message: &Message, compact: bool) -> Result<()> {
    match message.get(Member::Return) {
        Some(value) => show(value, compact),
        None => bail!("QEMU refused: {}", qmp::harmless(message.get(Member::Error).unwrap_or("?"), 1000)),
    }
}

/// Prints an answer, for a person unless `compact`.
fn show(json: &str, compact: bool) -> Result<()> {
    if compact {
        return say(json);
    }
    let value: serde_json::Value = serde_json::from_str(json).context("The answer cannot be read")?;
    match value {
        serde_json::Value::Object(map) if map.is_empty() => Ok(()),
        // What a command says in text, such as the monitor for people, is text.
        serde_json::Value::String(text) => say(&printable(&text)),
        value => say(&serde_json::to_string_pretty(&value).context("The answer cannot be printed")?),
    }
}

/// JSON escapes what could steer a terminal; text does not.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| *c != '\r')
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '.' } else { c })
        .collect::<String>()
        .trim_end()
        .to_owned()
}

/// JSON may have control characters as they are, from DEL on.
fn escaped(text: &str) -> String {
    let is_bare = |c: char| c.is_control() && c != '\n' && c != '\t';
    text.chars()
        .flat_map(|c| {
            let escaped = is_bare(c).then(|| format!("\\u{:04x}", u32::from(c)).chars().collect::<Vec<_>>());
            escaped.unwrap_or_else(|| vec![c])
        })
        .collect()
}

/// Prints a line.
fn say(text: &str) -> Result<()> {
    let text = escaped(text);
    let mut output = io::stdout().lock();
    writeln!(output, "{text}").and_then(|()| output.flush()).context("Cannot print")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_qemu_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\r\nb\u{7}\n"), "a.[2J\nb.");
    }
}
