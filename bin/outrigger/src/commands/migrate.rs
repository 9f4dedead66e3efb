//! `outrigger migrate`, `migrate-receive` and `migrations`.

mod resolve;

use std::path::Path;
use std::process::{Child, ExitCode};

use anyhow::Result;
use api::client::{Client, ClientError};
use api::types::{MigrateParameters, Migrations, Outcome, Progress, ReceiveParameters, Refusal};
use serde_json::json;

use super::channel::{Channel, Ends};
use super::config;
use super::create::absolute;
use super::follow::{Cancelling, Json, cancel_on_signal, follow};
use super::peer::{self, Peer};
use crate::cli::{Compress, Migrate};
use crate::{report, table, timeline};

/// The words for cancelling a migration.
const MIGRATING: Cancelling = Cancelling {
    what: "the migration",
    too_late: "the other host has not been reached yet, or has the guest by now; press Ctrl-C again to exit, which does \
               not end the migration",
};

/// Migrates a guest and shows the steps; or settles an earlier migration.
pub(crate) fn migrate(
    connect: impl Fn() -> Result<Client> + Clone + Send + 'static,
    args: &Migrate,
) -> Result<ExitCode> {
    let (Some(peer), Some(host), false) = (Peer::of(args), &args.host, args.resolve) else {
        return resolve::settle(connect, args);
    };
    // A file that is wrong is wrong before anything is connected.
    let destination = args.dest_config.as_deref().map(destination).transpose()?;
    cancel_on_signal(connect.clone(), args.guest.clone(), MIGRATING)?;
    match send(&mut connect()?, &peer, (host, destination), args) {
        Err(error) if is_unresolved(&error) => {
            eprint!("{}", report::describe(&error).0);
            resolve::ask_again(connect, &peer, host, args, &resolve::PAUSES)
        }
        Err(error) if is_waited_for(&error) => {
            resolve::tell(connect, &peer, args);
            Err(error)
        }
        sent => sent.map(|()| moved(host, args)),
    }
}

/// Whether the other host may still wait for a guest that stays here.
fn is_waited_for(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<ClientError>(),
        Some(ClientError::Refused { refusal, .. }) if matches!(**refusal, Refusal::NotMigrated { waits: true, .. })
    )
}

/// The text and the absolute path of the configuration for the other host.
fn destination(file: &Path) -> Result<(String, String)> {
    Ok((config::check_for_create(file, &[])?.text, absolute(file)?))
}

fn send(
    client: &mut Client,
    peer: &Peer,
    (host, destination): (&str, Option<(String, String)>),
    args: &Migrate,
) -> Result<()> {
    let (dest_config, dest_path) = destination.unzip();
    let channel = peer.listen()?;
    let parameters = MigrateParameters {
        guest: args.guest.clone(),
        channel: channel.path(),
        host: host.to_owned(),
        live: !args.no_live,
        max_downtime_ms: args.max_downtime.unwrap_or_default(),
        // Of a million bits.
        bandwidth: args.bandwidth.unwrap_or_default() * (1_000_000 / 8),
        compress: args.compress == Compress::Zstd,
        dest_config,
        dest_path,
    };
    let called = follow(client, "Migrate", &parameters, args.json.then_some(Json::Stdout));
    called_through(channel, called).map(drop)
}

fn moved(host: &str, args: &Migrate) -> ExitCode {
    if !args.json {
        println!("{} runs at {host}", args.guest);
    }
    ExitCode::SUCCESS
}

/// The result of a call that has used this channel.
fn called_through(channel: Channel<Child>, called: Result<Progress>) -> Result<Progress> {
    match channel.finish() {
        Ok(Some(child)) => peer::reap(child, called.is_err()),
        Ok(None) => {}
        // The daemon has found nothing but the end of its connection.
        Err(error) if called.is_err() => return Err(error),
        Err(_) => {}
    }
    called
}

/// Whether the other host has to say what became of the guest.
fn is_unresolved(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<ClientError>(),
        Some(ClientError::Refused { refusal, .. }) if matches!(**refusal, Refusal::Unresolved { .. })
    )
}

/// Receives a guest, or answers another host, through standard input and output.
pub(crate) fn receive(connect: impl Fn() -> Result<Client>) -> Result<ExitCode> {
    let ends = Ends::standard()?;
    // Standard output is the other host's; standard error is the operator's there.
    match connect().and_then(|mut client| receive_through(&mut client, ends)) {
        Ok(progress) => {
            if let Some(guest) = progress.guest {
                eprintln!("receiver: {} runs here as domain {}", guest.name, guest.domid);
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Ok(report::print_for("receiver: ", &error)),
    }
}

fn receive_through(client: &mut Client, ends: Ends) -> Result<Progress> {
    let channel = Channel::listen(move |stream| ends.relay(stream))?;
    client.set_deadline(None)?;
    let mut last = Progress::default();
    let parameters = ReceiveParameters { channel: channel.path() };
    let called = client.call_more("MigrateReceive", &parameters, |progress: Progress| {
        report_receiving(&progress);
        last = progress;
        true
    });
    // The answer decides: the other host is asked what it does not know.
    let relayed = channel.finish();
    called?;
    if let Err(error) = relayed {
        eprintln!("receiver: {error:#}");
    }
    Ok(last)
}

/// A line only where something is wrong: the operator sees it among those of the sender.
fn report_receiving(progress: &Progress) {
    if let Some(warning) = &progress.warning {
        eprintln!("receiver: warning: {warning}");
    }
    if let Some(step) = progress.step.as_ref().filter(|step| step.outcome == Outcome::Failed) {
        eprintln!("receiver: the step \"{}\" failed", step.name);
    }
}

/// Prints the migrations that the journals have.
pub(crate) fn migrations(client: &mut Client, as_json: bool) -> Result<ExitCode> {
    let Migrations { migrations } = client.call("Migrations", &json!({}))?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&migrations)?);
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = migrations
        .into_iter()
        .map(|migration| {
            vec![
                migration.name,
                migration.role.word().to_owned(),
                migration.peer,
                migration.guest,
                migration.stood_still_ms.map_or_else(|| "-".to_owned(), timeline::seconds),
                migration.state,
            ]
        })
        .collect();
    print!("{}", table::render(&["NAME", "THIS-HOST", "OTHER-HOST", "UUID", "STOOD-STILL", "STATE"], &rows));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
