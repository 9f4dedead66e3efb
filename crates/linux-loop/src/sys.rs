//! The ioctls of `include/uapi/linux/loop.h`, each behind a safe function.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_DIRECT_IO: u32 = 16;
const ENXIO: i32 = 6;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

impl LoopInfo64 {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

nix::ioctl_none_bad!(loop_clr_fd, 0x4c01);
nix::ioctl_read_bad!(loop_get_status64, 0x4c05, LoopInfo64);
nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, LoopConfig);
nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);

/// Asks `/dev/loop-control` for the number of a free device, making one when there is none.
pub(crate) fn get_free(control: &File) -> io::Result<u32> {
    // SAFETY: the ioctl takes no argument; the descriptor is open as long as `control` is borrowed.
    let number = unsafe { loop_ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Attaches the open file `backing` to the free device. The kernel keeps its own reference to the file.
pub(crate) fn configure(
    device: &File,
    backing: &File,
    read_only: bool,
    direct_io: bool,
    tag: &str,
) -> io::Result<()> {
    let mut info = LoopInfo64::EMPTY;
    info.flags = if read_only { FLAG_READ_ONLY } else { 0 } | if direct_io { FLAG_DIRECT_IO } else { 0 };
    for (to, from) in info.file_name.iter_mut().zip(tag.bytes()) {
        *to = from;
    }
    let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: `config` is a complete `struct loop_config` (its size is asserted above), only read by the kernel; both
    // descriptors are open as long as `device` and `backing` are borrowed.
    unsafe { loop_configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// The kernel's status of an attached device.
pub(crate) struct Status {
    /// `st_dev` of the file behind it, packed by `huge_encode_dev`.
    pub(crate) device: u64,
    /// `st_ino` of that file.
    pub(crate) inode: u64,
    /// `st_rdev` of that file, packed in the same way; for a regular file 0, or its `st_dev` before Linux 5.
    pub(crate) rdevice: u64,
    pub(crate) read_only: bool,
    pub(crate) tag: String,
}

/// The kernel's status of an attached device; `None` when no file is attached.
pub(crate) fn status(device: &File) -> io::Result<Option<Status>> {
    let mut info = LoopInfo64::EMPTY;
    // SAFETY: the kernel writes at most a `struct loop_info64` into `info`, whose every bit pattern is valid.
    match unsafe { loop_get_status64(device.as_raw_fd(), &raw mut info) } {
        Ok(_) => {}
        Err(error) if error as i32 == ENXIO => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let name: Vec<u8> = info.file_name.iter().copied().take_while(|byte| *byte != 0).collect();
    Ok(Some(Status {
        device: info.device,
        inode: info.inode,
        rdevice: info.rdevice,
        read_only: info.flags & FLAG_READ_ONLY != 0,
        tag: String::from_utf8_lossy(&name).into_owned(),
    }))
}

/// Detaches the file, at once or at the device's last close.
pub(crate) fn clear(device: &File) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument; the descriptor is open as long as `device` is borrowed.
    match unsafe { loop_clr_fd(device.as_raw_fd()) } {
        Ok(_) => Ok(()),
        // Detached by someone else meanwhile.
        Err(error) if error as i32 == ENXIO => Ok(()),
        Err(error) => Err(error.into()),
    }
}
