//! The hypervisor behind libxenctrl and libxenguest.

mod compat;
mod core_dump;
mod cpuid;
mod describe;
mod handle;
mod helper;
mod image;
mod memory_stream;
mod memory_writer;
mod processors;

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::time::Duration;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use xen_sys::{xc_interface, xen_domctl_getdomaininfo};
use xen_types::{DomId, EventPort, KiB};

use self::cpuid::CpuidTable;
use self::describe::{create_config, domain_info, pages};
use self::handle::Handle;
use self::image::c_string;
use self::memory_stream::Program;
use crate::build::{HvmBuild, HvmBuilt, KernelBuild, KernelBuilt};
use crate::cpuid::CpuidPolicy;
use crate::domain::{
    DomainInfo, DomainSpec, HostCapabilities, HostInfo, ResumeWay, ShutdownReason, Trigger, TscMode,
    VersionInfo,
};
use crate::error::{Result, XenError};
use crate::foreign::ForeignMemory;
use crate::hypervisor::Hypervisor;
use crate::memory::{DumpCore, RestoreMemory, SaveEvents, SaveMemory};
use crate::param::HvmParam;

pub use self::helper::memory_stream_helper;

/// Connections that are kept open between calls.
const MAX_IDLE: usize = 4;
/// How long Xen may take to destroy a domain. It gives back about 1 GiB a second.
const DESTROY_DEADLINE: Duration = Duration::from_secs(60);
/// The longest XSM label, with its NUL: a page is more than Xen writes.
const MAX_LABEL: usize = 4096;
/// How many domains are asked for at a time.
const LIST_BATCH: usize = 64;

/// Xen itself, through libxenctrl and libxenguest.
///
/// Calls may be made from any number of threads: each takes a connection of its own, so that building one domain does
/// not hold up what is asked about another.
pub struct RealHypervisor {
    idle: Mutex<Vec<Handle>>,
}

impl RealHypervisor {
    /// Connects to the hypervisor.
    ///
    /// # Errors
    /// When this is no Xen domain, or this process may not.
    pub fn open() -> Result<Self> {
        let handle = Handle::open()?;
        Ok(Self { idle: Mutex::new(vec![handle]) })
    }

    /// Does something with a connection that nobody else uses meanwhile.
    fn with<T>(&self, action: impl FnOnce(&Handle) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let handle = match idle {
            Some(handle) => handle,
            None => Handle::open()?,
        };
        let result = action(&handle);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(handle);
        }
        result
    }

    /// Makes one call about a domain that returns nothing but whether it was done.
    fn simple(
        &self,
        operation: &'static str,
        domid: DomId,
        call: impl FnOnce(*mut xc_interface, u32) -> i32,
    ) -> Result<()> {
        self.with(|handle| handle.call(operation, Some(domid), |xc| call(xc, domid.get().into())).map(drop))
    }

    /// Fails for what is no HVM domain.
    fn only_hvm(&self, operation: &'static str, domid: DomId) -> Result<()> {
        let refused = |errno| Err(XenError::refused(operation, Some(domid), errno));
        match self.domain_info(domid)? {
            None => refused(Errno::ESRCH),
            Some(info) if !info.hvm => refused(Errno::EINVAL),
            Some(_) => Ok(()),
        }
    }

    /// Reads so much of Xen's console ring: the newest, or what follows an index.
    fn read_ring(&self, room: usize, from: Option<u32>) -> Result<(Vec<u8>, u32)> {
        let mut ring = vec![0_u8; room];
        let mut length = u32::try_from(ring.len()).unwrap_or(u32::MAX);
        let (mut index, incremental) = (from.unwrap_or(0), c_int::from(from.is_some()));
        self.with(|handle| {
            // SAFETY: the buffer has as much room as is said.
            handle.call("xc_readconsolering", None, |xc| unsafe {
                let start = ring.as_mut_ptr().cast();
                xen_sys::xc_readconsolering(xc, start, &raw mut length, 0, incremental, &raw mut index)
            })
        })?;
        ring.truncate(length as usize);
        Ok((ring, index))
    }

    fn domains_from(handle: &Handle, first: u32, into: &mut [xen_domctl_getdomaininfo]) -> Result<usize> {
        let room = u32::try_from(into.len()).unwrap_or(u32::MAX);
        // SAFETY: the array has as much room as is said.
        let count = handle.call("xc_domain_getinfolist", None, |xc| unsafe {
            xen_sys::xc_domain_getinfolist(xc, first, room, into.as_mut_ptr())
        })?;
        Ok(usize::try_from(count).unwrap_or(0).min(into.len()))
    }

    fn version_text<const N: usize>(handle: &Handle, command: u32) -> Result<String> {
        let mut text = [0_u8; N];
        let command = command.cast_signed();
        let argument: *mut c_void = text.as_mut_ptr().cast();
        // SAFETY: the callers give the command whose answer has `N` bytes.
        handle.call("xc_version", None, |xc| unsafe { xen_sys::xc_version(xc, command, argument) })?;
        Ok(CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy().trim().to_owned())
    }
}

// SAFETY of every call below that has no comment of its own: the connection is open and used by this thread alone, and
// all arguments are plain numbers.
impl Hypervisor for RealHypervisor {
    fn version_info(&self) -> Result<VersionInfo> {
        self.with(|handle| {
            let command = xen_sys::XENVER_version.cast_signed();
            // SAFETY: this command takes no argument.
            let version = handle.call("xc_version", None, |xc| unsafe {
                xen_sys::xc_version(xc, command, ptr::null_mut())
            })?;
            let half = |bits: i32| u16::try_from(bits & 0xffff).unwrap_or(0);
            Ok(VersionInfo {
                major: half(version >> 16),
                minor: half(version),
                // The sizes are those of `xen_extraversion_t` and `xen_capabilities_info_t`.
                extra: Self::version_text::<16>(handle, xen_sys::XENVER_extraversion)?,
                capabilities: Self::version_text::<1024>(handle, xen_sys::XENVER_capabilities)?,
            })
        })
    }

    fn host_info(&self) -> Result<HostInfo> {
        self.with(|handle| {
            let mut info = xen_sys::xc_physinfo_t::default();
            // SAFETY: the structure is the one that the call fills.
            handle.call("xc_physinfo", None, |xc| unsafe { xen_sys::xc_physinfo(xc, &raw mut info) })?;
            let has = |flag: u32| info.capabilities & flag != 0;
            Ok(HostInfo {
                cpus: info.nr_cpus,
                cpu_khz: info.cpu_khz,
                threads_per_core: info.threads_per_core,
                cores_per_socket: info.cores_per_socket,
                nodes: info.nr_nodes,
                total_memory: pages(info.total_pages),
                free_memory: pages(info.free_pages),
                scrub_memory: pages(info.scrub_pages),
                claimed_memory: pages(info.outstanding_pages),
                capabilities: HostCapabilities {
                    hvm: has(xen_sys::XEN_SYSCTL_PHYSCAP_hvm),
                    pv: has(xen_sys::XEN_SYSCTL_PHYSCAP_pv),
                    hap: has(xen_sys::XEN_SYSCTL_PHYSCAP_hap),
                    shadow: has(xen_sys::XEN_SYSCTL_PHYSCAP_shadow),
                    iommu: has(xen_sys::XEN_SYSCTL_PHYSCAP_directio),
                    iommu_shares_hap: has(xen_sys::XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share),
                    vpmu: has(xen_sys::XEN_SYSCTL_PHYSCAP_vpmu),
                    vmtrace: has(xen_sys::XEN_SYSCTL_PHYSCAP_vmtrace),
                },
            })
        })
    }

    fn list_domains(&self) -> Result<Vec<DomainInfo>> {
        self.with(|handle| {
            let mut all = Vec::new();
            let mut first = 0;
            loop {
                let mut batch = vec![xen_domctl_getdomaininfo::default(); LIST_BATCH];
                let count = Self::domains_from(handle, first, &mut batch)?;
                all.extend(batch.iter().take(count).filter_map(domain_info));
                match batch.get(count.wrapping_sub(1)) {
                    Some(last) if count == LIST_BATCH => first = u32::from(last.domain) + 1,
                    _ => return Ok(all),
                }
            }
        })
    }

    fn domain_info(&self, domid: DomId) -> Result<Option<DomainInfo>> {
        self.with(|handle| {
            let mut one = [xen_domctl_getdomaininfo::default()];
            let count = Self::domains_from(handle, domid.get().into(), &mut one)?;
            // The call gives the next domain when there is none of this number.
            Ok(one.iter().take(count).filter_map(domain_info).find(|info| info.domid == domid))
        })
    }

    fn create_domain(&self, spec: &DomainSpec) -> Result<DomId> {
        let mut config = create_config(spec);
        let mut raw = spec.domid.map_or(compat::ANY_DOMID, |domid| domid.get().into());
        self.with(|handle| {
            // SAFETY: both structures are the ones that the call reads and writes.
            handle.call("xc_domain_create", spec.domid, |xc| unsafe {
                xen_sys::xc_domain_create(xc, &raw mut raw, &raw mut config)
            })
        })?;
        let domid = u16::try_from(raw).ok().and_then(|raw| DomId::new(raw).ok());
        let domid = domid.ok_or_else(|| XenError::refused("xc_domain_create", None, Errno::EPROTO))?;
        self.with(|handle| compat::complete(handle, domid, spec)).inspect_err(|_| {
            if let Err(error) = self.destroy_domain(domid) {
                tracing::warn!(%domid, %error, "A domain that could not be set up was not destroyed");
            }
        })?;
        Ok(domid)
    }

    fn destroy_domain(&self, domid: DomId) -> Result<()> {
        let started = Instant::now();
        loop {
            // SAFETY: see the implementation.
            let result = self
                .simple("xc_domain_destroy", domid, |xc, raw| unsafe { xen_sys::xc_domain_destroy(xc, raw) });
            match result {
                Err(error) if error.errno() == Some(Errno::EAGAIN) => {
                    if started.elapsed() > DESTROY_DEADLINE {
                        return Err(XenError::Timeout {
                            operation: "The destruction",
                            domid,
                            waited_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                        });
                    }
                }
                done => return done,
            }
        }
    }

    fn pause_domain(&self, domid: DomId) -> Result<()> {
        // SAFETY: see the implementation.
        self.simple("xc_domain_pause", domid, |xc, raw| unsafe { xen_sys::xc_domain_pause(xc, raw) })
    }

    fn unpause_domain(&self, domid: DomId) -> Result<()> {
        // SAFETY: see the implementation.
        self.simple("xc_domain_unpause", domid, |xc, raw| unsafe { xen_sys::xc_domain_unpause(xc, raw) })
    }

    fn shutdown_domain(&self, domid: DomId, reason: ShutdownReason) -> Result<()> {
        let reason = reason.raw().into();
        // SAFETY: see the implementation.
        self.simple("xc_domain_shutdown", domid, |xc, raw| unsafe {
            xen_sys::xc_domain_shutdown(xc, raw, reason)
        })
    }

    fn resume_domain(&self, domid: DomId, way: ResumeWay) -> Result<()> {
        let fast = i32::from(way == ResumeWay::Cooperative);
        // SAFETY: see the implementation.
        self.simple("xc_domain_resume", domid, |xc, raw| unsafe { xen_sys::xc_domain_resume(xc, raw, fast) })
    }

    fn send_trigger(&self, domid: DomId, trigger: Trigger, vcpu: u32) -> Result<()> {
        let trigger = match trigger {
            Trigger::Nmi => xen_sys::XEN_DOMCTL_SENDTRIGGER_NMI,
            Trigger::Reset => xen_sys::XEN_DOMCTL_SENDTRIGGER_RESET,
            Trigger::Init => xen_sys::XEN_DOMCTL_SENDTRIGGER_INIT,
            Trigger::Power => xen_sys::XEN_DOMCTL_SENDTRIGGER_POWER,
            Trigger::Sleep => xen_sys::XEN_DOMCTL_SENDTRIGGER_SLEEP,
        };
        // SAFETY: see the implementation.
        self.simple("xc_domain_send_trigger", domid, |xc, raw| unsafe {
            xen_sys::xc_domain_send_trigger(xc, raw, trigger, vcpu)
        })
    }

    fn set_max_vcpus(&self, domid: DomId, vcpus: u32) -> Result<()> {
        // SAFETY: see the implementation.
        self.simple("xc_domain_max_vcpus", domid, |xc, raw| unsafe {
            xen_sys::xc_domain_max_vcpus(xc, raw, vcpus)
        })
    }

    fn set_max_memory(&self, domid: DomId, memory: KiB) -> Result<()> {
        // SAFETY: see the implementation.
        self.simple("xc_domain_setmaxmem", domid, |xc, raw| unsafe {
            xen_sys::xc_domain_setmaxmem(xc, raw, memory.get())
        })
    }

    fn set_pod_target(&self, domid: DomId, memory: KiB) -> Result<()> {
        let pages = memory.get() / 4;
        let none = core::ptr::null_mut();
        // SAFETY: see the implementation. The library leaves out the counts that have no place.
        self.simple("xc_domain_set_pod_target", domid, |xc, raw| unsafe {
            xen_sys::xc_domain_set_pod_target(xc, raw, pages, none, none, none)
        })
    }

    fn set_memory_map_limit(&self, domid: DomId, memory: KiB) -> Result<()> {
        // SAFETY: see the implementation.
        self.simple("xc_domain_set_memmap_limit", domid, |xc, raw| unsafe {
            xen_sys::xc_domain_set_memmap_limit(xc, raw, memory.get())
        })
    }

    fn set_paging_memory(&self, domid: DomId, memory: KiB) -> Result<()> {
        // SAFETY: see the implementation. The library counts in bytes here.
        self.simple("xc_set_paging_mempool_size", domid, |xc, raw| unsafe {
            xen_sys::xc_set_paging_mempool_size(xc, raw, memory.get().saturating_mul(1024))
        })
    }

    fn set_tsc_mode(&self, domid: DomId, mode: TscMode) -> Result<()> {
        // `TSC_MODE_*` in xen/include/asm-x86/time.h, which xl.cfg(5) repeats.
        let mode = match mode {
            TscMode::Default => 0,
            TscMode::AlwaysEmulate => 1,
            TscMode::Native => 2,
        };
        // SAFETY: see the implementation. A new domain's counter starts at zero with the host's frequency.
        self.simple("xc_domain_set_tsc_info", domid, |xc, raw| unsafe {
            xen_sys::xc_domain_set_tsc_info(xc, raw, mode, 0, 0, 0)
        })
    }

    fn set_time_offset(&self, domid: DomId, seconds: i32) -> Result<()> {
        // SAFETY: see the implementation.
        self.simple("xc_domain_set_time_offset", domid, |xc, raw| unsafe {
            xen_sys::xc_domain_set_time_offset(xc, raw, seconds)
        })
    }

    fn apply_cpuid_policy(&self, domid: DomId, policy: &CpuidPolicy) -> Result<()> {
        let leaves = CpuidTable::new(&policy.leaves)?;
        // SAFETY: the table ends with the entry that the library looks for, and it only reads it; a feature set and
        // MSR policies are not given.
        self.simple("xc_cpuid_apply_policy", domid, |xc, raw| unsafe {
            xen_sys::xc_cpuid_apply_policy(
                xc,
                raw,
                policy.restore,
                ptr::null(),
                0,
                policy.pae,
                policy.invariant_tsc,
                policy.nested,
                leaves.entries.as_ptr(),
                ptr::null(),
            )
        })
    }

    fn hvm_param(&self, domid: DomId, param: HvmParam) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the number is the one that the call writes.
        self.simple("xc_hvm_param_get", domid, |xc, raw| unsafe {
            xen_sys::xc_hvm_param_get(xc, raw, param.number(), &raw mut value)
        })?;
        Ok(value)
    }

    fn set_hvm_param(&self, domid: DomId, param: HvmParam, value: u64) -> Result<()> {
        // SAFETY: see the implementation.
        self.simple("xc_hvm_param_set", domid, |xc, raw| unsafe {
            xen_sys::xc_hvm_param_set(xc, raw, param.number(), value)
        })
    }

    fn alloc_unbound_port(&self, domid: DomId, remote: DomId) -> Result<EventPort> {
        const WHAT: &str = "xc_evtchn_alloc_unbound";
        let (raw, peer) = (domid.get().into(), remote.get().into());
        let port = self.with(|handle| {
            // SAFETY: see the implementation.
            handle.call(WHAT, Some(domid), |xc| unsafe { xen_sys::xc_evtchn_alloc_unbound(xc, raw, peer) })
        })?;
        u32::try_from(port).map(EventPort).map_err(|_| XenError::refused(WHAT, Some(domid), Errno::EPROTO))
    }

    fn set_target(&self, stub: DomId, target: DomId) -> Result<()> {
        // SAFETY: see the implementation.
        self.simple("xc_domain_set_target", stub, |xc, raw| unsafe {
            xen_sys::xc_domain_set_target(xc, raw, target.get().into())
        })
    }

    fn security_id(&self, label: &str) -> Result<u32> {
        let text = c_string("look up a security label", "The label", label)?;
        let length = u32::try_from(label.len()).unwrap_or(u32::MAX);
        let mut sid = 0;
        let mut bytes = text.into_bytes_with_nul();
        let start: *mut c_char = bytes.as_mut_ptr().cast();
        self.with(|handle| {
            // SAFETY: the text has as many bytes as is said, and the number is the one that the call writes.
            handle.call("xc_flask_context_to_sid", None, |xc| unsafe {
                xen_sys::xc_flask_context_to_sid(xc, start, length, &raw mut sid)
            })
        })?;
        Ok(sid)
    }

    fn security_label(&self, sid: u32) -> Result<String> {
        let mut text = [0_u8; MAX_LABEL];
        let (start, room): (*mut c_char, _) = (text.as_mut_ptr().cast(), MAX_LABEL - 1);
        let room = u32::try_from(room).unwrap_or(0);
        self.with(|handle| {
            // SAFETY: the buffer has room for what is said, and a NUL.
            handle.call("xc_flask_sid_to_context", None, |xc| unsafe {
                xen_sys::xc_flask_sid_to_context(xc, sid.cast_signed(), start, room)
            })
        })?;
        Ok(CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy().into_owned())
    }

    fn build_hvm(&self, domid: DomId, build: &HvmBuild) -> Result<HvmBuilt> {
        self.with(|handle| handle.knowing_free(|| image::build_hvm(handle, domid, build)))
    }

    fn build_pv(&self, domid: DomId, build: &KernelBuild) -> Result<KernelBuilt> {
        self.with(|handle| handle.knowing_free(|| image::build_pv(handle, domid, build)))
    }

    fn build_pvh(&self, domid: DomId, build: &KernelBuild) -> Result<KernelBuilt> {
        self.with(|handle| handle.knowing_free(|| image::build_pvh(handle, domid, build)))
    }

    fn save_memory(
        &self,
        domid: DomId,
        to: BorrowedFd<'_>,
        how: &SaveMemory,
        events: &mut dyn SaveEvents,
    ) -> Result<()> {
        self.only_hvm("save_memory", domid)?;
        memory_stream::save(&Program::own(), domid, to, how, events, || {
            // It may be gone.
            if let Err(error) = self.stop_log_dirty(domid) {
                tracing::debug!(%domid, %error, "Log-dirty was not switched off after a save");
            }
        })
    }

    fn restore_memory(&self, domid: DomId, from: BorrowedFd<'_>, how: &RestoreMemory) -> Result<HvmBuilt> {
        self.only_hvm("xc_domain_restore", domid)?;
        self.with(|handle| handle.knowing_free(|| memory_stream::restore(&Program::own(), domid, from, how)))
    }

    fn dump_core(
        &self,
        domid: DomId,
        to: BorrowedFd<'_>,
        how: &DumpCore,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        self.only_hvm("dump_core", domid)?;
        memory_stream::dump(&Program::own(), domid, to, how, progress)
    }

    fn write_memory(&self, domid: DomId, address: u64, bytes: &[u8]) -> Result<()> {
        ForeignMemory::open()?.write(domid, address, bytes)
    }

    fn stop_log_dirty(&self, domid: DomId) -> Result<()> {
        // SAFETY: see the implementation. This operation takes no size.
        self.simple("xc_shadow_control", domid, |xc, raw| unsafe {
            xen_sys::xc_shadow_control(xc, raw, xen_sys::XEN_DOMCTL_SHADOW_OP_OFF, ptr::null_mut(), 0)
        })
    }

    fn console_ring(&self) -> Result<Vec<u8>> {
        Ok(self.read_ring(256 << 10, None)?.0)
    }

    fn console_ring_from(&self, index: u32) -> Result<(Vec<u8>, u32)> {
        self.read_ring(16 << 10, Some(index))
    }
}

#[cfg(test)]
mod tests;
