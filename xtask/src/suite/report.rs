//! What became of the cases: a line for each at once, a summary, and JUnit's XML for other programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

/// How many of the slowest cases the summary names.
const SHOWN: usize = 10;

/// A case that was run.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) seconds: f64,
    /// Why it failed; nothing when it passed.
    pub(super) failure: Option<String>,
}

/// Hears of outcomes from every thread.
pub(super) struct Board {
    started: Instant,
    shows: bool,
    all: Mutex<Vec<Outcome>>,
}

impl Board {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), shows: true, all: Mutex::default() }
    }

    /// One that shows nothing.
    pub(super) fn silent() -> Self {
        Self { shows: false, ..Self::new() }
    }

    /// Says something between the lines of cases.
    pub(super) fn say(&self, what: &str) {
        if self.shows {
            eprintln!("[{:6.1}] {what}", self.started.elapsed().as_secs_f64());
        }
    }

    /// Reports a case that has ended.
    pub(super) fn tell(&self, outcome: Outcome) {
        let Outcome { name, seconds, failure } = &outcome;
        match failure {
            None => self.say(&format!("ok   {name} ({seconds:.1} s)")),
            Some(why) => self.say(&format!("FAIL {name} ({seconds:.1} s): {why}")),
        }
        self.all.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
    }

    /// All of them, in the order of their ends.
    pub(super) fn outcomes(self) -> (Duration, Vec<Outcome>) {
        (self.started.elapsed(), self.all.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The summary for people, with the failures again at the end, where they are easiest to find.
pub(super) fn summary(took: Duration, outcomes: &[Outcome]) -> String {
    let mut longest: Vec<&Outcome> = outcomes.iter().collect();
    longest.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let mut text = "The longest cases:\n".to_owned();
    for outcome in longest.iter().take(SHOWN) {
        text += &format!("{:7.1} s  {}\n", outcome.seconds, outcome.name);
    }
    let failures: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    for outcome in &failures {
        let why = outcome.failure.as_deref().unwrap_or_default();
        text += &format!("FAIL {} ({:.1} s): {why}\n", outcome.name, outcome.seconds);
    }
    let sum: f64 = outcomes.iter().map(|outcome| outcome.seconds).sum();
    let passed = outcomes.len() - failures.len();
    let took = took.as_secs_f64();
    text + &format!("{passed} passed, {} failed; {took:.0} s for {sum:.0} s of cases", failures.len())
}

/// Writes JUnit's XML.
pub(super) fn junit(path: &Path, took: Duration, outcomes: &[Outcome]) -> Result<()> {
    let mut suite = TestSuite::new("end-to-end");
    suite.set_time(took);
    for outcome in outcomes {
        let status = match &outcome.failure {
            None => TestCaseStatus::success(),
            Some(why) => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(why.lines().next().unwrap_or_default()).set_description(why.as_str());
                status
            }
        };
        let mut case = TestCase::new(outcome.name.as_str(), status);
        let module = outcome.name.split("::").next().unwrap_or_default();
        case.set_classname(module).set_time(Duration::from_secs_f64(outcome.seconds));
        suite.add_test_case(case);
    }
    let mut report = Report::new("outrigger");
    report.set_time(took);
    report.add_test_suite(suite);
    let text = report.to_string().context("Cannot write JUnit's XML")?;
    fs::write(path, text).with_context(|| format!("Cannot write {}", path.display()))
}

/// How long the cases took on a machine of two processors, for one that has not run them yet.
const ELSEWHERE: &str = include_str!("times.json");

/// How long each case took when it last passed, in seconds, by name.
#[derive(Debug, Default)]
pub(super) struct Times {
    path: PathBuf,
    seconds: BTreeMap<String, f64>,
}

impl Times {
    /// What is kept in this file, and of other cases what is known from elsewhere.
    pub(super) fn read(path: &Path) -> Self {
        let mut seconds: BTreeMap<String, f64> =
            serde_json::from_str(ELSEWHERE).expect("the file is tested to be JSON");
        let text = fs::read(path).unwrap_or_default();
        seconds.extend(serde_json::from_slice::<BTreeMap<String, f64>>(&text).unwrap_or_default());
        Self { path: path.to_owned(), seconds }
    }

    /// How long a case is expected to take.
    pub(super) fn of(&self, name: &str, otherwise: f64) -> f64 {
        self.seconds.get(name).copied().unwrap_or(otherwise)
    }

    /// Keeps the times of those that passed.
    pub(super) fn keep(mut self, outcomes: &[Outcome]) -> Result<()> {
        let passed = outcomes.iter().filter(|outcome| outcome.failure.is_none());
        self.seconds.extend(passed.map(|outcome| (outcome.name.clone(), outcome.seconds)));
        let text = serde_json::to_string_pretty(&self.seconds)?;
        fs::write(&self.path, text).with_context(|| format!("Cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes() -> [Outcome; 2] {
        let good = Outcome { name: "a::good".to_owned(), seconds: 3.0, failure: None };
        let bad = Outcome {
            name: "b::bad".to_owned(),
            seconds: 1.0,
            failure: Some("it <is> gone\nsince".to_owned()),
        };
        [good, bad]
    }

    #[test]
    fn summary_ends_with_what_failed() {
        let text = summary(Duration::from_secs(2), &outcomes());
        assert!(text.contains("3.0 s  a::good"), "{text}");
        assert!(
            text.ends_with(
                "FAIL b::bad (1.0 s): it <is> gone\nsince\n1 passed, 1 failed; 2 s for 4 s of cases"
            )
        );
    }

    #[test]
    fn other_programs_read_the_same() {
        let path = tempfile::NamedTempFile::new().unwrap();
        junit(path.path(), Duration::from_secs(2), &outcomes()).unwrap();
        let report = Report::deserialize_from_str(&fs::read_to_string(path.path()).unwrap()).unwrap();
        let suite = &report.test_suites[0];
        assert_eq!((suite.tests, suite.failures), (2, 1));
        assert_eq!(suite.test_cases[0].classname.as_ref().unwrap().as_str(), "a");
    }

    #[test]
    fn times_of_those_that_passed_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("times.json");
        assert_eq!(Times::read(&path).of("a::good", 20.0), 20.0);
        Times::read(&path).keep(&outcomes()).unwrap();
        let times = Times::read(&path);
        assert_eq!((times.of("a::good", 20.0), times.of("b::bad", 20.0)), (3.0, 20.0));
        assert!(
            times.of("trials::reboot_of_the_embedded_host", 0.0) > 10.0,
            "nothing is known from elsewhere"
        );
    }
}
