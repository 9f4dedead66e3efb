//! How often something is tried whose pace a stubdomain would set otherwise.

use std::time::{Duration, Instant};

/// Tries that are made at once.
const AT_ONCE: u32 = 5;
/// The time between two later ones.
const BETWEEN: Duration = Duration::from_millis(250);

/// Allows the first tries at once and the later ones at fixed intervals; an unused interval counts for later.
#[derive(Debug)]
pub(super) struct Pace {
    /// When all tries were unused, if none had been made since.
    full: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// Counts one try; returns how long to wait before it.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let due = self.full.checked_sub(BETWEEN * (AT_ONCE - 1)).unwrap_or(now);
        self.full = self.full.max(now) + BETWEEN;
        due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_tries_are_made_at_once_and_later_ones_at_intervals() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for n in 0..100 {
            let wait = pace.next(now);
            assert_eq!(wait, if n < AT_ONCE { Duration::ZERO } else { BETWEEN }, "try {n}");
            now += wait;
        }
        // After a rest, they are made at once again.
        now += 10 * BETWEEN;
        for _ in 0..AT_ONCE {
            assert_eq!(pace.next(now), Duration::ZERO);
        }
        assert_eq!(pace.next(now), BETWEEN);
    }
}
