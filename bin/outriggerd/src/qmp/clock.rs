//! A clock that costs no system call.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// The time of the kernel's last tick: some milliseconds off, which no deadline of QMP and no average minds. It is
/// read without the kernel also where the exact time is not, as in a dom0 whose processor's counter is not trusted;
/// there each exact reading costs as much as moving a message.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    ticks: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { began: Instant::now(), ticks: ticks() }
    }

    pub(super) fn now(&self) -> Instant {
        self.began + ticks().saturating_sub(self.ticks)
    }
}

fn ticks() -> Duration {
    // Linux has had this clock for ever; without it time would stand still here, and deadlines elsewhere still hold.
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_the_exact_one() {
        let clock = Clock::start();
        let end = Instant::now() + Duration::from_millis(60);
        let mut last = clock.now();
        while Instant::now() < end {
            let now = clock.now();
            assert!(now >= last && now < Instant::now() + Duration::from_millis(20));
            last = now;
            std::thread::yield_now();
        }
        assert!(last >= end.checked_sub(Duration::from_millis(40)).unwrap());
    }
}
