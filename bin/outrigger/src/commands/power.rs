//! `outrigger shutdown` and `outrigger reboot`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::client::{Client, ClientError};
use api::types::{Event, Guest, GuestParameter, Guests, Monitored, RebootParameters, Refusal, State, Via};
use serde::Serialize;
use serde_json::json;

use super::find;
use crate::cli::{Reboot, Several, Shutdown};

/// Asks guests to power off and, when wanted, waits until they are gone.
pub(crate) fn shutdown(connect: impl Fn() -> Result<Client>, args: &Shutdown) -> Result<ExitCode> {
    let asking = Asking {
        method: "Shutdown",
        ends: match args.wait.is_for_destruction() {
            true => |event| event.kind == "destroyed",
            false => |event| matches!(event.kind.as_str(), "destroyed" | "preserved"),
        },
        late: "is still running; `outrigger destroy` ends it at once",
    };
    // A guest without PV drivers gets the button whether -F is given or not.
    let parameters = |guest: &Guest| GuestParameter { guest: guest.uuid.clone() };
    asking.ask(connect, &args.which, args.wait.limit(), parameters)
}

/// Asks guests to reboot and, when wanted, waits until they run again.
pub(crate) fn reboot(connect: impl Fn() -> Result<Client>, args: &Reboot) -> Result<ExitCode> {
    let asking = Asking {
        method: "Reboot",
        ends: |event| matches!(event.kind.as_str(), "created" | "destroyed" | "preserved"),
        late: "has not rebooted yet; `outrigger console` shows what it does",
    };
    let parameters = |guest: &Guest| RebootParameters { guest: guest.uuid.clone(), reset: args.fallback };
    asking.ask(connect, &args.which, args.wait.limit(), parameters)
}

/// What guests are asked for.
struct Asking {
    method: &'static str,
    /// Whether the event ends the wait for its guest.
    ends: fn(&Event) -> bool,
    /// What is said of a guest that takes too long.
    late: &'static str,
}

impl Asking {
    /// Asks each guest. All of them are asked, whatever becomes of one, and waited for together.
    fn ask<P: Serialize>(
        &self,
        connect: impl Fn() -> Result<Client>,
        which: &Several,
        wait: Option<u64>,
        parameters: impl Fn(&Guest) -> P,
    ) -> Result<ExitCode> {
        let mut client = connect()?;
        let guests = several(&mut client, which)?;
        // Subscribed before asking, so that no end is missed.
        let watcher = match wait {
            Some(limit) => {
                let mut watcher = connect()?;
                watcher.begin("Monitor", &json!({}))?;
                Some((watcher, Duration::from_secs(limit)))
            }
            None => None,
        };
        let mut first_error = None;
        let mut asked = Vec::new();
        for guest in guests {
            match client.call::<_, Via>(self.method, &parameters(&guest)) {
                Ok(Via { via }) => {
                    println!("Sent the request to {} through {}", guest.name, way(&via));
                    asked.push(guest);
                }
                // The only one: its error is the command's.
                Err(error) if !which.all && which.guests.len() == 1 => return Err(error.into()),
                // It has ended by itself since.
                Err(ClientError::Refused { refusal, .. })
                    if which.all && matches!(*refusal, Refusal::NoSuchGuest { .. }) => {}
                Err(error @ ClientError::Refused { .. }) => {
                    crate::report::print_for(&format!("{}: ", guest.name), &anyhow::Error::from(error));
                    first_error.get_or_insert(guest.name);
                }
                // There is no daemon to ask for the others.
                Err(error) => return Err(error.into()),
            }
        }
        if let Some((watcher, limit)) = watcher {
            self.wait(watcher, asked, limit)?;
        }
        match first_error {
            None => Ok(ExitCode::SUCCESS),
            Some(name) => bail!("{name} was not asked, or has refused; see above"),
        }
    }

    fn wait(&self, mut watcher: Client, mut left: Vec<Guest>, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while let Some(guest) = left.first() {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                bail!("{} {}", guest.name, self.late);
            }
            watcher.set_deadline(Some(remaining))?;
            let event = watcher
                .next_reply::<Monitored>("Monitor")
                .with_context(|| format!("{} {}", guest.name, self.late))?
                .0
                .event;
            if event.kind == "create-failed" && left.iter().any(|guest| guest.uuid == event.uuid) {
                bail!("{} was not created again: {}", event.name, event.detail);
            }
            if (self.ends)(&event) {
                left.retain(|guest| guest.uuid != event.uuid);
            }
        }
        Ok(())
    }
}

fn way(via: &str) -> &'static str {
    match via {
        "pv" => "its PV driver",
        "reset" => "a reset",
        _ => "the ACPI power button",
    }
}

/// The guests that are meant.
fn several(client: &mut Client, which: &Several) -> Result<Vec<Guest>> {
    if which.all {
        let mut guests = client.call::<_, Guests>("List", &json!({}))?.guests;
        // Those that have ended are preserved, and there is nothing to ask them for.
        guests.retain(|guest| !matches!(guest.state, State::ShutDown | State::Crashed));
        return Ok(guests);
    }
    which.guests.iter().map(|guest| find(client, guest)).collect()
}
