//! Settling a migration whose end is not known.

use std::io::{self, BufRead, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::client::Client;
use api::types::{Progress, ResolveKind, ResolveParameters, Resolved};
use nix::unistd::{User, getuid};

use super::super::follow::{Json, follow};
use super::super::peer::Peer;
use super::called_through;
use crate::cli::Migrate;
use crate::report::{self, StillUnresolved};

/// How many seconds to wait before each further question to the other host.
pub(super) const PAUSES: [u64; 5] = [1, 2, 4, 8, 16];

/// Asks the other host again what became of the guest that it was sent.
pub(super) fn ask_again(
    connect: impl Fn() -> Result<Client>,
    peer: &Peer,
    host: &str,
    args: &Migrate,
    pauses: &[u64],
) -> Result<ExitCode> {
    for (pause, number) in pauses.iter().zip(1..) {
        thread::sleep(Duration::from_secs(*pause));
        eprintln!("Asking {host} what became of {} ({number} of {})", args.guest, pauses.len());
        let answer = connect().and_then(|mut client| ask(&mut client, Some(peer), args, ResolveKind::Ask));
        match answer {
            Ok(Progress { guest: None, resolved: Some(Resolved { state, .. }), .. }) => {
                if !args.json {
                    println!("{}: {state}", args.guest);
                }
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Progress { resolved, .. }) => {
                let state = resolved.map_or_else(|| "not migrated".to_owned(), |resolved| resolved.state);
                bail!("{}: {state}", args.guest);
            }
            Err(error) => eprint!("{}", report::describe(&error).0),
        }
    }
    Err(StillUnresolved { guest: args.guest.clone(), host: host.to_owned() }.into())
}

/// Tells the other host that the guest stays here, if it can be reached: it gives up by itself too.
pub(super) fn tell(connect: impl Fn() -> Result<Client>, peer: &Peer, args: &Migrate) {
    let _ = connect().and_then(|mut client| ask(&mut client, Some(peer), args, ResolveKind::Ask));
}

/// `--resolve`.
pub(super) fn settle(connect: impl Fn() -> Result<Client>, args: &Migrate) -> Result<ExitCode> {
    let how = match (&args.answer, args.assume_receiver_dead, args.assume_sender_dead) {
        (Some(_), _, _) => ResolveKind::Answer,
        (None, true, _) => ResolveKind::AssumeReceiverDead,
        (None, false, true) => ResolveKind::AssumeSenderDead,
        (None, false, false) => ResolveKind::Ask,
    };
    if let (Some(warning), false) = (warning(how, &args.guest), args.yes) {
        confirm(&warning, &args.guest)?;
    }
    let settled = ask(&mut connect()?, Peer::of(args).as_ref(), args, how)?;
    if args.json {
        return Ok(ExitCode::SUCCESS);
    }
    let Resolved { state, answer, boots } =
        settled.resolved.context("outriggerd settled the migration without reporting how")?;
    if boots && settled.guest.is_none() {
        eprintln!(
            "{} may be started again here: run outrigger create with its configuration file",
            args.guest
        );
    }
    match answer {
        Some(line) => {
            eprintln!("{}: {state}", args.guest);
            eprintln!(
                "For the other host: outrigger migrate --resolve {} --answer \"LINE\", with this LINE:",
                args.guest
            );
            println!("{line}");
        }
        None => println!("{}: {state}", args.guest),
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(client: &mut Client, peer: Option<&Peer>, args: &Migrate, how: ResolveKind) -> Result<Progress> {
    let channel = peer.map(Peer::listen).transpose()?;
    let parameters = ResolveParameters {
        guest: args.guest.clone(),
        channel: channel.as_ref().map(|channel| channel.path()).unwrap_or_default(),
        how,
        answer: args.answer.clone().unwrap_or_default(),
        operator: operator(std::env::var("SUDO_USER").ok()),
    };
    let called = follow(client, "MigrateResolve", &parameters, args.json.then_some(Json::Stdout));
    match channel {
        Some(channel) => called_through(channel, called),
        None => called,
    }
}

/// Who decides: behind root, the user who became it.
fn operator(sudo_user: Option<String>) -> String {
    let own = || User::from_uid(getuid()).ok().flatten().map(|user| user.name);
    let name = sudo_user.filter(|name| !name.is_empty()).or_else(own);
    name.unwrap_or_else(|| format!("uid {}", getuid()))
}

/// What an assumption does.
fn warning(how: ResolveKind, guest: &str) -> Option<String> {
    match how {
        ResolveKind::AssumeReceiverDead => Some(format!(
            "{guest} was handed over to another host. It is destroyed here and boots anew: its memory is lost.\n\
             If the other host is not off, {guest} may run there too, and both corrupt its disks."
        )),
        ResolveKind::AssumeSenderDead => Some(format!(
            "{guest} was taken over from another host, which has not confirmed it.\n\
             If the other host is not off, {guest} may start there too, and both corrupt its disks."
        )),
        ResolveKind::Ask | ResolveKind::Answer => None,
    }
}

fn confirm(warning: &str, guest: &str) -> Result<()> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        bail!(
            "{warning}\nStandard input is not a terminal: repeat the command with --yes if that host is off"
        );
    }
    eprint!("{warning}\nType the name of the guest if that host is off: ");
    let _ = io::stderr().flush();
    if is_confirmed(&mut stdin.lock(), guest) { Ok(()) } else { bail!("Nothing was done") }
}

fn is_confirmed(input: &mut impl BufRead, guest: &str) -> bool {
    let mut line = String::new();
    input.read_line(&mut line).is_ok() && line.trim() == guest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_name_confirms_that_the_other_host_is_off() {
        for (typed, confirms) in
            [("hello\n", true), (" hello", true), ("y\n", false), ("\n", false), ("", false)]
        {
            assert_eq!(is_confirmed(&mut typed.as_bytes(), "hello"), confirms, "{typed:?}");
        }
        for how in [ResolveKind::AssumeReceiverDead, ResolveKind::AssumeSenderDead] {
            assert!(warning(how, "hello").unwrap().contains("off"));
        }
        assert_eq!(warning(ResolveKind::Ask, "hello"), None);
    }

    #[test]
    fn operator_is_who_became_root() {
        assert_eq!(operator(Some("anna".to_owned())), "anna");
        for none in [None, Some(String::new())] {
            assert!(!operator(none).is_empty());
        }
    }
}
