//! Disks by identity: device and inode, never by name.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BlockDevice;
use super::sim_disks::Held;

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

/// The identity of a disk, independent of its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskId {
    /// The file: the disk itself, or the backing file of its loop device.
    pub file: Option<FileId>,
    /// The block device, if the disk is one.
    pub block: Option<BlockNumber>,
    /// The disk that the block device is a partition of, or the backing device of its loop device.
    pub whole: Option<BlockNumber>,
}

impl DiskId {
    /// A regular file.
    #[must_use]
    pub const fn of_file(file: FileId) -> Self {
        Self { file: Some(file), block: None, whole: None }
    }

    /// A block device, and the disk that it is a partition of.
    #[must_use]
    pub const fn of_block(block: BlockNumber, whole: Option<BlockNumber>) -> Self {
        Self { file: None, block: Some(block), whole }
    }

    /// Whether data written to one can be read from the other.
    ///
    /// Offsets and lengths of loop devices are ignored: two on one file overlap.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let same_file = self.file.is_some() && self.file == other.file;
        if self.whole.is_some() && other.whole.is_some() {
            // Two partitions of a disk do not overlap, unless two loop devices have the same backing file.
            return self.block == other.block || (same_file && self.whole != other.whole);
        }
        let blocks = [self.block, self.whole];
        same_file || blocks.iter().flatten().any(|number| [other.block, other.whole].contains(&Some(*number)))
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
        self.id
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
    /// The same disk with the backing file of its loop device, if it is one or a partition of one.
    #[must_use]
    pub fn with_backing(&self, id: DiskId) -> DiskId {
        let numbers = [id.block, id.whole];
        let Some(under) = self.loops.iter().find(|entry| numbers.contains(&Some(entry.number()))) else {
            return id;
        };
        DiskId { file: under.backing.file, whole: id.whole.or(under.backing.block), ..id }
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

    /// `sda`, `sda1`, `sda2`, `sdb`; files, two loop devices on one of them, and partitions of these.
    fn disks() -> Vec<(&'static str, DiskId)> {
        let part = |minor, of| DiskId::of_block(block(259, minor), Some(of));
        let over = |id: DiskId| DiskId { file: file(1).file, ..id };
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
            ("none", DiskId::default()),
        ]
    }

    #[test]
    fn a_disk_overlaps_itself_its_partitions_and_its_backing_file() {
        let apart = [("sda1", "sda2"), ("loop0p1", "loop0p2")];
        let groups: [&[&str]; 5] = [
            &["sda", "sda1", "sda2"],
            &["sdb"],
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
}
