//! `outrigger create`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use api::client::Client;
use api::types::{ConfigUpdate as Parameters, CreateParameters, Guest, Monitored, Progress};
use serde_json::json;

use super::{change, config, console};
use crate::cli::{ConfigUpdate, Create};
use crate::closed_pipe;
use crate::report::Usage;
use crate::timeline::Timeline;

/// Creates a guest and shows the steps. A file that is wrong is wrong without a daemon too.
pub(crate) fn create(connect: impl Fn() -> Result<Client>, args: &Create) -> Result<ExitCode> {
    let source = args.source().map_err(Usage)?;
    let checked = config::check_for_create(source.file, &source.settings)?;
    if args.dry_run {
        let text = format!("{}\n", serde_json::to_string_pretty(&checked.config)?);
        closed_pipe::print(&text).context("Cannot write to standard output")?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = absolute(source.file)?;
    let parameters = CreateParameters { config: checked.text, path, paused: args.paused, force: args.force };
    // Subscribed before the guest exists, so that no end is missed.
    let watcher = if args.foreground { Some(watch(&connect)?) } else { None };
    let guest = make(&mut connect()?, args, &parameters)?;
    if args.console {
        return console::serial(&guest, 0, true);
    }
    if !args.json && !args.quiet {
        println!("{} runs as domain {}", guest.name, guest.domid);
    }
    match watcher {
        Some(watcher) => until_its_end(watcher, &guest, args.quiet),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Replaces the configuration that a guest is restarted from.
pub(crate) fn config_update(connect: impl Fn() -> Result<Client>, args: ConfigUpdate) -> Result<ExitCode> {
    let source = args.source().map_err(Usage)?;
    let config = config::check_for_create(source.file, &source.settings)?.text;
    let path = absolute(source.file)?;
    change::steps(&mut connect()?, "ConfigUpdate", &Parameters { guest: args.guest, config, path })
}

pub(super) fn absolute(file: &Path) -> Result<String> {
    let path = std::path::absolute(file)
        .with_context(|| format!("Cannot determine the absolute path of {}", file.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

fn make(client: &mut Client, args: &Create, parameters: &CreateParameters) -> Result<Guest> {
    // Each step has its own deadline in the daemon.
    client.set_deadline(None)?;
    let mut timeline = Timeline::new();
    let mut created: Option<Guest> = None;
    client.call_more("Create", parameters, |progress: Progress| {
        if args.json {
            if let Ok(line) = serde_json::to_string(&progress) {
                println!("{line}");
            }
        } else if args.quiet {
            if let Some(warning) = &progress.warning {
                eprintln!("warning: {warning}");
            }
        } else {
            timeline.follow(&progress);
        }
        if progress.guest.is_some() {
            created = progress.guest;
        }
        true
    })?;
    created.context("outriggerd completed the creation without returning the guest")
}

/// Subscribes to events.
pub(super) fn watch(connect: impl Fn() -> Result<Client>) -> Result<Client> {
    let mut watcher = connect()?;
    watcher.set_deadline(None)?;
    watcher.begin("Monitor", &json!({}))?;
    Ok(watcher)
}

/// Waits until the guest is destroyed, or has ended and is preserved. It is created again meanwhile when it reboots.
pub(super) fn until_its_end(mut watcher: Client, guest: &Guest, quiet: bool) -> Result<ExitCode> {
    loop {
        let event = watcher.next_reply::<Monitored>("Monitor")?.0.event;
        if event.uuid != guest.uuid {
            continue;
        }
        if !quiet {
            eprintln!("{} (domain {}): {} {}", event.name, event.domid, event.kind, event.detail);
        }
        if matches!(event.kind.as_str(), "destroyed" | "preserved") {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
