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

/// A number of bytes that may come at once, and a rate for those after them. When all are used up, none may come for a
/// second, so that bytes are left out in few long pieces and not in many short ones.
#[derive(Debug)]
pub(crate) struct Pace {
    level: u64,
    burst: u64,
    per_second: u64,
    filled_at: Instant,
    rests_until: Option<Instant>,
}

impl Pace {
    pub(crate) const fn new(burst: u64, per_second: u64, now: Instant) -> Self {
        Self { level: burst, burst, per_second, filled_at: now, rests_until: None }
    }

    /// Takes so many bytes, or all that are left if these are fewer. When there are none, returns when to try again.
    pub(crate) fn take(&mut self, now: Instant, count: u64) -> Result<(), Instant> {
        if let Some(until) = self.rests_until(now) {
            return Err(until);
        }
        self.rests_until = None;
        self.fill(now);
        self.level = self.level.saturating_sub(count);
        if self.level == 0 {
            self.rests_until = Some(now + Duration::from_secs(1));
        }
        Ok(())
    }

    /// When bytes may come again, if none may now.
    pub(crate) fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.rests_until.filter(|until| now < *until)
    }

    fn fill(&mut self, now: Instant) {
        let micros = now.saturating_duration_since(self.filled_at).as_micros();
        let earned = u64::try_from(micros * u128::from(self.per_second) / 1_000_000).unwrap_or(u64::MAX);
        if earned > 0 {
            self.level = self.level.saturating_add(earned).min(self.burst);
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

    #[test]
    fn after_the_burst_bytes_come_at_the_rate_in_few_pieces() {
        let start = Instant::now();
        let mut pace = Pace::new(1000, 100, start);
        let (mut taken, mut pieces, mut was_taken) = (0, 0, false);
        // Ten seconds of a flood.
        for milli in 0..10_000 {
            let is_taken = pace.take(start + Duration::from_millis(milli), 5).is_ok();
            taken += if is_taken { 5 } else { 0 };
            pieces += u32::from(is_taken && !was_taken);
            was_taken = is_taken;
        }
        assert!((1900..=2100).contains(&taken), "{taken} bytes");
        assert!(pieces <= 11, "{pieces} pieces");
        // One that rested long has the burst again and no more.
        let later = start + Duration::from_secs(1000);
        assert_eq!((0..1000).filter(|_| pace.take(later, 5).is_ok()).count(), 200);
    }
}
