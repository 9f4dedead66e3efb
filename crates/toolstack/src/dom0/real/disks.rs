//! Disks of the real host: opening and identifying them, and finding their users.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use linux_loop::AttachedLoop;
use nix::libc::{EBUSY, O_EXCL, O_PATH};

use crate::dom0::disks::Handle;
use crate::dom0::{
    BlockDevice, BlockNumber, DiskAccess, DiskId, DiskUsers, FileId, HostDevices, HostError, HostLoop,
    HostMount, OpenDisk, RealHost, harmless_line,
};

/// Linux's `LOOP_MAJOR`.
const LOOP_MAJOR: u32 = 7;
/// The size limit of the list of mounts, in bytes.
const MOUNTS_MAX: u64 = 16 << 20;
/// The time limit for a file system to identify a file.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// The file systems whose mounts have no device number of their own, and a source that the kernel itself knows.
const OWN_SOURCE: [&str; 2] = ["btrfs", "bcachefs"];

/// Opens a disk. Anything else is only looked at and never opened, since opening it could block or have an effect.
pub(super) fn open(path: &Path, access: DiskAccess) -> Result<OpenDisk, HostError> {
    let failed = |source| HostError::File { operation: "open", path: path.to_owned(), source };
    let found = OpenOptions::new().read(true).custom_flags(O_PATH).open(path).map_err(failed)?;
    let meta = found.metadata().map_err(failed)?;
    let Some(id) = identify(&meta)? else { return Err(HostError::NoDisk { path: path.to_owned() }) };
    let is_block = meta.file_type().is_block_device();
    let mut options = OpenOptions::new();
    options.read(true).write(access == DiskAccess::Writable);
    if is_block && access == DiskAccess::Writable {
        options.custom_flags(O_EXCL);
    }
    // The same file again, even if its name now leads to another.
    let same = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let handle = match options.open(same) {
        Err(error) if is_block && error.raw_os_error() == Some(EBUSY) => {
            return Err(HostError::DiskBusy { path: path.to_owned(), id: Box::new(id) });
        }
        opened => opened.map_err(failed)?,
    };
    let block = if is_block { id.block } else { None };
    Ok(OpenDisk { path: path.to_owned(), id, block, handle: Handle::File(handle) })
}

/// The descriptor of a disk that [`open`] has opened.
pub(super) fn descriptor(disk: &OpenDisk) -> Result<&File, HostError> {
    match &disk.handle {
        Handle::File(file) => Ok(file),
        Handle::Simulated(..) => Err(HostError::NoDisk { path: disk.path.clone() }),
    }
}

/// The identity of the disk at a path; `None` unless it is a disk.
pub(super) fn at(path: &Path) -> Result<Option<DiskId>, HostError> {
    // Other tools name files too, and a remote file system may never answer.
    let looked = match linux_loop::look_within(LOOK_LIMIT, path, |path| fs::metadata(path)) {
        Ok(answer) => answer.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())),
        Err(error) => Err(error),
    };
    match looked {
        Ok(meta) => identify(&meta),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(source) => Err(HostError::File { operation: "look at", path: path.to_owned(), source }),
    }
}

fn identify(meta: &fs::Metadata) -> Result<Option<DiskId>, HostError> {
    if meta.file_type().is_file() {
        return Ok(Some(DiskId::of_file(FileId {
            major: linux_loop::major(meta.dev()),
            minor: linux_loop::minor(meta.dev()),
            inode: meta.ino(),
        })));
    }
    if !meta.file_type().is_block_device() {
        return Ok(None);
    }
    let id = of_block(number(meta.rdev()))?;
    if ![id.block, id.whole].into_iter().flatten().any(|number| number.major == LOOP_MAJOR) {
        return Ok(Some(id));
    }
    let loops = DiskUsers { loops: loops()?, mounts: Vec::new() };
    Ok(Some(loops.with_backing(id)))
}

fn number(device: u64) -> BlockNumber {
    BlockNumber { major: linux_loop::major(device), minor: linux_loop::minor(device) }
}

/// A block device, with its disk if it is a partition.
pub(super) fn of_block(block: BlockNumber) -> Result<DiskId, HostError> {
    let folder = PathBuf::from(format!("/sys/dev/block/{block}"));
    if !folder.join("partition").exists() {
        return Ok(DiskId::of_block(block, None));
    }
    // The folder is a link; a partition's real folder is inside its disk's.
    let path = folder.join("../dev");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(DiskId::of_block(block, parse_number(text.trim()))),
        // Both disappeared meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DiskId::of_block(block, None)),
        Err(source) => Err(HostError::File { operation: "read", path, source }),
    }
}

fn parse_number(text: &str) -> Option<BlockNumber> {
    let (major, minor) = text.split_once(':')?;
    Some(BlockNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// Loop devices and mounts.
pub(super) fn users() -> Result<DiskUsers, HostError> {
    let mut users = DiskUsers { loops: loops()?, mounts: Vec::new() };
    let table = RealHost.read_file(Path::new("/proc/self/mountinfo"), MOUNTS_MAX)?;
    // A device can have many mounts.
    let mut known = BTreeMap::new();
    for mount in String::from_utf8_lossy(&table).lines().filter_map(parse_mount) {
        for number in mount.devices(block_at) {
            let id = match known.get(&number) {
                Some(id) => DiskId::clone(id),
                None => users.with_backing(of_block(number)?),
            };
            known.insert(number, id.clone());
            users.mounts.push(HostMount { id, at: mount.at.clone(), read_only: mount.read_only });
        }
    }
    Ok(users)
}

/// The number of the block device at a path.
fn block_at(path: &Path) -> Option<BlockNumber> {
    let meta = fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| number(meta.rdev()))
}

fn loops() -> Result<Vec<HostLoop>, HostError> {
    linux_loop::list()?.into_iter().map(host_loop).collect()
}

fn host_loop(attached: AttachedLoop) -> Result<HostLoop, HostError> {
    let AttachedLoop { device, backing, read_only } = attached;
    let name = device.path.file_name().unwrap_or_default();
    let file = fs::read(Path::new("/sys/block").join(name).join("loop/backing_file")).unwrap_or_default();
    let backing = match backing.block {
        Some((major, minor)) => of_block(BlockNumber { major, minor })?,
        None => DiskId::of_file(FileId { major: backing.major, minor: backing.minor, inode: backing.inode }),
    };
    let (path, major, minor) = (device.path, device.major, device.minor);
    let device_number = BlockDevice { path, major, minor };
    Ok(HostLoop { device: device_number, backing, file: harmless_line(&file), read_only, tag: device.tag })
}

/// A line of `/proc/self/mountinfo` (proc(5)).
struct Mount {
    device: BlockNumber,
    at: String,
    kind: String,
    source: String,
    read_only: bool,
}

impl Mount {
    /// Its block devices; `at` finds the one at a path.
    ///
    /// The text of most sources is chosen at the mount, in FUSE even by users without root.
    fn devices(&self, at: impl Fn(&Path) -> Option<BlockNumber>) -> Vec<BlockNumber> {
        if self.device.major != 0 {
            return vec![self.device];
        }
        // Major 0 belongs to no device.
        if !OWN_SOURCE.contains(&self.kind.as_str()) {
            return Vec::new();
        }
        // bcachefs lists all its devices.
        let paths = self.source.split(':').map(Path::new);
        let in_dev =
            |path: &&Path| path.starts_with("/dev") && path.components().all(|c| c != Component::ParentDir);
        paths.filter(in_dev).filter_map(at).collect()
    }
}

/// Parses a line; `None` if it is malformed.
fn parse_mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let (device, at) = (parse_number(front.next()?)?, front.nth(1)?);
    let mut back = back.split(' ');
    let (kind, source, options) = (back.next()?, back.next()?, back.next()?);
    Some(Mount {
        device,
        at: harmless_line(&unescape(at)),
        kind: kind.to_owned(),
        source: String::from_utf8_lossy(&unescape(source)).into_owned(),
        // The file system's own option: a file system may have a read-only mount and a writable one.
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// Undoes the kernel's escapes of blanks and backslashes: a backslash and three octal digits.
fn unescape(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, others)) = rest.split_first() {
        let escaped = others.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { others.get(3..).unwrap_or_default() } else { others };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read_and_malformed_ones_skipped() {
        let read = |line: &str| {
            parse_mount(line).map(|mount| (mount.device.to_string(), mount.at, mount.source, mount.read_only))
        };
        let mounted = |device: &str, at: &str, source: &str, read_only| {
            Some((device.to_owned(), at.to_owned(), source.to_owned(), read_only))
        };
        assert_eq!(
            read("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"),
            mounted("98:0", "/mnt 2", "/dev/root", false)
        );
        // Only this mount is read-only: another one may be writable.
        assert_eq!(read("36 35 8:1 / /a ro - ext4 /dev/sda1 rw"), mounted("8:1", "/a", "/dev/sda1", false));
        assert_eq!(read("36 35 8:1 / /a ro - ext4 /dev/sda1 ro,x"), mounted("8:1", "/a", "/dev/sda1", true));
        assert_eq!(
            read("1 2 0:24 / /a\x1bb\\134 rw - btrfs /dev/sdb ro"),
            mounted("0:24", "/ab\\", "/dev/sdb", true)
        );
        for bad in ["", " - ", "1 2 3 4 5 6 - a b c", "1 2 8:x / / rw - a b c", "1 2 8:1 / / rw - a b"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_the_kernels_own_text_names_a_mounts_device() {
        let devices = |device: &str, kind: &str, source: &str| {
            let mount = parse_mount(&format!("1 2 {device} / /a rw - {kind} {source} rw")).unwrap();
            let find = |path: &Path| match path.to_str() {
                Some("/dev/sda") => Some(BlockNumber { major: 8, minor: 0 }),
                Some("/dev/sdb") => Some(BlockNumber { major: 8, minor: 16 }),
                other => panic!("{other:?} is looked at"),
            };
            mount.devices(find).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(devices("8:1", "ext4", "/dev/sda"), ["8:1"]);
        assert_eq!(devices("0:24", "btrfs", "/dev/sda"), ["8:0"]);
        assert_eq!(devices("0:24", "bcachefs", "/dev/sda:/dev/sdb"), ["8:0", "8:16"]);
        for kind in ["fuse", "fuse.sshfs", "overlay", "nfs4", "tmpfs", "zfs", "virtiofs"] {
            assert!(devices("0:24", kind, "/dev/sda").is_empty(), "{kind}");
        }
        for source in ["dev/sda", "sda", "/dev/../srv/x", "/srv/sda", "none", "/device"] {
            assert!(devices("0:24", "btrfs", source).is_empty(), "{source}");
        }
    }

    #[test]
    fn dom0s_root_is_among_the_mounts() {
        let users = users().unwrap();
        let root = fs::metadata("/").unwrap();
        let of_root = |mount: &&HostMount| mount.id.block == Some(number(root.dev()));
        // A file system without a device has number 0.
        assert!(number(root.dev()).major == 0 || users.mounts.iter().any(|mount| of_root(&mount)));
    }

    #[test]
    fn only_disks_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), Path::new("/dev/null"), folder.path()] {
            let opened = open(path, DiskAccess::ReadOnly);
            assert!(matches!(opened, Err(HostError::NoDisk { .. })), "{opened:?}");
            assert_eq!(at(path).unwrap(), None);
        }
        assert_eq!(at(&folder.path().join("none")).unwrap(), None);
    }
}
