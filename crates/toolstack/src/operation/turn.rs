//! When a restart begins.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One restart of a guest: how many there were before it, and when it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The restarts before it, each of a guest that had not lived long.
    pub row: u32,
    /// When it begins, in milliseconds of `CLOCK_MONOTONIC`, which begins with the host's boot. It counts only within that boot.
    due_ms: u64,
}

impl Turn {
    /// A restart that begins at `due`, a time of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn new(row: u32, due: Duration) -> Self {
        Self { row, due_ms: u64::try_from(due.as_millis()).unwrap_or(u64::MAX) }
    }

    /// When it begins, as a time of `CLOCK_MONOTONIC`.
    #[must_use]
    pub const fn due(self) -> Duration {
        Duration::from_millis(self.due_ms)
    }
}
