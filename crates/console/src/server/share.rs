//! What all consoles of one domain have together, so that a domain with ten of them gets no more than one with one.

use core::cell::RefCell;
use std::time::{Duration, Instant};

use tracing::warn;
use xen_types::DomId;

use super::LogPace;
use super::bucket::Pace;

/// Lines about a domain's consoles in the daemon's own log within [`LINES_PERIOD`]. A stubdomain with ten consoles that
/// starts and ends makes twenty.
const LINES_MAX: u32 = 64;
const LINES_PERIOD: Duration = Duration::from_secs(3600);

/// The shares of one domain.
#[derive(Debug)]
pub(crate) struct Share {
    domid: DomId,
    log: RefCell<Pace>,
    lines: RefCell<Lines>,
}

/// Lines of the daemon's own log.
#[derive(Debug)]
struct Lines {
    since: Instant,
    logged: u32,
    left_out: u64,
}

impl Share {
    pub(crate) fn new(domid: DomId, pace: LogPace, now: Instant) -> Self {
        Self {
            domid,
            log: RefCell::new(Pace::new(pace.burst, pace.per_second, now)),
            lines: RefCell::new(Lines { since: now, logged: 0, left_out: 0 }),
        }
    }

    /// Takes so many bytes of what logs may have, or returns when more are available.
    pub(crate) fn take_log(&self, now: Instant, count: u64) -> Result<(), Instant> {
        self.log.borrow_mut().take(now, count)
    }

    /// When logs may have bytes again, if they may have none now.
    pub(crate) fn log_rests_until(&self, now: Instant) -> Option<Instant> {
        self.log.borrow().rests_until(now)
    }

    /// Whether a line about the domain may be logged. Reports once that lines are left out, and later how many.
    pub(crate) fn may_log(&self, now: Instant) -> bool {
        let lines = &mut *self.lines.borrow_mut();
        if now.saturating_duration_since(lines.since) >= LINES_PERIOD {
            if lines.left_out > 0 {
                warn!(domain = %self.domid, "{} lines about its consoles were not logged", lines.left_out);
            }
            *lines = Lines { since: now, logged: 0, left_out: 0 };
        }
        if lines.logged < LINES_MAX {
            lines.logged += 1;
            return true;
        }
        if lines.left_out == 0 {
            warn!(domain = %self.domid, "further lines about its consoles are only counted for an hour");
        }
        lines.left_out += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_are_logged_in_an_hour() {
        let start = Instant::now();
        let share = Share::new(DomId::DOM0, LogPace::default(), start);
        let logged = |now| (0..1000).filter(|_| share.may_log(now)).count();
        assert_eq!(logged(start), 64);
        assert_eq!(logged(start + Duration::from_secs(3599)), 0);
        assert_eq!(logged(start + Duration::from_secs(3600)), 64);
    }
}
