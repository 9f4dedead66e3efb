//! What a toolstack does in dom0 outside Xen and xenstore: files, loop devices, network interfaces, scripts.
//!
//! [`HostDevices`] is the one edge; [`RealHost`] does it, [`SimHost`] remembers it for tests.

mod disks;
mod error;
mod netlink;
mod real;
mod script;
mod sim;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use xen_types::DomId;

pub use disks::{
    BlockNumber, DiskAccess, DiskId, DiskUsers, FileId, HostLoop, HostMount, LowerDevice, OpenDisk,
};
pub use error::HostError;
pub use real::RealHost;
pub use sim::{Scripts, SimHost, SimState};

/// A block device of dom0, by the numbers that `physical-device` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Its path.
    pub path: PathBuf,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
}

impl BlockDevice {
    /// The numbers as the block backend reads them: hexadecimal, `major:minor` (`drivers/block/xen-blkback`).
    #[must_use]
    pub fn physical_device(&self) -> String {
        format!("{:x}:{:x}", self.major, self.minor)
    }
}

/// A file attached to a loop device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopAttachment {
    /// The loop device.
    pub device: BlockDevice,
    /// The tag in the kernel's record that says whose it is.
    pub tag: String,
}

/// A boot of the host, identified by the random UUID that dom0's kernel makes when it starts.
///
/// dom0 and its Xen boot together (neither outlives the other), so the UUID identifies the boot of both. Domids are
/// comparable only within one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub uuid::Uuid);

/// What is found at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Nothing.
    Missing,
    /// A regular file.
    Regular {
        /// Its length in bytes.
        bytes: u64,
    },
    /// A block device.
    Block {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A named pipe.
    Pipe,
    /// Anything else.
    Other,
}

/// A network backend of dom0, which identifies its interface independent of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VifId {
    /// The frontend's domain.
    pub domid: DomId,
    /// The device's number in that domain.
    pub devid: u32,
}

impl VifId {
    /// Reads `backend/vif/<domid>/<devid>`.
    #[must_use]
    pub fn of_backend(path: &str) -> Option<Self> {
        let mut words = path.strip_prefix("backend/vif/")?.split('/');
        let id = Self { domid: words.next()?.parse().ok()?, devid: words.next()?.parse().ok()? };
        words.next().is_none().then_some(id)
    }

    /// The name that the kernel's xenbus gives the device (`backend_bus_id` in `xenbus_probe_backend.c`).
    #[must_use]
    pub fn device_name(self) -> String {
        format!("vif-{}-{}", self.domid, self.devid)
    }

    /// The initial name of the interface.
    #[must_use]
    pub fn first_name(self) -> String {
        format!("vif{}.{}", self.domid, self.devid)
    }
}

/// How a vif becomes a bridge's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRequest {
    /// The backend whose interface it is; the interface still has its first name.
    pub vif: VifId,
    /// Its new name, when the configuration wants one.
    pub rename: Option<String>,
    /// The bridge that it joins.
    pub bridge: String,
    /// Its MTU in bytes, when the configuration wants one.
    pub mtu: Option<u32>,
}

/// One call of a hotplug script, as libxl makes it (`tools/libs/light/libxl_linux.c`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptCall {
    /// The script.
    pub script: PathBuf,
    /// Its arguments: `add`, or `online` and `type_if=vif`.
    pub args: Vec<String>,
    /// Variables beyond a plain `PATH`: `XENBUS_PATH`, `vif`…
    pub env: BTreeMap<String, String>,
    /// How long it may run.
    pub deadline: Duration,
}

/// A process that runs a script. Its number alone may be another process's later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptProcess {
    /// Its number.
    pub pid: u32,
    /// When it was started, in the kernel's clock ticks since the boot (`starttime` in `proc_pid_stat(5)`).
    pub started: u64,
}

/// Side effects in dom0 outside Xen and xenstore.
///
/// What undoes (detach, remove) succeeds when there is nothing left to undo.
pub trait HostDevices: Send + Sync {
    /// What is at `path`, symbolic links followed.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    fn file_kind(&self, path: &Path) -> Result<FileKind, HostError>;

    /// Reads a whole small file.
    ///
    /// # Errors
    /// When it cannot be read or is longer than `limit` bytes.
    fn read_file(&self, path: &Path, limit: u64) -> Result<Vec<u8>, HostError>;

    /// Writes a whole file so that a crash leaves the old or the new content, never a part; makes its folder.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write_file(&self, path: &Path, content: &[u8]) -> Result<(), HostError>;

    /// Makes a file of zeros that takes no room until it is written to, for root alone; makes its folder. One that is
    /// there is emptied.
    ///
    /// # Errors
    /// When it cannot be made.
    fn make_sparse(&self, path: &Path, bytes: u64) -> Result<(), HostError>;

    /// Removes a file if it is there.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    fn remove_file(&self, path: &Path) -> Result<(), HostError>;

    /// Makes a file that does not exist yet, for root alone, and opens it to be written.
    ///
    /// # Errors
    /// When something is there already, or the file cannot be made.
    fn create_file(&self, path: &Path) -> Result<File, HostError>;

    /// When the content of a regular file was last changed; `None` when it is none.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn modified(&self, path: &Path) -> Result<Option<SystemTime>, HostError>;

    /// How many bytes more the folder of a file has room for.
    ///
    /// # Errors
    /// When its file system cannot be asked.
    fn room_beside(&self, path: &Path) -> Result<u64, HostError>;

    /// Opens a regular file to be read, or a named pipe whose other end has come within `patience`. Both block.
    ///
    /// # Errors
    /// When it is neither, cannot be opened, or nobody writes into the pipe.
    fn open_stream(&self, path: &Path, patience: Duration) -> Result<File, HostError>;

    /// Opens a named pipe to be written, which someone reads. It blocks.
    ///
    /// # Errors
    /// When it is none, nobody reads it, or it cannot be opened.
    fn open_pipe(&self, path: &Path) -> Result<File, HostError>;

    /// Puts the file `from`, whose content is on the disk, in the place of `to` in the same folder.
    ///
    /// # Errors
    /// When it is not there or cannot be moved, or the folder cannot be synced.
    fn put_in_place(&self, from: &Path, to: &Path) -> Result<(), HostError>;

    /// The files of a folder; none when there is no folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    fn list_files(&self, folder: &Path) -> Result<Vec<PathBuf>, HostError>;

    /// The last `lines` lines of a text file, made harmless for a terminal; none when it cannot be read.
    fn tail(&self, path: &Path, lines: usize) -> Vec<String>;

    /// Writes bytes into an existing file, at an offset in bytes, and syncs them. After an error, some or all of them may
    /// be on the disk.
    ///
    /// # Errors
    /// When the file cannot be opened, written or synced.
    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> Result<(), HostError>;

    /// What identifies the storage of a disk on every host that has it; `None` where nothing does.
    ///
    /// # Errors
    /// When the disk cannot be looked at.
    fn storage_of(&self, path: &Path) -> Result<Option<String>, HostError>;

    /// Resolves symbolic links. Returns the path unchanged if nothing is there.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn real_path(&self, path: &Path) -> Result<PathBuf, HostError>;

    /// Waits until the block backends of these domains have nothing to do: no request was taken for a while, and none is
    /// under way at their devices. The domains do not send any more.
    ///
    /// # Errors
    /// When they cannot be looked at, or are still at work after `patience`.
    fn settle_backends(&self, frontends: &[DomId], patience: Duration) -> Result<(), HostError>;

    /// Waits until everything that was written to a disk is on its storage.
    ///
    /// # Errors
    /// When it cannot be opened or synced.
    fn sync_disk(&self, path: &Path) -> Result<(), HostError>;

    /// Forgets what the kernel has cached of a disk, which another host has written to.
    ///
    /// # Errors
    /// When the disk cannot be opened.
    fn forget_cached(&self, path: &Path) -> Result<(), HostError>;

    /// Opens a disk, so that the disk that is checked is the one that is attached. Only a file or a block device is
    /// opened.
    ///
    /// # Errors
    /// When it cannot be opened for this access; [`HostError::DiskBusy`] when dom0 uses a block device that is opened
    /// for writing.
    fn open_disk(&self, path: &Path, access: DiskAccess) -> Result<OpenDisk, HostError>;

    /// The identity of the disk at a path; `None` when there is no disk.
    ///
    /// # Errors
    /// When its metadata cannot be read.
    fn disk_at(&self, path: &Path) -> Result<Option<DiskId>, HostError>;

    /// The identity of the block device with this number, without the backing file of a loop device.
    ///
    /// # Errors
    /// When its metadata cannot be read.
    fn block_disk(&self, number: BlockNumber) -> Result<DiskId, HostError>;

    /// The uses of disks in dom0.
    ///
    /// # Errors
    /// When the kernel's lists cannot be read.
    fn disk_users(&self) -> Result<DiskUsers, HostError>;

    /// Attaches an open file to a free loop device that stays until it is detached.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn attach_loop(&self, disk: &OpenDisk, read_only: bool, tag: &str) -> Result<LoopAttachment, HostError>;

    /// Detaches a loop device that still carries its tag.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn detach_loop(&self, attachment: &LoopAttachment) -> Result<(), HostError>;

    /// All loop devices whose tag starts with `prefix`.
    ///
    /// # Errors
    /// When the kernel's list cannot be read.
    fn find_loops(&self, prefix: &str) -> Result<Vec<LoopAttachment>, HostError>;

    /// Whether there is a bridge of this name.
    ///
    /// # Errors
    /// When this cannot be learnt.
    fn is_bridge(&self, name: &str) -> Result<bool, HostError>;

    /// Whether the interface of this backend exists under its first name. Another interface with that name does not
    /// count.
    ///
    /// # Errors
    /// When this cannot be learnt.
    fn has_interface(&self, of: VifId) -> Result<bool, HostError>;

    /// Makes the interface of a backend a bridge's port and brings it up.
    ///
    /// # Errors
    /// When the interface or the bridge is missing, another interface has the first name, or the kernel refuses.
    fn add_port(&self, request: &PortRequest) -> Result<(), HostError>;

    /// Moves the interface of this backend from its bridge to another; it stays up.
    ///
    /// # Errors
    /// When the interface or the bridge is missing, the interface belongs to another backend, or the kernel refuses.
    fn move_port(&self, interface: &str, of: VifId, bridge: &str) -> Result<(), HostError>;

    /// The bridge that the interface of this backend is a port of; `None` when it is none, or is gone.
    ///
    /// # Errors
    /// When this cannot be learnt.
    fn bridge_of(&self, interface: &str, of: VifId) -> Result<Option<String>, HostError>;

    /// Removes the interface of this backend from its bridge and brings it down. Does nothing when the interface is
    /// gone (it disappears with its backend), even if another interface has the name now.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn remove_port(&self, interface: &str, of: VifId) -> Result<(), HostError>;

    /// Runs a hotplug script to its end or its deadline.
    ///
    /// # Errors
    /// When it cannot be started, fails, or is still running at the deadline (it is killed then);
    /// [`HostError::ScriptStuck`] when even that does not end it.
    fn run_script(&self, call: &ScriptCall) -> Result<(), HostError>;

    /// Whether the process of a script that could not be killed still exists.
    fn script_runs(&self, process: ScriptProcess) -> bool;

    /// Identifies the current boot of the host.
    ///
    /// # Errors
    /// When the kernel's boot ID cannot be read.
    fn boot_id(&self) -> Result<BootId, HostError>;

    /// How far dom0's local time is ahead of UTC now, in seconds; 0 when no time zone is set.
    ///
    /// # Errors
    /// When the time zone cannot be read.
    fn utc_offset(&self) -> Result<i32, HostError>;

    /// Random bytes from the kernel, for UUIDs and MAC addresses.
    ///
    /// # Errors
    /// When the kernel gives none.
    fn random(&self, bytes: &mut [u8]) -> Result<(), HostError>;
}

/// A text of a stubdomain's or a script's making, as one harmless line for messages.
pub(crate) fn harmless_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| *c == '\t' || !qmp::is_deceptive(*c))
        .take(400)
        .collect::<String>()
        .trim_end()
        .to_owned()
}
