//! The stubdomain runs: its start, its QEMU's, and its log.

use std::time::Instant;

use stubdom_abi::{DmKey, StubReport};
use xenstore::SpecialWatch;

use super::build::Built;
use crate::Toolstack;
use crate::domain::{Domain, lives};
use crate::error::Cause;
use crate::operation::StepResult;
use crate::wait::Watcher;

/// How many of the last lines of the stubdomain's log go into an error.
const LOG_LINES: usize = 20;
/// How many lines of its end are looked at for them.
const LOG_LOOKED_AT: usize = 120;
/// The stubdomain's kernel prints this when the agent ends the domain as crashed; the trace that follows is of no use.
const ENDED_BY_AGENT: &str = "sysrq: Trigger a crash";

/// A stubdomain that was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) domain: Domain,
    pub(crate) since: Instant,
}

/// Starts a stubdomain that is introduced.
pub(crate) fn start(ts: &Toolstack, built: Built) -> Result<Running, Cause> {
    let (domain, since) = (built.made.domain, Instant::now());
    ts.hypervisor.unpause_domain(domain.domid())?;
    Ok(Running { domain, since })
}

/// Waits until QEMU says that it runs for this guest; the end of the stubdomain ends the waiting at once.
pub(crate) fn await_device_model(ts: &Toolstack, running: Running, target: Domain) -> StepResult {
    let (stub, guest) = (running.domain.domid(), target.domid());
    let keys = [DmKey::State, DmKey::AgentExit];
    let mut watcher = Watcher::new();
    for key in keys {
        watcher.watch(&ts.xenstore, &key.path(stub, guest))?;
    }
    watcher.watch(&ts.xenstore, &SpecialWatch::ReleaseDomain)?;
    let after = ts.deadlines.device_model;
    let ready = watcher.until(running.since + after, || {
        let report = StubReport::read_keys(&ts.xenstore, stub, guest, &keys)?;
        if report.is_running() {
            return Ok(Some(()));
        }
        let exit = report.exit();
        if exit.is_some() || !lives(ts, running.domain)? {
            return Err(Cause::StubdomainDied { exit });
        }
        Ok(None)
    })?;
    ready.ok_or(Cause::DeviceModelTimeout { after })
}

/// The last log lines of the stubdomain with this name.
pub(crate) fn last_log_lines(ts: &Toolstack, name: &str) -> Vec<String> {
    let log = ts.paths.console_log(name, 0);
    before_end(ts.host.tail(&log, LOG_LOOKED_AT))
}

/// The last lines, without the trace of an end that the agent chose.
fn before_end(mut lines: Vec<String>) -> Vec<String> {
    if let Some(end) = lines.iter().rposition(|line| line.contains(ENDED_BY_AGENT)) {
        lines.truncate(end);
    }
    lines.split_off(lines.len().saturating_sub(LOG_LINES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_of_an_end_that_the_agent_chose_is_left_out() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(before_end(lines("a b")), ["a", "b"]);
        let mut ended = lines("a why");
        ended.extend([format!("[ 1.0] {ENDED_BY_AGENT}"), "Call Trace:".to_owned()]);
        assert_eq!(before_end(ended), ["a", "why"]);
        assert_eq!(before_end(vec!["x".to_owned(); 50]).len(), LOG_LINES);
    }
}
