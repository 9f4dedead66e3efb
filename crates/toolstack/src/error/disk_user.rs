use std::fmt;
use std::path::PathBuf;

use config::Vdev;
use xen_types::DomId;

use crate::phase::Phase;

/// The user of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskUser {
    /// The guest that asks for the disk already has it.
    SameGuest {
        /// The guest's name.
        name: String,
        /// The virtual device that it already has the disk as.
        vdev: Vdev,
    },
    /// A guest of any toolstack.
    Guest {
        /// Its name.
        name: String,
        /// Its domain, if it has one.
        domid: Option<DomId>,
        /// The phase of its life.
        phase: Phase,
    },
    /// A guest whose state file cannot be read.
    Unreadable {
        /// The file.
        file: PathBuf,
    },
    /// dom0 has mounted it.
    Mounted {
        /// The mount point.
        at: String,
    },
    /// A loop device of dom0.
    Loop {
        /// The device.
        device: PathBuf,
        /// Its backing file.
        file: String,
    },
}

impl fmt::Display for DiskUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameGuest { name, vdev } => write!(f, "the guest {name} itself (as {vdev})"),
            Self::Guest { name, domid, phase } => {
                write!(f, "the guest {name}")?;
                if let Some(domid) = domid {
                    write!(f, " (domain {domid})")?;
                }
                match phase {
                    Phase::Creating => f.write_str(", which is being created"),
                    Phase::Running => Ok(()),
                    Phase::Destroying => f.write_str(", which is being destroyed"),
                }
            }
            Self::Unreadable { file } => {
                write!(f, "a guest whose state file {} cannot be read", file.display())
            }
            Self::Mounted { at } => write!(f, "dom0, which has it mounted on {at}"),
            Self::Loop { device, file } => {
                write!(f, "the loop device {} (backing file {file})", device.display())
            }
        }
    }
}

impl DiskUser {
    /// What the user can do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::SameGuest { .. } => "list it once, or make both entries read-only",
            Self::Guest { phase: Phase::Destroying, .. } => {
                "wait until that is done; if it does not finish, destroy that guest again"
            }
            Self::Guest { .. } => "shut that guest down first, or make the disk read-only for both",
            Self::Unreadable { .. } => "`outrigger list` shows how to resolve this",
            Self::Mounted { .. } => "unmount it first, or use it read-only in both places",
            Self::Loop { .. } => "detach the loop device first (losetup -d)",
        }
    }
}
