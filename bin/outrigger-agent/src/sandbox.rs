//! Where and as whom QEMU runs.
//!
//! The agent makes a folder with the few devices that QEMU needs, owned by QEMU's user, and starts itself again as a
//! *launcher*: a process that drops its rights ([`launch`]) and becomes QEMU. `docs/security.md` says what each
//! part is for.

pub(crate) mod devices;
pub(crate) mod filter;
pub(crate) mod inspect;
pub(crate) mod launch;

use nix::unistd::{Gid, Uid};
use stubdom_abi::PCI_WORD;

use crate::plan::Plan;
use crate::system::has_xen_device;

/// The number of QEMU's user and of its group; nothing in the image names them.
const USER: u32 = 1000;
/// Below here is what the agent makes for QEMU.
const FOLDER: &str = "/qemu";
/// QEMU's `/dev`, as the agent sees it.
const DEV: &str = "/qemu/dev";
/// Where QEMU's file system is put together.
const ROOT: &str = "/qemu/root";
/// The group of processes with a limit of memory, where the kernel has such groups.
const CGROUP: &str = "/sys/fs/cgroup/qemu";
/// The word of the kernel's command line that makes the filter report what it would refuse, and refuse nothing.
const LOG_WORD: &str = "outrigger.filter=log";

/// What QEMU is needed for decides what it must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confinement {
    /// A user of its own without any capability.
    User,
    /// Root with the two capabilities that configuration space and MSI-X tables of a passed-through device need.
    Pci,
}

impl Confinement {
    /// What QEMU must keep: more than nothing only when a device is passed through to the target, or may be.
    pub(crate) fn of(plan: &Plan, cmdline: &str) -> Self {
        let is_wanted = || stubdom_abi::has_word(cmdline, PCI_WORD);
        let has_pci = plan.names_pci || is_wanted() || has_xen_device("pci-0");
        if has_pci { Self::Pci } else { Self::User }
    }

    /// Its word among the launcher's arguments.
    const fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pci => "pci",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        [Self::User, Self::Pci].into_iter().find(|known| known.word() == word)
    }

    /// The user whom taps have to belong to.
    pub(crate) fn user(self) -> u32 {
        self.ids().0.as_raw()
    }

    /// The user and group that QEMU runs as.
    fn ids(self) -> (Uid, Gid) {
        match self {
            Self::User => (Uid::from_raw(USER), Gid::from_raw(USER)),
            Self::Pci => (Uid::from_raw(0), Gid::from_raw(0)),
        }
    }
}
