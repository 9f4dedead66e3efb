mod disks;
mod scripts;
mod storage;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, SystemTime};

use xen_types::DomId;

use crate::dom0::disks::{Handle, Holds};
use crate::dom0::{
    BlockNumber, BootId, DiskAccess, DiskId, DiskUsers, FileKind, HostDevices, HostError, LoopAttachment,
    OpenDisk, PortRequest, ScriptCall, ScriptProcess, VifId, harmless_line,
};
use disks::{loop_device, missing};
pub use scripts::Scripts;

/// A dom0 that only remembers: what is attached, which ports bridges have, which files there are.
///
/// Each call counts; the one that was chosen fails without doing anything.
#[derive(Debug, Default)]
pub struct SimHost {
    state: Mutex<SimState>,
    pub(super) holds: Holds,
    /// Files that are being written through a descriptor.
    streams: Mutex<BTreeMap<PathBuf, File>>,
}

/// What a [`SimHost`] remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimState {
    /// Files and their content.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// Block devices that are there.
    pub blocks: BTreeMap<PathBuf, (u32, u32)>,
    /// Attached loop devices by minor number: file, read-only, tag.
    pub loops: BTreeMap<u32, (PathBuf, bool, String)>,
    /// Symbolic links.
    pub links: BTreeMap<PathBuf, PathBuf>,
    /// The files' inode numbers.
    pub(super) inodes: BTreeMap<PathBuf, u64>,
    pub(super) last_inode: u64,
    /// The identity of each loop device's backing file, independent of its name.
    pub(super) backing: BTreeMap<u32, DiskId>,
    /// The paths that cannot be looked at.
    pub(super) failing: BTreeSet<PathBuf>,
    /// Partitions and their disks.
    pub(super) partitions: BTreeMap<(u32, u32), (u32, u32)>,
    /// Mounted block devices: the mount point, and whether it is read-only.
    pub(super) mounts: Vec<(PathBuf, String, bool)>,
    /// Block devices that another program of dom0 has claimed.
    pub(super) claims: Vec<PathBuf>,
    /// Bridges.
    pub bridges: BTreeSet<String>,
    /// Bridge ports: interface to bridge.
    pub ports: BTreeMap<String, String>,
    /// The initial names of renamed ports, which identify their backends.
    pub renamed: BTreeMap<String, String>,
    /// Scripts that ran.
    pub scripts: Vec<(PathBuf, Vec<String>)>,
    /// The devices that they ran for (`XENBUS_PATH`).
    pub scripts_for: Vec<String>,
    /// What they do.
    pub does: Scripts,
    /// How far local time is ahead of UTC, in seconds.
    pub utc_offset: i32,
    /// When files were changed, in seconds since 1970; 0 for all others.
    pub changed: BTreeMap<PathBuf, u64>,
    /// What identifies the storage of disks; those that are not here have the identity `storage of PATH`.
    pub storage: BTreeMap<PathBuf, Option<String>>,
    /// How many bytes any folder has room for; nothing: enough.
    pub room: Option<u64>,
    /// How many calls were made.
    pub calls: u64,
    /// The call that fails, from 1.
    pub fail_at: Option<u64>,
    /// The thread whose call of this number, from 1, does not return.
    pub die_at: Option<(ThreadId, u64)>,
    /// How often the host was restarted.
    pub boots: u64,
    random: u64,
}

impl SimState {
    /// Whether no other backend's interface has this name.
    fn is_free_for(&self, name: &str, of: VifId) -> bool {
        self.renamed.get(name).is_none_or(|first| *first == of.first_name())
    }
}

impl SimHost {
    /// Makes a host with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file.
    pub fn put_file(&self, path: impl Into<PathBuf>, content: &[u8]) {
        self.lock().put(&path.into(), content);
    }

    /// Adds a block device.
    pub fn put_block(&self, path: impl Into<PathBuf>, major: u32, minor: u32) {
        self.lock().blocks.insert(path.into(), (major, minor));
    }

    /// Adds a bridge.
    pub fn put_bridge(&self, name: &str) {
        self.lock().bridges.insert(name.to_owned());
    }

    /// Deletes a bridge as the kernel does: its ports stay, and are those of no bridge.
    pub fn delete_bridge(&self, name: &str) {
        let mut state = self.lock();
        state.bridges.remove(name);
        state.ports.retain(|_, bridge| bridge != name);
    }

    /// Adds a port that another toolstack made for one of its backends.
    pub fn put_port(&self, interface: &str, first_name: &str, bridge: &str) {
        let mut state = self.lock();
        state.ports.insert(interface.to_owned(), bridge.to_owned());
        state.renamed.insert(interface.to_owned(), first_name.to_owned());
    }

    /// Ends a backend as the kernel does: its interface disappears, even if it was renamed.
    pub fn end_backend(&self, of: VifId) {
        let mut state = self.lock();
        let gone = |(name, first): (&String, &String)| (*first == of.first_name()).then(|| name.clone());
        for name in state.renamed.iter().filter_map(gone).collect::<Vec<_>>() {
            state.ports.remove(&name);
            state.renamed.remove(&name);
        }
    }

    /// Lets scripts do this from now on, also those that hang now.
    pub fn scripts(&self, does: Scripts) {
        self.lock().does = does;
    }

    /// Changes a file's content at this time, in seconds since 1970.
    pub fn change_file(&self, path: impl Into<PathBuf>, at: u64) {
        self.lock().changed.insert(path.into(), at);
    }

    /// Moves the host to another time zone.
    pub fn put_utc_offset(&self, seconds: i32) {
        self.lock().utc_offset = seconds;
    }

    /// Lets the `call`th call from now on fail, from 1; 0 lets none fail.
    pub fn fail_at(&self, call: u64) {
        let mut state = self.lock();
        state.fail_at = (call > 0).then(|| state.calls + call);
    }

    /// Ends the calling thread's work, with a panic that prints nothing, instead of its `call`th call from now on, from
    /// 1, as when the daemon is killed; 0 lets it live.
    pub fn die_at(&self, call: u64) {
        let mut state = self.lock();
        state.die_at = (call > 0).then(|| (thread::current().id(), state.calls + call));
    }

    /// Restarts the host: files stay, the kernel's state is gone.
    pub fn reboot(&self) {
        let mut state = self.lock();
        state.boots += 1;
        state.loops.clear();
        state.ports.clear();
        state.renamed.clear();
    }

    /// A copy of what the host remembers.
    #[must_use]
    pub fn state(&self) -> SimState {
        self.lock().clone()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SimState> {
        // A panic of one test thread says nothing about the plain data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<PathBuf, File>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn call(&self, operation: &'static str) -> Result<MutexGuard<'_, SimState>, HostError> {
        let mut state = self.lock();
        state.calls += 1;
        if state.die_at.is_some_and(|(thread, call)| (thread, call) == (thread::current().id(), state.calls))
        {
            drop(state);
            std::panic::resume_unwind(Box::new(operation));
        }
        if state.fail_at == Some(state.calls) {
            return Err(HostError::Injected { call: state.calls, operation });
        }
        Ok(state)
    }
}

impl SimState {
    fn put(&mut self, path: &Path, content: &[u8]) {
        self.inode(path);
        self.files.insert(path.to_owned(), content.to_vec());
    }
}

impl HostDevices for SimHost {
    fn file_kind(&self, path: &Path) -> Result<FileKind, HostError> {
        let state = self.call("file_kind")?;
        let Some((real, id)) = state.disk(path) else { return Ok(FileKind::Missing) };
        Ok(match (state.files.get(&real), id.block) {
            (Some(content), _) => FileKind::Regular { bytes: content.len() as u64 },
            (None, Some(BlockNumber { major, minor })) => FileKind::Block { major, minor },
            (None, None) => FileKind::Other,
        })
    }

    fn read_file(&self, path: &Path, limit: u64) -> Result<Vec<u8>, HostError> {
        let state = self.call("read_file")?;
        let content = state.files.get(&state.real(path)).ok_or_else(|| missing(path))?;
        if content.len() as u64 > limit {
            return Err(HostError::TooLong { path: path.to_owned(), limit });
        }
        Ok(content.clone())
    }

    fn write_file(&self, path: &Path, content: &[u8]) -> Result<(), HostError> {
        self.call("write_file")?.put(path, content);
        Ok(())
    }

    fn make_sparse(&self, path: &Path, _bytes: u64) -> Result<(), HostError> {
        // A test that reads it back puts something there.
        self.call("make_sparse")?.put(path, &[]);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> Result<(), HostError> {
        let mut state = self.call("remove_file")?;
        state.files.remove(path);
        state.inodes.remove(path);
        self.streams().remove(path);
        Ok(())
    }

    fn create_file(&self, path: &Path) -> Result<File, HostError> {
        self.create_stream(path)
    }

    fn modified(&self, path: &Path) -> Result<Option<SystemTime>, HostError> {
        let state = self.call("modified")?;
        let changed = state.changed.get(path).copied().unwrap_or_default();
        Ok(state.files.contains_key(path).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(changed)))
    }

    fn room_beside(&self, _path: &Path) -> Result<u64, HostError> {
        let state = self.call("room_beside")?;
        Ok(state.room.unwrap_or(u64::MAX))
    }

    fn open_stream(&self, path: &Path, _patience: Duration) -> Result<File, HostError> {
        self.open_stream_at(path)
    }

    fn open_pipe(&self, path: &Path) -> Result<File, HostError> {
        // There are no pipes here.
        Err(HostError::LonelyPipe { path: path.to_owned() })
    }

    fn put_in_place(&self, from: &Path, to: &Path) -> Result<(), HostError> {
        self.put_stream_in_place(from, to)
    }

    fn list_files(&self, folder: &Path) -> Result<Vec<PathBuf>, HostError> {
        let state = self.call("list_files")?;
        Ok(state.files.keys().filter(|path| path.parent() == Some(folder)).cloned().collect())
    }

    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
        self.call("write_at")?.put_at(path, offset, bytes)
    }

    fn storage_of(&self, path: &Path) -> Result<Option<String>, HostError> {
        self.storage(path)
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf, HostError> {
        Ok(self.call("real_path")?.real(path))
    }

    fn settle_backends(&self, _frontends: &[DomId], _patience: Duration) -> Result<(), HostError> {
        self.call("settle_backends").map(drop)
    }

    fn sync_disk(&self, path: &Path) -> Result<(), HostError> {
        self.disk_is_there("sync_disk", path)
    }

    fn forget_cached(&self, path: &Path) -> Result<(), HostError> {
        self.disk_is_there("forget_cached", path)
    }

    fn tail(&self, path: &Path, lines: usize) -> Vec<String> {
        let state = self.lock();
        let Some(content) = state.files.get(path) else { return Vec::new() };
        let all: Vec<_> =
            content.split(|byte| *byte == b'\n').map(harmless_line).filter(|l| !l.is_empty()).collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().to_vec()
    }

    fn open_disk(&self, path: &Path, access: DiskAccess) -> Result<OpenDisk, HostError> {
        self.open(path, access)
    }

    fn disk_at(&self, path: &Path) -> Result<Option<DiskId>, HostError> {
        self.at(path)
    }

    fn block_disk(&self, number: BlockNumber) -> Result<DiskId, HostError> {
        Ok(self.call("block_disk")?.block(number))
    }

    fn disk_users(&self) -> Result<DiskUsers, HostError> {
        self.users()
    }

    fn attach_loop(&self, disk: &OpenDisk, read_only: bool, tag: &str) -> Result<LoopAttachment, HostError> {
        let mut state = self.call("attach_loop")?;
        let Handle::Simulated(real, _) = &disk.handle else { return Err(missing(&disk.path)) };
        let minor = state.attach(real.clone(), disk.id.clone(), read_only, tag);
        Ok(loop_attachment(minor, tag))
    }

    fn detach_loop(&self, attachment: &LoopAttachment) -> Result<(), HostError> {
        let mut state = self.call("detach_loop")?;
        let minor = attachment.device.minor;
        if state.loops.get(&minor).is_some_and(|(_, _, tag)| *tag == attachment.tag) {
            state.loops.remove(&minor);
            state.backing.remove(&minor);
        }
        Ok(())
    }

    fn find_loops(&self, prefix: &str) -> Result<Vec<LoopAttachment>, HostError> {
        let state = self.call("find_loops")?;
        let matching = state.loops.iter().filter(|(_, (_, _, tag))| tag.starts_with(prefix));
        Ok(matching.map(|(minor, (_, _, tag))| loop_attachment(*minor, tag)).collect())
    }

    fn is_bridge(&self, name: &str) -> Result<bool, HostError> {
        Ok(self.call("is_bridge")?.bridges.contains(name))
    }

    fn has_interface(&self, of: VifId) -> Result<bool, HostError> {
        // A backend of this host makes each vif at once.
        Ok(self.call("has_interface")?.is_free_for(&of.first_name(), of))
    }

    fn add_port(&self, request: &PortRequest) -> Result<(), HostError> {
        let mut state = self.call("add_port")?;
        if !state.bridges.contains(&request.bridge) {
            return Err(HostError::NoBridge(request.bridge.clone()));
        }
        let first = request.vif.first_name();
        let name = request.rename.clone().unwrap_or_else(|| first.clone());
        for (operation, name, errno) in
            [("find", &first, nix::errno::Errno::ENODEV), ("rename", &name, nix::errno::Errno::EEXIST)]
        {
            if !state.is_free_for(name, request.vif) {
                return Err(HostError::Network { operation, interface: first.clone(), source: errno.into() });
            }
        }
        state.ports.insert(name.clone(), request.bridge.clone());
        state.renamed.insert(name, first);
        Ok(())
    }

    fn move_port(&self, interface: &str, of: VifId, bridge: &str) -> Result<(), HostError> {
        let mut state = self.call("move_port")?;
        if !state.bridges.contains(bridge) {
            return Err(HostError::NoBridge(bridge.to_owned()));
        }
        let source = || std::io::Error::from(nix::errno::Errno::ENODEV);
        let missing =
            || HostError::Network { operation: "find", interface: interface.to_owned(), source: source() };
        if state.renamed.get(interface) != Some(&of.first_name()) {
            return Err(missing());
        }
        state.ports.get_mut(interface).map(|port| bridge.clone_into(port)).ok_or_else(missing)
    }

    fn bridge_of(&self, interface: &str, of: VifId) -> Result<Option<String>, HostError> {
        let state = self.call("bridge_of")?;
        let is_its = state.renamed.get(interface) == Some(&of.first_name());
        Ok(state.ports.get(interface).filter(|_| is_its).cloned())
    }

    fn remove_port(&self, interface: &str, of: VifId) -> Result<(), HostError> {
        let mut state = self.call("remove_port")?;
        if state.renamed.get(interface) == Some(&of.first_name()) {
            state.ports.remove(interface);
            state.renamed.remove(interface);
        }
        Ok(())
    }

    fn run_script(&self, call: &ScriptCall) -> Result<(), HostError> {
        let mut state = self.call("run_script")?;
        state.scripts.push((call.script.clone(), call.args.clone()));
        state.scripts_for.push(call.env.get("XENBUS_PATH").cloned().unwrap_or_default());
        while state.does == Scripts::Hang {
            drop(state);
            std::thread::sleep(Duration::from_millis(5));
            state = self.lock();
        }
        state.does.outcome(call)
    }

    fn script_runs(&self, process: ScriptProcess) -> bool {
        process == scripts::STUCK && self.lock().does == Scripts::Stick
    }

    fn boot_id(&self) -> Result<BootId, HostError> {
        Ok(BootId(uuid::Uuid::from_u128(u128::from(self.call("boot_id")?.boots) + 1)))
    }

    fn utc_offset(&self) -> Result<i32, HostError> {
        Ok(self.call("utc_offset")?.utc_offset)
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), HostError> {
        let mut state = self.call("random")?;
        for byte in bytes {
            // Not random at all: tests shall see the same twice.
            state.random = state.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = state.random.to_be_bytes()[0];
        }
        Ok(())
    }
}

fn loop_attachment(minor: u32, tag: &str) -> LoopAttachment {
    LoopAttachment { device: loop_device(minor), tag: tag.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_call_fails_and_does_nothing() {
        let host = SimHost::new();
        host.fail_at(2);
        host.write_file(Path::new("/a"), b"").unwrap();
        assert!(matches!(host.write_file(Path::new("/b"), b""), Err(HostError::Injected { .. })));
        host.write_file(Path::new("/c"), b"").unwrap();
        assert_eq!(host.state().files.len(), 2);
    }

    #[test]
    fn a_loop_device_that_changed_hands_is_not_detached() {
        let host = SimHost::new();
        host.put_file("/d", b"x");
        let disk = host.open_disk(Path::new("/d"), DiskAccess::ReadOnly).unwrap();
        let mine = host.attach_loop(&disk, true, "a").unwrap();
        host.detach_loop(&mine).unwrap();
        host.attach_loop(&disk, true, "b").unwrap();
        host.detach_loop(&mine).unwrap();
        assert_eq!(host.find_loops("b").unwrap().len(), 1);
    }
}
