//! Destroying guests, asking for what has no answer, and their events.

use std::process::ExitCode;

use anyhow::Result;
use api::client::Client;
use api::types::{GuestParameter, Monitored, Progress};
use serde_json::json;

use super::each_of;
use crate::timeline::Timeline;

/// Destroys guests and shows the steps.
pub(crate) fn destroy(client: &mut Client, guests: &[String]) -> Result<ExitCode> {
    client.set_deadline(None)?;
    each_of(guests, |guest| {
        let mut timeline = Timeline::new();
        let guest = GuestParameter { guest: guest.to_owned() };
        Ok(client.call_more("Destroy", &guest, |progress: Progress| {
            timeline.follow(&progress);
            true
        })?)
    })
}

/// Calls a method without an answer for each guest.
pub(crate) fn each(client: &mut Client, method: &str, guests: &[String]) -> Result<ExitCode> {
    each_of(guests, |guest| {
        let _: serde_json::Value = client.call(method, &GuestParameter { guest: guest.to_owned() })?;
        Ok(())
    })
}

/// Prints what happens to guests until interrupted.
pub(crate) fn events(client: &mut Client, json: bool) -> Result<ExitCode> {
    client.set_deadline(None)?;
    client.call_more("Monitor", &json!({}), |Monitored { event }: Monitored| {
        if json {
            if let Ok(line) = serde_json::to_string(&event) {
                println!("{line}");
            }
        } else {
            println!("{} (domain {}): {} {}", event.name, event.domid, event.kind, event.detail);
        }
        true
    })?;
    Ok(ExitCode::SUCCESS)
}
