//! Persistent taps of Linux that belong to a user.
//!
//! The owner of a tap may use it without any privilege, by opening `/dev/net/tun` and requesting it by its name.
//! Facts are from Linux's `include/uapi/linux/if_tun.h` and `drivers/net/tun.c`; rtnetlink removes a tap, but makes
//! none. This crate has `unsafe` for three ioctls: of the crates that offer them, one brings the Windows bindings and
//! the others a runtime.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

/// The longest name of an interface in bytes (`IFNAMSIZ` less the final NUL).
pub const MAX_NAME: usize = 15;

/// `IFF_TAP | IFF_NO_PI`: Ethernet frames with nothing before them.
const FLAGS: u16 = 0x0002 | 0x1000;

mod sys {
    //! The ioctls.

    use super::MAX_NAME;

    /// The part of `struct ifreq` that `TUNSETIFF` reads and writes, in the size of the whole.
    #[repr(C)]
    pub(super) struct InterfaceRequest {
        pub(super) name: [u8; MAX_NAME + 1],
        pub(super) flags: u16,
        pub(super) rest: [u8; 22],
    }

    const _: () = assert!(size_of::<InterfaceRequest>() == 40);

    nix::ioctl_readwrite_bad!(tun_set_iff, 0x4004_54ca, InterfaceRequest);
    nix::ioctl_write_int_bad!(tun_set_persist, 0x4004_54cb);
    nix::ioctl_write_int_bad!(tun_set_owner, 0x4004_54cc);
}

use sys::{InterfaceRequest, tun_set_iff, tun_set_owner, tun_set_persist};

/// Makes the tap `name`, which stays until it is removed, and gives it to the user with the number `owner`.
///
/// An existing tap of this name is reused and assigned to that user. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// A name that is empty, too long or has a NUL byte is `InvalidInput`; else what the kernel says, `NotFound` meaning
/// that it has no taps (the module `tun`).
pub fn create(name: &str, owner: u32) -> io::Result<()> {
    let owner = i32::try_from(owner).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut request = request_of(name)?;
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: the descriptor is open, and the request is of the size and form that this ioctl reads and writes.
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the descriptor is open, and this ioctl takes a plain number.
    unsafe { tun_set_owner(tun.as_raw_fd(), owner) }?;
    // SAFETY: as above.
    unsafe { tun_set_persist(tun.as_raw_fd(), 1) }?;
    Ok(())
}

fn request_of(name: &str) -> io::Result<InterfaceRequest> {
    let mut request = InterfaceRequest { name: [0; MAX_NAME + 1], flags: FLAGS, rest: [0; 22] };
    if name.is_empty() || name.len() > MAX_NAME || name.bytes().any(|byte| byte == 0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.name.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_names_are_refused() {
        for name in ["", "sixteen-bytes-xx", "a\0b"] {
            assert_eq!(create(name, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert_eq!(create("tap0", u32::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_name_is_followed_by_nul() {
        assert_eq!(&request_of("fifteen-bytes-x").unwrap().name, b"fifteen-bytes-x\0");
        assert_eq!(&request_of("tap0").unwrap().name[..5], b"tap0\0");
    }
}
