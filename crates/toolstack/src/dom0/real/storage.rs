//! Disks that another host has too: what identifies them there, and what either host still holds of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use xen_types::DomId;

use super::file;
use crate::dom0::HostError;

/// Where the kernel describes block devices by their numbers (`Documentation/admin-guide/sysfs-rules.rst`).
const BLOCK: &str = "/sys/dev/block";
/// The kernel's files with an identity that the storage itself has, below a device's directory: LVM and multipath, SCSI,
/// NVMe, virtio.
const IDENTITIES: [&str; 5] = ["dm/uuid", "wwid", "device/wwid", "serial", "device/serial"];
/// The most that is read of one of them, in bytes.
const LIMIT: u64 = 512;
/// Where the kernel has the backends of block devices.
pub(super) const BACKENDS: &str = "/sys/bus/xen-backend/devices";
/// What a block backend counts: requests that it has taken, of each kind.
const COUNTS: [&str; 5] = ["oo_req", "rd_req", "wr_req", "f_req", "ds_req"];
/// How often it is looked whether requests are still under way.
const LOOK: Duration = Duration::from_millis(10);
/// So many looks in a row find nothing new: a backend takes what is in its ring at once.
const QUIET: u32 = 5;

pub(super) fn write_at(path: &Path, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
    let handle = OpenOptions::new().write(true).open(path).map_err(file("open", path))?;
    handle.write_all_at(bytes, offset).map_err(file("write", path))?;
    handle.sync_all().map_err(file("write to disk", path))
}

/// Only block devices have an identity of their own.
pub(super) fn identity(path: &Path) -> Result<Option<String>, HostError> {
    Ok(described(path)?.and_then(|directory| identity_in(&directory)))
}

fn identity_in(directory: &Path) -> Option<String> {
    let Some(partition) = text(&directory.join("partition")) else {
        let size = text(&directory.join("size"))?;
        let found = IDENTITIES.iter().find_map(|name| Some((name, text(&directory.join(name))?)));
        return found.map(|(name, identity)| format!("{name}={identity};size={size}"));
    };
    let (start, size) = (text(&directory.join("start"))?, text(&directory.join("size"))?);
    // The disk's directory is the one above.
    let disk = identity_in(&directory.join("..").canonicalize().ok()?)?;
    Some(format!("{disk};partition={partition};start={start};size={size}"))
}

/// The kernel's directory of a block device.
fn described(path: &Path) -> Result<Option<PathBuf>, HostError> {
    let meta = fs::metadata(path).map_err(file("look at", path))?;
    if !meta.file_type().is_block_device() {
        return Ok(None);
    }
    let (major, minor) = (linux_loop::major(meta.rdev()), linux_loop::minor(meta.rdev()));
    let link = Path::new(BLOCK).join(format!("{major}:{minor}"));
    Ok(Some(link.canonicalize().map_err(file("look at", &link))?))
}

/// The text of one of the kernel's files; nothing where there is none, or it is empty.
fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn real_path(path: &Path) -> Result<PathBuf, HostError> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        found => found.map_err(file("look at", path)),
    }
}

/// What a backend has done and is doing.
#[derive(Debug, PartialEq, Eq)]
struct Work {
    /// All that it has counted, and the requests at its device.
    counts: Vec<String>,
    /// Its device has no request, neither a read nor a write.
    is_idle: bool,
}

pub(super) fn settle(backends: &Path, frontends: &[DomId], patience: Duration) -> Result<(), HostError> {
    let is_settled = wait_until_quiet(|| work(backends, frontends), patience)?;
    let busy = || HostError::DiskBusyFor { path: backends.to_owned(), after: patience };
    if is_settled { Ok(()) } else { Err(busy()) }
}

/// Returns whether what is looked at was idle, and the same for a while, within `patience`.
fn wait_until_quiet(
    mut look: impl FnMut() -> Result<Vec<Work>, HostError>,
    patience: Duration,
) -> Result<bool, HostError> {
    let deadline = Instant::now() + patience;
    let mut before = look()?;
    let mut quiet = 0;
    while quiet < QUIET {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        // The kernel tells nobody when a request ends.
        std::thread::sleep(LOOK);
        let now = look()?;
        quiet = if now == before && now.iter().all(|work| work.is_idle) { quiet + 1 } else { 0 };
        before = now;
    }
    Ok(true)
}

fn work(backends: &Path, frontends: &[DomId]) -> Result<Vec<Work>, HostError> {
    let entries = match fs::read_dir(backends) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(file("list", backends))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let directory = entry.map_err(file("list", backends))?.path();
        let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let of = name.strip_prefix("vbd-").and_then(|rest| rest.split_once('-')).map(|(domid, _)| domid);
        if frontends.iter().any(|domid| of == Some(domid.to_string().as_str())) {
            all.push(work_of(&directory));
        }
    }
    Ok(all)
}

/// Of one backend (`drivers/block/xen-blkback/xenbus.c`).
fn work_of(directory: &Path) -> Work {
    let statistics = directory.join("statistics");
    let mut counts: Vec<String> =
        COUNTS.iter().map(|name| text(&statistics.join(name)).unwrap_or_default()).collect();
    let device = text(&directory.join("physical_device"));
    let number = device.as_deref().and_then(|device| device.split_once(':')).and_then(|(major, minor)| {
        Some((u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?))
    });
    let inflight = number
        .and_then(|(major, minor)| text(&Path::new(BLOCK).join(format!("{major}:{minor}")).join("inflight")));
    let is_idle = inflight.as_deref().unwrap_or_default().split_whitespace().all(|count| count == "0");
    counts.extend(inflight);
    Work { counts, is_idle }
}

pub(super) fn forget_cached(path: &Path) -> Result<(), HostError> {
    let handle = File::open(path).map_err(file("open", path))?;
    posix_fadvise(&handle, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(|errno| file("forget what is cached of", path)(io::Error::from(errno)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, content: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn bytes_are_written_where_they_belong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert!(write_at(&path, 0, b"x").is_err(), "it is not made");
        fs::write(&path, [0; 8]).unwrap();
        write_at(&path, 4, b"four").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"\0\0\0\0four");
    }

    #[test]
    fn disk_is_identified_by_what_its_storage_says() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("sda");
        put(&disk.join("size"), "2048\n");
        assert_eq!(identity_in(&disk), None, "a size is no identity");
        put(&disk.join("device/wwid"), " naa.5000c500a1b2c3d4\n");
        assert_eq!(identity_in(&disk).unwrap(), "device/wwid=naa.5000c500a1b2c3d4;size=2048");
        let partition = disk.join("sda1");
        put(&partition.join("partition"), "1\n");
        put(&partition.join("start"), "64\n");
        put(&partition.join("size"), "128\n");
        let whole = "device/wwid=naa.5000c500a1b2c3d4;size=2048;partition=1;start=64;size=128";
        assert_eq!(identity_in(&partition).unwrap(), whole);
        put(&disk.join("dm/uuid"), "LVM-abc\n");
        assert_eq!(identity_in(&disk).unwrap(), "dm/uuid=LVM-abc;size=2048");
    }

    #[test]
    fn files_have_no_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.img");
        assert!(identity(&path).is_err() && forget_cached(&path).is_err());
        fs::write(&path, [1; 512]).unwrap();
        assert_eq!(identity(&path).unwrap(), None);
        forget_cached(&path).unwrap();
    }

    #[test]
    fn backends_of_these_domains_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let domid = DomId::new(3).unwrap();
        assert_eq!(work(&folder.path().join("none"), &[domid]).unwrap(), []);
        put(&folder.path().join("vbd-3-768/statistics/wr_req"), "7\n");
        put(&folder.path().join("vbd-33-768/statistics/wr_req"), "8\n");
        put(&folder.path().join("vif-3-0/statistics/wr_req"), "9\n");
        let [Work { counts, is_idle: true }] = &work(folder.path(), &[domid]).unwrap()[..] else {
            panic!("one backend")
        };
        assert_eq!(counts[2], "7");
    }

    #[test]
    fn backends_are_settled_when_they_are_idle_and_take_nothing_more() {
        let work = |count: u32, is_idle| vec![Work { counts: vec![count.to_string()], is_idle }];
        let mut looks = 0;
        let mut after = |busy: u32| {
            looks += 1;
            Ok(work(looks.min(busy), looks > busy))
        };
        assert!(wait_until_quiet(|| after(4), Duration::from_secs(60)).unwrap());
        assert!(looks > 4 + QUIET);
        assert!(!wait_until_quiet(|| Ok(work(1, false)), 9 * LOOK).unwrap(), "at work");
        let mut count = 0;
        let mut more = || {
            count += 1;
            Ok(work(count, true))
        };
        assert!(!wait_until_quiet(&mut more, 9 * LOOK).unwrap(), "more and more");
    }

    #[test]
    fn links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a.img"), folder.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(real_path(&link).unwrap(), link, "nothing is there");
        fs::write(&file, b"x").unwrap();
        assert_eq!(real_path(&link).unwrap(), file.canonicalize().unwrap());
    }
}
