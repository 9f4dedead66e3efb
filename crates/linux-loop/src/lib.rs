//! Loop block devices of Linux: attach a file, find and detach what was attached.
//!
//! Facts are from Linux's `include/uapi/linux/loop.h` and `drivers/block/loop.c`. `LOOP_CONFIGURE` (Linux 5.8)
//! sets everything in one call, so that no half-configured device is ever visible. Each device carries a *tag* in
//! its name field (`lo_file_name`, what `losetup --list -O NAME` once showed): who attached it is thereby written in
//! the kernel itself, and a number that was taken over by someone else in the meantime is never detached.
//!
//! This crate has `unsafe` for four ioctls; no maintained crate offers them without it and without a C build.

mod bounded;
mod sys;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use bounded::look_within;

/// The longest tag in bytes (`LO_NAME_SIZE` less the final NUL).
pub const MAX_TAG: usize = 63;
/// How often a number that another program took first is given up for the next one.
const ATTEMPTS: u32 = 64;
/// The most attached devices that [`list`] returns; with more it fails, since an incomplete list would mislead.
pub const MAX_DEVICES: usize = 16_384;
const ENXIO: i32 = 6;
const ENODEV: i32 = 19;
const ENOMEM: i32 = 12;

/// An attached loop device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    /// `/dev/loop<n>`.
    pub path: PathBuf,
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// The tag that it was attached with.
    pub tag: String,
}

/// The file behind a loop device, as `stat` identifies files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Major number of the file system's device.
    pub major: u32,
    /// Minor number of the file system's device.
    pub minor: u32,
    /// The inode number.
    pub inode: u64,
    /// Major and minor number of the block device, when the file is one.
    pub block: Option<(u32, u32)>,
}

/// A loop device of the host, attached by any program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedLoop {
    /// The device; its tag is the file name that the kernel has recorded for it.
    pub device: LoopDevice,
    /// The file behind it.
    pub backing: Backing,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// Why a loop device could not be made, read or detached.
#[derive(Debug, Error)]
pub enum LoopError {
    /// The kernel gives no free device.
    #[error("Cannot get a free loop device from /dev/loop-control; is the kernel module loop loaded?")]
    NoFree {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refuses the configuration.
    #[error("Cannot attach {file} to {device}")]
    Attach {
        /// The file.
        file: PathBuf,
        /// The loop device.
        device: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not detach the file.
    #[error("Cannot detach {device}")]
    Detach {
        /// The loop device.
        device: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The list of devices cannot be read.
    #[error("Cannot list the loop devices in /sys/block")]
    List {
        /// What the kernel said.
        source: io::Error,
    },
    /// The file behind a device cannot be read.
    #[error("Cannot read which file is attached to {device}")]
    Read {
        /// The loop device.
        device: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There are more loop devices than [`list`] returns.
    #[error("The host has more than {MAX_DEVICES} attached loop devices")]
    TooMany,
    /// The tag does not fit.
    #[error("The tag \"{0}\" of a loop device is empty, too long, or contains a NUL byte")]
    Tag(String),
}

/// Attaches an open file to a free loop device, with direct I/O where the file's file system has it, and without
/// autoclear (the device stays until it is detached). `name` is the file's name in errors.
///
/// The open file is attached, even if its name now leads to another file. It has to be open for writing unless the
/// device is to be read-only.
///
/// # Errors
/// When there is no free device, or the kernel refuses.
pub fn attach(backing: &File, name: &Path, read_only: bool, tag: &str) -> Result<LoopDevice, LoopError> {
    if tag.is_empty() || tag.len() > MAX_TAG || tag.contains('\0') {
        return Err(LoopError::Tag(tag.to_owned()));
    }
    let no_free = |source| LoopError::NoFree { source };
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").map_err(no_free)?;
    let mut direct_io = true;
    for _ in 0..ATTEMPTS {
        let number = sys::get_free(&control).map_err(no_free)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let failed = |source| LoopError::Attach { file: name.to_owned(), device: path.clone(), source };
        let device = OpenOptions::new().read(true).write(!read_only).open(&path).map_err(failed)?;
        match sys::configure(&device, backing, read_only, direct_io, tag) {
            Ok(()) => {
                let rdev = device.metadata().map_err(failed)?.rdev();
                return Ok(LoopDevice { major: major(rdev), minor: minor(rdev), path, tag: tag.to_owned() });
            }
            // Someone was faster.
            Err(error) if error.raw_os_error() == Some(16) => {}
            // The file system has no direct I/O (tmpfs before Linux 6.6): go through the page cache.
            Err(error) if error.raw_os_error() == Some(22) && direct_io => direct_io = false,
            Err(error) => return Err(failed(error)),
        }
    }
    Err(LoopError::NoFree { source: io::Error::from_raw_os_error(16) })
}

/// Detaches a device if it still carries its tag. One that is gone, free or someone else's is left as it is.
///
/// Returns whether it was detached now. While a backend still has it open, the kernel detaches it at the last
/// close (`LO_FLAGS_AUTOCLEAR` is then set by the kernel itself).
///
/// # Errors
/// When the kernel refuses.
pub fn detach(device: &LoopDevice) -> Result<bool, LoopError> {
    let failed = |source| LoopError::Detach { device: device.path.clone(), source };
    let handle = match File::open(&device.path) {
        Ok(handle) => handle,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.raw_os_error() == Some(ENXIO) => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    match sys::status(&handle).map_err(failed)? {
        Some(status) if status.tag == device.tag => sys::clear(&handle).map_err(failed).map(|()| true),
        _ => Ok(false),
    }
}

/// All attached loop devices with a tag that starts with `prefix`.
///
/// # Errors
/// When `/sys/block` cannot be read. A device is left out that vanishes meanwhile, whose status cannot be read, or whose
/// file system does not answer: that delays the first call by two seconds, and later ones not at all.
pub fn find(prefix: &str) -> Result<Vec<LoopDevice>, LoopError> {
    let attached = attached_paths()?.into_iter().filter_map(|path| bounded::look_at(&path).ok().flatten());
    Ok(attached.map(|attached| attached.device).filter(|device| device.tag.starts_with(prefix)).collect())
}

/// All attached loop devices of the host, from any program. One that vanishes meanwhile is left out, and so is one whose
/// file system fails or does not answer: no file there can be opened, either.
///
/// # Errors
/// When `/sys/block` cannot be read, a device cannot be opened, or there are more than [`MAX_DEVICES`].
pub fn list() -> Result<Vec<AttachedLoop>, LoopError> {
    let mut found = Vec::new();
    for path in attached_paths()? {
        found.extend(bounded::look_at(&path)?);
        if found.len() > MAX_DEVICES {
            return Err(LoopError::TooMany);
        }
    }
    Ok(found)
}

/// The device files of the loop devices that have a file attached.
fn attached_paths() -> Result<Vec<PathBuf>, LoopError> {
    let mut paths = Vec::new();
    let entries = std::fs::read_dir("/sys/block").map_err(|source| LoopError::List { source })?;
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("loop")) else { continue };
        // The folder `loop` exists only while a file is attached.
        if entry.path().join("loop").exists() {
            paths.push(Path::new("/dev").join(name));
        }
    }
    Ok(paths)
}

/// The attachment of the loop device at this path; `None` when nothing is attached or the device is gone.
fn look_at(path: &Path) -> Result<Option<AttachedLoop>, LoopError> {
    let failed = |source| LoopError::Read { device: path.to_owned(), source };
    let handle = match File::open(path) {
        Ok(handle) => handle,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(ENXIO | ENODEV)) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let Some(status) = answered(sys::status(&handle)).map_err(failed)? else { return Ok(None) };
    let rdev = handle.metadata().map_err(failed)?.rdev();
    let device =
        LoopDevice { path: path.to_owned(), major: major(rdev), minor: minor(rdev), tag: status.tag.clone() };
    Ok(Some(AttachedLoop { device, backing: backing(&status), read_only: status.read_only }))
}

/// The status, without an error of the file system that the backing file is on: it may be any (FUSE), and is that device's
/// alone.
fn answered<T>(status: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match status {
        Err(error) if error.raw_os_error() != Some(ENOMEM) => Ok(None),
        known => known,
    }
}

/// `huge_encode_dev` (`include/linux/kdev_t.h`) packs twelve bits of the major number and twenty of the minor at the
/// places where the C library has the low bits of its wider numbers, so [`major`] and [`minor`] can read them.
fn backing(status: &sys::Status) -> Backing {
    let block = (status.rdevice != 0 && status.rdevice != status.device)
        .then(|| (major(status.rdevice), minor(status.rdevice)));
    Backing { major: major(status.device), minor: minor(status.device), inode: status.inode, block }
}

/// The major number of a device number as Linux's C library packs it.
#[must_use]
pub fn major(device: u64) -> u32 {
    // The masks leave 32 bits.
    u32::try_from(((device >> 8) & 0xfff) | ((device >> 32) & 0xffff_f000)).unwrap_or(u32::MAX)
}

/// The minor number of a device number as Linux's C library packs it.
#[must_use]
pub fn minor(device: u64) -> u32 {
    // The masks leave 32 bits.
    u32::try_from((device & 0xff) | ((device >> 12) & 0xffff_ff00)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_unpacked_as_the_c_library_packs_them() {
        assert_eq!((major(0x0801), minor(0x0801)), (8, 1));
        // makedev(259, 300): the high byte of the minor number lies above the major's.
        assert_eq!((major(0x11_032c), minor(0x11_032c)), (0x103, 0x12c));
    }

    #[test]
    fn a_device_whose_file_system_fails_is_left_out() {
        // EIO, EACCES, ENOTCONN, ETIMEDOUT, ESTALE.
        for code in [5, 13, 107, 110, 116] {
            assert_eq!(answered::<()>(Err(io::Error::from_raw_os_error(code))).unwrap(), None, "{code}");
        }
        assert_eq!(answered(Ok(Some(1))).unwrap(), Some(1));
        assert!(answered::<()>(Err(io::Error::from_raw_os_error(ENOMEM))).is_err());
    }

    #[test]
    fn a_bad_tag_is_refused_before_a_device_is_claimed() {
        let file = File::open("/dev/null").unwrap();
        for bad in ["", &"x".repeat(64), "a\0b"] {
            assert!(matches!(attach(&file, Path::new("/x"), true, bad), Err(LoopError::Tag(_))), "{bad:?}");
        }
    }

    #[test]
    fn device_numbers_are_unpacked_as_the_kernel_packs_them() {
        // new_encode_dev(MKDEV(259, 300)), new_encode_dev(MKDEV(4095, 0xfffff)).
        let status =
            |device, rdevice| sys::Status { device, inode: 5, rdevice, read_only: false, tag: String::new() };
        let read = backing(&status(0x11_032c, 0));
        assert_eq!(read, Backing { major: 259, minor: 300, inode: 5, block: None });
        assert_eq!(backing(&status(6, 0xffff_ffff)).block, Some((4095, 0xf_ffff)));
        // A regular file before Linux 5.
        assert_eq!(backing(&status(0x801, 0x801)).block, None);
    }

    #[test]
    fn the_opened_file_is_attached_and_listed_even_if_its_name_was_reused() {
        let path = std::env::temp_dir().join(format!("linux-loop-{}", std::process::id()));
        std::fs::write(&path, [0; 4096]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let meta = file.metadata().unwrap();
        std::fs::remove_file(&path).unwrap();
        let tag = format!("linux-loop-test/{}", std::process::id());
        let device = match attach(&file, &path, false, &tag) {
            Ok(device) => device,
            // Without root, or without the module, there is nothing to test.
            Err(error) => return assert!(matches!(error, LoopError::NoFree { .. }), "{error}"),
        };
        let listed = list();
        let found = find(&tag);
        assert!(detach(&device).unwrap());
        let listed: Vec<_> =
            listed.unwrap().into_iter().filter(|attached| attached.device.tag == tag).collect();
        let backing =
            Backing { major: major(meta.dev()), minor: minor(meta.dev()), inode: meta.ino(), block: None };
        assert_eq!(listed, [AttachedLoop { device: device.clone(), backing, read_only: false }]);
        assert_eq!(found.unwrap(), [device]);
    }

    #[test]
    fn a_device_that_is_not_there_is_not_detached() {
        let device = LoopDevice { path: "/dev/loop-none".into(), major: 7, minor: 9, tag: "t".into() };
        assert!(!detach(&device).unwrap());
    }
}
