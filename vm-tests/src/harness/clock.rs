//! The clocks of two hosts. A guest that moves asks each host for the time, and so measures their difference with its own
//! standstill.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// Microseconds since 1970.
pub(crate) fn now() -> Result<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("it is before 1970")?;
    Ok(i64::try_from(now.as_micros())?)
}

/// Sets this host's clock, and Xen's with it, forward by so many microseconds, or back.
pub(crate) fn shift(micros: i64) -> Result<()> {
    let time = Duration::from_micros(u64::try_from(now()? + micros)?);
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time)).context("cannot set the clock")
}

/// How far the other clock is ahead: the middle of a question, what was answered, and how long that took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) ahead: i64,
    pub(crate) took: i64,
}

impl Difference {
    /// From the times before and after the question, and the answer.
    pub(crate) fn of(before: i64, answer: i64, after: i64) -> Self {
        Self { ahead: answer - i64::midpoint(before, after), took: after - before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_is_from_the_middle_of_the_question() {
        assert_eq!(Difference::of(1000, 1250, 1100), Difference { ahead: 200, took: 100 });
        assert_eq!(Difference::of(1000, 900, 1100).ahead, -150);
    }
}
