//! Heartbeat watchdog of a stubdomain's agent.
//!
//! The end of a stubdomain is noticed at once; a hang is not, and the guest hangs with it. The agent therefore writes a
//! new value every few seconds. Only a change of the value counts, because the stubdomain is not trusted.

use std::time::{Duration, Instant};

use stubdom_abi::{DmKey, Feature, StubReport};
use toolstack::{Cause, Guest, Toolstack};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// No heartbeat is expected: the agent does not offer one, or its domain is paused.
    NotExpected,
    /// The last value; `None` if there is none yet.
    Value(Option<String>),
}

/// Checks a guest's stubdomain.
pub(crate) fn look(toolstack: &Toolstack, guest: &Guest) -> Result<Beat, Cause> {
    let stub = toolstack.domain_info(guest.stub_domid, guest.stub_uuid)?;
    if stub.is_none_or(|info| info.state.paused) {
        return Ok(Beat::NotExpected);
    }
    let keys = [DmKey::Features, DmKey::AgentHeartbeat];
    let report = StubReport::read_keys(toolstack.xenstore(), guest.stub_domid, guest.domid, &keys)?;
    if !report.features().has(Feature::Heartbeat) {
        return Ok(Beat::NotExpected);
    }
    Ok(Beat::Value(report.heartbeat().map(str::to_owned)))
}

/// The watchdog's state.
#[derive(Debug)]
pub(crate) struct Pulse {
    limit: Duration,
    last: Beat,
    since: Option<Instant>,
}

impl Pulse {
    /// A watchdog with this timeout.
    pub(crate) const fn new(limit: Duration) -> Self {
        Self { limit, last: Beat::NotExpected, since: None }
    }

    /// How often to check: six times per timeout.
    pub(crate) fn interval(&self) -> Duration {
        (self.limit / 6).max(Duration::from_millis(10))
    }

    /// Processes a check; returns the time since the last heartbeat if it exceeds the timeout.
    pub(crate) fn take(&mut self, now: Instant, beat: Beat) -> Option<Duration> {
        if beat == Beat::NotExpected || beat != self.last || self.since.is_none() {
            self.last = beat;
            self.since = Some(now);
            return None;
        }
        let still = now.saturating_duration_since(self.since?);
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
    fn only_a_heart_that_stands_still_is_dead() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(Duration::from_secs(30));
        assert_eq!(pulse.take(at(0), value("5")), None);
        assert_eq!(pulse.take(at(29), value("5")), None);
        assert_eq!(pulse.take(at(30), value("10")), None);
        assert_eq!(pulse.take(at(59), value("10")), None);
        assert_eq!(pulse.take(at(61), value("10")), Some(Duration::from_secs(31)));
    }

    #[test]
    fn a_paused_stubdomain_is_given_the_whole_time_again() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(Duration::from_secs(30));
        pulse.take(at(0), value("5"));
        assert_eq!(pulse.take(at(100), Beat::NotExpected), None);
        assert_eq!(pulse.take(at(200), Beat::NotExpected), None);
        assert_eq!(pulse.take(at(201), value("5")), None);
        assert_eq!(pulse.take(at(232), value("5")), Some(Duration::from_secs(31)));
    }

    #[test]
    fn a_heart_that_never_beats_is_dead_too() {
        let start = Instant::now();
        let mut pulse = Pulse::new(Duration::from_secs(30));
        assert_eq!(pulse.take(start, Beat::Value(None)), None);
        assert!(pulse.take(start + Duration::from_secs(30), Beat::Value(None)).is_some());
    }
}
