//! The end-to-end suite: cases in the dom0 of embedded hosts, each on a copy of a prepared one, side by side.

mod group;
mod pair;
mod report;
mod schedule;
mod states;
mod trials;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use testhost::{Accel, TimeScale, Xenstored};
use vm_report::{CaseInfo, HostState};
use xen_types::Release;

use self::group::{Group, Rest, groups};
use self::report::{Board, Outcome, Times};
use self::schedule::{Piece, side_by_side};
use self::states::{Hosts, Kind};
use self::trials::Trial;
use crate::releases::DebianOptions;
use crate::view::View;
use crate::workspace;

/// What an emulated host may need of this machine's memory, in KiB: most of its 4 GiB are never touched.
const HOST_KIB: u64 = 3 << 20;
/// How often a host of one kind may fail to come up before its cases fail.
const ATTEMPTS: usize = 2;
/// The processors of an emulated host.
const HOST_CPUS: usize = 2;

/// Which of the cases are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// All that the host can run, and the trials.
    All,
    /// The few that are run on the other Debian's host, too.
    OnEachDebian,
}

/// How to run the suite.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// Which cases.
    pub(crate) chosen: Chosen,
    /// Of these only cases and trials whose name contains this.
    pub(crate) filter: Option<&'a str>,
    /// Fails when there is none.
    pub(crate) must_match: bool,
    /// How many hosts run at once; by default as many as the machine bears.
    pub(crate) jobs: Option<usize>,
    /// Where to write JUnit's XML.
    pub(crate) junit: Option<PathBuf>,
    /// What executes the hosts' instructions.
    pub(crate) accel: Accel,
    /// What keeps xenstore in the hosts' dom0, except for cases that are about the one in C.
    pub(crate) xenstored: Xenstored,
    /// What the hosts and the stubdomain's image are made of.
    pub(crate) debian: DebianOptions,
}

/// A suite all of whose cases passed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    /// How many there were.
    pub(crate) cases: usize,
}

/// Runs the cases, and fails when one does.
pub(crate) fn run(options: &Options<'_>) -> Result<Summary> {
    let jobs = options.jobs.unwrap_or_else(jobs);
    let mut view = View::new(false, false);
    let hosts = Hosts::build(scale(jobs)?, options.accel, options.xenstored, options.debian, &mut view)?;
    let Asked { cases, trials, skipped } = Asked::of(list(&hosts)?, options);
    if cases.is_empty() && trials.is_empty() {
        let none = skipped == 0 && options.must_match;
        ensure!(!none, "No case has {:?} in its name", options.filter.unwrap_or_default());
        return Ok(Summary { cases: 0 });
    }
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
    let broken = Mutex::default();
    let context = Context { hosts: &hosts, board: &board, logs, broken: &broken };
    let asked = names(&cases, &trials);
    let mut pieces: Vec<Piece<'_>> = groups.into_iter().map(|group| context.piece(group)).collect();
    pieces.extend(
        trials.into_iter().map(|trial| context.trial(trial, times.of(trial.name(), trial.expected()))),
    );
    side_by_side(jobs, pieces);
    let (took, outcomes) = board.outcomes();
    eprintln!("{}", report::summary(took, &outcomes));
    times.keep(&outcomes)?;
    if let Some(path) = &options.junit {
        report::junit(path, took, &outcomes)?;
    }
    let told: BTreeSet<&str> = outcomes.iter().map(|outcome| outcome.name.as_str()).collect();
    let untold: Vec<&String> = asked.iter().filter(|name| !told.contains(name.as_str())).collect();
    ensure!(untold.is_empty(), "No result arrived for: {untold:?}");
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let cases = outcomes.len();
    ensure!(failed == 0, "{failed} of {cases} cases failed");
    Ok(Summary { cases })
}

/// What is run, and how many cases are left out because the host's Xen is too old for them.
struct Asked {
    cases: Vec<CaseInfo>,
    trials: Vec<Trial>,
    skipped: usize,
}

impl Asked {
    fn of(mut cases: Vec<CaseInfo>, options: &Options<'_>) -> Self {
        let has_name = |name: &str| options.filter.is_none_or(|filter| name.contains(filter));
        // With the xenstored in C, all other cases are about it already.
        let is_twice = |case: &CaseInfo| case.on_c_xenstored && options.xenstored == Xenstored::C;
        let is_too_long = |case: &CaseInfo| case.is_long && options.filter.is_none();
        let is_chosen = |case: &CaseInfo| options.chosen == Chosen::All || case.on_each_debian;
        cases.retain(|case| has_name(&case.name) && is_chosen(case) && !is_twice(case) && !is_too_long(case));
        let xen = options.debian.host().xen();
        let before = cases.len();
        cases.retain(|case| {
            let needs = case.since_xen.map(|(major, minor)| Release::new(major, minor));
            let Some(needs) = needs.filter(|needs| *needs > xen) else { return true };
            eprintln!("{} is left out: it needs Xen {needs}, the host has {xen}", case.name);
            false
        });
        let skipped = before - cases.len();
        let trials = match options.chosen {
            Chosen::All => Trial::ALL.into_iter().filter(|trial| has_name(trial.name())).collect(),
            Chosen::OnEachDebian => Vec::new(),
        };
        Self { cases, trials, skipped }
    }
}

/// What every piece of the suite needs.
#[derive(Clone)]
struct Context<'a> {
    hosts: &'a Hosts,
    board: &'a Board,
    logs: PathBuf,
    /// Kinds of hosts that did not come up.
    broken: &'a Mutex<Vec<Kind>>,
}

impl<'a> Context<'a> {
    fn piece(&self, group: Group) -> Piece<'a> {
        let context = self.clone();
        Piece {
            expected: group.expected,
            hosts: group.host.state.hosts(),
            work: Box::new(move || context.run(group)),
        }
    }

    /// Runs a group. A host that twice does not come up is not tried again.
    fn run(&self, group: Group) -> Vec<Piece<'a>> {
        let (kind, cases) = (group.host, group.cases.clone());
        if self.attempts(kind) >= ATTEMPTS {
            self.fail(&cases, "its host did not come up for other cases");
            return Vec::new();
        }
        let folder = self.logs.join(cases.first().map(|case| case.replace("::", "-")).unwrap_or_default());
        let ran = match kind.state {
            HostState::Pair => pair::run(group, self.hosts, self.board, &folder),
            _ => group.run(self.hosts, self.board, &folder),
        };
        match ran {
            Ok(Rest::Nothing) => Vec::new(),
            Ok(Rest::Cases(rest)) => vec![self.piece(rest)],
            Ok(Rest::NoHost(group, why)) => {
                self.broken.lock().unwrap_or_else(PoisonError::into_inner).push(kind);
                if self.attempts(kind) < ATTEMPTS {
                    self.board.say(&format!("The host did not come up; retrying once: {why}"));
                    return vec![self.piece(group)];
                }
                self.fail(&cases, &why);
                Vec::new()
            }
            Err(error) => {
                self.fail(&cases, &format!("{error:#}"));
                Vec::new()
            }
        }
    }

    fn attempts(&self, kind: Kind) -> usize {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.iter().filter(|broken| **broken == kind).count()
    }

    fn fail(&self, cases: &[String], why: &str) {
        for name in cases {
            self.board.tell(Outcome { name: name.clone(), seconds: 0.0, failure: Some(why.to_owned()) });
        }
    }

    fn trial(&self, trial: Trial, expected: f64) -> Piece<'a> {
        let (hosts, board, logs) = (self.hosts, self.board, self.logs.join(trial.name().replace("::", "-")));
        let work = move || {
            board.tell(trial.run(hosts, &logs));
            Vec::new()
        };
        Piece { expected, hosts: trial.hosts(), work: Box::new(work) }
    }
}

/// All that was asked for.
fn names(cases: &[CaseInfo], trials: &[Trial]) -> Vec<String> {
    let trials = trials.iter().map(|trial| trial.name().to_owned());
    cases.iter().map(|case| case.name.clone()).chain(trials).collect()
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
    serde_json::from_slice(&output.stdout).context("vm-tests printed an invalid list of cases")
}
