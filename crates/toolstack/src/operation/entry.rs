//! The journal entry of an operation: what is done to the guest, and how far it has come.
//!
//! The entry is in the guest's state file as long as the operation is in progress, and is durable before what it
//! announces is done. What the operation made is in the same file: domids, loop devices, ports, scripts, disks.

use std::path::PathBuf;

use config::{Disk, Nic, Uuid, Vdev};
use migration::MigrationId;
use serde::{Deserialize, Serialize};
use xen_types::KiB;

use super::turn::Turn;

/// An operation in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// What is done.
    pub kind: Kind,
    /// How far it has come.
    pub cursor: Cursor,
}

/// What an operation does, with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The guest is created.
    Create {
        /// It is not started.
        paused: bool,
    },
    /// The guest is destroyed.
    Destroy,
    /// The guest is destroyed, and created again from its configuration.
    Restart(Restart),
    /// The guest gets another name.
    Rename {
        /// The name before.
        from: String,
        /// Its configuration gets the name too.
        for_good: bool,
    },
    /// A disk is attached.
    AttachDisk(Disk),
    /// A disk is detached.
    DetachDisk {
        /// Which one.
        vdev: Vdev,
    },
    /// A CD drive gets another disc than its configuration says, or none.
    ChangeMedium {
        /// The drive.
        vdev: Vdev,
    },
    /// A screenshot is taken, onto a disk of the stubdomain.
    Screenshot {
        /// That disk.
        vdev: Vdev,
    },
    /// A network interface is attached.
    AttachNic(Nic),
    /// A network interface is detached.
    DetachNic {
        /// Its number.
        devid: u32,
    },
    /// A network interface moves to another bridge than its configuration says.
    MoveNic {
        /// Its number.
        devid: u32,
    },
    /// The guest's memory changes.
    SetMemory {
        /// The memory before.
        from: KiB,
    },
    /// The number of the guest's vCPUs changes.
    SetVcpus {
        /// The number before.
        from: u32,
    },
    /// The limit of the guest's memory changes.
    SetMaxMemory {
        /// The limit before.
        from: Option<KiB>,
    },
    /// The guest's vCPUs get other CPUs.
    PinVcpus {
        /// The CPUs before.
        from: Vec<Pinned>,
    },
    /// The guest is suspended, and stays in memory.
    Suspend,
    /// It goes on.
    Resume,
    /// The guest is saved.
    Save {
        /// What names this save; its file has the same.
        id: Uuid,
        /// The file, or named pipe.
        to: PathBuf,
        /// What becomes of the guest.
        after: AfterSave,
    },
    /// The guest's memory is dumped to a core file.
    DumpCore {
        /// What names this dump.
        id: Uuid,
        /// The file.
        to: PathBuf,
        /// The guest is paused for it.
        paused: bool,
    },
    /// The guest leaves for another host.
    Migrate {
        /// The migration; its journal decides what becomes of the operation.
        id: MigrationId,
        /// The other host, as the operator named it.
        to: String,
    },
    /// The guest comes from another host.
    Receive {
        /// The migration; its journal decides what becomes of the operation.
        id: MigrationId,
    },
}

/// The CPUs of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The vCPU.
    pub vcpu: u32,
    /// The CPUs that it may run on.
    pub hard: Vec<u16>,
    /// The CPUs that it runs on if they are free.
    pub soft: Vec<u16>,
}

/// What becomes of a guest that is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterSave {
    /// It is destroyed: it goes on where it is restored.
    #[default]
    Destroy,
    /// It goes on at once.
    Run,
    /// It stays, paused.
    Pause,
}

/// A restart: the guest is created again whatever happens to the daemon meanwhile, unless the host goes down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// When it begins.
    pub turn: Turn,
    /// How far it has come.
    pub stage: Stage,
    /// The ended guest that gives its name to this one and is preserved under another.
    #[serde(default)]
    pub predecessor: Option<Predecessor>,
}

/// The stages of a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Its time has not come; the ended guest is still there.
    Delayed,
    /// The ended guest is destroyed.
    Removing,
    /// The guest is created again.
    Creating,
}

/// A guest that ended and is preserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its UUID.
    pub uuid: Uuid,
    /// The name that it gets.
    pub name: String,
}

/// How far an operation has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The id of the last step that was begun and leaves something to undo.
    pub step: String,
    /// What becomes of the operation if nothing works on it.
    pub way: Way,
}

/// What becomes of an operation that was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// It is undone.
    Back,
    /// It is being undone, after a failure.
    Undo,
    /// It is completed: it is beyond its point of no return.
    Forward,
    /// Neither: a peer decides, and the guest is locked until it has answered.
    Peer,
}

impl Kind {
    /// Whether this may take the place of an entry about which another host decides.
    pub(super) fn may_follow(&self, before: &Operation) -> bool {
        // A destruction follows the decision that the guest is elsewhere, and a restart an operator's.
        *self == before.kind || matches!(self, Self::Destroy | Self::Restart(_))
    }
}

impl Operation {
    /// Whether it makes or removes the guest's domains, so that the guest does not run before its end.
    pub(crate) fn is_of_domains(&self) -> bool {
        match &self.kind {
            Kind::Create { .. } | Kind::Destroy => true,
            // Its file is whole, or another host has it: there is no guest to go on here any more.
            Kind::Save { .. } | Kind::Migrate { .. } => self.cursor.way == Way::Forward,
            // Not taken over, it is removed.
            Kind::Receive { .. } => self.cursor.way != Way::Forward,
            Kind::Restart(restart) => restart.stage != Stage::Delayed,
            _ => false,
        }
    }
}

impl Cursor {
    /// Of an operation that was begun at this step and can be undone.
    #[must_use]
    pub fn back(step: &str) -> Self {
        Self { step: step.to_owned(), way: Way::Back }
    }

    /// Whether the operation has come to this step and is not being undone.
    pub(crate) fn is_at(&self, step: &str) -> bool {
        self.step == step && self.way != Way::Undo
    }

    /// Of an operation that is beyond its point of no return with this step.
    #[must_use]
    pub fn forward(step: &str) -> Self {
        Self { step: step.to_owned(), way: Way::Forward }
    }
}
