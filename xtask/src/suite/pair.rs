//! A case on a pair of hosts: it passes when it does on both.

use std::path::Path;

use anyhow::{Context as _, Result};
use testhost::pair::{self, PairRequest, Role};
use testhost::{HostError, Report};

use super::group::{Follower, Group, Progress, Rest};
use super::report::{Board, Outcome};
use super::states::Hosts;

/// Runs the one case of a group on a fresh pair.
pub(super) fn run(group: Group, hosts: &Hosts, board: &Board, logs: &Path) -> Result<Rest> {
    let folder = tempfile::tempdir()?;
    let each = group.request(hosts, folder.path(), logs)?;
    let disks = crate::pair::disks()?;
    let shared_disks = disks.iter().map(|disk| disk.path().to_owned()).collect();
    let request = PairRequest { each, shared_disks };
    let boards = [Board::silent(), Board::silent()];
    let folders = Role::BOTH.map(|role| logs.join(role.letter()));
    let mut followers = [0, 1].map(|at| Follower::new(&boards[at], &group.cases, &folders[at]));
    let [a, b] = &mut followers;
    let whys = reasons(pair::run(hosts.host(group.host.state), &request, [a, b]));
    let [a, b] = followers;
    let [why_a, why_b] = whys;
    let progress = [a.finish(why_a), b.finish(why_b)];
    let name = group.cases.first().context("A group has no case")?.clone();
    match combine(&name, progress, boards.map(|board| board.outcomes().1)) {
        Ok(outcome) => {
            if outcome.failure.is_none() {
                // What a good run has said interests nobody.
                let _ = std::fs::remove_dir_all(logs);
            }
            board.tell(outcome);
            Ok(Rest::Nothing)
        }
        Err(why) => Ok(Rest::NoHost(group, why)),
    }
}

/// Why the run of each host was not a good one.
fn reasons(result: Result<[Report; 2], HostError>) -> [Option<String>; 2] {
    match result {
        Ok(reports) => reports.map(|report| {
            (report.status != 0).then(|| format!("vm-tests ended with status {}", report.status))
        }),
        Err(error) => {
            let why = testhost::chain(&error);
            [Some(why.clone()), Some(why)]
        }
    }
}

/// The outcome of both, or why the pair did not come up.
fn combine(name: &str, progress: [Progress; 2], outcomes: [Vec<Outcome>; 2]) -> Result<Outcome, String> {
    if let [Progress::NotBegun(why), Progress::NotBegun(_)] = progress {
        return Err(why);
    }
    let mut seconds: f64 = 0.0;
    let mut failures = Vec::new();
    for ((role, progress), outcomes) in Role::BOTH.iter().zip(progress).zip(outcomes) {
        let begun = outcomes.into_iter().flat_map(|outcome| {
            seconds = seconds.max(outcome.seconds);
            outcome.failure
        });
        let not_begun = match progress {
            Progress::NotBegun(why) => Some(why),
            Progress::Passed | Progress::Failed(_) => None,
        };
        failures.extend(begun.chain(not_begun).map(|why| format!("{}: {why}", role.host_name())));
    }
    let failure = (!failures.is_empty()).then(|| failures.join("\n     "));
    Ok(Outcome { name: name.to_owned(), seconds, failure })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(seconds: f64, failure: Option<&str>) -> Vec<Outcome> {
        vec![Outcome { name: "x".to_owned(), seconds, failure: failure.map(str::to_owned) }]
    }

    #[test]
    fn case_passes_when_it_does_on_both() {
        let both = [outcome(1.0, None), outcome(2.0, None)];
        let passed = combine("x", [Progress::Passed, Progress::Passed], both).unwrap();
        assert!(passed.seconds == 2.0 && passed.failure.is_none());
        let one = [outcome(1.0, None), outcome(2.0, Some("no"))];
        let failed = combine("x", [Progress::Passed, Progress::Failed(1)], one).unwrap();
        assert_eq!(failed.failure.as_deref(), Some("host-b: no"));
    }

    #[test]
    fn pair_that_does_not_come_up_is_no_failure_of_the_case_but_one_host_is() {
        let not = |why: &str| Progress::NotBegun(why.to_owned());
        assert_eq!(combine("x", [not("why"), not("other")], [vec![], vec![]]).unwrap_err(), "why");
        let failed = combine("x", [not("why"), Progress::Passed], [vec![], outcome(1.0, None)]).unwrap();
        assert_eq!(failed.failure.as_deref(), Some("host-a: why"));
    }
}
