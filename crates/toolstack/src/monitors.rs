//! Where steps find the monitor of a guest's QEMU.

use std::sync::Arc;

use qmp::{Monitor, QmpError};

use crate::Guest;
use crate::domain::GuestId;

/// How a guest has left this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left<'a> {
    /// Into a file.
    Saved,
    /// To this host.
    Migrated(&'a str),
}

/// Knows the monitors of all guests.
pub trait Monitors: Send + Sync {
    /// The monitor of the QEMU that serves this guest.
    ///
    /// # Errors
    /// [`QmpError::NoSession`] when there is none.
    fn monitor(&self, guest: GuestId) -> Result<Arc<dyn Monitor>, QmpError>;

    /// Begins to connect to the device model of a guest that is still being made: its QEMU is asked before the guest runs.
    fn begin(&self, guest: &Guest) {
        let _ = guest;
    }

    /// Gives up the monitor of a guest whose making has failed.
    fn give_up(&self, guest: &Guest) {
        let _ = guest;
    }

    /// The guest has left this host and will not come back as it is: its device model is about to end.
    fn left(&self, guest: GuestId, how: Left<'_>) {
        let _ = (guest, how);
    }

    /// Releases the device model of this guest, which is about to end: a connection to it holds pages of its domain.
    fn release(&self, guest: GuestId) {
        let _ = guest;
    }
}

/// Knows none, until a daemon gives others.
#[derive(Debug)]
pub(crate) struct NoMonitors;

impl Monitors for NoMonitors {
    fn monitor(&self, guest: GuestId) -> Result<Arc<dyn Monitor>, QmpError> {
        let why = format!("there is no session with the device model of guest {guest}");
        Err(QmpError::NoSession { command: "any command".to_owned(), why })
    }
}
