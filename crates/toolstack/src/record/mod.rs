//! The toolstack's record of a guest, so that the successor of a killed daemon can adopt or destroy it.
//!
//! The file is written before anything is made, and again whenever something is about to be made that could not be
//! found otherwise. Domains are found by the UUIDs in it (Xen keeps them as handles), loop devices by their tags. It is
//! valid only in the boot of the host that it names: domains, ports, loop devices and script effects end with that
//! boot.
//!
//! [`mod@file`] reads the files, including those of other releases.

mod domains;
mod file;
mod tolerance;

use std::path::PathBuf;

use config::{GuestConfig, Uuid, Vdev};
use serde::{Deserialize, Serialize};
use xen_types::{DomId, KiB};

use crate::Guest;
use crate::dom0::{BootId, DiskId, HostDevices, LoopAttachment, ScriptProcess, VifId};
use crate::error::Cause;
use crate::operation::{Kind, Operation, Stage, Way};
use crate::paths::Paths;
use crate::phase::Phase;

pub use file::UnreadableRecord;
pub(crate) use file::{Found, Records};
use tolerance::Stored;

/// The form (format version) of the files that are written. It is raised only for a change that an older release cannot
/// handle; an added key needs no new form.
const FORM: u32 = 2;
/// The oldest form that is read: it had a phase and a change instead of the operation.
const OLDEST: u32 = 1;
/// The largest state file that is read or written, in bytes.
const LIMIT: u64 = 1 << 20;
/// The largest one that a guest may begin with: what is done with it later needs room too.
const FIRST_LIMIT: u64 = LIMIT / 2;
/// The extension of state files.
const EXTENSION: &str = "json";
/// What the tags of this toolstack's loop devices begin with.
pub(crate) const LOOP_TAG: &str = "outrigger/";

/// A file attached to a loop device for a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopRecord {
    /// The disk's name in the configuration.
    pub vdev: String,
    /// The loop device.
    pub attachment: LoopAttachment,
}

/// The identity of one of the guest's disks, to compare others with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The disk's name in the configuration.
    pub vdev: Vdev,
    /// The path of its file or block device.
    pub path: String,
    /// The identity of that file or block device.
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
    /// The backend's path below `/local/domain/0`; empty in files of releases that did not record it.
    #[serde(default)]
    pub backend: String,
}

impl PortRecord {
    /// The backend whose interface it is.
    pub(crate) fn vif(&self) -> Option<VifId> {
        if self.backend.is_empty() {
            // An interface with a `vifname` of its own was not recorded; it disappears with its backend.
            let number = self.interface.strip_prefix("vif")?;
            return VifId::of_backend(&format!("backend/vif/{}", number.replace('.', "/")));
        }
        VifId::of_backend(&self.backend)
    }
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
    /// A run of it that could not be killed. While that process exists, the script is not started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ScriptProcess>,
}

/// A disk of the guest for which QEMU has a PV disk of the stubdomain, or has one once its drive has a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmulatedDisk {
    /// The disk as the guest sees it.
    pub vdev: Vdev,
    /// The stubdomain's PV disk.
    pub stub_vdev: Vdev,
}

/// One guest with its stubdomain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRecord {
    form: u32,
    /// The boot of the host in which the guest was created; absent in files of releases that did not record it.
    #[serde(default)]
    pub boot: Option<BootId>,
    /// Its UUID, which is also its domain's handle in Xen.
    pub uuid: Uuid,
    /// The stubdomain's UUID.
    pub stub_uuid: Uuid,
    /// Its name now; a preserved guest's differs from its configuration's.
    pub name: String,
    /// The last domid of its domain. Xen may have given it to another domain since.
    #[serde(default)]
    pub domid: Option<DomId>,
    /// The last domid of its stubdomain.
    #[serde(default)]
    pub stub_domid: Option<DomId>,
    /// Its configuration, for a restart.
    pub config: GuestConfig,
    /// Its loop devices.
    #[serde(default)]
    pub loops: Vec<LoopRecord>,
    /// Its bridge ports.
    #[serde(default)]
    pub ports: Vec<PortRecord>,
    /// Scripts that have run for its devices.
    #[serde(default)]
    pub scripts: Vec<ScriptRecord>,
    /// The machine type of its QEMU, by its versioned name: a state of its device model fits no other. Absent before
    /// the guest is made, and in files of releases that started QEMU with an alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Its disks that QEMU emulates.
    #[serde(default)]
    pub emulated_disks: Vec<EmulatedDisk>,
    /// The numbers of its network interfaces that QEMU emulates.
    #[serde(default)]
    pub emulated_nics: Vec<u32>,
    /// Its disks, including those that are being attached.
    #[serde(default)]
    pub disks: Vec<DiskRecord>,
    /// The configuration that takes the place of `config` when it restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_config: Option<GuestConfig>,
    /// The most memory that it may be given, if that is less than its configuration's `max_memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<KiB>,
    /// The operation in progress.
    #[serde(default)]
    pub operation: Option<Operation>,
    /// Keys of the file that this release does not know.
    #[serde(skip)]
    stored: Stored,
}

impl GuestRecord {
    /// Whether it has ended and is preserved under another name, beside a new guest of its configuration.
    pub(crate) fn is_preserved(&self) -> bool {
        self.name != self.config.name
    }

    /// Which of its names, or its stubdomain's, is one of these. The name that the undo of a rename gives back is one of
    /// them too.
    pub(crate) fn name_among(&self, wanted: &[String]) -> Option<&str> {
        let before = match &self.operation {
            Some(Operation { kind: Kind::Rename { from, .. }, .. }) => Some(from),
            _ => None,
        };
        let is_wanted = |name: &&String| wanted.contains(name) || wanted.contains(&format!("{name}-dm"));
        [&self.name].into_iter().chain(before).find(is_wanted).map(String::as_str)
    }

    pub(crate) fn new(config: &GuestConfig, boot: BootId, uuid: Uuid, stub_uuid: Uuid) -> Self {
        Self {
            form: FORM,
            boot: Some(boot),
            uuid,
            stub_uuid,
            name: config.name.clone(),
            domid: None,
            stub_domid: None,
            config: config.clone(),
            loops: Vec::new(),
            ports: Vec::new(),
            scripts: Vec::new(),
            machine: None,
            emulated_disks: Vec::new(),
            emulated_nics: Vec::new(),
            disks: Vec::new(),
            next_config: None,
            memory_limit: None,
            operation: None,
            stored: Stored::default(),
        }
    }

    /// How far its life is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let Some(Operation { kind, cursor }) = &self.operation else { return Phase::Running };
        match kind {
            Kind::Destroy => Phase::Destroying,
            Kind::Create { .. } => Phase::Creating,
            // Taken over, it runs.
            Kind::Receive { .. } if cursor.way != Way::Forward => Phase::Creating,
            Kind::Restart(restart) => match restart.stage {
                Stage::Delayed => Phase::Running,
                Stage::Removing => Phase::Destroying,
                Stage::Creating => Phase::Creating,
            },
            _ => Phase::Running,
        }
    }

    /// Takes the configuration for its next start, if there is one. It keeps its name, which may have changed since.
    pub(crate) fn renew(&mut self) {
        if let Some(next) = self.next_config.take() {
            let (name, uuid) = (std::mem::take(&mut self.config.name), self.config.uuid);
            self.config = GuestConfig { name, uuid, ..next };
        }
    }

    /// The guest, if both its domains were made.
    pub(crate) fn guest(self) -> Option<Guest> {
        let Self { uuid, stub_uuid, name, config, domid, stub_domid, .. } = self;
        Some(Guest { uuid, stub_uuid, name, domid: domid?, stub_domid: stub_domid?, config })
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
        paths.guests().join(format!("{uuid}.{EXTENSION}"))
    }

    pub(crate) fn save(&self, host: &dyn HostDevices, paths: &Paths) -> Result<(), Cause> {
        let path = Self::path(paths, self.uuid);
        let bad = |why: String| Cause::Record { path: path.clone(), why };
        let text = self.to_text().map_err(|error| bad(error.to_string()))?;
        let limit = if self.is_first() { FIRST_LIMIT } else { LIMIT };
        if text.len() as u64 > limit {
            return Err(bad(format!("it would have {} bytes, and the limit is {limit}", text.len())));
        }
        Ok(host.write_file(&path, &text)?)
    }

    /// Whether it is written before the guest has anything.
    fn is_first(&self) -> bool {
        let creates = matches!(&self.operation, Some(Operation { kind: Kind::Create { .. }, .. }));
        let has_nothing = self.loops.is_empty() && self.ports.is_empty() && self.scripts.is_empty();
        creates && has_nothing && self.domid.is_none() && self.stub_domid.is_none()
    }

    pub(crate) fn remove(&self, host: &dyn HostDevices, paths: &Paths) -> Result<(), Cause> {
        Ok(host.remove_file(&Self::path(paths, self.uuid))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom0::SimHost;
    use crate::operation::{Cursor, ENTRY};

    #[test]
    fn guest_that_can_be_created_has_room_for_its_life_in_its_file() {
        let (host, paths) = (SimHost::new(), Paths::default());
        let loaded = config::load_str("x.cfg", "name='hello'\ntype='hvm'\nmemory=32\n");
        let config = loaded.config.expect("a configuration");
        let boot = host.boot_id().expect("a boot");
        let mut record = GuestRecord::new(&config, boot, Uuid::from_u128(1), Uuid::from_u128(2));
        let kind = Kind::Create { paused: false };
        record.operation = Some(Operation { kind, cursor: Cursor::back(ENTRY) });
        record.name = "x".repeat(600 << 10);
        assert!(matches!(record.save(&host, &paths), Err(Cause::Record { .. })), "more than half the limit");
        record.domid = DomId::new(5).ok();
        assert!(record.save(&host, &paths).is_ok());
        let path = GuestRecord::path(&paths, record.uuid);
        assert!(matches!(GuestRecord::load(&host, &path), Found::Read(_)), "what was written can be read");
        record.name = "x".repeat(1100 << 10);
        assert!(matches!(record.save(&host, &paths), Err(Cause::Record { .. })), "more than can be read");
    }
}
