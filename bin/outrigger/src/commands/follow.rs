//! Following a call that takes long, and cancelling it.

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use api::client::Client;
use api::types::{GuestParameter, Progress};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::timeline::Timeline;

/// Where one JSON object a step goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Json {
    Stdout,
    Stderr,
}

/// Calls a method with steps and shows them; returns the last reply.
pub(super) fn follow(
    client: &mut Client,
    method: &str,
    parameters: &impl Serialize,
    json: Option<Json>,
) -> Result<Progress> {
    // Each step has its own deadline in the daemon.
    client.set_deadline(None)?;
    let mut timeline = Timeline::new();
    let mut last = Progress::default();
    client.call_more(method, parameters, |progress: Progress| {
        match (json, serde_json::to_string(&progress)) {
            (None, _) => timeline.follow(&progress),
            (Some(Json::Stdout), Ok(line)) => println!("{line}"),
            (Some(Json::Stderr), Ok(line)) => eprintln!("{line}"),
            (Some(_), Err(_)) => {}
        }
        last = progress;
        true
    })?;
    Ok(last)
}

/// The words that tell a user what Ctrl-C cancels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cancelling {
    /// Such as `the save`.
    pub(super) what: &'static str,
    /// Why there may be nothing to cancel, and what can be done.
    pub(super) too_late: &'static str,
}

/// From now on the first Ctrl-C cancels what is in progress, which then fails; the second ends this process alone.
pub(super) fn cancel_on_signal(
    connect: impl Fn() -> Result<Client> + Send + 'static,
    guest: String,
    Cancelling { what, too_late }: Cancelling,
) -> Result<()> {
    let (mut signals, writer) = UnixStream::pair().context("Cannot receive signals")?;
    for signal in [SIGINT, SIGTERM] {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)
            .context("Cannot receive signals")?;
    }
    std::thread::spawn(move || {
        let mut byte = [0];
        for is_first in [true, false] {
            if signals.read_exact(&mut byte).is_err() {
                return;
            }
            if !is_first {
                std::process::exit(128 + SIGINT);
            }
            let guest = GuestParameter { guest: guest.clone() };
            let cancelled: Result<serde_json::Value> =
                connect().and_then(|mut client| Ok(client.call("Cancel", &guest)?));
            match cancelled {
                Ok(answer) if answer["cancelled"] == true => {
                    eprintln!("\nCancelling {what}; press Ctrl-C again to exit without waiting");
                }
                Ok(_) => eprintln!("\nNothing to cancel: {too_late}"),
                Err(error) => eprintln!("\nCannot cancel {what}: {error:#}"),
            }
        }
    });
    Ok(())
}
