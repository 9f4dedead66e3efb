//! `outrigger console` and `outrigger dm-log`.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::client::Client;
use api::types::Guest;
use console::attach::{AttachOptions, ESCAPE, Ended, SOCKET_DIR, ask, attach, connect};
use console::request::{Request, Wanted, Which};
use xen_types::{DomId, file_name};

use super::find;
use crate::cli::{Console, ConsoleChoice, DmLog};

/// The stubdomain's console that is its log.
const LOG_CONSOLE: u32 = 0;
/// The stubdomain's console that is the guest's serial port 0.
const FIRST_SERIAL: u32 = 3;
/// Where the console daemon keeps its logs.
const LOG_DIR: &str = "/var/log/outrigger/console";
/// Where it keeps them when it is told to do as xenconsoled does.
const XENCONSOLED_LOG_DIR: &str = "/var/log/xen/console";

/// Attaches to the console that was asked for.
pub(crate) fn console(client: &mut Client, args: &Console) -> Result<ExitCode> {
    let guest = find(client, &args.guest)?;
    let wanted = choose(&guest, &args.which.choice())?;
    let input = args.which.choice() != ConsoleChoice::Log;
    let escape = args.escape.unwrap_or(ESCAPE);
    show(
        wanted,
        args.since,
        AttachOptions { follow: !args.no_follow, input, escape, ..AttachOptions::default() },
    )
}

/// Attaches to a serial port of a guest.
pub(crate) fn serial(guest: &Guest, port: u8, follow: bool) -> Result<ExitCode> {
    let wanted = choose(guest, &ConsoleChoice::Serial(port))?;
    show(wanted, None, AttachOptions { follow, ..AttachOptions::default() })
}

fn choose(guest: &Guest, choice: &ConsoleChoice) -> Result<Wanted> {
    // A domid may be reused between outriggerd's answer and the request to outrigger-consoled.
    let of_guest = |which| Wanted { domid: guest.domid, which, uuid: guest.uuid.parse().ok() };
    let number = match choice {
        ConsoleChoice::Pv(number) => return Ok(of_guest(Which::Number(u32::from(*number)))),
        ConsoleChoice::Channel(name) => return Ok(of_guest(Which::Name(file_name(name)))),
        ConsoleChoice::Stub(number) => u32::from(*number),
        ConsoleChoice::Log => LOG_CONSOLE,
        ConsoleChoice::Serial(port) if *port < guest.serials => FIRST_SERIAL + u32::from(*port),
        ConsoleChoice::Serial(_) => bail!(
            "{} has {} serial ports; add one with serial=['pty', …] in its configuration, or use --pv",
            guest.name,
            guest.serials
        ),
    };
    let Some(stub) = guest.stub_domid else {
        bail!(
            "The stubdomain of {} has ended; `outrigger dm-log {}` shows its last log lines",
            guest.name,
            guest.name
        )
    };
    Ok(of_stub(guest, stub, number))
}

/// A console of a guest's stubdomain.
fn of_stub(guest: &Guest, domid: DomId, number: u32) -> Wanted {
    let uuid = guest.stub_uuid.as_ref().and_then(|uuid| uuid.parse().ok());
    Wanted { domid, which: Which::Number(number), uuid }
}

fn show(console: Wanted, since: Option<Duration>, options: AttachOptions) -> Result<ExitCode> {
    let folder = Path::new(SOCKET_DIR);
    let stream = match (&console.which, since) {
        (Which::Number(number), None) if console.uuid.is_none() => connect(folder, console.domid, *number)?,
        _ => ask(folder, &Request::View { console, since })?,
    };
    if options.follow && options.input && io::stdin().is_terminal() {
        eprintln!("Connected; {} leaves", key(options.escape));
    }
    match attach(&stream, &options)? {
        Ended::Escape | Ended::Closed => Ok(ExitCode::SUCCESS),
        // As a shell reports a command that a signal ended.
        Ended::Signal(number) => Ok(ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX))),
    }
}

/// The name of a key.
fn key(byte: u8) -> String {
    if byte.is_ascii_control() {
        format!("Ctrl-{}", char::from(byte | 0x40))
    } else {
        char::from(byte).to_string()
    }
}

/// Prints the stubdomain's log, which outlives guest and stubdomain.
pub(crate) fn dm_log(client: impl Fn() -> Result<Client>, args: &DmLog) -> Result<ExitCode> {
    if args.follow {
        let guest = find(&mut client()?, &args.guest)?;
        let Some(stub) = guest.stub_domid else { bail!("The stubdomain of {} has ended", guest.name) };
        return show(
            of_stub(&guest, stub, LOG_CONSOLE),
            None,
            AttachOptions { input: false, plain: true, ..AttachOptions::default() },
        );
    }
    // A domid or uuid needs the daemon; a name must do without, since the guest may be gone.
    let mut path = log_file(&args.guest);
    if !path.exists() {
        let guest = find(&mut client()?, &args.guest)?;
        path = log_file(&guest.name);
        if let Some(stub) = guest.stub_domid.filter(|_| !path.exists()) {
            // A guest that was renamed: its file has the name that it had at its start.
            let options =
                AttachOptions { input: false, plain: true, follow: false, ..AttachOptions::default() };
            let wanted = Wanted { domid: stub, which: Which::Number(LOG_CONSOLE), uuid: None };
            return show(wanted, None, options);
        }
    }
    let text = std::fs::read(&path).with_context(|| {
        format!("Cannot read the stubdomain's log {}; is outrigger-consoled running?", path.display())
    })?;
    io::stdout().write_all(&printable(&text)).context("Cannot print the log")?;
    Ok(ExitCode::SUCCESS)
}

/// The log, in one of both places: the newer, if there is one in each.
fn log_file(guest: &str) -> PathBuf {
    let name = file_name(&format!("{guest}-dm"));
    let ours = Path::new(LOG_DIR).join(format!("{name}.{LOG_CONSOLE}.log"));
    let as_xenconsoled = Path::new(XENCONSOLED_LOG_DIR).join(format!("guest-{name}.log"));
    let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    if changed(&as_xenconsoled) > changed(&ours) { as_xenconsoled } else { ours }
}

/// Replaces what could steer a terminal: the log is whatever the stubdomain wrote.
fn printable(text: &[u8]) -> Vec<u8> {
    text.iter()
        .copied()
        .filter(|&b| b != b'\r')
        .map(|b| if b == b'\n' || b == b'\t' || (b >= 0x20 && b != 0x7f) { b } else { b'.' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_cannot_steer_the_terminal() {
        assert_eq!(printable(b"a\x1b[2J\r\nb\x07"), b"a.[2J\nb.");
    }

    #[test]
    fn name_cannot_leave_the_log_folder() {
        assert!(log_file("../../etc/passwd").starts_with(LOG_DIR));
        assert!(!log_file("../../etc/passwd").to_string_lossy().contains("/../"));
        assert_eq!(log_file("a b"), Path::new(LOG_DIR).join("a%20b-dm.0.log"));
    }
}
