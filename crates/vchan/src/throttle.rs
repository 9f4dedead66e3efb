use core::time::Duration;
use std::time::Instant;

/// How many wake-ups in a row may be for nothing before they are slowed down.
const BURST: u32 = 64;
/// How often one may be for nothing after that.
const PACE: Duration = Duration::from_millis(5);

/// Bounds the work that the other side can cause by waking this one for nothing.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// How many are left.
    left: u32,
    /// When one was last given back.
    since: Instant,
}

impl Throttle {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Counts a wake-up for nothing; gives how long to wait before the next may come.
    pub(crate) fn idle_wakeup(&mut self, now: Instant) -> Duration {
        let back = now.saturating_duration_since(self.since).as_micros() / PACE.as_micros();
        if back > 0 {
            self.left = BURST.min(self.left.saturating_add(u32::try_from(back).unwrap_or(BURST)));
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Duration::ZERO
            }
            None => PACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_slowed_down_and_forgiven() {
        let mut now = Instant::now();
        let mut throttle = Throttle::new(now);
        let mut wakeups = 0;
        let end = now + Duration::from_secs(1);
        while now < end {
            now += throttle.idle_wakeup(now) + Duration::from_micros(10);
            wakeups += 1;
        }
        assert!((BURST..=2 * (BURST + 200)).contains(&wakeups), "{wakeups} in a second");
        now += PACE * BURST;
        for _ in 0..BURST {
            assert_eq!(throttle.idle_wakeup(now), Duration::ZERO);
        }
    }
}
