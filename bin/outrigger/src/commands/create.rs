//! `outrigger create`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use api::client::Client;
use api::types::{CreateParameters, Guest, Progress};

use super::{config, console};
use crate::cli::Create;
use crate::timeline::Timeline;

/// Creates a guest and shows the steps. A file that is wrong is wrong without a daemon too.
pub(crate) fn create(connect: impl Fn() -> Result<Client>, args: &Create) -> Result<ExitCode> {
    let text = config::check_for_create(&args.config)?;
    let path = std::path::absolute(&args.config)
        .with_context(|| format!("Cannot determine the absolute path of {}", args.config.display()))?;
    let parameters =
        CreateParameters { config: text, path: path.to_string_lossy().into_owned(), paused: args.paused };
    let client = &mut connect()?;
    // Each step has its own deadline in the daemon.
    client.set_deadline(None)?;
    let mut timeline = Timeline::new();
    let mut created: Option<Guest> = None;
    client.call_more("Create", &parameters, |progress: Progress| {
        if args.json {
            if let Ok(line) = serde_json::to_string(&progress) {
                println!("{line}");
            }
        } else {
            timeline.follow(&progress);
        }
        if progress.guest.is_some() {
            created = progress.guest;
        }
        true
    })?;
    let guest = created.context("outriggerd completed the creation without returning the guest")?;
    if args.console {
        return console::serial(&guest, 0, true);
    }
    if !args.json {
        println!("{} runs as domain {}", guest.name, guest.domid);
    }
    Ok(ExitCode::SUCCESS)
}
