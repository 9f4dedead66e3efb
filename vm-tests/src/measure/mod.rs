//! Measurements that need a program in dom0. Each figure is a line of JSON, [`vm_report::Figure`]; all other lines are for
//! people.

mod console;
mod create;
mod emulator;
mod example;
mod image;
mod migrate;
mod processes;
mod qmp;
mod save;
mod sources;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Subcommand;
use vm_report::Figure;

use crate::harness::seconds;

/// Where files of the measurements go.
const FOLDER: &str = "/tmp/bench";
/// Where the console daemon has its logs.
const LOGS: &str = "/var/log/outrigger/console";
/// What tells stock xenconsoled where to write its process's number.
const STOCK_PID: &str = "--pid-file=/run/xenconsoled.pid";
/// Between two looks at what is waited for.
const AGAIN: Duration = Duration::from_millis(20);

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// Consoles: throughput, key latency, idle cost and memory.
    Console {
        /// Only these parts.
        parts: Vec<String>,
    },
    /// Create, first guest byte, destroy and dom0's memory.
    Create,
    /// The emulator: guests that it breaks, exits to Xen, the boot of Linux.
    Emulator,
    /// Stubdomains of three images: their start and their memory.
    Image,
    /// Live migration between the hosts of a pair. Both have to call it.
    Migrate {
        /// Only guests of these sizes, in MiB.
        sizes: Vec<u64>,
    },
    /// QMP's round trip, its rate and its memory.
    Qmp,
    /// Saving and restoring.
    Save,
    /// One end of a pipe between two processes, of which only one can run.
    #[command(hide = true)]
    Switch {
        /// Which end.
        end: emulator::End,
    },
}

/// Measures what is asked for, `runs` times.
pub(crate) fn main(what: &What, runs: u32) -> Result<()> {
    match what {
        What::Console { parts } => console::measure(runs, parts),
        What::Create => create::measure(runs),
        What::Emulator => emulator::measure(runs),
        What::Image => image::measure(runs),
        What::Migrate { sizes } => migrate::measure(runs, sizes),
        What::Qmp => qmp::measure(runs),
        What::Save => save::measure(runs),
        What::Switch { end } => emulator::switch(*end),
    }
}

/// Says a figure.
fn figure(id: &str, value: f64, unit: &str) {
    println!("{}", Figure::new(id, value, unit).line());
}

/// What could not be measured. The rest is.
#[derive(Debug, Default)]
struct Failures(u32);

impl Failures {
    /// Says what has failed, and goes on.
    fn tried<T>(&mut self, what: &str, outcome: Result<T>) -> Option<T> {
        outcome
            .inspect_err(|error| {
                println!("FAILED: {what}: {error:#}");
                self.0 += 1;
            })
            .ok()
    }

    /// Fails if anything has failed.
    fn end(self) -> Result<()> {
        ensure!(self.0 == 0, "{} measurements failed", self.0);
        Ok(())
    }
}

/// Does something, and says how many seconds it took if it succeeds.
fn timed(id: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    work()?;
    figure(id, start.elapsed().as_secs_f64(), "s");
    Ok(())
}

/// Waits until a condition holds, for at most so many seconds.
fn wait_until(what: &str, within: u64, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + seconds(within);
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: not within {within} s");
        std::thread::sleep(AGAIN);
    }
    Ok(())
}

/// Whether a log has these words. One that is missing has none.
fn has_words(log: &Path, words: &str) -> bool {
    std::fs::read(log).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(words))
}
