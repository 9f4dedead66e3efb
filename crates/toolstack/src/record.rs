//! What the toolstack writes down about a guest, so that a daemon that was killed can take up or clean up.
//!
//! The file is written before anything is made, and again whenever something is about to be made that could not be
//! found otherwise. Domains are found by the UUIDs in it (Xen keeps them as handles), loop devices by their tags.

use std::path::{Path, PathBuf};

use config::{Disk, GuestConfig, Nic, Uuid, Vdev};
use serde::{Deserialize, Serialize};
use xen_types::DomId;

use crate::error::Cause;
use crate::host::{DiskId, HostDevices, LoopAttachment};
use crate::paths::Paths;

/// The form of the file; another form is refused rather than guessed at.
const FORM: u32 = 1;
/// The largest state file that is read, in bytes.
const LIMIT: u64 = 1 << 20;
/// What the tags of this toolstack's loop devices begin with.
pub(crate) const LOOP_TAG: &str = "outrigger/";

/// How far a guest's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It is being made: whoever finds this with no creator at work cleans up.
    Creating,
    /// It runs, or has ended and waits for what is to be done.
    Running,
    /// It is being torn down: whoever finds this goes on with that.
    Destroying,
}

/// A file attached to a loop device for a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopRecord {
    /// The disk's name in the configuration.
    pub vdev: String,
    /// The loop device.
    pub attachment: LoopAttachment,
}

/// A disk of the guest, by what it is: others are compared with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The disk's name in the configuration.
    pub vdev: Vdev,
    /// The name of what is behind it.
    pub path: String,
    /// What is behind it.
    pub id: DiskId,
    /// Whether the guest may write.
    pub writable: bool,
}

/// A vif that was made a bridge's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    /// The interface in dom0.
    pub interface: String,
    /// The bridge.
    pub bridge: String,
}

/// A hotplug script that was run, and has to be run again to take back what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptRecord {
    /// The script.
    pub script: PathBuf,
    /// The backend's path below `/local/domain/0`, which the script reads.
    pub backend: String,
    /// The arguments that take it back.
    pub args: Vec<String>,
    /// Its other variables.
    pub env: std::collections::BTreeMap<String, String>,
}

/// A disk of the guest for which QEMU has a PV disk of the stubdomain, or has one once its drive has a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmulatedDisk {
    /// The disk as the guest sees it.
    pub vdev: Vdev,
    /// The stubdomain's PV disk.
    pub stub_vdev: Vdev,
}

/// A change of a running guest's devices that is under way.
///
/// Whoever finds it with nobody at work on it puts an attachment back, and finishes a detachment that the guest has
/// agreed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A disk comes.
    AttachDisk(Disk),
    /// A disk goes.
    DetachDisk {
        /// Which one.
        vdev: Vdev,
        /// The guest has let it go.
        let_go: bool,
    },
    /// A CD drive gets another disc than its configuration says, or none.
    ChangeMedium {
        /// The drive.
        vdev: Vdev,
    },
    /// A picture of the screen is taken, onto a disk of the stubdomain.
    Screenshot {
        /// That disk.
        vdev: Vdev,
    },
    /// A network interface comes.
    AttachNic(Nic),
    /// A network interface goes.
    DetachNic {
        /// Its number.
        devid: u32,
        /// The guest has let it go.
        let_go: bool,
    },
    /// A network interface moves to another bridge than its configuration says.
    MoveNic {
        /// Its number.
        devid: u32,
    },
}

/// One guest with its stubdomain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRecord {
    form: u32,
    /// How far its life is.
    pub phase: Phase,
    /// Its UUID, which is also its domain's handle in Xen.
    pub uuid: Uuid,
    /// The stubdomain's UUID.
    pub stub_uuid: Uuid,
    /// Its name now; a preserved guest's differs from its configuration's.
    pub name: String,
    /// Its domain.
    pub domid: Option<DomId>,
    /// Its stubdomain.
    pub stub_domid: Option<DomId>,
    /// Its configuration, for a restart.
    pub config: GuestConfig,
    /// Its loop devices.
    pub loops: Vec<LoopRecord>,
    /// Its bridge ports.
    pub ports: Vec<PortRecord>,
    /// Scripts that have run for its devices.
    pub scripts: Vec<ScriptRecord>,
    /// Its disks that QEMU emulates.
    #[serde(default)]
    pub emulated_disks: Vec<EmulatedDisk>,
    /// The numbers of its network interfaces that QEMU emulates.
    #[serde(default)]
    pub emulated_nics: Vec<u32>,
    /// Its disks, those that are just being attached too.
    #[serde(default)]
    pub disks: Vec<DiskRecord>,
    /// What is being changed just now.
    #[serde(default)]
    pub change: Option<Change>,
}

impl GuestRecord {
    pub(crate) fn new(config: &GuestConfig, uuid: Uuid, stub_uuid: Uuid) -> Self {
        Self {
            form: FORM,
            phase: Phase::Creating,
            uuid,
            stub_uuid,
            name: config.name.clone(),
            domid: None,
            stub_domid: None,
            config: config.clone(),
            loops: Vec::new(),
            ports: Vec::new(),
            scripts: Vec::new(),
            emulated_disks: Vec::new(),
            emulated_nics: Vec::new(),
            disks: Vec::new(),
            change: None,
        }
    }

    /// The stubdomain's name.
    #[must_use]
    pub fn stub_name(&self) -> String {
        format!("{}-dm", self.name)
    }

    /// The tag of this guest's loop devices.
    pub(crate) fn loop_tag(&self) -> String {
        format!("{LOOP_TAG}{}", self.uuid)
    }

    pub(crate) fn path(paths: &Paths, uuid: Uuid) -> PathBuf {
        paths.guests().join(format!("{uuid}.json"))
    }

    pub(crate) fn save(&self, host: &dyn HostDevices, paths: &Paths) -> Result<(), Cause> {
        let path = Self::path(paths, self.uuid);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Cause::Record { path: path.clone(), why: error.to_string() })?;
        Ok(host.write_file(&path, &text)?)
    }

    pub(crate) fn remove(&self, host: &dyn HostDevices, paths: &Paths) -> Result<(), Cause> {
        Ok(host.remove_file(&Self::path(paths, self.uuid))?)
    }

    pub(crate) fn load(host: &dyn HostDevices, path: &Path) -> Result<Self, Cause> {
        let text = host.read_file(path, LIMIT)?;
        let bad = |why: String| Cause::Record { path: path.to_owned(), why };
        let record: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if record.form == FORM { Ok(record) } else { Err(bad(format!("its form is {}", record.form))) }
    }

    /// All records, and the files that cannot be read as one.
    pub(crate) fn load_all(host: &dyn HostDevices, paths: &Paths) -> Result<(Vec<Self>, Vec<Cause>), Cause> {
        let mut records = Vec::new();
        let mut bad = Vec::new();
        for path in host.list_files(&paths.guests())? {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match Self::load(host, &path) {
                Ok(record) => records.push(record),
                Err(cause) => bad.push(cause),
            }
        }
        Ok((records, bad))
    }
}
