//! Disks by identity: device and inode, never by name.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BlockDevice;
use super::sim_disks::Held;

/// A block device's number.
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

/// What a disk is, whatever it is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskId {
    /// The file: the disk itself, or what is behind its loop device.
    pub file: Option<FileId>,
    /// The block device, if the disk is one.
    pub block: Option<BlockNumber>,
    /// The disk that the block device is a partition of, or the device that its loop device is attached to.
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

    /// Whether what is written to one can be read from the other.
    ///
    /// Offsets and lengths of loop devices are not looked at: two on one file overlap.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let same_file = self.file.is_some() && self.file == other.file;
        if self.whole.is_some() && other.whole.is_some() {
            // Two partitions share their disk and nothing else, unless it is one file behind two loop devices.
            return self.block == other.block || (same_file && self.whole != other.whole);
        }
        let blocks = [self.block, self.whole];
        same_file || blocks.iter().flatten().any(|number| [other.block, other.whole].contains(&Some(*number)))
    }
}

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAccess {
    /// To be read.
    ReadOnly,
    /// To be written: a block device that dom0 uses is refused, and kept from it while the disk is open.
    Writable,
}

/// A disk that is open, so that what was looked at is what is attached.
#[derive(Debug)]
pub struct OpenDisk {
    pub(super) path: PathBuf,
    pub(super) id: DiskId,
    /// The number, if it is a block device.
    pub(super) block: Option<BlockNumber>,
    pub(super) handle: Handle,
}

/// What holds a disk open.
#[derive(Debug)]
pub(super) enum Handle {
    /// A descriptor.
    File(File),
    /// A simulated one: the file's real name, and what keeps dom0 from a block device.
    Simulated(PathBuf, #[expect(dead_code, reason = "it is held until it is dropped")] Option<Held>),
}

impl OpenDisk {
    /// The name that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
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

/// A loop device of dom0, whoever attached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLoop {
    /// The device.
    pub device: BlockDevice,
    /// What is behind it.
    pub backing: DiskId,
    /// The name of what is behind it, for people.
    pub file: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// What the kernel has as its name: of ours, whose it is.
    pub tag: String,
}

impl HostLoop {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> BlockNumber {
        BlockNumber { major: self.device.major, minor: self.device.minor }
    }
}

/// A block device that dom0 has mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMount {
    /// The device.
    pub id: DiskId,
    /// Where.
    pub at: String,
    /// Whether the file system can only be read.
    pub read_only: bool,
}

/// What dom0 uses disks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsers {
    /// Its loop devices.
    pub loops: Vec<HostLoop>,
    /// Its mounts of block devices.
    pub mounts: Vec<HostMount>,
}

impl DiskUsers {
    /// The same disk with what is behind its loop device, if it is one or a partition of one.
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

    /// `sda`, `sda1`, `sda2`, `sdb`; a file, loop devices on it and on another, and partitions of these.
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
    fn a_disk_overlaps_itself_its_partitions_and_what_is_behind_it() {
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
    fn a_record_of_another_release_is_read() {
        let read = |text: &str| serde_json::from_str::<DiskId>(text).unwrap();
        assert_eq!(read("{}"), DiskId::default());
        let newer = r#"{"block": {"major": 8, "minor": 0, "serial": "x"}, "wwn": 5}"#;
        assert_eq!(read(newer), DiskId::of_block(block(8, 0), None));
        for (_, disk) in disks() {
            assert_eq!(read(&serde_json::to_string(&disk).unwrap()), disk);
        }
    }
}
