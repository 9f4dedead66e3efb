//! `outrigger uptime`.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use api::client::Client;
use serde::Serialize;
use tz::{DateTime, TimeZone};

use super::vcpus;
use crate::cli::Uptime;
use crate::table;

/// How long dom0 has been running, in seconds.
const OF_DOM0: &str = "/proc/uptime";

/// How long a domain has been running.
#[derive(Debug, Serialize)]
struct Running {
    name: String,
    domid: u16,
    seconds: u64,
}

/// Prints how long domains have been running; dom0 too, if no guest is named.
pub(crate) fn uptime(client: &mut Client, args: &Uptime) -> Result<ExitCode> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("The clock is before 1970")?.as_secs();
    let mut all = Vec::new();
    if args.shown.guests.is_empty() {
        all.push(Running { name: "Domain-0".to_owned(), domid: 0, seconds: dom0()? });
    }
    for guest in vcpus::shown(client, &args.shown)? {
        let Some(started) = guest.listing.as_ref().and_then(|listing| listing.started) else { continue };
        let seconds = now.saturating_sub(started);
        all.push(Running { name: guest.name, domid: guest.domid.get(), seconds });
    }
    if args.shown.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else if args.short {
        let time = time_of_day()?;
        for Running { name, domid, seconds } in &all {
            println!(" {time} up {}, {name} ({domid})", text(*seconds, false));
        }
    } else {
        let row = |of: &Running| vec![of.name.clone(), of.domid.to_string(), text(of.seconds, true)];
        print!("{}", table::render(&["Name", ">ID", "Uptime"], &all.iter().map(row).collect::<Vec<_>>()));
    }
    Ok(ExitCode::SUCCESS)
}

fn dom0() -> Result<u64> {
    let text = std::fs::read_to_string(OF_DOM0).with_context(|| format!("Cannot read {OF_DOM0}"))?;
    let seconds = text.split(['.', ' ']).next().and_then(|seconds| seconds.parse().ok());
    seconds.with_context(|| format!("{OF_DOM0} does not begin with a number"))
}

/// Days, hours and minutes, as `xl uptime` prints them.
fn text(seconds: u64, with_seconds: bool) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (hours, minutes, seconds) = (rest / 3_600, rest / 60 % 60, rest % 60);
    let days = match days {
        0 => String::new(),
        1 => "1 day, ".to_owned(),
        many => format!("{many} days, "),
    };
    let seconds = if with_seconds { format!(":{seconds:02}") } else { String::new() };
    format!("{days}{hours:2}:{minutes:02}{seconds}")
}

fn time_of_day() -> Result<String> {
    // A host without a time zone has UTC.
    let zone = TimeZone::local().unwrap_or_else(|_| TimeZone::utc());
    let now = DateTime::now(zone.as_ref()).context("Cannot read the clock")?;
    Ok(format!("{:02}:{:02}:{:02}", now.hour(), now.minute(), now.second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_by_xl() {
        assert_eq!(text(59, true), " 0:00:59");
        assert_eq!(text(3_661, true), " 1:01:01");
        assert_eq!(text(86_400 + 36_000, true), "1 day, 10:00:00");
        assert_eq!(text(3 * 86_400 + 60, false), "3 days,  0:01");
    }
}
