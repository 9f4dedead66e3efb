//! `outrigger list` and `outrigger vm-list`.

use std::process::ExitCode;

use anyhow::Result;
use api::client::Client;
use api::types::{Guest, Guests, Listing};
use serde_json::json;

use super::find;
use crate::cli::List;
use crate::table;

/// A column of a guest: its heading, and the text for one.
struct Column {
    heading: &'static str,
    text: fn(&Guest) -> String,
}

const fn column(heading: &'static str, text: fn(&Guest) -> String) -> Column {
    Column { heading, text }
}

/// The first six are those of `xl list`, for scripts that count them.
const COLUMNS: [Column; 8] = [
    column("Name", |guest| guest.name.clone()),
    column(">ID", |guest| guest.domid.to_string()),
    column(">Mem", |guest| guest.memory_kib.mib().to_string()),
    column(">VCPUs", |guest| guest.vcpus.to_string()),
    column("State", |guest| {
        guest.listing.as_ref().map_or_else(|| "------".to_owned(), |of| of.flags.clone())
    }),
    column(">Time(s)", |guest| seconds(guest.cpu_time_ns)),
    column(">Stub", |guest| guest.stub_domid.map_or_else(dash, |stub| stub.to_string())),
    column("Status", |guest| guest.state.word().to_owned()),
];
const LONG: [Column; 2] = [
    column(">Stub-Mem", |guest| guest.stub_memory_kib.mib().to_string()),
    column(">Stub-Time(s)", |guest| seconds(guest.stub_cpu_time_ns)),
];
const UUID: Column = column("UUID", |guest| guest.uuid.clone());
const REASON: Column = column("Reason", |guest| listed(guest, |of| of.reason.clone()));
const LABEL: Column = column("Security-Label", |guest| listed(guest, |of| of.label.clone()));
const POOL: Column = column("Cpupool", |guest| listed(guest, |of| Some(of.pool.clone())));
const NODES: Column = column("Node-Affinity", |guest| listed(guest, |of| Some(nodes(&of.nodes))));

/// The columns that the options ask for.
fn columns(args: &List) -> Vec<&'static Column> {
    let mut columns: Vec<&Column> = COLUMNS.iter().collect();
    if args.long {
        columns.extend(&LONG);
    }
    for (is_wanted, column) in [
        (args.long || args.verbose, &UUID),
        (args.verbose, &REASON),
        (args.verbose || args.context, &LABEL),
        (args.cpupool, &POOL),
        (args.numa, &NODES),
    ] {
        if is_wanted {
            columns.push(column);
        }
    }
    columns
}

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
    let columns = columns(args);
    let headings: Vec<&str> = columns.iter().map(|column| column.heading).collect();
    let row = |guest: &Guest| columns.iter().map(|column| (column.text)(guest)).collect();
    let mut rows: Vec<Vec<String>> = guests.iter().map(row).collect();
    rows.extend(incomplete.into_iter().map(|left| {
        rest(&headings, &[("Name", left.name), ("UUID", left.uuid), ("Status", "incomplete".to_owned())])
    }));
    rows.extend(unreadable.into_iter().map(|file| {
        let known = [
            ("Name", file.name.unwrap_or_else(dash)),
            (">ID", file.domid.map_or_else(dash, |domid| domid.to_string())),
            ("UUID", file.uuid.unwrap_or_else(dash)),
            ("Status", "unreadable".to_owned()),
        ];
        rest(&headings, &known)
    }));
    print!("{}", table::render(&headings, &rows));
    Ok(ExitCode::SUCCESS)
}

/// The row of what is not a guest, with what is known of it.
fn rest(headings: &[&str], known: &[(&str, String)]) -> Vec<String> {
    let cell = |heading: &&str| known.iter().find(|(name, _)| name == heading).map(|(_, text)| text.clone());
    headings.iter().map(|heading| cell(heading).unwrap_or_else(dash)).collect()
}

/// Prints the guests by UUID.
pub(crate) fn vm_list(client: &mut Client, as_json: bool) -> Result<ExitCode> {
    let Guests { guests, .. } = client.call("List", &json!({}))?;
    if as_json {
        let short = |guest: &Guest| json!({ "uuid": guest.uuid, "domid": guest.domid, "name": guest.name });
        println!("{}", serde_json::to_string_pretty(&guests.iter().map(short).collect::<Vec<_>>())?);
        return Ok(ExitCode::SUCCESS);
    }
    let row = |guest: &Guest| vec![guest.uuid.clone(), guest.domid.to_string(), guest.name.clone()];
    print!("{}", table::render(&["UUID", "ID", "name"], &guests.iter().map(row).collect::<Vec<_>>()));
    Ok(ExitCode::SUCCESS)
}

fn listed(guest: &Guest, value: impl Fn(&Listing) -> Option<String>) -> String {
    guest.listing.as_ref().and_then(value).unwrap_or_else(dash)
}

fn nodes(nodes: &[u32]) -> String {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    if nodes.is_empty() { dash() } else { nodes.join(",") }
}

fn dash() -> String {
    "-".to_owned()
}

/// CPU time, as `xl list` has it.
pub(super) fn seconds(ns: u64) -> String {
    format!("{}.{}", ns / 1_000_000_000, ns / 100_000_000 % 10)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn headings(words: &str) -> Vec<&'static str> {
        let words = format!("outrigger list {words}");
        let Command::List(args) = Cli::try_parse_from(words.split_whitespace()).unwrap().command else {
            panic!("not list")
        };
        columns(&args).into_iter().map(|column| column.heading.trim_start_matches('>')).collect()
    }

    #[test]
    fn first_columns_are_those_of_xl_whatever_is_asked_for() {
        let of_xl = ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"];
        for words in ["", "-l", "-v", "-Z", "-c", "-n", "-lvZcn"] {
            assert_eq!(headings(words)[..6], of_xl, "{words}");
        }
        assert_eq!(headings("-v")[8..], ["UUID", "Reason", "Security-Label"]);
        assert_eq!(headings("-Z -c -n")[8..], ["Security-Label", "Cpupool", "Node-Affinity"]);
    }

    #[test]
    fn what_is_not_a_guest_has_dashes() {
        let row = rest(&["Name", ">ID", "Status"], &[("Name", "a".to_owned()), ("Status", "x".to_owned())]);
        assert_eq!(row, ["a", "-", "x"]);
    }
}
