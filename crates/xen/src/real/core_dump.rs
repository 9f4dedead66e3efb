//! Dumping a domain's memory as an ELF core file: the library makes it, so that it is the file of `xl dump-core`.

use core::ffi::{c_char, c_int, c_uint, c_void};
use core::slice;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use xen_sys::{xc_interface, xen_domctl_getdomaininfo};
use xen_types::DomId;

use super::describe::domain_info;
use super::handle::Handle;
use super::memory_writer::{PAGE_SIZE, write_all};
use crate::error::{Result, XenError};

/// Dumps a domain. `given_up` tells, between two pieces, that nobody wants the file any more.
pub(super) fn dump(
    handle: &Handle,
    domid: DomId,
    to: BorrowedFd<'_>,
    progress: fn(u64, u64),
    given_up: &dyn Fn() -> bool,
) -> Result<()> {
    const WHAT: &str = "xc_domain_dumpcore_via_callback";
    let pages = count_pages(handle, domid)?;
    let mut file = CoreFile { to, written: 0, pages, progress, given_up, failed: None };
    let dumped = handle.call(WHAT, Some(domid), |xc| {
        // SAFETY: the connection is open, and the library passes the pointer to `take` only, before this returns.
        unsafe {
            let argument = (&raw mut file).cast();
            xen_sys::xc_domain_dumpcore_via_callback(xc, domid.get().into(), argument, Some(take))
        }
    });
    match file.failed {
        Some(errno) => Err(XenError::refused("write", Some(domid), errno)),
        // Where the library has no memory for its tables, it returns success and has written nothing.
        None if dumped.is_ok() && file.written == 0 => {
            Err(XenError::refused(WHAT, Some(domid), Errno::ENOMEM))
        }
        None => dumped.map(drop),
    }
}

/// How many pages a domain has.
fn count_pages(handle: &Handle, domid: DomId) -> Result<u64> {
    const WHAT: &str = "xc_domain_getinfolist";
    let mut info = xen_domctl_getdomaininfo::default();
    let count = handle.call(WHAT, Some(domid), |xc| {
        // SAFETY: the connection is open, and there is room for the one that is asked for.
        unsafe { xen_sys::xc_domain_getinfolist(xc, domid.get().into(), 1, &raw mut info) }
    })?;
    // The call gives the next domain when there is none of this number.
    match domain_info(&info).filter(|described| count == 1 && described.domid == domid) {
        Some(_) => Ok(info.tot_pages),
        None => Err(XenError::refused(WHAT, Some(domid), Errno::ESRCH)),
    }
}

/// The file that the library writes piece by piece.
struct CoreFile<'a> {
    to: BorrowedFd<'a>,
    /// How many bytes were written.
    written: u64,
    /// How many pages the domain had at first.
    pages: u64,
    progress: fn(u64, u64),
    given_up: &'a dyn Fn() -> bool,
    failed: Option<Errno>,
}

impl CoreFile<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if (self.given_up)() {
            return Err(Errno::ECANCELED);
        }
        write_all(self.to, bytes)?;
        self.written = self.written.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let pages = self.written / u64::try_from(PAGE_SIZE).unwrap_or(u64::MAX);
        (self.progress)(pages.min(self.pages), self.pages);
        Ok(())
    }
}

/// Writes a piece. A panic cannot leave it: it ends the process, as in every function of C's calling convention.
unsafe extern "C" fn take(
    _xc: *mut xc_interface,
    file: *mut c_void,
    bytes: *mut c_char,
    length: c_uint,
) -> c_int {
    if length == 0 {
        return 0;
    }
    // SAFETY: the library gives back the pointer of `dump`, whose file nothing else uses before the library returns.
    let file = unsafe { &mut *file.cast::<CoreFile<'_>>() };
    // SAFETY: the library has so many bytes there, and does not change them meanwhile.
    let bytes = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), length as usize) };
    match file.take(bytes) {
        Ok(()) => 0,
        Err(errno) => {
            file.failed = Some(errno);
            -1
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, pipe};
    use std::os::fd::AsFd as _;

    use super::*;

    fn file<'a>(to: BorrowedFd<'a>, given_up: &'a dyn Fn() -> bool) -> CoreFile<'a> {
        CoreFile { to, written: 0, pages: 2, progress: |_, _| (), given_up, failed: None }
    }

    /// Has a piece taken as the library does it.
    fn piece(file: &mut CoreFile<'_>, bytes: &mut [u8]) -> c_int {
        let length = c_uint::try_from(bytes.len()).expect("a short piece");
        // SAFETY: the file and the bytes live until it returns.
        unsafe { take(core::ptr::null_mut(), ptr_of(file), bytes.as_mut_ptr().cast(), length) }
    }

    fn ptr_of(file: &mut CoreFile<'_>) -> *mut c_void {
        (&raw mut *file).cast()
    }

    #[test]
    fn pieces_follow_each_other() {
        let (mut reader, writer) = pipe().expect("a pipe");
        let mut core = file(writer.as_fd(), &|| false);
        for bytes in [&mut b"\x7fELF"[..].to_vec(), &mut Vec::new(), &mut b"rest".to_vec()] {
            assert_eq!(piece(&mut core, bytes), 0);
        }
        assert_eq!((core.written, core.failed), (8, None));
        drop(writer);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).expect("read");
        assert_eq!(all, b"\x7fELFrest");
    }

    #[test]
    fn full_disk_and_cancelled_dump_end_the_library_with_a_reason() {
        let full = File::options().write(true).open("/dev/full").expect("opened");
        let mut core = file(full.as_fd(), &|| false);
        assert!(piece(&mut core, &mut [0; 4]) < 0);
        assert_eq!((core.written, core.failed), (0, Some(Errno::ENOSPC)));
        let mut core = file(full.as_fd(), &|| true);
        assert!(piece(&mut core, &mut [0; 4]) < 0);
        assert_eq!(core.failed, Some(Errno::ECANCELED));
    }
}
