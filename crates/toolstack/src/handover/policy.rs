//! When a live migration suspends the guest.

use std::time::Duration;

use xen::{Precopy, Verdict};

/// The most rounds.
const ROUNDS: u32 = 30;
/// The rounds of a guest for which nobody has set a downtime, as in libxc (`xg_sr_save.c`).
const USUAL_ROUNDS: u32 = 5;
/// So few pages are not worth another round (libxc too).
const FEW: u64 = 50;
/// Rounds in a row that have left as much as they found.
const STUCK: u32 = 4;

/// Decides after each round, by the pages that are left and the rate at which pages were sent.
#[derive(Debug)]
pub(crate) struct Policy {
    /// What an operator allows; without it, the guest is suspended in any case.
    max_downtime: Option<Duration>,
    /// What the round in progress found.
    found: u64,
    /// Pages a second of the last round.
    rate: u64,
    stuck: u32,
    /// Why it was given up.
    refused: Option<Missed>,
}

/// A round, as it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) round: u32,
    /// Pages that are to be sent.
    pub(crate) dirty: u64,
    /// Pages a second; 0 before the first round is complete.
    pub(crate) rate: u64,
    /// How long it takes to send them.
    pub(crate) downtime: Option<Duration>,
}

/// The allowed downtime was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missed {
    pub(crate) rounds: u32,
    pub(crate) allowed: Duration,
    pub(crate) expected: Duration,
}

impl Policy {
    pub(crate) fn new(max_downtime: Option<Duration>) -> Self {
        Self { max_downtime, found: 0, rate: 0, stuck: 0, refused: None }
    }

    /// Decides, and describes the round if one is about to begin.
    pub(crate) fn decide(&mut self, stats: Precopy) -> (Verdict, Option<Round>) {
        let Some(dirty) = stats.dirty_pages else {
            // A round has ended; what is left is not known yet.
            let millis = stats.elapsed.as_millis().max(1);
            self.rate = u64::try_from(u128::from(self.found) * 1000 / millis).unwrap_or(u64::MAX).max(1);
            return (Verdict::Continue, None);
        };
        self.stuck = if stats.round > 1 && dirty.saturating_mul(10) >= self.found.saturating_mul(9) {
            self.stuck + 1
        } else {
            0
        };
        self.found = dirty;
        let downtime = (self.rate > 0).then(|| {
            let millis = u128::from(dirty) * 1000 / u128::from(self.rate);
            Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
        });
        let round = Round { round: stats.round, dirty, rate: self.rate, downtime };
        (self.verdict(&round), Some(round))
    }

    fn verdict(&mut self, round: &Round) -> Verdict {
        // The first round sends all of the memory.
        let (Some(expected), 1..) = (round.downtime, round.round) else { return Verdict::Continue };
        let is_hopeless = round.round >= ROUNDS || self.stuck >= STUCK;
        match self.max_downtime {
            _ if round.dirty < FEW => Verdict::StopAndCopy,
            Some(allowed) if expected <= allowed => Verdict::StopAndCopy,
            Some(allowed) if is_hopeless => {
                self.refused = Some(Missed { rounds: round.round, allowed, expected });
                Verdict::Abort
            }
            None if round.round >= USUAL_ROUNDS || is_hopeless => Verdict::StopAndCopy,
            _ => Verdict::Continue,
        }
    }

    /// Why it was given up, if it was.
    pub(crate) fn missed(&self) -> Option<Missed> {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a guest that dirties these pages in each round be migrated at 1000 pages a second.
    fn migrate(allowed: Option<u64>, dirty: impl IntoIterator<Item = u64>) -> (Verdict, u32, Policy) {
        let mut policy = Policy::new(allowed.map(Duration::from_millis));
        let mut elapsed = Duration::ZERO;
        for (round, dirty) in (0_u32..).zip(dirty) {
            let stats = Precopy { round, written_pages: 0, dirty_pages: Some(dirty), elapsed };
            let (verdict, told) = policy.decide(stats);
            assert_eq!(told.map(|told| (told.round, told.dirty)), Some((round, dirty)));
            if verdict != Verdict::Continue {
                return (verdict, round, policy);
            }
            elapsed = Duration::from_millis(dirty);
            let stats = Precopy { round: round + 1, written_pages: dirty, dirty_pages: None, elapsed };
            assert_eq!(policy.decide(stats), (Verdict::Continue, None));
        }
        panic!("it was not decided");
    }

    #[test]
    fn guest_is_suspended_when_little_is_left() {
        let (verdict, round, policy) = migrate(None, [10_000, 2000, 400, 30]);
        assert_eq!((verdict, round, policy.missed()), (Verdict::StopAndCopy, 3, None));
        // 400 pages take 400 ms.
        let (verdict, round, _) = migrate(Some(400), [10_000, 2000, 400, 30]);
        assert_eq!((verdict, round), (Verdict::StopAndCopy, 2));
    }

    #[test]
    fn guest_that_writes_too_much_is_suspended_all_the_same_unless_someone_has_set_a_downtime() {
        let busy = || std::iter::once(10_000).chain(std::iter::repeat(5000));
        let (verdict, round, _) = migrate(None, busy());
        assert_eq!((verdict, round), (Verdict::StopAndCopy, USUAL_ROUNDS));
        let (verdict, round, policy) = migrate(Some(300), busy());
        assert_eq!(verdict, Verdict::Abort);
        let missed = policy.missed().unwrap();
        assert_eq!((missed.rounds, missed.expected), (round, Duration::from_secs(5)));
        assert!(round <= ROUNDS);
    }

    #[test]
    fn guest_that_gets_quieter_slowly_is_waited_for() {
        let calmer = (0..40).map(|n| 10_000_u64 * 4_u64.pow(n) / 5_u64.pow(n).max(1)).take(26);
        let (verdict, round, _) = migrate(Some(300), calmer);
        assert_eq!(verdict, Verdict::StopAndCopy);
        assert!(round > USUAL_ROUNDS);
    }
}
