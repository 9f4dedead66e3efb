//! A real domain that is saved, through libxenctrl, libxenguest and libxenforeignmemory.

use core::ffi::{c_int, c_uint};
use core::ptr::{self, NonNull};
use std::rc::Rc;

use nix::errno::Errno;
use xen_sys::{xc_cpu_policy_t, xen_cpuid_leaf_t, xen_domctl_getdomaininfo, xen_msr_entry_t};
use xen_types::DomId;

use super::mapping::{Mapping, Memory};
use super::pages::Pages;
use super::records::{CpuPolicy, PAGE_SIZE, Tsc};
use super::source::{Holding, Source};
use crate::domain::ShutdownReason;
use crate::error::{Result, XenError};
use crate::param::HvmParam;
use crate::real::describe::domain_info;
use crate::real::handle::Handle;

/// A domain, and what is needed to save it.
pub(in super::super) struct Domain<'a> {
    handle: &'a Handle,
    domid: DomId,
    memory: Rc<Memory>,
    /// Where Xen writes which pages are dirty, once it was asked.
    bitmap: Option<Bitmap<'a>>,
}

impl<'a> Domain<'a> {
    /// # Errors
    /// When the driver for other domains' memory cannot be opened.
    pub(in super::super) fn open(handle: &'a Handle, domid: DomId) -> Result<Self> {
        Ok(Self { handle, domid, memory: Rc::new(Memory::open()?), bitmap: None })
    }

    fn raw(&self) -> u32 {
        self.domid.get().into()
    }

    /// Makes a call about the domain.
    fn call(
        &self,
        operation: &'static str,
        call: impl FnOnce(*mut xen_sys::xc_interface, u32) -> c_int,
    ) -> Result<c_int> {
        self.handle.call(operation, Some(self.domid), |xc| call(xc, self.raw()))
    }

    fn refused(&self, operation: &'static str, errno: Errno) -> XenError {
        XenError::refused(operation, Some(self.domid), errno)
    }

    fn log_dirty(&self, operation: u32) -> Result<()> {
        // SAFETY: the connection is open, and these operations take no size.
        self.call("xc_shadow_control", |xc, raw| unsafe {
            xen_sys::xc_shadow_control(xc, raw, operation, ptr::null_mut(), 0)
        })?;
        Ok(())
    }

    /// Whether the domain has pages that are populated on demand, or may have them.
    fn on_demand(&self) -> Result<bool> {
        let (mut total, mut stock, mut entries) = (0, 0, 0);
        // SAFETY: the connection is open, and the numbers are those that the call writes.
        self.call("xc_domain_get_pod_target", |xc, raw| unsafe {
            xen_sys::xc_domain_get_pod_target(xc, raw, &raw mut total, &raw mut stock, &raw mut entries)
        })?;
        Ok(stock != 0 || entries != 0)
    }
}

impl Source for Domain<'_> {
    type Mapped = Mapping;

    fn domid(&self) -> DomId {
        self.domid
    }

    fn version(&self) -> Result<(u16, u16)> {
        let command = xen_sys::XENVER_version.cast_signed();
        // SAFETY: the connection is open, and this command takes no argument.
        let version =
            self.call("xc_version", |xc, _| unsafe { xen_sys::xc_version(xc, command, ptr::null_mut()) })?;
        let half = |bits: c_int| u16::try_from(bits & 0xffff).unwrap_or(0);
        Ok((half(version >> 16), half(version)))
    }

    fn size(&self) -> Result<u64> {
        let mut highest = 0;
        // SAFETY: the connection is open, and the number is the one that the call writes.
        self.call("xc_domain_maximum_gpfn", |xc, raw| unsafe {
            xen_sys::xc_domain_maximum_gpfn(xc, raw, &raw mut highest)
        })?;
        Ok(highest.saturating_add(1))
    }

    fn holding(&self) -> Result<Holding> {
        const WHAT: &str = "xc_domain_getinfolist";
        let mut info = xen_domctl_getdomaininfo::default();
        // SAFETY: the connection is open, and there is room for the one that is asked for.
        let count =
            self.call(WHAT, |xc, raw| unsafe { xen_sys::xc_domain_getinfolist(xc, raw, 1, &raw mut info) })?;
        // The call gives the next domain when there is none of this number.
        let described = domain_info(&info).filter(|described| count == 1 && described.domid == self.domid);
        let state = described.ok_or_else(|| self.refused(WHAT, Errno::ESRCH))?.state;
        Ok(Holding {
            pages: info.tot_pages,
            countable: info.shr_pages == 0 && info.paged_pages == 0 && !self.on_demand().unwrap_or(true),
            suspended: state.shutdown == Some(ShutdownReason::Suspend),
        })
    }

    fn ask_types(&self, pages: &mut [u64]) -> Result<()> {
        let count = c_uint::try_from(pages.len()).unwrap_or(c_uint::MAX);
        // SAFETY: the connection is open, and the array has as many entries as is said.
        self.call("xc_get_pfn_type_batch", |xc, raw| unsafe {
            xen_sys::xc_get_pfn_type_batch(xc, raw, count, pages.as_mut_ptr())
        })?;
        Ok(())
    }

    fn map(&self, pages: &[u64]) -> Result<Mapping> {
        Mapping::new(&self.memory, self.domid, pages)
            .map_err(|errno| self.refused("xenforeignmemory_map", errno))
    }

    fn start_log_dirty(&self) -> Result<()> {
        let enable = || self.log_dirty(xen_sys::XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY);
        // It may be on for the display's memory alone.
        enable().or_else(|_| {
            self.stop_log_dirty();
            enable()
        })
    }

    fn stop_log_dirty(&self) {
        // What has ended or was never begun is as it should be, and a domain that is gone records nothing.
        let _ = self.log_dirty(xen_sys::XEN_DOMCTL_SHADOW_OP_OFF);
    }

    fn take_dirty(&mut self, last: bool, into: &mut Pages) -> Result<()> {
        const WHAT: &str = "xc_logdirty_control";
        let bitmap = match self.bitmap.take() {
            Some(bitmap) => bitmap,
            None => Bitmap::new(self.handle, into.size()).map_err(|errno| self.refused(WHAT, errno))?,
        };
        let mode = if last { xen_sys::XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL } else { 0 };
        let mut taken = 0;
        self.call(WHAT, |xc, raw| {
            let clean = xen_sys::XEN_DOMCTL_SHADOW_OP_CLEAN;
            let buffer = ptr::from_ref(&*bitmap.buffer).cast_mut();
            // SAFETY: the connection is open, and the buffer has a bit for each page. The library does not write to its
            // description. Numbers about the call are not asked for.
            taken = unsafe {
                xen_sys::xc_logdirty_control(xc, raw, clean, buffer, into.size(), mode, ptr::null_mut())
            };
            if taken < 0 { -1 } else { 0 }
        })?;
        if u64::try_from(taken) != Ok(into.size()) {
            return Err(self.refused(WHAT, Errno::EPROTO));
        }
        into.add_all(bitmap.words());
        self.bitmap = Some(bitmap);
        Ok(())
    }

    fn cpu_policy(&self) -> Result<CpuPolicy> {
        let (mut leaves, mut registers) = (0, 0);
        // SAFETY: the connection is open, and the numbers are those that the call writes.
        self.call("xc_cpu_policy_get_size", |xc, _| unsafe {
            xen_sys::xc_cpu_policy_get_size(xc, &raw mut leaves, &raw mut registers)
        })?;
        let policy = Policy::new().ok_or_else(|| self.refused("xc_cpu_policy_init", Errno::ENOMEM))?;
        // SAFETY: the connection is open, and so is the policy, which the call fills.
        self.call("xc_cpu_policy_get_domain", |xc, raw| unsafe {
            xen_sys::xc_cpu_policy_get_domain(xc, raw, policy.0.as_ptr())
        })?;
        let mut leaf_room = vec![xen_cpuid_leaf_t::default(); leaves as usize];
        let mut register_room = vec![xen_msr_entry_t::default(); registers as usize];
        // SAFETY: the arrays have as much room as the numbers say, which the call replaces by what it has written.
        self.call("xc_cpu_policy_serialise", |xc, _| unsafe {
            xen_sys::xc_cpu_policy_serialise(
                xc,
                policy.0.as_ptr(),
                leaf_room.as_mut_ptr(),
                &raw mut leaves,
                register_room.as_mut_ptr(),
                &raw mut registers,
            )
        })?;
        leaf_room.truncate(leaves as usize);
        register_room.truncate(registers as usize);
        Ok(CpuPolicy {
            leaves: leaf_room.iter().map(|l| [l.leaf, l.subleaf, l.a, l.b, l.c, l.d]).collect(),
            registers: register_room.iter().map(|entry| (entry.idx, entry.flags, entry.val)).collect(),
        })
    }

    fn tsc(&self) -> Result<Tsc> {
        let mut tsc = Tsc::default();
        let Tsc { mode, khz, nanoseconds, incarnation } = &mut tsc;
        // SAFETY: the connection is open, and the numbers are those that the call writes.
        self.call("xc_domain_get_tsc_info", |xc, raw| unsafe {
            xen_sys::xc_domain_get_tsc_info(xc, raw, mode, nanoseconds, khz, incarnation)
        })?;
        Ok(tsc)
    }

    fn hvm_context(&self) -> Result<Vec<u8>> {
        const WHAT: &str = "xc_domain_hvm_getcontext";
        // SAFETY: the connection is open, and without a buffer the call returns how long it has to be.
        let length = self.call(WHAT, |xc, raw| unsafe {
            xen_sys::xc_domain_hvm_getcontext(xc, raw, ptr::null_mut(), 0)
        })?;
        let mut context = vec![0; usize::try_from(length).unwrap_or(0)];
        let room = u32::try_from(context.len()).unwrap_or(0);
        // SAFETY: the connection is open, and the buffer has as much room as is said.
        let length = self.call(WHAT, |xc, raw| unsafe {
            xen_sys::xc_domain_hvm_getcontext(xc, raw, context.as_mut_ptr(), room)
        })?;
        context.truncate(usize::try_from(length).unwrap_or(0));
        Ok(context)
    }

    fn hvm_param(&self, param: HvmParam) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the connection is open, and the number is the one that the call writes.
        self.call("xc_hvm_param_get", |xc, raw| unsafe {
            xen_sys::xc_hvm_param_get(xc, raw, param.number(), &raw mut value)
        })?;
        Ok(value)
    }
}

/// A domain's CPU policy in libxenguest's form.
struct Policy(NonNull<xc_cpu_policy_t>);

impl Policy {
    fn new() -> Option<Self> {
        // SAFETY: the call has no conditions.
        NonNull::new(unsafe { xen_sys::xc_cpu_policy_init() }).map(Self)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and this is its last use.
        unsafe { xen_sys::xc_cpu_policy_destroy(self.0.as_ptr()) };
    }
}

/// Memory that Xen can write to, with one bit for each page.
struct Bitmap<'a> {
    handle: &'a Handle,
    buffer: Box<xen_sys::xc_hypercall_buffer_t>,
    words: usize,
    pages: c_int,
}

impl<'a> Bitmap<'a> {
    fn new(handle: &'a Handle, size: u64) -> Result<Self, Errno> {
        let words = usize::try_from(size.div_ceil(64)).map_err(|_| Errno::ENOMEM)?;
        let pages = c_int::try_from((words * 8).div_ceil(PAGE_SIZE)).map_err(|_| Errno::ENOMEM)?;
        // What the macro DECLARE_HYPERCALL_BUFFER of xenctrl.h writes.
        let mut buffer = Box::new(xen_sys::xc_hypercall_buffer_t { sz: usize::MAX, ..Default::default() });
        // SAFETY: the connection is open, and the buffer's description is new.
        let start =
            unsafe { xen_sys::xc__hypercall_buffer_alloc_pages(handle.xc(), &raw mut *buffer, pages) };
        if start.is_null() {
            return Err(Errno::last());
        }
        // SAFETY: so many pages have just been mapped there. The kernel may hand out others' old contents.
        unsafe { ptr::write_bytes(start.cast::<u64>(), 0, words) };
        Ok(Self { handle, buffer, words, pages })
    }

    /// The bits.
    fn words(&self) -> impl Iterator<Item = u64> {
        let start = self.buffer.hbuf.cast::<u64>();
        // SAFETY: the memory has so many words and lives as long as `self`; nobody writes to it between two calls.
        (0..self.words).map(move |index| unsafe { start.add(index).read() })
    }
}

impl Drop for Bitmap<'_> {
    fn drop(&mut self) {
        // SAFETY: the buffer was made by `new` with so many pages, and this is its last use.
        unsafe {
            xen_sys::xc__hypercall_buffer_free_pages(self.handle.xc(), &raw mut *self.buffer, self.pages);
        };
    }
}
