use std::time::{Duration, Instant};

/// What an empty one is filled for at least, in seconds.
const PAUSE: f64 = 0.02;

/// So much in a second, and so much at once after a pause.
#[derive(Debug)]
pub(super) struct Budget {
    rate: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new((rate, burst): (u32, u32), now: Instant) -> Self {
        Self { rate: rate.into(), burst: burst.into(), left: burst.into(), at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.rate).min(self.burst);
        self.at = now.max(self.at);
    }

    /// Pays; what is spent beyond what is there has to be waited for.
    pub(super) fn spend(&mut self, amount: u32, now: Instant) {
        self.refill(now);
        self.left -= f64::from(amount);
    }

    /// Pays if there is enough.
    pub(super) fn try_spend(&mut self, amount: u32, now: Instant) -> bool {
        self.refill(now);
        let enough = self.left >= f64::from(amount);
        if enough {
            self.left -= f64::from(amount);
        }
        enough
    }

    /// How long to wait until something is there again, and more than a little: a wake-up has its price too.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        (self.left <= 0.0).then(|| Duration::from_secs_f64((PAUSE - self.left / self.rate).min(10.0)))
    }
}
