use std::fmt;
use std::path::PathBuf;

use config::Vdev;
use xen_types::DomId;

use crate::record::Phase;

/// Who uses a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskUser {
    /// The guest that it is for has it already.
    SameGuest {
        /// The guest's name.
        name: String,
        /// Its other disk.
        vdev: Vdev,
    },
    /// A guest, whoever made it.
    Guest {
        /// Its name.
        name: String,
        /// Its domain, if it has one.
        domid: Option<DomId>,
        /// How far its life is.
        phase: Phase,
    },
    /// A guest whose state file is not understood.
    Unreadable {
        /// The file.
        file: PathBuf,
    },
    /// dom0 has mounted it.
    Mounted {
        /// Where.
        at: String,
    },
    /// A loop device of dom0's.
    Loop {
        /// The device.
        device: PathBuf,
        /// Its file.
        file: String,
    },
}

impl fmt::Display for DiskUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameGuest { name, vdev } => write!(f, "the guest {name} itself, as {vdev}"),
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
                write!(f, "the guest of the state file {}, which cannot be read", file.display())
            }
            Self::Mounted { at } => write!(f, "dom0, mounted on {at}"),
            Self::Loop { device, file } => {
                write!(f, "the loop device {} (backing file {file})", device.display())
            }
        }
    }
}

impl DiskUser {
    /// What a person can do.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::SameGuest { .. } => "name it once, or make both read-only",
            Self::Guest { phase: Phase::Destroying, .. } => {
                "wait, or destroy that guest again if it stays like this"
            }
            Self::Guest { .. } => "shut that guest down first, or make the disk read-only for both",
            Self::Unreadable { .. } => "outrigger list shows what to do about the file",
            Self::Mounted { .. } => "unmount it first; one that is mounted read-only can be shared read-only",
            Self::Loop { .. } => "detach the loop device first (losetup -d)",
        }
    }
}
