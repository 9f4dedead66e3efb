//! Loop block devices of Linux: attach a file, find and detach what was attached.
//!
//! Facts are from Linux's `include/uapi/linux/loop.h` and `drivers/block/loop.c`. `LOOP_CONFIGURE` (Linux 5.8)
//! sets everything in one call, so that no half-configured device is ever visible. Each device carries a *tag* in
//! its name field (`lo_file_name`, what `losetup --list -O NAME` once showed): who attached it is thereby written in
//! the kernel itself, and a number that was taken over by someone else in the meantime is never detached.
//!
//! This crate has `unsafe` for four ioctls; no maintained crate offers them without it and without a C build.

mod sys;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The longest tag in bytes (`LO_NAME_SIZE` less the final NUL).
pub const MAX_TAG: usize = 63;
/// How often a number that another program took first is given up for the next one.
const ATTEMPTS: u32 = 64;

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

/// Why a loop device could not be made, read or detached.
#[derive(Debug, Error)]
pub enum LoopError {
    /// The file to attach cannot be opened.
    #[error("Cannot open {file} to attach it to a loop device")]
    Open {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel gives no free device.
    #[error("Cannot get a free loop device from /dev/loop-control; is the kernel's module loop loaded?")]
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
    /// The tag does not fit.
    #[error("The tag \"{0}\" of a loop device is empty, too long or has a NUL byte")]
    Tag(String),
}

/// Attaches `file` to a free loop device, with direct I/O where the file's file system has it, and without
/// autoclear (the device stays until it is detached).
///
/// # Errors
/// When the file cannot be opened so, there is no free device, or the kernel refuses.
pub fn attach(file: &Path, read_only: bool, tag: &str) -> Result<LoopDevice, LoopError> {
    if tag.is_empty() || tag.len() > MAX_TAG || tag.contains('\0') {
        return Err(LoopError::Tag(tag.to_owned()));
    }
    let open = |source| LoopError::Open { file: file.to_owned(), source };
    let backing = OpenOptions::new().read(true).write(!read_only).open(file).map_err(open)?;
    let no_free = |source| LoopError::NoFree { source };
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").map_err(no_free)?;
    let mut direct_io = true;
    for _ in 0..ATTEMPTS {
        let number = sys::get_free(&control).map_err(no_free)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let failed = |source| LoopError::Attach { file: file.to_owned(), device: path.clone(), source };
        let device = OpenOptions::new().read(true).write(!read_only).open(&path).map_err(failed)?;
        match sys::configure(&device, backing.as_raw_fd(), read_only, direct_io, tag) {
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
        Err(error) if error.raw_os_error() == Some(6) => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    match sys::tag(&handle).map_err(failed)? {
        Some(tag) if tag == device.tag => sys::clear(&handle).map_err(failed).map(|()| true),
        _ => Ok(false),
    }
}

/// All attached loop devices with a tag that starts with `prefix`.
///
/// # Errors
/// When `/sys/block` cannot be read. A device that vanishes meanwhile is left out.
pub fn find(prefix: &str) -> Result<Vec<LoopDevice>, LoopError> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir("/sys/block").map_err(|source| LoopError::List { source })?;
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("loop")) else { continue };
        // The folder `loop` exists only while a file is attached.
        if !entry.path().join("loop").exists() {
            continue;
        }
        let path = Path::new("/dev").join(name);
        let Ok(handle) = File::open(&path) else { continue };
        let (Ok(Some(tag)), Ok(meta)) = (sys::tag(&handle), handle.metadata()) else { continue };
        if tag.starts_with(prefix) {
            found.push(LoopDevice { path, major: major(meta.rdev()), minor: minor(meta.rdev()), tag });
        }
    }
    Ok(found)
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
    fn a_bad_tag_or_a_missing_file_is_refused_before_a_device_is_taken() {
        assert!(matches!(attach(Path::new("/x"), true, ""), Err(LoopError::Tag(_))));
        assert!(matches!(attach(Path::new("/x"), true, &"x".repeat(64)), Err(LoopError::Tag(_))));
        assert!(matches!(attach(Path::new("/nonexistent"), true, "t"), Err(LoopError::Open { .. })));
    }

    #[test]
    fn a_device_that_is_not_there_is_not_detached() {
        let device = LoopDevice { path: "/dev/loop-none".into(), major: 7, minor: 9, tag: "t".into() };
        assert!(!detach(&device).unwrap());
    }
}
