use core::fmt;
use core::ops::Add;

use serde::{Deserialize, Serialize};

/// Bytes in a page of every x86 domain (`XC_PAGE_SIZE`).
pub const PAGE_SIZE: usize = 4096;

/// An amount of memory in KiB, the unit of `xl.cfg`'s derived values and of Xen's memory interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KiB(pub u64);

impl KiB {
    /// Makes an amount of a number of MiB, at most `u64::MAX` KiB.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1024))
    }

    /// The amount in KiB.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The amount in whole MiB, rounded down.
    #[must_use]
    pub const fn mib(self) -> u64 {
        self.0 / 1024
    }

    /// The amount in whole 4 KiB pages, rounded down.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.0 / 4
    }
}

impl Add for KiB {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for KiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 != 0 && self.0.is_multiple_of(1024) {
            write!(f, "{} MiB", self.mib())
        } else {
            write!(f, "{} KiB", self.0)
        }
    }
}
