//! How long a guest that ends again and again waits for its next restart.
//!
//! Without a wait, a guest that reboots as soon as it starts would be created again without end: each time with
//! scripts, disk writes and two new domids, of which the host has only so many.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use toolstack::Turn;

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// A guest that has lived so long is restarted without a wait.
const LIVED: Duration = Duration::from_secs(120);

/// The time until a restart begins.
pub(crate) fn left(turn: Turn, now: Duration) -> Duration {
    turn.due().saturating_sub(now).min(LONGEST)
}

/// The restarts of one guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    row: u32,
    started: Option<Duration>,
    resumed: Option<Turn>,
}

impl Backoff {
    /// Of a guest that an earlier daemon was about to restart.
    pub(crate) fn resumed(turn: Turn) -> Self {
        Self { resumed: Some(turn), ..Self::after(turn) }
    }

    /// Of a guest that an earlier daemon was restarting.
    pub(crate) fn after(turn: Turn) -> Self {
        Self { row: turn.row.saturating_add(1), ..Self::default() }
    }

    /// The guest starts.
    pub(crate) fn started(&mut self, now: Duration) {
        self.started = Some(now);
    }

    /// The guest has ended: when its restart begins.
    pub(crate) fn next(&mut self, now: Duration) -> Turn {
        if let Some(turn) = self.resumed.take() {
            return turn;
        }
        if self.started.is_some_and(|started| now.saturating_sub(started) >= LIVED) {
            self.row = 0;
        }
        let due = now + wait(self.row);
        let turn = Turn::new(self.row, due);
        self.row = self.row.saturating_add(1);
        turn
    }
}

/// None for the first restart of a row, then 1 s, 2 s, 4 s …
fn wait(row: u32) -> Duration {
    match row.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => 1_u64.checked_shl(doublings).map_or(LONGEST, Duration::from_secs).min(LONGEST),
    }
}

/// The time since the host started, as daemons before and after this one measure it too.
pub(crate) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The waits of a guest that lives for `lives[n]` seconds each time.
    fn waits(backoff: &mut Backoff, lives: &[u64]) -> Vec<u64> {
        let mut now = Duration::from_secs(1000);
        let mut waits = Vec::new();
        for life in lives {
            backoff.started(now);
            now += Duration::from_secs(*life);
            let wait = left(backoff.next(now), now);
            waits.push(wait.as_secs());
            now += wait;
        }
        waits
    }

    #[test]
    fn waits_double_up_to_a_minute() {
        let lives = [119; 10];
        assert_eq!(waits(&mut Backoff::default(), &lives), [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        let mut backoff = Backoff { row: u32::MAX, ..Backoff::default() };
        assert_eq!(waits(&mut backoff, &[1, 1]), [60, 60]);
    }

    #[test]
    fn guest_that_has_lived_for_two_minutes_does_not_wait() {
        assert_eq!(waits(&mut Backoff::default(), &[1, 1, 1, 120, 1]), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn next_daemon_goes_on_with_the_same_turn() {
        let now = Duration::from_secs(50);
        let mut backoff = Backoff { row: 3, ..Backoff::default() };
        let turn = backoff.next(now);
        assert_eq!(left(turn, now), Duration::from_secs(4));
        let later = now + Duration::from_secs(3);
        let mut next = Backoff::resumed(turn);
        assert_eq!(left(next.next(later), later), Duration::from_secs(1));
        assert_eq!(left(next.next(later), later), Duration::from_secs(8));
        assert_eq!(left(Backoff::after(turn).next(later), later), Duration::from_secs(8));
    }
}
