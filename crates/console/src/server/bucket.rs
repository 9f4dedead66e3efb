use std::time::{Duration, Instant};

/// A share of this process's time that one guest can use up: so much at once, so much a second.
#[derive(Debug)]
pub(crate) struct Bucket {
    level: u32,
    capacity: u32,
    per_second: u32,
    filled_at: Instant,
}

impl Bucket {
    pub(crate) const fn new(capacity: u32, per_second: u32, now: Instant) -> Self {
        Self { level: capacity, capacity, per_second, filled_at: now }
    }

    /// Takes one share; when there is none, says when the next will be there.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        if self.level == 0 {
            self.fill(now);
        }
        if self.level == 0 {
            // A tenth of a second's worth at once, so that a guest at its limit does not cost a timer per share.
            let wait = Duration::from_millis(100).max(Duration::from_secs(1) / self.per_second);
            return Err(self.filled_at + wait);
        }
        self.level -= 1;
        Ok(())
    }

    fn fill(&mut self, now: Instant) {
        let micros = now.saturating_duration_since(self.filled_at).as_micros();
        let earned = u32::try_from(micros * u128::from(self.per_second) / 1_000_000).unwrap_or(u32::MAX);
        if earned > 0 {
            self.level = earned.min(self.capacity);
            self.filled_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(4, 20, start);
        for _ in 0..4 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        let next = bucket.take(start).unwrap_err();
        assert_eq!(next - start, Duration::from_millis(100));
        assert_eq!((0..9).filter(|_| bucket.take(next).is_ok()).count(), 2);
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..9).filter(|_| bucket.take(later).is_ok()).count(), 4);
    }
}
