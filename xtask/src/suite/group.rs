//! A few cases on one copy of a host: which go together, and how their run is followed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use testhost::Observer;
use vm_report::{CaseInfo, Event, HostState};

use super::report::{Board, Outcome, Times};
use super::states::Hosts;

/// Cases go onto one copy until they take so long together, in seconds: a copy costs some seconds itself.
const ENOUGH: f64 = 40.0;
/// What a case is taken for that never ran, in seconds.
const UNKNOWN: f64 = 20.0;
/// A case that takes longer than so many seconds and so many times its usual time has no end, before scaling.
const CASE_LIMIT: (f64, f64) = (240.0, 4.0);

/// Cases that run on one copy of a host, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    pub(super) host: HostState,
    pub(super) cases: Vec<String>,
    /// How long it takes, in seconds.
    pub(super) expected: f64,
}

/// Puts cases that start from the same host together. A case that ends its host is the last of its group, and a Linux
/// guest is used by one case alone.
pub(super) fn groups(cases: &[CaseInfo], times: &Times) -> Vec<Group> {
    let mut done: Vec<Group> = Vec::new();
    let mut open: Option<Group> = None;
    for case in cases {
        let expected = times.of(&case.name, UNKNOWN);
        let alone = case.host == HostState::LinuxGuest || expected >= ENOUGH;
        let name = case.name.clone();
        match &mut open {
            Some(group) if !alone && group.host == case.host => {
                group.cases.push(name);
                group.expected += expected;
            }
            _ => {
                done.extend(open.replace(Group { host: case.host, cases: vec![name], expected }));
            }
        }
        if case.is_the_end || alone || open.as_ref().is_some_and(|group| group.expected >= ENOUGH) {
            done.extend(open.take());
        }
    }
    done.extend(open);
    done
}

impl Group {
    /// Runs the cases on a fresh copy. Gives those that did not run because of one that failed before them.
    pub(super) fn run(self, hosts: &Hosts, board: &Board, logs: &Path) -> Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let script = folder.path().join("cases");
        let words = self.cases.join(" ");
        std::fs::write(
            &script,
            format!("#!/bin/sh\n{}exec vm-tests run --events {words}\n", hosts.exports()),
        )?;
        let seconds = CASE_LIMIT.1 * self.expected + CASE_LIMIT.0;
        let request = hosts.request(self.host, &script, Duration::from_secs_f64(seconds), logs.to_owned());
        let mut follower = Follower::new(board, logs);
        let result = testhost::run(&hosts.tools, &request, &mut follower);
        if follower.ended < self.cases.len() && !follower.failed {
            // The host, or the program of the cases, ended before the case did.
            let why = match result {
                Ok(report) => {
                    format!("vm-tests ended with status {}: {}", report.status, follower.said.trim())
                }
                Err(error) => error.to_string(),
            };
            let seconds = follower.current.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
            follower.end(self.cases[follower.ended].clone(), seconds, Some(why));
        }
        if !follower.failed {
            // What a good run has said is nobody's interest.
            let _ = std::fs::remove_dir_all(logs);
        }
        let count = follower.ended;
        let rest: Vec<String> = self.cases.into_iter().skip(count).collect();
        let expected = self.expected;
        Ok((!rest.is_empty()).then_some(Self { host: self.host, cases: rest, expected }))
    }
}

/// Follows what `vm-tests` says.
struct Follower<'a> {
    board: &'a Board,
    logs: &'a Path,
    /// When the case began that runs.
    current: Option<Instant>,
    /// The line that has no end yet.
    line: Vec<u8>,
    /// What the case, or whoever, has printed.
    said: String,
    /// How many cases have ended.
    ended: usize,
    failed: bool,
}

impl<'a> Follower<'a> {
    fn new(board: &'a Board, logs: &'a Path) -> Self {
        Self { board, logs, current: None, line: Vec::new(), said: String::new(), ended: 0, failed: false }
    }

    fn take(&mut self, line: &str) {
        match Event::parse(line) {
            Some(Event::Begin { .. }) => {
                self.current = Some(Instant::now());
                self.said.clear();
            }
            Some(Event::End { case, seconds, failure }) => self.end(case, seconds, failure),
            None => self.said += &format!("{line}\n"),
        }
    }

    fn end(&mut self, name: String, seconds: f64, failure: Option<String>) {
        self.current = None;
        self.ended += 1;
        self.failed |= failure.is_some();
        let logs = self.logs.display();
        let failure = failure.map(|why| format!("{why}\n{}     the logs are in {logs}", self.said));
        self.board.tell(Outcome { name, seconds, failure });
    }
}

impl Observer for Follower<'_> {
    fn progress(&mut self, what: &str) {
        // Of what comes up every time, nothing; what takes long, or goes wrong, is told.
        if ["The snapshot", "No snapshot"].iter().any(|start| what.starts_with(start)) {
            self.board.say(what);
        }
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
        CaseInfo { name: name.to_owned(), host, is_the_end }
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
        assert_eq!(names, ["ab", "c", "d", "e", "f", "g", "h"]);
        assert_eq!(groups[0].expected, 2.0 * UNKNOWN);
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let board = Board::new();
        let mut follower = Follower::new(&board, Path::new("/logs"));
        let begin = Event::Begin { case: "a::b".to_owned() }.line();
        let end = Event::End { case: "a::b".to_owned(), seconds: 1.0, failure: Some("no".to_owned()) }.line();
        let all = format!("{begin}\nhello\n{end}\n");
        all.as_bytes().chunks(7).for_each(|piece| follower.output(piece));
        assert_eq!((follower.ended, follower.failed, follower.current), (1, true, None));
        let (_, outcomes) = board.outcomes();
        assert_eq!(outcomes[0].failure.as_deref(), Some("no\nhello\n     the logs are in /logs"));
    }
}
