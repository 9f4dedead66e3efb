//! `cargo xtask bench`: measurements on the embedded host, ours beside stock xl in one boot.
//!
//! `vm-tests measure` measures in dom0 (`vm-tests/src/measure`). Here is what it needs there, and what its figures have to
//! reach.

mod console;
mod create;
mod emulator;
mod image;
mod migrate;
mod qmp;
mod results;
mod save;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use testhost::{Accel, Host, Job, Put, Report, Request, TimeScale};
use vm_report::Figure;

use self::results::{Goal, Results};
use crate::binaries::{self, Profile, Xen};
use crate::host::{self, BuildOptions};
use crate::releases::DebianOptions;
use crate::view::View;
use crate::{debian, workspace};

/// One run, before scaling.
const RUN_LIMIT: Duration = Duration::from_secs(900);

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, first guest byte, destroy and dom0's memory: xl with QEMU in dom0, xl with the stubdomain, ours.
    Create(Options),
    /// Stubdomains from start to ready, their memory and size: the image, its quick start, one made by hand.
    Image(Options),
    /// QMP's round trip, its rate with many clients and its memory: stock vchan-socket-proxy, ours.
    Qmp(Options),
    /// Consoles: throughput, key latency, idle cost and memory: stock xenconsoled, QEMU's backend, ours.
    Console(Options),
    /// Saving and restoring: xl with QEMU in dom0, xl with the stubdomain, ours.
    Save(Options),
    /// Live migration between two hosts and its downtime: xl with QEMU in dom0, xl with the stubdomain, ours.
    Migrate(Options),
    /// The emulator itself: guests that it breaks, exits to Xen a second, the boot of Linux.
    Emulator(Options),
}

/// How to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Runs of each; the medians count.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Writes the figures to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Installs missing Debian packages without asking.
    #[arg(long)]
    yes: bool,
    /// Uses our programs as they were last compiled.
    #[arg(long)]
    no_build: bool,
    /// Boots the embedded host from scratch.
    #[arg(long, env = "OUTRIGGER_FRESH")]
    fresh: bool,
    #[command(flatten)]
    emulator: crate::emulator::EmulatorOption,
    #[command(flatten)]
    debian: DebianOptions,
}

impl Options {
    /// What programs of the host's dom0 are linked with.
    fn xen(&self) -> Result<Xen> {
        Xen::of(&self.debian.store()?, self.debian.host().xen())
    }
}

/// Measures.
pub(crate) fn main(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Create(options) => create::main(options),
        Command::Save(options) => save::main(options),
        Command::Migrate(options) => migrate::main(options),
        Command::Image(options) => image::main(options),
        Command::Qmp(options) => qmp::main(options),
        Command::Console(options) => console::main(options),
        Command::Emulator(options) => emulator::main(options),
    }
}

/// What a bench needs in dom0 beside `vm-tests`, and what is known of it without a measurement.
#[derive(Debug, Default)]
struct Needs {
    programs: Vec<Put>,
    files: Vec<Put>,
    figures: Vec<Figure>,
}

/// Runs a bench in dom0, prints the table, and succeeds when every goal is met.
fn measure(bench: &'static str, needs: Needs, goals: &[Goal], options: &Options) -> Result<ExitCode> {
    measure_by(bench, needs, goals, options, |host, request, view| Ok(testhost::run(host, &request, view)?))
}

/// The same where `run` makes the run; its report's folder has the figures.
fn measure_by(
    bench: &'static str,
    needs: Needs,
    goals: &[Goal],
    options: &Options,
    run: impl FnOnce(&Host, Request, &mut View) -> Result<Report>,
) -> Result<ExitCode> {
    debian::ensure(&[debian::BUILD.as_slice(), &debian::RUN_HOST].concat(), options.yes)?;
    let mut view = View::new(false, false);
    let build = BuildOptions {
        with_xen_tools: true,
        release: true,
        no_build: options.no_build,
        debian: options.debian,
        ..BuildOptions::default()
    };
    let mut programs = needs.programs;
    let program = binaries::program("vm-tests", Profile::Release, &options.xen()?)?;
    programs.push(Put { source: program, target: "/usr/bin/vm-tests".into() });
    let host = host::built(&build, &programs, &mut view)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bench");
    let scale = TimeScale::from_env()?;
    fs::write(&path, script(bench, options.runs, scale))?;
    let request = Request {
        machine: options.emulator.machine(Accel::Tcg, &mut view)?.stretched(scale),
        preparations: Vec::new(),
        job: Job::Script(path),
        puts: needs.files,
        timeout: Some(RUN_LIMIT * options.runs.max(1)),
        fresh: options.fresh,
        logs: testhost::fresh_log_folder(&workspace::kept("logs")),
        scale,
    };
    let report = run(&host, request, &mut view)?;
    let path = report.logs.join("output.log");
    let output = fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))?;
    let output = String::from_utf8_lossy(&output);
    let figures = [needs.figures, results::figures(&output)].concat();
    let results = Results::of(bench, figures, goals).without(results::omissions(&output));
    println!("\n{}", results.table());
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&results)?;
        fs::write(path, text + "\n").with_context(|| format!("Cannot write {}", path.display()))?;
    }
    if report.status != 0 {
        bail!("A measurement failed (status {}); the logs are in {}", report.status, report.logs.display());
    }
    Ok(if results.falls_short(goals) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn script(bench: &str, runs: u32, scale: TimeScale) -> String {
    format!(
        "#!/bin/sh\nexport {}={scale}\nexec vm-tests measure {bench} --runs {runs}\n",
        TimeScale::VARIABLE
    )
}
