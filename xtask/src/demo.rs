//! `cargo xtask demo`: from nothing to a guest whose QEMU lives in a stubdomain, shown live.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use testhost::{Accel, Host, Job, Report, Request, TimeScale};

use crate::host::{self, AccelOption, BuildOptions};
use crate::releases::DebianOptions;
use crate::view::View;
use crate::{debian, emulator, native, workspace};

/// The part that runs in dom0.
pub(crate) const SCRIPT: &str = include_str!("demo.sh");
/// What the whole script may take, before scaling.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(600);
/// The guest's first line on COM1, as in `examples/hello.S`.
const GREETING: &str = "Hello from an HVM guest on COM1";

/// How to demonstrate.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leaves you in dom0's shell instead, with `outrigger` on the path.
    #[arg(long, conflicts_with = "json")]
    shell: bool,
    /// Prints one JSON object at the end, and nothing else on standard output.
    #[arg(long)]
    json: bool,
    /// Installs missing Debian packages without asking.
    #[arg(long)]
    yes: bool,
    /// Uses this machine's own Xen instead of the embedded host; it must be a dom0.
    #[arg(long, conflicts_with = "shell")]
    native: bool,
    /// Builds and installs nothing: uses the programs on the path, the installed image and the example's disks.
    #[arg(long, requires = "native")]
    no_build: bool,
    #[command(flatten)]
    debian: DebianOptions,
    #[command(flatten)]
    accel: AccelOption,
    /// Boots the embedded host from scratch.
    #[arg(long, env = "OUTRIGGER_FRESH")]
    fresh: bool,
    #[command(flatten)]
    emulator: emulator::EmulatorOption,
}

/// Demonstrates.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    if native::is_dom0() && !options.native {
        eprintln!("This machine is a Xen dom0, but the demonstration uses the embedded host;");
        eprintln!("`cargo xtask demo --native` uses this machine's own Xen instead.");
    }
    if !options.no_build {
        debian::ensure(&[debian::BUILD.as_slice(), &debian::RUN_HOST].concat(), options.yes)?;
    }
    if options.native {
        return native::demo(options.json, !options.no_build);
    }
    let mut view = View::new(false, false);
    if options.json {
        view.hide_output();
    }
    let accel = options.accel.decide(&mut view)?;
    let build = BuildOptions { release: true, debian: options.debian, ..BuildOptions::default() };
    let host = host::built(&build, &[], &mut view)?;
    if options.shell {
        return shell(options, &host, accel, &mut view);
    }
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("demo");
    fs::write(&path, script("/examples", options.json))?;
    let report = testhost::run(&host, &request(options, accel, Job::Script(path), &mut view)?, &mut view)?;
    let results = report.logs.join("dom0/tmp/demo");
    let result = summary(&results, &report, started);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
    }
    verdict(&results, &report)
}

/// The script with its settings.
pub(crate) fn script(examples: &str, json: bool) -> String {
    format!("#!/bin/sh\nEXAMPLES='{examples}'\nJSON={}\n{SCRIPT}", u8::from(json))
}

fn request(options: &Options, accel: Accel, job: Job, view: &mut View) -> Result<Request> {
    let timeout = matches!(job, Job::Script(_)).then_some(LIMIT);
    let scale = TimeScale::from_env()?;
    Ok(Request {
        machine: options.emulator.machine(accel, view)?.stretched(scale),
        preparations: Vec::new(),
        job,
        puts: Vec::new(),
        timeout,
        fresh: options.fresh,
        logs: testhost::fresh_log_folder(&workspace::kept("logs")),
        scale,
    })
}

fn shell(options: &Options, host: &Host, accel: Accel, view: &mut View) -> Result<ExitCode> {
    eprintln!("A shell in dom0 follows. Try: outrigger create -c /examples/hello.cfg");
    eprintln!("`exit` ends the machine.");
    let report = testhost::run(host, &request(options, accel, Job::Shell, view)?, view)?;
    eprintln!("The logs are in {}", report.logs.display());
    Ok(ExitCode::SUCCESS)
}

/// Succeeds only when the guest's own bytes were read.
fn verdict(results: &Path, report: &Report) -> Result<ExitCode> {
    let com1 = fs::read(results.join("com1")).unwrap_or_default();
    let read = String::from_utf8_lossy(&com1).contains(GREETING);
    if !read || report.status != 0 {
        bail!(
            "No output arrived from the guest (status {}); the logs are in {}",
            report.status,
            report.logs.display()
        );
    }
    let count = fs::read_to_string(results.join("qemu-count")).unwrap_or_default();
    if count.trim() != "0" {
        bail!("QEMU runs in dom0 ({} processes); the logs are in {}", count.trim(), report.logs.display());
    }
    eprintln!(
        "The guest's output arrived, and no QEMU runs in dom0. The logs are in {}",
        report.logs.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// All results as one object; missing ones are null.
fn summary(results: &Path, report: &Report, started: Instant) -> Value {
    let text = |name: &str| fs::read_to_string(results.join(name)).ok();
    let steps: Vec<Value> = text("create.jsonl").map_or_else(Vec::new, |lines| {
        lines
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| line.get("step").cloned())
            .filter(|step| step.get("millis").is_some())
            .collect()
    });
    json!({
        "host": {
            "origin": format!("{:?}", report.origin).to_lowercase(),
            "startup_seconds": report.startup.as_secs_f64(),
            "logs": report.logs,
        },
        "seconds": started.elapsed().as_secs_f64(),
        "status": report.status,
        "steps": steps,
        "serial": [text("com1"), text("com2")],
        "dom0": {
            "processes": text("processes").map(|all| all.lines().map(str::to_owned).collect::<Vec<_>>()),
            "qemu_processes": text("qemu-count").and_then(|count| count.trim().parse::<u32>().ok()),
        },
        "guest": text("info.json").and_then(|info| serde_json::from_str::<Value>(&info).ok()),
    })
}

/// Reads what a demonstration outside of the embedded host left, and prints it.
pub(crate) fn conclude(results: &Path, report: &Report, json: bool, started: Instant) -> Result<ExitCode> {
    if json {
        println!("{}", serde_json::to_string_pretty(&summary(results, report, started))?);
    }
    verdict(results, report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_is_the_guests() {
        let source = fs::read_to_string(workspace::root().join("examples/hello.S")).unwrap();
        assert!(source.contains(GREETING) && SCRIPT.contains(GREETING));
    }
}
