use core::ptr::{self, NonNull};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use xen_types::{DomId, Gfn, PAGE_SIZE};

use crate::error::{Result, XenError};
use crate::page::{Access, Release, SharedPages};

/// Maps any page of other domains, by a privileged domain's right (libxenforeignmemory): consoles whose domain granted
/// nothing.
pub struct ForeignMemory {
    handle: Arc<Handle>,
}

impl ForeignMemory {
    /// Opens the driver.
    ///
    /// # Errors
    /// When this is no Xen domain, or this process may not.
    pub fn open() -> Result<Self> {
        // SAFETY: a null logger is allowed and means that errors go to standard error.
        let handle = unsafe { xen_sys::xenforeignmemory_open(ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(|| XenError::Open {
            device: "/dev/xen/privcmd",
            source: std::io::Error::last_os_error(),
        })?;
        Ok(Self { handle: Arc::new(Handle(handle)) })
    }

    /// Maps pages of a domain next to each other. For a PV domain the numbers are machine frames.
    ///
    /// # Errors
    /// `ESRCH` for an unknown domain, `EINVAL` for a frame that the domain does not have.
    pub fn map(&self, domid: DomId, frames: &[Gfn], access: Access) -> Result<SharedPages> {
        const WHAT: &str = "map pages of a domain";
        if frames.is_empty() {
            return Err(XenError::Invalid { operation: WHAT, reason: "no pages were named".to_owned() });
        }
        let prot = match access {
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let numbers: Vec<u64> = frames.iter().map(|frame| frame.get()).collect();
        // SAFETY: the handle is open, `numbers` has as many entries as is said, and a null error array makes the call
        // fail as a whole when one page cannot be mapped.
        let start = unsafe {
            xen_sys::xenforeignmemory_map(
                self.handle.0.as_ptr(),
                domid.get().into(),
                prot,
                numbers.len(),
                numbers.as_ptr(),
                ptr::null_mut(),
            )
        };
        let start =
            NonNull::new(start.cast()).ok_or_else(|| XenError::refused(WHAT, Some(domid), Errno::last()))?;
        let release: Arc<dyn Release> = Arc::<Handle>::clone(&self.handle);
        // SAFETY: the library has just made this mapping of as many pages, nobody else knows it, and the handle's
        // `unmap` is the library's counterpart.
        Ok(unsafe { SharedPages::of_library(start, numbers.len(), access, release) })
    }

    /// Writes bytes at a guest-physical address.
    pub(crate) fn write(&self, domid: DomId, address: u64, bytes: &[u8]) -> Result<()> {
        let page = PAGE_SIZE as u64;
        let last = address.saturating_add(bytes.len() as u64).saturating_sub(1);
        let frames: Vec<Gfn> = (address / page..=last / page).map(Gfn).collect();
        let offset = usize::try_from(address % page).unwrap_or_default();
        self.map(domid, &frames, Access::ReadWrite)?.write(offset, bytes);
        Ok(())
    }
}

struct Handle(NonNull<xen_sys::xenforeignmemory_handle>);

// SAFETY: the library keeps a file descriptor in the handle and nothing else that mapping and unmapping change, as its
// header allows use from several threads for distinct mappings.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Release for Handle {
    fn release(&self) {}

    unsafe fn unmap(&self, start: NonNull<u8>, pages: usize) -> bool {
        // SAFETY: the caller vouches for the mapping, which this handle made.
        unsafe { xen_sys::xenforeignmemory_unmap(self.0.as_ptr(), start.as_ptr().cast(), pages) == 0 }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle was opened by `ForeignMemory::open` and this is its last use.
        unsafe { xen_sys::xenforeignmemory_close(self.0.as_ptr()) };
    }
}
