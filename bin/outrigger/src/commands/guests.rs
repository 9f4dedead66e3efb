//! Listing guests and asking things of them.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::client::Client;
use api::types::{Guest, GuestParameter, Guests, Monitored, Progress, Via};
use serde_json::json;

use super::find;
use crate::cli::{List, Stop};
use crate::table;
use crate::timeline::Timeline;

/// Prints the guests.
pub(crate) fn list(client: &mut Client, args: &List) -> Result<ExitCode> {
    let Guests { guests, incomplete, unreadable } = if args.guests.is_empty() {
        client.call("List", &json!({}))?
    } else {
        let guests = args.guests.iter().map(|guest| find(client, guest)).collect::<Result<Vec<_>>>()?;
        Guests { guests, incomplete: Vec::new(), unreadable: Vec::new() }
    };
    for left in &incomplete {
        eprintln!("warning: {}", left.problem);
    }
    for file in &unreadable {
        eprintln!("warning: {}", file.problem);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&guests)?);
        return Ok(ExitCode::SUCCESS);
    }
    let short = |guest: &Guest| {
        vec![
            guest.name.clone(),
            guest.domid.to_string(),
            guest.stub_domid.map_or_else(|| "-".to_owned(), |stub| stub.to_string()),
            guest.memory_kib.mib().to_string(),
            guest.vcpus.to_string(),
            guest.state.word().to_owned(),
            seconds(guest.cpu_time_ns),
        ]
    };
    let mut headings = vec!["NAME", ">ID", ">STUB", ">MEM(MiB)", ">VCPUS", "STATE", ">TIME(s)"];
    let mut rows: Vec<Vec<String>> = guests.iter().map(short).collect();
    if args.long {
        headings.extend([">STUB-MEM(MiB)", ">STUB-TIME(s)", "UUID"]);
        for (row, guest) in rows.iter_mut().zip(&guests) {
            row.extend([
                guest.stub_memory_kib.mib().to_string(),
                seconds(guest.stub_cpu_time_ns),
                guest.uuid.clone(),
            ]);
        }
    }
    let dash = || "-".to_owned();
    rows.extend(incomplete.into_iter().map(|left| {
        let mut row = vec![left.name, dash(), dash(), dash(), dash(), "incomplete".to_owned(), dash()];
        if args.long {
            row.extend([dash(), dash(), left.uuid]);
        }
        row
    }));
    rows.extend(unreadable.into_iter().map(|file| {
        let name = file.name.unwrap_or_else(dash);
        let domid = file.domid.map_or_else(dash, |domid| domid.to_string());
        let mut row = vec![name, domid, dash(), dash(), dash(), "unreadable".to_owned(), dash()];
        if args.long {
            row.extend([dash(), dash(), file.uuid.unwrap_or_else(dash)]);
        }
        row
    }));
    print!("{}", table::render(&headings, &rows));
    Ok(ExitCode::SUCCESS)
}

fn seconds(ns: u64) -> String {
    format!("{}.{}", ns / 1_000_000_000, ns / 100_000_000 % 10)
}

/// Destroys guests and shows the steps.
pub(crate) fn destroy(client: &mut Client, guests: &[String]) -> Result<ExitCode> {
    client.set_deadline(None)?;
    for guest in guests {
        let mut timeline = Timeline::new();
        client.call_more("Destroy", &GuestParameter { guest: guest.clone() }, |progress: Progress| {
            timeline.follow(&progress);
            true
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Calls a method without an answer for each guest.
pub(crate) fn each(client: &mut Client, method: &str, guests: &[String]) -> Result<ExitCode> {
    for guest in guests {
        let _: serde_json::Value = client.call(method, &GuestParameter { guest: guest.clone() })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks each guest to reboot or to power off, and prints through which way it was asked.
pub(crate) fn request(client: &mut Client, method: &str, guests: &[String]) -> Result<ExitCode> {
    for guest in guests {
        let reply: Via = client.call(method, &GuestParameter { guest: guest.clone() })?;
        let way = if reply.via == "pv" { "its PV driver" } else { "the ACPI power button" };
        println!("Sent the request to {guest} through {way}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks guests to power off and, when wanted, waits until they are gone.
pub(crate) fn shutdown(connect: impl Fn() -> Result<Client>, args: &Stop) -> Result<ExitCode> {
    let mut client = connect()?;
    let Some(limit) = args.wait else { return request(&mut client, "Shutdown", &args.guests) };
    let mut left: Vec<Guest> =
        args.guests.iter().map(|guest| find(&mut client, guest)).collect::<Result<_>>()?;
    // Subscribed before asking, so that no end is missed.
    let mut watcher = connect()?;
    watcher.begin("Monitor", &json!({}))?;
    let code = request(&mut client, "Shutdown", &args.guests)?;
    let deadline = Instant::now() + Duration::from_secs(limit);
    while let Some(guest) = left.first() {
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            bail!("{} is still running; `outrigger destroy` ends it at once", guest.name);
        }
        watcher.set_deadline(Some(remaining))?;
        let event = watcher
            .next_reply::<Monitored>("Monitor")
            .with_context(|| format!("{} is still running; `outrigger destroy` ends it at once", guest.name))?
            .0
            .event;
        if matches!(event.kind.as_str(), "destroyed" | "preserved") {
            left.retain(|guest| guest.domid != event.domid);
        }
    }
    Ok(code)
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
