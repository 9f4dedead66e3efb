//! The Xen drivers' device files: opening them, and their ioctls' numbers.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;

use crate::error::{Result, XenError};

/// Opens a device file for reading and writing, closed on exec, with more flags of open(2).
pub(crate) fn open(device: &'static str, flags: i32) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(device)
        .map_err(|source| XenError::Open { device, source })
}

/// The number of an ioctl of the Xen drivers: `_IOC(_IOC_NONE, kind, number, sizeof(T))`
/// (`linux/include/uapi/xen/`). They say "no direction" and yet carry an argument.
pub(crate) const fn number<T>(kind: u8, number: u8) -> libc::c_ulong {
    nix::request_code_none!(kind, number) | ((size_of::<T>() as libc::c_ulong) << 16)
}

/// Makes an ioctl with an argument that the driver reads, and may write.
///
/// # Safety
/// `request` takes a pointer to something that `T` starts with the layout of, and the driver reads and writes within
/// `T` only.
pub(crate) unsafe fn ioctl<T>(file: &File, request: libc::c_ulong, argument: &mut T) -> Result<i32, Errno> {
    let pointer: *mut T = argument;
    // SAFETY: the file is open, and the caller vouches for the argument.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), request, pointer) })
}
