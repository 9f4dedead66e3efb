use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use xen_types::{DomId, EventPort, GrantRef};

use crate::device;
use crate::error::{Result, XenError};
use crate::page::{Access, Release, SharedPages};

const GNTDEV: &str = "/dev/xen/gntdev";
const GNTALLOC: &str = "/dev/xen/gntalloc";

/// The most pages that one call maps or shares. vchan's largest ring has 2 × 256; a console has one.
pub const MAX_PAGES: usize = 512;

/// What the kernel does when a mapping ends, even when its process died: how a vchan peer notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnUnmap {
    /// Sets the byte at this offset to zero.
    pub clear_byte: Option<usize>,
    /// Fires this port, which must be bound by this process.
    pub notify: Option<EventPort>,
}

/// Maps pages that other domains have granted to this one (`/dev/xen/gntdev`).
#[derive(Debug)]
pub struct GrantTable {
    file: Arc<File>,
}

impl GrantTable {
    /// Opens the driver.
    ///
    /// # Errors
    /// When this is no Xen domain, or this process may not.
    pub fn open() -> Result<Self> {
        Ok(Self { file: Arc::new(device::open(GNTDEV, 0)?) })
    }

    /// Maps pages of one domain next to each other, in the order of their grants.
    ///
    /// # Errors
    /// `EINVAL` when one of them is not granted to this domain, or not for this access.
    pub fn map(&self, domid: DomId, refs: &[GrantRef], access: Access) -> Result<GrantMapping> {
        self.map_with(domid, refs, access, OnUnmap::default())
    }

    /// Maps pages and says what the kernel does when they are unmapped.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_with(
        &self,
        domid: DomId,
        refs: &[GrantRef],
        access: Access,
        on_unmap: OnUnmap,
    ) -> Result<GrantMapping> {
        const WHAT: &str = "map granted pages";
        let count = count_of(WHAT, refs.len())?;
        let mut request = MapGrantRef { count, pad: 0, index: 0, refs: [GntdevRef::default(); MAX_PAGES] };
        for (slot, grant) in request.refs.iter_mut().zip(refs) {
            *slot = GntdevRef { domid: domid.get().into(), reference: grant.get() };
        }
        // SAFETY: the argument starts with the layout of `struct ioctl_gntdev_map_grant_ref`, whose array goes on to
        // the `count` entries that are filled in.
        let done = unsafe { device::ioctl(&self.file, IOCTL_MAP_GRANT_REF, &mut request) };
        done.map_err(|errno| XenError::refused(WHAT, Some(domid), errno))?;
        let release: Arc<dyn Release> =
            Arc::new(GntdevRelease { file: Arc::clone(&self.file), index: request.index, count });
        let pages = map_device(&self.file, request.index, refs.len(), access, &release)
            .map_err(|errno| XenError::refused(WHAT, Some(domid), errno))?;
        // From here on dropping `pages` undoes everything.
        set_on_unmap(&self.file, request.index, on_unmap)
            .map_err(|errno| XenError::refused(WHAT, Some(domid), errno))?;
        Ok(GrantMapping { pages })
    }
}

/// Pages of another domain, mapped through their grants. Dropping it unmaps them.
#[derive(Debug)]
pub struct GrantMapping {
    pages: SharedPages,
}

impl GrantMapping {
    /// The pages' bytes.
    #[must_use]
    pub const fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// The pages by themselves.
    #[must_use]
    pub fn into_pages(self) -> SharedPages {
        self.pages
    }
}

/// Shares pages of this domain's own with another (`/dev/xen/gntalloc`).
#[derive(Debug)]
pub struct GrantAllocator {
    file: Arc<File>,
}

impl GrantAllocator {
    /// Opens the driver.
    ///
    /// # Errors
    /// When this is no Xen domain, or this process may not.
    pub fn open() -> Result<Self> {
        Ok(Self { file: Arc::new(device::open(GNTALLOC, 0)?) })
    }

    /// Makes pages that are full of zeroes and grants them to a domain.
    ///
    /// # Errors
    /// `ENOSPC` when the driver's limit (`xen_gntalloc.limit`) is reached.
    pub fn share(
        &self,
        domid: DomId,
        pages: usize,
        access: Access,
        on_unmap: OnUnmap,
    ) -> Result<GrantedPages> {
        const WHAT: &str = "grant pages";
        let count = count_of(WHAT, pages)?;
        let flags = u16::from(access == Access::ReadWrite);
        let mut request = AllocGref { domid: domid.get(), flags, count, index: 0, refs: [0; MAX_PAGES] };
        // SAFETY: the argument starts with the layout of `struct ioctl_gntalloc_alloc_gref`, whose array has room for
        // the `count` references that the driver writes.
        let done = unsafe { device::ioctl(&self.file, IOCTL_ALLOC_GREF, &mut request) };
        done.map_err(|errno| XenError::refused(WHAT, Some(domid), errno))?;
        let release: Arc<dyn Release> =
            Arc::new(GntallocRelease { file: Arc::clone(&self.file), index: request.index, count });
        let mapped = map_device(&self.file, request.index, pages, Access::ReadWrite, &release)
            .map_err(|errno| XenError::refused(WHAT, Some(domid), errno))?;
        set_on_unmap(&self.file, request.index, on_unmap)
            .map_err(|errno| XenError::refused(WHAT, Some(domid), errno))?;
        let refs = request.refs.iter().take(pages).copied().map(GrantRef).collect();
        Ok(GrantedPages { pages: mapped, refs })
    }
}

/// Pages of this domain that another may map. Dropping it ends the grant as soon as the other domain releases them.
#[derive(Debug)]
pub struct GrantedPages {
    pages: SharedPages,
    refs: Vec<GrantRef>,
}

impl GrantedPages {
    /// The pages' bytes.
    #[must_use]
    pub const fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// The pages by themselves, granted for as long as they are there.
    #[must_use]
    pub fn into_pages(self) -> SharedPages {
        self.pages
    }

    /// The grants, one a page.
    #[must_use]
    pub fn refs(&self) -> &[GrantRef] {
        &self.refs
    }
}

fn count_of(operation: &'static str, pages: usize) -> Result<u32> {
    match u32::try_from(pages) {
        Ok(count @ 1..) if pages <= MAX_PAGES => Ok(count),
        _ => Err(XenError::Invalid { operation, reason: format!("{pages} pages are not 1 to {MAX_PAGES}") }),
    }
}

fn map_device(
    file: &File,
    index: u64,
    pages: usize,
    access: Access,
    release: &Arc<dyn Release>,
) -> Result<SharedPages, Errno> {
    let mapped = i64::try_from(index)
        .map_err(|_| Errno::EOVERFLOW)
        .and_then(|offset| SharedPages::of_device(file.as_fd(), offset, pages, access, Arc::clone(release)));
    if mapped.is_err() {
        release.release();
    }
    mapped
}

fn set_on_unmap(file: &File, index: u64, on_unmap: OnUnmap) -> Result<(), Errno> {
    let mut request = UnmapNotify { index, action: 0, event_channel_port: 0 };
    if let Some(offset) = on_unmap.clear_byte {
        request.index += offset as u64;
        request.action |= UNMAP_NOTIFY_CLEAR_BYTE;
    }
    if let Some(port) = on_unmap.notify {
        request.event_channel_port = port.get();
        request.action |= UNMAP_NOTIFY_SEND_EVENT;
    }
    if request.action == 0 {
        return Ok(());
    }
    // SAFETY: the argument has the layout of `struct ioctl_gntdev_unmap_notify`, which gntalloc shares.
    unsafe { device::ioctl(file, IOCTL_SET_UNMAP_NOTIFY, &mut request) }.map(drop)
}

struct GntdevRelease {
    file: Arc<File>,
    index: u64,
    count: u32,
}

impl Release for GntdevRelease {
    fn release(&self) {
        let mut request = UnmapGrantRef { index: self.index, count: self.count, pad: 0 };
        // SAFETY: the argument has the layout of `struct ioctl_gntdev_unmap_grant_ref`.
        if let Err(errno) = unsafe { device::ioctl(&self.file, IOCTL_UNMAP_GRANT_REF, &mut request) } {
            tracing::warn!(%errno, "the grant driver did not release a mapping");
        }
    }
}

struct GntallocRelease {
    file: Arc<File>,
    index: u64,
    count: u32,
}

impl Release for GntallocRelease {
    fn release(&self) {
        let mut request = DeallocGref { index: self.index, count: self.count };
        // SAFETY: the argument has the layout of `struct ioctl_gntalloc_dealloc_gref`.
        if let Err(errno) = unsafe { device::ioctl(&self.file, IOCTL_DEALLOC_GREF, &mut request) } {
            tracing::warn!(%errno, "the grant allocator did not release pages");
        }
    }
}

// Numbers and layouts: linux/include/uapi/xen/gntdev.h and gntalloc.h. The size in a number is that of the header's
// structure, whose array has one entry.
const IOCTL_MAP_GRANT_REF: libc::c_ulong = device::number::<[u64; 3]>(b'G', 0);
const IOCTL_UNMAP_GRANT_REF: libc::c_ulong = device::number::<UnmapGrantRef>(b'G', 1);
const IOCTL_SET_UNMAP_NOTIFY: libc::c_ulong = device::number::<UnmapNotify>(b'G', 7);
const IOCTL_ALLOC_GREF: libc::c_ulong = device::number::<[u64; 3]>(b'G', 5);
const IOCTL_DEALLOC_GREF: libc::c_ulong = device::number::<DeallocGref>(b'G', 6);
const UNMAP_NOTIFY_CLEAR_BYTE: u32 = 1;
const UNMAP_NOTIFY_SEND_EVENT: u32 = 2;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct GntdevRef {
    domid: u32,
    reference: u32,
}

#[repr(C)]
struct MapGrantRef {
    count: u32,
    pad: u32,
    index: u64,
    refs: [GntdevRef; MAX_PAGES],
}

#[repr(C)]
struct UnmapGrantRef {
    index: u64,
    count: u32,
    pad: u32,
}

#[repr(C)]
struct UnmapNotify {
    index: u64,
    action: u32,
    event_channel_port: u32,
}

#[repr(C)]
struct AllocGref {
    domid: u16,
    flags: u16,
    count: u32,
    index: u64,
    refs: [u32; MAX_PAGES],
}

#[repr(C)]
struct DeallocGref {
    index: u64,
    count: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(IOCTL_MAP_GRANT_REF, 0x0018_4700);
        assert_eq!(IOCTL_UNMAP_GRANT_REF, 0x0010_4701);
        assert_eq!(IOCTL_SET_UNMAP_NOTIFY, 0x0010_4707);
        assert_eq!(IOCTL_ALLOC_GREF, 0x0018_4705);
        assert_eq!(IOCTL_DEALLOC_GREF, 0x0010_4706);
    }

    #[test]
    fn a_sensible_number_of_pages_is_asked_for() {
        assert!(count_of("map", 0).is_err());
        assert!(count_of("map", MAX_PAGES + 1).is_err());
        assert_eq!(count_of("map", MAX_PAGES).expect("the limit is allowed"), 512);
    }
}
