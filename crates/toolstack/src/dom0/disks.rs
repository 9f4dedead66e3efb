//! Disks by identity: device and inode, never by name.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::BlockDevice;

/// The number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockNumber {
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
}

impl fmt::Display for BlockNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A regular file's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// Major number of its file system's device.
    pub major: u32,
    /// Minor number of its file system's device.
    pub minor: u32,
    /// Its inode number.
    pub inode: u64,
}

/// The most loop devices below a disk that are followed.
const LAYERS_MAX: usize = 32;

/// A block device below a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LowerDevice {
    /// Its number.
    pub block: BlockNumber,
    /// The disk that it is a partition of.
    #[serde(default)]
    pub whole: Option<BlockNumber>,
}

/// The identity of a disk, independent of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskId {
    /// The file: the disk itself, or the backing file of its loop device.
    pub file: Option<FileId>,
    /// The block device, if the disk is one.
    pub block: Option<BlockNumber>,
    /// The disk that the block device is a partition of.
    pub whole: Option<BlockNumber>,
    /// All block devices below its loop device, the nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub under: Vec<LowerDevice>,
}

impl DiskId {
    /// A regular file.
    #[must_use]
    pub const fn of_file(file: FileId) -> Self {
        Self { file: Some(file), block: None, whole: None, under: Vec::new() }
    }

    /// A block device, and the disk that it is a partition of.
    #[must_use]
    pub const fn of_block(block: BlockNumber, whole: Option<BlockNumber>) -> Self {
        Self { file: None, block: Some(block), whole, under: Vec::new() }
    }

    /// Whether data written to one can be read from the other.
    ///
    /// Offsets and lengths of loop devices are ignored: two on one file overlap.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.whole.is_some() && self.whole == other.whole {
            // Two partitions of one disk do not overlap, although they have the same file or devices below them.
            return self.block == other.block;
        }
        let same_file = self.file.is_some() && self.file == other.file;
        same_file || self.devices().any(|device| other.devices().any(|lower| device.overlaps(lower)))
    }

    /// The block device itself and all below it.
    fn devices(&self) -> impl Iterator<Item = LowerDevice> {
        let own = self.block.map(|block| LowerDevice { block, whole: self.whole });
        own.into_iter().chain(self.under.iter().copied())
    }

    /// The numbers of the block device, of all below it, and of the disks that they are partitions of.
    pub(crate) fn numbers(&self) -> Vec<BlockNumber> {
        self.devices().flat_map(|device| [Some(device.block), device.whole]).flatten().collect()
    }
}

impl LowerDevice {
    fn overlaps(self, other: Self) -> bool {
        let same = self.block == other.block;
        same || self.whole == Some(other.block) || other.whole == Some(self.block)
    }
}

/// The access that a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAccess {
    /// Reading only.
    ReadOnly,
    /// Writing: a block device that dom0 uses is refused, and dom0 cannot claim it while the disk is open.
    Writable,
}

/// An open disk, so that the disk that was checked is the one that is attached.
#[derive(Debug)]
pub struct OpenDisk {
    pub(super) path: PathBuf,
    pub(super) id: DiskId,
    /// The number, if it is a block device.
    pub(super) block: Option<BlockNumber>,
    pub(super) handle: Handle,
}

/// The handle that keeps a disk open.
#[derive(Debug)]
pub(super) enum Handle {
    /// A descriptor.
    File(File),
    /// A simulated one: the file's real name, and the exclusive claim on a block device.
    Simulated(PathBuf, #[expect(dead_code, reason = "it is held until it is dropped")] Option<Held>),
}

impl OpenDisk {
    /// The name that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> DiskId {
        self.id.clone()
    }

    /// The block device, if it is one.
    #[must_use]
    pub fn block_device(&self) -> Option<BlockDevice> {
        let BlockNumber { major, minor } = self.block?;
        Some(BlockDevice { path: self.path.clone(), major, minor })
    }
}

/// A loop device of dom0, from any program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLoop {
    /// The device.
    pub device: BlockDevice,
    /// The identity of its backing file.
    pub backing: DiskId,
    /// The name of its backing file, for messages.
    pub file: String,
    /// Whether it is read-only.
    pub read_only: bool,
    /// The name that the kernel has for it; on our own loop devices it names the guest.
    pub tag: String,
}

impl HostLoop {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> BlockNumber {
        BlockNumber { major: self.device.major, minor: self.device.minor }
    }
}

/// A mount of a block device in dom0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMount {
    /// The device.
    pub id: DiskId,
    /// The mount point.
    pub at: String,
    /// Whether the file system is read-only.
    pub read_only: bool,
}

/// The uses of disks in dom0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsers {
    /// Its loop devices.
    pub loops: Vec<HostLoop>,
    /// Its mounts of block devices.
    pub mounts: Vec<HostMount>,
}

impl DiskUsers {
    /// The same disk with everything below its loop device, if it is one or a partition of one.
    #[must_use]
    pub fn with_backing(&self, id: DiskId) -> DiskId {
        let mut found = id;
        let mut followed = Vec::new();
        while followed.len() < LAYERS_MAX {
            let next = found.numbers().into_iter().find_map(|number| {
                let mut loops = self.loops.iter();
                loops.find(|entry| entry.number() == number && !followed.contains(&number))
            });
            let Some(entry) = next else { break };
            followed.push(entry.number());
            found.file = entry.backing.file.or(found.file);
            let fresh: Vec<_> =
                entry.backing.devices().filter(|device| !found.under.contains(device)).collect();
            found.under.extend(fresh);
        }
        found
    }
}

/// The block devices of a simulated host that a writer has open exclusively.
pub(super) type Holds = Arc<Mutex<BTreeMap<u64, DiskId>>>;

/// An exclusive claim on a block device, released when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    holds: Holds,
    key: u64,
}

impl Held {
    pub(super) fn new(holds: &Holds, id: DiskId) -> Self {
        let mut all = holds.lock().unwrap_or_else(PoisonError::into_inner);
        let key = all.last_key_value().map_or(0, |(key, _)| key + 1);
        all.insert(key, id);
        Self { holds: holds.clone(), key }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn block(major: u32, minor: u32) -> BlockNumber {
        BlockNumber { major, minor }
    }

    fn file(inode: u64) -> DiskId {
        DiskId::of_file(FileId { major: 8, minor: 1, inode })
    }

    /// Disks, partitions, files, and loop devices on each of them with partitions of their own.
    fn disks() -> Vec<(&'static str, DiskId)> {
        let part = |minor, of| DiskId::of_block(block(259, minor), Some(of));
        let over = |id: DiskId| DiskId { file: file(1).file, ..id };
        let on = |minor, block, whole| DiskId {
            under: vec![LowerDevice { block, whole }],
            ..DiskId::of_block(self::block(7, minor), None)
        };
        let loop_part =
            |number, minor, on: &DiskId| DiskId { under: on.under.clone(), ..part(number, block(7, minor)) };
        let on_sdb = on(2, block(8, 16), None);
        vec![
            ("sda", DiskId::of_block(block(8, 0), None)),
            ("sda1", DiskId::of_block(block(8, 1), Some(block(8, 0)))),
            ("sda2", DiskId::of_block(block(8, 2), Some(block(8, 0)))),
            ("sdb", DiskId::of_block(block(8, 16), None)),
            ("a", file(1)),
            ("b", file(2)),
            ("loop0", over(DiskId::of_block(block(7, 0), None))),
            ("loop1", over(DiskId::of_block(block(7, 1), None))),
            ("loop0p1", over(part(0, block(7, 0)))),
            ("loop0p2", over(part(1, block(7, 0)))),
            ("loop1p1", over(part(2, block(7, 1)))),
            ("loop2", on_sdb.clone()),
            ("loop2p1", loop_part(3, 2, &on_sdb)),
            ("loop2p2", loop_part(4, 2, &on_sdb)),
            ("loop3", on(3, block(8, 16), None)),
            ("loop4", on(4, block(8, 1), Some(block(8, 0)))),
            ("loop5", on(5, block(8, 2), Some(block(8, 0)))),
            ("none", DiskId::default()),
        ]
    }

    #[test]
    fn a_disk_overlaps_itself_its_partitions_and_its_backing_file() {
        let apart = [
            ("sda1", "sda2"),
            ("loop0p1", "loop0p2"),
            ("loop2p1", "loop2p2"),
            ("sda1", "loop5"),
            ("sda2", "loop4"),
            ("loop4", "loop5"),
        ];
        let groups: [&[&str]; 5] = [
            &["sda", "sda1", "sda2", "loop4", "loop5"],
            &["sdb", "loop2", "loop2p1", "loop2p2", "loop3"],
            &["a", "loop0", "loop1", "loop0p1", "loop0p2", "loop1p1"],
            &["b"],
            &[],
        ];
        for (name, disk) in disks() {
            for (other_name, other) in disks() {
                let together = groups.iter().any(|g| g.contains(&name) && g.contains(&other_name));
                let named =
                    |(a, b): &(&str, &str)| (*a, *b) == (name, other_name) || (*a, *b) == (other_name, name);
                let expected = together && !apart.iter().any(named);
                assert_eq!(disk.overlaps(&other), expected, "{name} and {other_name}");
            }
        }
    }

    #[test]
    fn an_identity_from_another_release_is_read() {
        let read = |text: &str| serde_json::from_str::<DiskId>(text).unwrap();
        assert_eq!(read("{}"), DiskId::default());
        let newer = r#"{"block": {"major": 8, "minor": 0, "serial": "x"}, "wwn": 5}"#;
        assert_eq!(read(newer), DiskId::of_block(block(8, 0), None));
        for (_, disk) in disks() {
            assert_eq!(read(&serde_json::to_string(&disk).unwrap()), disk);
        }
    }

    #[test]
    fn everything_below_stacked_loop_devices_is_found() {
        let entry = |minor, backing| HostLoop {
            device: BlockDevice { path: format!("/dev/loop{minor}").into(), major: 7, minor },
            backing,
            file: String::new(),
            read_only: false,
            tag: String::new(),
        };
        let number = |minor| DiskId::of_block(block(7, minor), None);
        // 2 on 1 on a partition of 0 on a file; 3 on a partition of a disk; 4 and 5 on each other.
        let part = DiskId::of_block(block(259, 0), Some(block(7, 0)));
        let sda1 = DiskId::of_block(block(8, 1), Some(block(8, 0)));
        let loops = [(0, file(1)), (1, part), (2, number(1)), (3, sda1), (4, number(5)), (5, number(4))];
        let loops = loops.map(|(minor, backing)| entry(minor, backing)).to_vec();
        let users = DiskUsers { loops, mounts: Vec::new() };
        let top = users.with_backing(number(2));
        assert_eq!((top.file, top.whole), (file(1).file, None));
        assert_eq!(top.numbers(), [block(7, 2), block(7, 1), block(259, 0), block(7, 0)]);
        assert_eq!(users.with_backing(top.clone()), top);
        let over = users.with_backing(number(3));
        assert_eq!(over.numbers(), [block(7, 3), block(8, 1), block(8, 0)]);
        assert_eq!(users.with_backing(number(4)).numbers().len(), 3);
        assert_eq!(users.with_backing(file(1)), file(1));
    }
}
