//! Disks of the simulated host: names of files, partitions, mounts, and exclusive claims on block devices.

use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::PoisonError;

use super::{SimHost, SimState};
use crate::dom0::disks::{Handle, Held};
use crate::dom0::{
    BlockDevice, BlockNumber, DiskAccess, DiskId, DiskUsers, FileId, HostError, HostLoop, HostMount, OpenDisk,
};

/// The longest chain of links that is followed.
const LINKS_MAX: usize = 40;

impl SimHost {
    /// Adds a symbolic link.
    pub fn put_link(&self, path: impl Into<PathBuf>, target: impl Into<PathBuf>) {
        self.lock().links.insert(path.into(), target.into());
    }

    /// Gives a file a second name.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn put_hard_link(&self, path: impl Into<PathBuf>, file: &Path) {
        let (mut state, path) = (self.lock(), path.into());
        let (content, inode) = (state.files[file].clone(), state.inode(file));
        state.inodes.insert(path.clone(), inode);
        state.files.insert(path, content);
    }

    /// Adds a partition of a block device.
    pub fn put_partition(&self, path: impl Into<PathBuf>, partition: (u32, u32), whole: (u32, u32)) {
        let mut state = self.lock();
        state.blocks.insert(path.into(), partition);
        state.partitions.insert(partition, whole);
    }

    /// Mounts a block device in dom0.
    pub fn put_mount(&self, device: impl Into<PathBuf>, at: &str, read_only: bool) {
        self.lock().mounts.push((device.into(), at.to_owned(), read_only));
    }

    /// Lets a program of dom0 claim a block device, as LVM, MD and swap do.
    pub fn put_claim(&self, device: impl Into<PathBuf>) {
        self.lock().claims.push(device.into());
    }

    /// Makes each look at this path fail, as on a failing file system.
    pub fn put_failure(&self, path: impl Into<PathBuf>) {
        self.lock().failing.insert(path.into());
    }

    /// Attaches a disk to a loop device, as another program would; returns its number.
    ///
    /// # Panics
    /// When there is no such disk.
    pub fn put_loop(&self, path: &Path, read_only: bool, tag: &str) -> u32 {
        let mut state = self.lock();
        let (real, id) = state.disk(path).expect("there is such a disk");
        state.attach(real, id, read_only, tag)
    }

    pub(super) fn open(&self, path: &Path, access: DiskAccess) -> Result<OpenDisk, HostError> {
        let state = self.call("open_disk")?;
        let (real, id) = state.disk(path).ok_or_else(|| missing(path))?;
        let block = if state.files.contains_key(&real) { None } else { id.block };
        let mut held = None;
        if block.is_some() && access == DiskAccess::Writable {
            let by_dom0 = state.claims.iter().chain(state.mounts.iter().map(|(device, ..)| device));
            let others = self.holds.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut claimed =
                by_dom0.filter_map(|device| Some(state.disk(device)?.1)).chain(others.into_values());
            // While a program has claimed a device, Linux lets no other claim it or the disk that it is part of.
            let alone = |id: DiskId| DiskId { file: None, under: Vec::new(), ..id };
            if claimed.any(|other| alone(other).overlaps(&alone(id.clone()))) {
                return Err(HostError::DiskBusy { path: path.to_owned(), id: Box::new(id) });
            }
            held = Some(Held::new(&self.holds, id.clone()));
        }
        Ok(OpenDisk { path: path.to_owned(), id, block, handle: Handle::Simulated(real, held) })
    }

    pub(super) fn at(&self, path: &Path) -> Result<Option<DiskId>, HostError> {
        let state = self.call("disk_at")?;
        if state.failing.contains(path) {
            // EIO.
            let source = io::Error::from_raw_os_error(5);
            return Err(HostError::File { operation: "look at", path: path.to_owned(), source });
        }
        Ok(state.disk(path).map(|(_, id)| id))
    }

    pub(super) fn users(&self) -> Result<DiskUsers, HostError> {
        let state = self.call("disk_users")?;
        let mounted = |(device, at, read_only): &(PathBuf, String, bool)| {
            let id = state.disk(device)?.1;
            Some(HostMount { id, at: at.clone(), read_only: *read_only })
        };
        Ok(DiskUsers { loops: state.loops(), mounts: state.mounts.iter().filter_map(mounted).collect() })
    }
}

/// The error for a missing file.
pub(super) fn missing(path: &Path) -> HostError {
    let source = io::Error::from(io::ErrorKind::NotFound);
    HostError::File { operation: "open", path: path.to_owned(), source }
}

/// The device file of a loop device.
pub(super) fn loop_device(minor: u32) -> BlockDevice {
    BlockDevice { path: PathBuf::from(format!("/dev/loop{minor}")), major: 7, minor }
}

impl SimState {
    /// Attaches a disk to the first free loop device.
    pub(super) fn attach(&mut self, file: PathBuf, id: DiskId, read_only: bool, tag: &str) -> u32 {
        let minor = (0..).find(|minor| !self.loops.contains_key(minor)).unwrap_or(0);
        self.loops.insert(minor, (file, read_only, tag.to_owned()));
        self.backing.insert(minor, id);
        minor
    }

    /// The file's inode number, a fresh one when it has none.
    pub(super) fn inode(&mut self, file: &Path) -> u64 {
        if let Some(inode) = self.inodes.get(file) {
            return *inode;
        }
        self.last_inode += 1;
        self.inodes.insert(file.to_owned(), self.last_inode);
        self.last_inode
    }

    /// The real name of the file that a path leads to.
    pub(super) fn real(&self, path: &Path) -> PathBuf {
        let mut left: Vec<_> = path.components().rev().map(|c| c.as_os_str().to_owned()).collect();
        let (mut real, mut links) = (PathBuf::new(), 0);
        while let Some(name) = left.pop() {
            match Path::new(&name).components().next() {
                Some(Component::ParentDir) => {
                    real.pop();
                }
                Some(Component::CurDir) | None => {}
                _ => real.push(&name),
            }
            let Some(target) = self.links.get(&real).filter(|_| links < LINKS_MAX) else { continue };
            links += 1;
            real.pop();
            left.extend(target.components().rev().map(|c| <OsStr as ToOwned>::to_owned(c.as_os_str())));
        }
        real
    }

    /// The real name and the identity of a disk; `None` when there is no disk.
    pub(super) fn disk(&self, path: &Path) -> Option<(PathBuf, DiskId)> {
        let real = self.real(path);
        if let Some(inode) = self.inodes.get(&real).filter(|_| self.files.contains_key(&real)) {
            let id = DiskId::of_file(FileId { major: 8, minor: 1, inode: *inode });
            return Some((real, id));
        }
        let of_loop =
            || self.loops.keys().map(|minor| loop_device(*minor)).find(|device| device.path == real);
        let (major, minor) = match self.blocks.get(&real) {
            Some(number) => *number,
            None => of_loop().map(|device| (device.major, device.minor))?,
        };
        let users = DiskUsers { loops: self.loops(), mounts: Vec::new() };
        Some((real, users.with_backing(self.block(BlockNumber { major, minor }))))
    }

    /// A block device, with its disk if it is a partition.
    pub(super) fn block(&self, block: BlockNumber) -> DiskId {
        let whole = self.partitions.get(&(block.major, block.minor));
        DiskId::of_block(block, whole.map(|(major, minor)| BlockNumber { major: *major, minor: *minor }))
    }

    fn loops(&self) -> Vec<HostLoop> {
        let entry = |(minor, (file, read_only, tag)): (&u32, &(PathBuf, bool, String))| HostLoop {
            device: loop_device(*minor),
            backing: self.backing.get(minor).cloned().unwrap_or_default(),
            file: file.display().to_string(),
            read_only: *read_only,
            tag: tag.clone(),
        };
        self.loops.iter().map(entry).collect()
    }
}
