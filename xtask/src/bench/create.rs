//! `cargo xtask bench create`.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use testhost::{Job, Machine, Request, TimeScale};

use super::Options;
use super::results::{Goal, Results};
use crate::host::{self, BuildOptions};
use crate::view::View;
use crate::{debian, workspace};

/// The part that runs in dom0.
const SCRIPT: &str = include_str!("create.sh");
/// One run of all three, before scaling.
const RUN_LIMIT: Duration = Duration::from_secs(600);
/// What has to be reached.
const GOALS: [Goal; 3] = [
    Goal { figure: "create.ours", over: Some("create.xl_stub"), at_most: 0.5 },
    Goal { figure: "dom0_memory.ours", over: None, at_most: 2.0 },
    Goal { figure: "qemu_processes.ours", over: None, at_most: 0.0 },
];

/// Measures, prints the table, and succeeds when every goal is met.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    debian::ensure(&[debian::BUILD.as_slice(), &debian::RUN_HOST].concat(), options.yes)?;
    let mut view = View::new(false, false);
    let build = BuildOptions {
        with_xen_tools: true,
        release: true,
        no_build: options.no_build,
        ..BuildOptions::default()
    };
    let host = host::built(&build, &[], &mut view)?;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("bench");
    fs::write(&script, format!("#!/bin/bash\nRUNS={}\n{SCRIPT}", options.runs))?;
    let request = Request {
        machine: Machine::default(),
        job: Job::Script(script),
        puts: Vec::new(),
        timeout: Some(RUN_LIMIT * options.runs.max(1)),
        fresh: options.fresh,
        logs: testhost::fresh_log_folder(&workspace::kept("logs")),
        scale: TimeScale::from_env()?,
    };
    let report = testhost::run(&host, &request, &mut view)?;
    let path = report.logs.join("output.log");
    let output = fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))?;
    let results = Results::read("create", &String::from_utf8_lossy(&output), &GOALS);
    println!("\n{}", results.table());
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&results)?;
        fs::write(path, text + "\n").with_context(|| format!("Cannot write {}", path.display()))?;
    }
    if report.status != 0 {
        bail!("A measurement failed (status {}); the logs are in {}", report.status, report.logs.display());
    }
    Ok(if results.falls_short(&GOALS) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
