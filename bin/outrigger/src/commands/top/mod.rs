//! `outrigger top`: guests and their stubdomains, with what they use.
//!
//! [`sample`] computes the rows without I/O; here they are printed, and [`screen`] shows them.

mod sample;
mod screen;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use api::client::Client;
use api::types::{Guests, HostInfo, Info};
use serde_json::json;

use crate::cli::Top;
use crate::table;
use sample::{Order, Row, Sample, rows};

/// Shows the guests until it is ended, or has shown them as often as asked.
pub(crate) fn top(client: &mut Client, args: &Top) -> Result<ExitCode> {
    let delay = Duration::from_secs(args.delay);
    if !args.batch && !args.json && std::io::stdout().is_terminal() {
        screen::run(client, delay, args.iterations)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut before: Option<Sample> = None;
    let mut shown = 0;
    loop {
        let look = Look::take(client)?;
        let rows = rows(before.as_ref(), &look.sample, Order::Cpu);
        if args.json {
            println!("{}", look.json(&rows));
        } else {
            if shown > 0 {
                println!();
            }
            println!("{}", look.headline());
            print!("{}", print(&rows));
        }
        shown += 1;
        if args.iterations.is_some_and(|wanted| shown >= wanted) {
            return Ok(ExitCode::SUCCESS);
        }
        before = Some(look.sample);
        thread::sleep(delay);
    }
}

/// What the daemon says at one time.
struct Look {
    host: HostInfo,
    sample: Sample,
}

impl Look {
    fn take(client: &mut Client) -> Result<Self> {
        let host = client.call::<_, Info>("HostInfo", &json!({}))?.info;
        let Guests { guests, .. } = client.call("List", &json!({}))?;
        Ok(Self { host, sample: Sample { at: Instant::now(), guests } })
    }

    fn headline(&self) -> String {
        let HostInfo { cpus, total_memory_kib, free_memory_kib, .. } = &self.host;
        let (total, free) = (total_memory_kib.mib(), free_memory_kib.mib());
        format!("{} guests, {cpus} CPUs, {free} of {total} MiB free", self.sample.guests.len())
    }

    fn json(&self, rows: &[Row]) -> serde_json::Value {
        let HostInfo { cpus, total_memory_kib, free_memory_kib, .. } = &self.host;
        json!({
            "cpus": cpus,
            "total_memory_kib": total_memory_kib,
            "free_memory_kib": free_memory_kib,
            "domains": rows,
        })
    }
}

/// The columns of the table, on a screen as in print.
const HEADINGS: [&str; 7] = ["Name", ">ID", "Status", ">CPU(%)", ">Time(s)", ">Mem(MiB)", ">VCPUs"];

fn cells(row: &Row) -> [String; HEADINGS.len()] {
    let dash = || "-".to_owned();
    [
        row.name.clone(),
        row.domid.to_string(),
        row.status.map_or_else(dash, |state| state.word().to_owned()),
        row.cpu_percent.map_or_else(dash, |percent| format!("{percent:.1}")),
        super::list::seconds(row.cpu_time_ns),
        row.memory_kib.mib().to_string(),
        row.vcpus.map_or_else(dash, |vcpus| vcpus.to_string()),
    ]
}

fn print(rows: &[Row]) -> String {
    table::render(&HEADINGS, &rows.iter().map(|row| cells(row).to_vec()).collect::<Vec<_>>())
}
