//! A few cases on one copy of a host: which go together, and how their run is followed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use testhost::{Observer, Request};
use vm_report::{CaseInfo, Event, HostState};

use super::report::{Board, Outcome, Times};
use super::states::{Hosts, Kind};

/// Cases go onto one copy until they take so long together, in seconds: a copy costs some seconds itself.
const ENOUGH: f64 = 90.0;
/// How long a case is assumed to take that has never run, in seconds.
const UNKNOWN: f64 = 20.0;
/// What making the idle Linux guest costs the first that needs it, in seconds: such cases are better begun early.
const LINUX_GUEST: f64 = 40.0;
/// A group is taken to hang when it takes longer than so many seconds (before scaling) and so many times its usual time.
const LIMIT: (f64, f64) = (240.0, 4.0);

/// Cases that run on one copy of a host, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    pub(super) host: Kind,
    pub(super) cases: Vec<String>,
    /// How long it takes, in seconds.
    pub(super) expected: f64,
}

/// Puts cases that start from the same host together. A case that ends its host is the last of its group, and a Linux
/// guest and a pair of hosts are used by one case alone.
pub(super) fn groups(cases: &[CaseInfo], times: &Times) -> Vec<Group> {
    let mut done: Vec<Group> = Vec::new();
    let mut open: Option<Group> = None;
    for case in cases {
        let mut expected = times.of(&case.name, UNKNOWN);
        if case.host == HostState::LinuxGuest {
            expected += LINUX_GUEST;
        }
        let alone = matches!(case.host, HostState::LinuxGuest | HostState::Pair) || expected >= ENOUGH;
        let (name, host) = (case.name.clone(), Kind::of(case));
        match &mut open {
            Some(group) if !alone && group.host == host => {
                group.cases.push(name);
                group.expected += expected;
            }
            _ => {
                done.extend(open.replace(Group { host, cases: vec![name], expected }));
            }
        }
        if case.is_the_end || alone || open.as_ref().is_some_and(|group| group.expected >= ENOUGH) {
            done.extend(open.take());
        }
    }
    done.extend(open);
    done
}

/// What is left of a group that was run.
pub(super) enum Rest {
    /// All of its cases have run.
    Nothing,
    /// These have not, because one before them failed.
    Cases(Group),
    /// The host did not come up; none of its cases has run.
    NoHost(Group, String),
}

impl Group {
    /// What runs the cases on a fresh host, by a script that is written into `folder`.
    pub(super) fn request(&self, hosts: &Hosts, folder: &Path, logs: &Path) -> Result<Request> {
        let script = folder.join("cases");
        let words = self.cases.join(" ");
        std::fs::write(
            &script,
            format!("#!/bin/sh\n{}exec vm-tests run --events {words}\n", hosts.exports()),
        )?;
        // How long it takes was measured on a machine as busy as this one.
        let limit =
            hosts.scale().of(Duration::from_secs_f64(LIMIT.0)).as_secs_f64() + LIMIT.1 * self.expected;
        Ok(hosts.request(self.host, &script, Duration::from_secs_f64(limit), logs.to_owned()))
    }

    /// Runs the cases on a fresh copy of one host.
    pub(super) fn run(self, hosts: &Hosts, board: &Board, logs: &Path) -> Result<Rest> {
        let folder = tempfile::tempdir()?;
        let request = self.request(hosts, folder.path(), logs)?;
        let mut follower = Follower::new(board, &self.cases, logs);
        let result = testhost::run(hosts.host(self.host.state), &request, &mut follower);
        let why = match &result {
            Ok(report) if report.status == 0 => None,
            Ok(report) => Some(format!("vm-tests ended with status {}", report.status)),
            Err(error) => Some(testhost::chain(error)),
        };
        match (follower.finish(why), self.cases.len()) {
            (Progress::NotBegun(why), _) => Ok(Rest::NoHost(self, why)),
            (Progress::Passed, _) => {
                // What a good run has said interests nobody.
                let _ = std::fs::remove_dir_all(logs);
                Ok(Rest::Nothing)
            }
            (Progress::Failed(ended), all) if ended >= all => Ok(Rest::Nothing),
            (Progress::Failed(ended), _) => {
                let cases = self.cases.into_iter().skip(ended).collect();
                Ok(Rest::Cases(Self { host: self.host, cases, expected: self.expected }))
            }
        }
    }
}

/// How far a group has come.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// The host was not there for the first case, for this reason.
    NotBegun(String),
    /// All cases passed.
    Passed,
    /// So many have ended, the last of them with a failure.
    Failed(usize),
}

/// Follows what `vm-tests` says.
pub(super) struct Follower<'a> {
    board: &'a Board,
    cases: &'a [String],
    logs: &'a Path,
    /// When the case began that runs.
    current: Option<Instant>,
    /// The line that has no end yet.
    line: Vec<u8>,
    /// What the case, or whoever, has printed.
    said: String,
    /// How many cases have passed; they do so in their order.
    passed: usize,
    /// The case after those has failed.
    failure: Option<Outcome>,
    /// What `vm-tests` said makes no sense.
    nonsense: Option<String>,
}

impl<'a> Follower<'a> {
    pub(super) fn new(board: &'a Board, cases: &'a [String], logs: &'a Path) -> Self {
        Self {
            board,
            cases,
            logs,
            current: None,
            line: Vec::new(),
            said: String::new(),
            passed: 0,
            failure: None,
            nonsense: None,
        }
    }

    fn take(&mut self, line: &str) {
        let expected = if self.failure.is_none() { self.cases.get(self.passed) } else { None };
        match Event::parse(line) {
            Some(Event::Begin { case }) if Some(&case) == expected && self.current.is_none() => {
                self.current = Some(Instant::now());
                self.said.clear();
            }
            Some(Event::End { case, seconds, failure })
                if Some(&case) == expected && self.current.is_some() =>
            {
                self.current = None;
                match failure {
                    // Reported at once, for those who watch the run.
                    None => {
                        self.passed += 1;
                        self.board.tell(Outcome { name: case, seconds, failure: None });
                    }
                    // How the run goes on belongs to it.
                    Some(_) => self.failure = Some(Outcome { name: case, seconds, failure }),
                }
            }
            Some(event) => {
                self.nonsense = Some(format!("vm-tests printed an unexpected line: {}", event.line()));
            }
            None if line.is_empty() => {}
            None => self.said += &format!("{line}\n"),
        }
    }

    /// Tells of the case that failed, when one did or when the run ended otherwise than it should.
    pub(super) fn finish(mut self, why: Option<String>) -> Progress {
        let rest = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        self.take(rest.trim_end());
        let has_begun = self.passed > 0 || self.current.is_some() || self.failure.is_some();
        let missing = || "vm-tests ended before its cases".to_owned();
        let why = match (why, self.nonsense) {
            (why, Some(nonsense)) => Some([why.unwrap_or_default(), nonsense].join("; ")),
            (None, None) if self.failure.is_none() && self.passed < self.cases.len() => Some(missing()),
            (why, None) => why,
        };
        let logs = self.logs.display();
        let mut outcome = match (self.failure, &why) {
            (None, None) => return Progress::Passed,
            (None, Some(why)) if !has_begun => {
                return Progress::NotBegun(format!("{why}\n{}     the logs are in {logs}", self.said));
            }
            (Some(failure), _) => failure,
            // The host, or the program of the cases, ended before the case did, or after the last of them.
            (None, Some(_)) => {
                let seconds = self.current.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
                let at = self.passed.min(self.cases.len() - 1);
                Outcome { name: self.cases[at].clone(), seconds, failure: None }
            }
        };
        let text = [outcome.failure.take(), why].into_iter().flatten().collect::<Vec<_>>().join("\n     ");
        outcome.failure = Some(format!("{text}\n{}     the logs are in {logs}", self.said));
        self.board.tell(outcome);
        Progress::Failed(self.passed + 1)
    }
}

impl Observer for Follower<'_> {
    fn news(&mut self, what: &str) {
        self.board.say(what);
    }

    fn output(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        while let Some(at) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=at).collect();
            self.take(String::from_utf8_lossy(&line).trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, host: HostState, is_the_end: bool) -> CaseInfo {
        CaseInfo {
            name: name.to_owned(),
            host,
            is_the_end,
            on_c_xenstored: false,
            is_long: false,
            since_xen: None,
            on_each_debian: false,
        }
    }

    #[test]
    fn cases_are_put_together_until_it_is_enough() {
        use HostState::{LinuxGuest, Tools};
        let cases = [
            case("a", Tools, false),
            case("b", Tools, false),
            case("c", Tools, true),
            case("d", Tools, false),
            case("e", LinuxGuest, false),
            case("f", LinuxGuest, false),
            case("g", Tools, true),
            case("h", Tools, false),
        ];
        let groups = groups(&cases, &Times::default());
        let names: Vec<String> = groups.iter().map(|group| group.cases.concat()).collect();
        assert_eq!(names, ["abc", "d", "e", "f", "g", "h"]);
        assert_eq!(groups[0].expected, 3.0 * UNKNOWN);
    }

    #[test]
    fn cases_of_the_two_xenstoreds_do_not_share_a_host() {
        let one = case("a", HostState::Bare, false);
        let cases = [one.clone(), CaseInfo { name: "b".to_owned(), on_c_xenstored: true, ..one }];
        let hosts: Vec<bool> =
            groups(&cases, &Times::default()).iter().map(|group| group.host.on_c_xenstored).collect();
        assert_eq!(hosts, [false, true]);
    }

    const NAMES: [&str; 2] = ["a::one", "a::two"];

    /// What comes of a run that says these lines, and the outcomes.
    fn follow(lines: &[String], why: Option<&str>) -> (Progress, Vec<Outcome>) {
        let board = Board::new();
        let cases = NAMES.map(str::to_owned);
        let mut follower = Follower::new(&board, &cases, Path::new("/logs"));
        // In pieces that know nothing of lines.
        lines.join("\n").as_bytes().chunks(7).for_each(|piece| follower.output(piece));
        let progress = follower.finish(why.map(str::to_owned));
        (progress, board.outcomes().1)
    }

    fn begin(name: &str) -> String {
        Event::Begin { case: name.to_owned() }.line()
    }

    fn end(name: &str, failure: Option<&str>) -> String {
        Event::End { case: name.to_owned(), seconds: 1.0, failure: failure.map(str::to_owned) }.line()
    }

    fn passes() -> Vec<String> {
        NAMES.iter().flat_map(|name| [begin(name), end(name, None)]).collect()
    }

    #[test]
    fn all_pass() {
        let (progress, outcomes) = follow(&passes(), None);
        assert_eq!(progress, Progress::Passed);
        assert!(outcomes.len() == 2 && outcomes.iter().all(|outcome| outcome.failure.is_none()));
    }

    #[test]
    fn first_fails_and_the_second_is_left() {
        let lines = [begin(NAMES[0]), "hello".to_owned(), end(NAMES[0], Some("no"))];
        let (progress, outcomes) = follow(&lines, Some("vm-tests ended with status 1"));
        assert_eq!(progress, Progress::Failed(1));
        let text = outcomes[0].failure.as_deref().unwrap();
        assert_eq!(text, "no\n     vm-tests ended with status 1\nhello\n     the logs are in /logs");
    }

    #[test]
    fn host_that_dies_after_the_last_end_fails_the_last_case() {
        let (progress, outcomes) = follow(&passes(), Some("Xen panics"));
        assert_eq!(progress, Progress::Failed(3));
        assert_eq!(outcomes.iter().filter(|outcome| outcome.failure.is_some()).count(), 1);
        assert!(outcomes[2].name == NAMES[1] && outcomes[2].failure.as_deref().unwrap().contains("panics"));
    }

    #[test]
    fn host_that_dies_in_a_case_fails_that_case() {
        let lines = [begin(NAMES[0]), end(NAMES[0], None), begin(NAMES[1])];
        let (progress, outcomes) = follow(&lines, Some("QEMU died"));
        assert_eq!(progress, Progress::Failed(2));
        assert!(
            outcomes[1].name == NAMES[1] && outcomes[1].failure.as_deref().unwrap().contains("QEMU died")
        );
    }

    #[test]
    fn host_that_does_not_come_up_fails_no_case_by_itself() {
        let (progress, outcomes) = follow(&["what".to_owned()], Some("no memory"));
        assert_eq!(progress, Progress::NotBegun("no memory\nwhat\n     the logs are in /logs".to_owned()));
        assert!(outcomes.is_empty());
    }

    #[test]
    fn line_that_is_lost_is_a_failure_and_shifts_nothing() {
        let glued = format!("x{}", end(NAMES[0], None));
        let (progress, outcomes) =
            follow(&[begin(NAMES[0]), glued, begin(NAMES[1]), end(NAMES[1], None)], None);
        assert_eq!(progress, Progress::Failed(1));
        assert!(outcomes.len() == 1 && outcomes[0].name == NAMES[0]);
        assert!(outcomes[0].failure.as_deref().unwrap().contains("an unexpected line"));
        let (progress, _) = follow(&passes()[..2], None);
        assert_eq!(progress, Progress::Failed(2), "nothing says why, and a case is missing");
    }
}
