//! The end-to-end suite: cases in the dom0 of embedded hosts, each on a copy of a prepared one, side by side.

mod group;
mod report;
mod schedule;
mod states;
mod trials;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use testhost::{Accel, TimeScale};
use vm_report::CaseInfo;

use self::group::{Group, groups};
use self::report::{Board, Outcome, Times};
use self::schedule::{Piece, side_by_side};
use self::states::Hosts;
use self::trials::Trial;
use crate::view::View;
use crate::workspace;

/// What an emulated host may need of this machine's memory, in KiB: most of its 4 GiB are never touched.
const HOST_KIB: u64 = 3 << 20;
/// The processors of an emulated host.
const HOST_CPUS: usize = 2;

/// How to run the suite.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// Only cases and trials whose name holds this.
    pub(crate) filter: Option<&'a str>,
    /// So many hosts at once; as many as the machine bears when not said.
    pub(crate) jobs: Option<usize>,
    /// Where to write JUnit's XML.
    pub(crate) junit: Option<PathBuf>,
    /// What executes the hosts' instructions.
    pub(crate) accel: Accel,
}

/// What became of a suite.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    /// How long the cases took, side by side.
    pub(crate) took: Duration,
    /// How many there were.
    pub(crate) cases: usize,
    /// How many failed.
    pub(crate) failed: usize,
}

/// Runs the cases, and fails when one does.
pub(crate) fn run(options: &Options<'_>) -> Result<()> {
    let Summary { cases, failed, .. } = all(options)?;
    if failed > 0 {
        bail!("{failed} of {cases} cases failed");
    }
    Ok(())
}

/// Runs the cases. An error is what kept them from being run.
pub(crate) fn all(options: &Options<'_>) -> Result<Summary> {
    let jobs = options.jobs.unwrap_or_else(jobs);
    let mut view = View::new(false, false);
    let hosts = Hosts::build(scale(jobs)?, options.accel, &mut view)?;
    let is_asked = |name: &str| options.filter.is_none_or(|filter| name.contains(filter));
    let cases: Vec<CaseInfo> = list(&hosts)?.into_iter().filter(|case| is_asked(&case.name)).collect();
    let trials: Vec<Trial> = Trial::ALL.into_iter().filter(|trial| is_asked(trial.name())).collect();
    ensure!(!(cases.is_empty() && trials.is_empty()), "No case has {:?} in its name", options.filter);
    let times_path = workspace::kept("times.json");
    let times = Times::read(&times_path);
    let logs = testhost::fresh_log_folder(&workspace::kept("logs"));
    let groups = groups(&cases, &times);
    eprintln!(
        "{} cases on {} copies of hosts, and {} trials, {jobs} at once",
        cases.len(),
        groups.len(),
        trials.len()
    );
    let board = Board::new();
    let context = Context { hosts: &hosts, board: &board, logs };
    let mut pieces: Vec<Piece<'_>> = groups.into_iter().map(|group| context.piece(group)).collect();
    pieces.extend(
        trials.into_iter().map(|trial| context.trial(trial, times.of(trial.name(), trial.expected()))),
    );
    side_by_side(jobs, pieces);
    let (took, outcomes) = board.outcomes();
    eprintln!("{}", report::summary(took, &outcomes));
    if let Some(path) = &options.junit {
        report::junit(path, took, &outcomes)?;
    }
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    times.keep(&outcomes)?;
    Ok(Summary { took, cases: outcomes.len(), failed })
}

/// What every piece of the suite needs.
struct Context<'a> {
    hosts: &'a Hosts,
    board: &'a Board,
    logs: PathBuf,
}

impl<'a> Context<'a> {
    fn piece(&self, group: Group) -> Piece<'a> {
        let (hosts, board, logs) = (self.hosts, self.board, self.logs.clone());
        let expected = group.expected;
        let work = move || {
            let first = group.cases.first().cloned().unwrap_or_default();
            let folder = logs.join(first.replace("::", "-"));
            match group.run(hosts, board, &folder) {
                Ok(rest) => rest.map(|rest| Self { hosts, board, logs }.piece(rest)).into_iter().collect(),
                Err(error) => {
                    board.tell(Outcome { name: first, seconds: 0.0, failure: Some(format!("{error:#}")) });
                    Vec::new()
                }
            }
        };
        Piece { expected, work: Box::new(work) }
    }

    fn trial(&self, trial: Trial, expected: f64) -> Piece<'a> {
        let (hosts, board, logs) = (self.hosts, self.board, self.logs.join(trial.name()));
        let work = move || {
            board.tell(trial.run(hosts, &logs));
            Vec::new()
        };
        Piece { expected, work: Box::new(work) }
    }
}

/// As many hosts as this machine has processors and memory for.
fn jobs() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    let by_memory = memory.map_or(1, |kib| usize::try_from(kib / HOST_KIB).unwrap_or(usize::MAX));
    processors.min(by_memory).max(1)
}

/// Deadlines, stretched further when hosts have fewer processors than they think.
fn scale(jobs: usize) -> Result<TimeScale> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = u32::try_from(jobs.saturating_mul(HOST_CPUS)).unwrap_or(u32::MAX);
    let there = u32::try_from(processors).unwrap_or(u32::MAX);
    Ok(TimeScale::from_env()?.times((f64::from(wanted) / f64::from(there)).max(1.0)))
}

/// Asks the program of the cases, which lists them on any machine.
fn list(hosts: &Hosts) -> Result<Vec<CaseInfo>> {
    let output = Command::new(&hosts.cases).args(["list", "--json"]).output();
    let output = output.with_context(|| format!("Cannot start {}", hosts.cases.display()))?;
    ensure!(
        output.status.success(),
        "vm-tests lists no cases ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("vm-tests lists its cases in another way than it should")
}
