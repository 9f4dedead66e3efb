//! Devices: for each kind its checks, its nodes in xenstore, QEMU's side of it, attaching and detaching.
//!
//! Each change of a running guest is an operation ([`crate::operation`]): a killed daemon leaves nothing half attached.
//! The next one undoes an attachment, and completes a detachment that the guest had agreed to. A command that is
//! repeated afterwards finds the guest as before, or the change made, which is its success.

pub(crate) mod backend;
pub(crate) mod cdrom;
pub(crate) mod claims;
pub(crate) mod disk;
mod emulated_nic;
pub(crate) mod initial;
pub(crate) mod nic;
pub(crate) mod nodes;
pub(crate) mod release;
pub(crate) mod removal;
pub(crate) mod script;
pub(crate) mod scsi;

use config::{Disk, DiskSource};

use crate::error::Cause;

/// How a device is detached from a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detach {
    /// After the guest has released it.
    #[default]
    Ask,
    /// At once, without asking the guest.
    Force,
}

/// Backends outside dom0 are refused.
pub(crate) fn check_backend(backend: Option<&str>) -> Result<(), Cause> {
    match backend {
        None | Some("0" | "Domain-0") => Ok(()),
        Some(other) => Err(Cause::Unsupported {
            what: format!("backend={other}"),
            why: "backends run only in dom0; omit the key".to_owned(),
        }),
    }
}

/// A disk, for messages.
pub(crate) fn describe(disk: &Disk) -> String {
    match &disk.source {
        DiskSource::Path(path) => format!("Disk {} ({path})", disk.vdev),
        DiskSource::Script { target, .. } => format!("Disk {} ({target})", disk.vdev),
        DiskSource::Empty => format!("Disk {}", disk.vdev),
    }
}
