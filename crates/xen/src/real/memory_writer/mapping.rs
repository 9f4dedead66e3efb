//! Pages of another domain, from which the kernel writes into the stream.

use core::ffi::c_int;
use core::ptr::{self, NonNull};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::libc;
use xen_types::DomId;

use super::records::PAGE_SIZE;
use super::source::Mapped;
use crate::error::{Result, XenError};

/// The driver for other domains' memory.
pub(super) struct Memory(NonNull<xen_sys::xenforeignmemory_handle>);

impl Memory {
    pub(super) fn open() -> Result<Self> {
        // SAFETY: a null logger is allowed and means that errors go to standard error.
        let handle = unsafe { xen_sys::xenforeignmemory_open(ptr::null_mut(), 0) };
        let source = std::io::Error::last_os_error();
        NonNull::new(handle).map(Self).ok_or(XenError::Open { device: "/dev/xen/privcmd", source })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the handle was opened by `open` and this is its last use.
        unsafe { xen_sys::xenforeignmemory_close(self.0.as_ptr()) };
    }
}

/// Pages of the domain, mapped next to each other. The domain may be writing to them: they are only ever read by the
/// kernel, through their addresses.
pub(in super::super) struct Mapping {
    start: NonNull<u8>,
    errors: Vec<c_int>,
    memory: Rc<Memory>,
}

impl Mapping {
    /// Maps pages. What fails for single ones is in [`Mapped::errors`].
    pub(super) fn new(memory: &Rc<Memory>, domid: DomId, pages: &[u64]) -> Result<Self, Errno> {
        let mut errors = vec![0; pages.len()];
        // SAFETY: the handle is open, and both arrays have as many entries as is said.
        let start = unsafe {
            xen_sys::xenforeignmemory_map(
                memory.0.as_ptr(),
                domid.get().into(),
                libc::PROT_READ,
                pages.len(),
                pages.as_ptr(),
                errors.as_mut_ptr(),
            )
        };
        let start = NonNull::new(start.cast()).ok_or_else(Errno::last)?;
        Ok(Self { start, errors, memory: Rc::clone(memory) })
    }
}

impl Mapped for Mapping {
    fn errors(&self) -> &[c_int] {
        &self.errors
    }

    fn write(&self, to: BorrowedFd<'_>, head: &[u8]) -> Result<(), Errno> {
        // SAFETY: the mapping has a page for each entry, and lives until this returns.
        unsafe { write(to, head, self.start, &self.errors) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the handle made this mapping of as many pages, and this is its last use.
        unsafe {
            xen_sys::xenforeignmemory_unmap(
                self.memory.0.as_ptr(),
                self.start.as_ptr().cast(),
                self.errors.len(),
            );
        };
    }
}

/// Writes `head`, and then those of the pages at `start` that have no error.
///
/// # Safety
/// There must be a page at `start` for each of `errors`, which stays until this returns.
unsafe fn write(to: BorrowedFd<'_>, head: &[u8], start: NonNull<u8>, errors: &[c_int]) -> Result<(), Errno> {
    let mut pieces = vec![libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() }];
    for (first, count) in runs(errors) {
        // SAFETY: the caller says that these pages are there.
        let page = unsafe { start.add(first * PAGE_SIZE) };
        pieces.push(libc::iovec { iov_base: page.as_ptr().cast(), iov_len: count * PAGE_SIZE });
    }
    let mut left = pieces.as_mut_slice();
    while !left.is_empty() {
        // At most every second page of a batch begins a run, which is far below IOV_MAX.
        let count = c_int::try_from(left.len()).unwrap_or(c_int::MAX);
        // SAFETY: the pieces are in `head` and in the pages, and the kernel only reads them.
        let written = Errno::result(unsafe { libc::writev(to.as_raw_fd(), left.as_ptr(), count) });
        match written.map(usize::try_from) {
            Ok(Ok(0) | Err(_)) => return Err(Errno::EIO),
            Ok(Ok(written)) => left = behind(left, written),
            // After the signal that gives the save up the descriptor takes nothing.
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The neighbours without an error: where each run of them begins, and how many there are.
fn runs(errors: &[c_int]) -> Vec<(usize, usize)> {
    let mut at = 0;
    let mut runs = Vec::new();
    for run in errors.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
        if run.first() == Some(&0) {
            runs.push((at, run.len()));
        }
        at += run.len();
    }
    runs
}

/// What is left of some pieces of memory when so many bytes are taken from their beginning.
fn behind(pieces: &mut [libc::iovec], mut bytes: usize) -> &mut [libc::iovec] {
    let whole = pieces.iter().take_while(|piece| {
        let fits = piece.iov_len <= bytes;
        bytes -= if fits { piece.iov_len } else { 0 };
        fits
    });
    let whole = whole.count();
    let left = pieces.get_mut(whole..).unwrap_or_default();
    if let Some(piece) = left.first_mut() {
        piece.iov_base = piece.iov_base.wrapping_byte_add(bytes);
        piece.iov_len -= bytes;
    }
    left
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, pipe};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_was_written_is_taken_from_the_pieces() {
        let left = |bytes| {
            let piece =
                |start: usize, iov_len| libc::iovec { iov_base: ptr::without_provenance_mut(start), iov_len };
            let mut pieces = [piece(1000, 10), piece(2000, 20), piece(3000, 30)];
            let left = behind(&mut pieces, bytes);
            left.iter().map(|piece| (piece.iov_base.addr(), piece.iov_len)).collect::<Vec<_>>()
        };
        assert_eq!(left(0), [(1000, 10), (2000, 20), (3000, 30)]);
        assert_eq!(left(1), [(1001, 9), (2000, 20), (3000, 30)]);
        assert_eq!(left(10), [(2000, 20), (3000, 30)]);
        assert_eq!(left(29), [(2019, 1), (3000, 30)]);
        assert_eq!(left(59), [(3029, 1)]);
        assert_eq!(left(60), []);
    }

    #[test]
    fn the_pages_that_are_there_follow_the_head() {
        let errors = [0, 0, -libc::EINVAL, 0, -libc::ENOENT, -libc::EINVAL, 0, 0, 0];
        assert_eq!(runs(&errors), [(0, 2), (3, 1), (6, 3)]);
        assert_eq!(runs(&[-1]), []);
        let mut pages: Vec<u8> = (0_u8..9).flat_map(|page| [page; PAGE_SIZE]).collect();
        let (mut reader, writer) = pipe().expect("a pipe");
        let bytes = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        });
        let start = NonNull::new(pages.as_mut_ptr()).expect("memory");
        // SAFETY: there are nine pages.
        unsafe { write(writer.as_fd(), b"head", start, &errors) }.expect("written");
        drop(writer);
        let bytes = bytes.join().expect("a reader").expect("read");
        let expected: Vec<u8> = [0, 1, 3, 6, 7, 8].into_iter().flat_map(|page| [page; PAGE_SIZE]).collect();
        assert!(bytes == [&b"head"[..], &expected].concat(), "{} bytes", bytes.len());
    }
}
