//! Heartbeat watchdog of a stubdomain's agent.
//!
//! The end of a stubdomain is noticed at once; a hang is not, and the guest hangs with it. The agent therefore writes a
//! new value every few seconds. Only a change of the value counts, because the stubdomain is not trusted.

use std::time::Duration;

use stubdom_abi::{DmKey, Feature, StubReport};
use toolstack::{Cause, Guest, Toolstack};
use xen::DomainInfo;

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// No heartbeat is expected: the agent does not offer one, or its domain is paused.
    NotExpected,
    /// The last value; `None` if there is none yet.
    Value(Option<String>),
}

/// A check, with what Xen says of the stubdomain.
#[derive(Clone, Debug)]
pub(super) struct Check {
    /// The result.
    pub(super) beat: Beat,
    /// The stubdomain's domain; nothing when it is gone.
    pub(super) stub: Option<DomainInfo>,
}

/// Checks a guest's stubdomain. Blocks on Xen and xenstore.
pub(super) fn check(toolstack: &Toolstack, guest: &Guest) -> Result<Check, Cause> {
    let stub = toolstack.domain_info(guest.stub_domid, guest.stub_uuid)?;
    let is_expected = stub.as_ref().is_some_and(|info| !info.state.paused);
    let beat = if is_expected { read(toolstack, guest)? } else { Beat::NotExpected };
    Ok(Check { beat, stub })
}

fn read(toolstack: &Toolstack, guest: &Guest) -> Result<Beat, Cause> {
    let keys = [DmKey::Features, DmKey::AgentHeartbeat];
    let report = StubReport::read_keys(toolstack.xenstore(), guest.stub_domid, guest.domid, &keys)?;
    if !report.features().has(Feature::Heartbeat) {
        return Ok(Beat::NotExpected);
    }
    Ok(Beat::Value(report.heartbeat().map(str::to_owned)))
}

/// How often to check: six times per timeout.
pub(super) fn interval(limit: Duration) -> Duration {
    (limit / 6).max(Duration::from_millis(10))
}

/// The watchdog's state. Times are of [`crate::backoff::now`].
#[derive(Clone, Debug)]
pub(super) struct Heartbeat {
    limit: Duration,
    last: Beat,
    since: Option<Duration>,
    /// The last check.
    checked: Option<Duration>,
}

impl Heartbeat {
    /// A watchdog with this timeout.
    pub(super) const fn new(limit: Duration) -> Self {
        Self { limit, last: Beat::NotExpected, since: None, checked: None }
    }

    /// Processes a check; returns the time since the last heartbeat if it exceeds the timeout.
    pub(super) fn take(&mut self, now: Duration, beat: Beat) -> Option<Duration> {
        // Nobody looked for long: the host may have stood still, and the stubdomain with it.
        let was_away = self.checked.is_some_and(|last| now.saturating_sub(last) > self.limit / 2);
        self.checked = Some(now);
        if beat == Beat::NotExpected || beat != self.last || self.since.is_none() || was_away {
            self.last = beat;
            self.since = Some(now);
            return None;
        }
        let still = now.saturating_sub(self.since?);
        (still >= self.limit).then_some(still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Beat {
        Beat::Value(Some(text.to_owned()))
    }

    #[test]
    fn only_a_heartbeat_that_does_not_change_is_lost() {
        let at = Duration::from_secs;
        let mut heartbeat = Heartbeat::new(Duration::from_secs(30));
        for second in (0..30).step_by(5) {
            assert_eq!(heartbeat.take(at(second), value("5")), None);
        }
        for second in (30..60).step_by(5) {
            assert_eq!(heartbeat.take(at(second), value("10")), None);
        }
        assert_eq!(heartbeat.take(at(61), value("10")), Some(Duration::from_secs(31)));
    }

    #[test]
    fn a_paused_stubdomain_is_given_the_whole_time_again() {
        let at = Duration::from_secs;
        let mut heartbeat = Heartbeat::new(Duration::from_secs(30));
        heartbeat.take(at(0), value("5"));
        assert_eq!(heartbeat.take(at(100), Beat::NotExpected), None);
        assert_eq!(heartbeat.take(at(200), Beat::NotExpected), None);
        for second in (201..231).step_by(10) {
            assert_eq!(heartbeat.take(at(second), value("5")), None);
        }
        assert_eq!(heartbeat.take(at(232), value("5")), Some(Duration::from_secs(31)));
    }

    #[test]
    fn time_in_which_nobody_looked_does_not_count() {
        let at = Duration::from_secs;
        let mut heartbeat = Heartbeat::new(Duration::from_secs(30));
        heartbeat.take(at(0), value("5"));
        assert_eq!(heartbeat.take(at(500), value("5")), None);
        for second in (505..530).step_by(5) {
            assert_eq!(heartbeat.take(at(second), value("5")), None);
        }
        assert_eq!(heartbeat.take(at(530), value("5")), Some(at(30)));
    }

    #[test]
    fn a_heartbeat_that_never_comes_is_lost_too() {
        let at = Duration::from_secs;
        let mut heartbeat = Heartbeat::new(Duration::from_secs(30));
        for second in (0..30).step_by(10) {
            assert_eq!(heartbeat.take(at(second), Beat::Value(None)), None);
        }
        assert!(heartbeat.take(at(30), Beat::Value(None)).is_some());
    }
}
