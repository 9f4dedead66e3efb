use std::os::fd::BorrowedFd;

use xen_types::{DomId, EventPort, KiB, Release};

use crate::build::{HvmBuild, HvmBuilt, KernelBuild, KernelBuilt};
use crate::cpuid::CpuidPolicy;
use crate::domain::{
    DomainInfo, DomainSpec, HostInfo, ResumeWay, ShutdownReason, Trigger, TscMode, VersionInfo,
};
use crate::error::Result;
use crate::memory::{DumpCore, RestoreMemory, SaveEvents, SaveMemory};
use crate::param::HvmParam;
use crate::processors::Processors;

/// What a toolstack asks of Xen. All calls block, building for seconds; all may be made from any thread.
///
/// # Order
/// Xen does not keep a toolstack from calling in a wrong order, but what comes out is a domain that fails later. The
/// order for a new domain, as in `libxl__build_pre` and `libxl__build_dom`:
/// 1. [`create_domain`](Self::create_domain), paused and empty.
/// 2. [`set_max_vcpus`](Self::set_max_vcpus): the CPUs must exist before a policy or affinity is given to them.
/// 3. [`set_max_memory`](Self::set_max_memory): a new domain may hold nothing.
/// 4. [`alloc_unbound_port`](Self::alloc_unbound_port) twice: xenstore's and the console's, which the kernel finds in
///    its start page or HVM parameters.
/// 5. For HVM, [`set_hvm_param`](Self::set_hvm_param) of what must be known before a CPU runs (HPET, timers,
///    Viridian), for PVH of the timers only; for PV, [`set_memory_map_limit`](Self::set_memory_map_limit).
/// 6. [`set_tsc_mode`](Self::set_tsc_mode), [`set_time_offset`](Self::set_time_offset).
/// 7. For HVM and PVH, [`set_paging_memory`](Self::set_paging_memory), before there is any memory to translate.
/// 8. [`apply_cpuid_policy`](Self::apply_cpuid_policy), before the domain runs.
/// 9. [`build_hvm`](Self::build_hvm), [`build_pv`](Self::build_pv) or [`build_pvh`](Self::build_pvh).
/// 10. For a stubdomain, [`set_target`](Self::set_target), before it runs.
/// 11. xenstore's INTRODUCE, then [`unpause_domain`](Self::unpause_domain).
///
/// A domain that is restored is made by the same steps with the same values, as in `libxl__build_pre` and
/// `domcreate_bootloader_done` (the same from 4.17 to 4.22), except for these:
/// - in step 3 its memory limit is that of a new domain, and it holds nothing yet;
/// - in step 5 HPET, timers, alternate page tables and machine checks are set, but not Viridian, which is in the stream;
/// - step 8 is left out: the stream brings the CPU policy along (see [`CpuidPolicy::restore`]);
/// - step 9 is [`restore_memory`](Self::restore_memory).
///
/// Its device model starts after that, because it maps what is in the stream.
///
/// # Errors
/// Each method fails with [`XenError::Refused`](crate::XenError::Refused) when Xen refuses: `ESRCH` for an unknown domain,
/// `EPERM` without the right, `ENOMEM` when the host has not enough memory. What else there is to know is said at the
/// method.
pub trait Hypervisor: Processors {
    /// Which Xen runs.
    ///
    /// # Errors
    /// As said at the trait.
    fn version_info(&self) -> Result<VersionInfo>;

    /// The release of the Xen that runs. Works whatever release the caller was built for.
    ///
    /// # Errors
    /// As said at the trait.
    fn release(&self) -> Result<Release> {
        Ok(self.version_info()?.release())
    }

    /// What the machine has and what of it is free.
    ///
    /// # Errors
    /// As said at the trait.
    fn host_info(&self) -> Result<HostInfo>;

    /// All domains, by number, those too that are being destroyed.
    ///
    /// # Errors
    /// As said at the trait.
    fn list_domains(&self) -> Result<Vec<DomainInfo>>;

    /// What Xen knows about a domain; `None` when there is none of this number.
    ///
    /// # Errors
    /// As said at the trait.
    fn domain_info(&self, domid: DomId) -> Result<Option<DomainInfo>>;

    /// Makes an empty domain that is paused.
    ///
    /// # Errors
    /// `EEXIST` when the number that was asked for is taken, `EINVAL` when the host cannot do what was asked for.
    fn create_domain(&self, spec: &DomainSpec) -> Result<DomId>;

    /// Destroys a domain and gives its memory back. Repeats for as long as Xen asks for it (`EAGAIN`, `ERESTART`), at
    /// most a minute. A domain whose pages others have mapped stays in the list, dying, until they release them; a
    /// stubdomain's target stays for up to a second after its stubdomain, because Xen releases it lazily.
    ///
    /// # Errors
    /// `ESRCH` when there is none; [`XenError::Timeout`](crate::XenError::Timeout).
    fn destroy_domain(&self, domid: DomId) -> Result<()>;

    /// Stops a domain's CPUs. Xen counts: what was paused twice must be unpaused twice. A new domain is paused once.
    ///
    /// # Errors
    /// As said at the trait; `EINVAL` for the caller's own domain.
    fn pause_domain(&self, domid: DomId) -> Result<()>;

    /// Takes one pausing back; with the last one, the domain's CPUs run.
    ///
    /// # Errors
    /// As said at the trait; `EINVAL` when it is not paused.
    fn unpause_domain(&self, domid: DomId) -> Result<()>;

    /// Shuts a domain down at once, without asking it.
    ///
    /// # Errors
    /// As said at the trait.
    fn shutdown_domain(&self, domid: DomId, reason: ShutdownReason) -> Result<()>;

    /// Lets a domain that has suspended go on.
    ///
    /// # Errors
    /// As said at the trait; for [`ResumeWay::Cooperative`] `EINVAL` when it is not suspended.
    fn resume_domain(&self, domid: DomId, way: ResumeWay) -> Result<()>;

    /// Sends a signal to an HVM domain's virtual hardware.
    ///
    /// # Errors
    /// `EINVAL` for a domain that has no such hardware.
    fn send_trigger(&self, domid: DomId, trigger: Trigger, vcpu: u32) -> Result<()>;

    /// Makes the virtual CPUs, as many as [`DomainSpec::max_vcpus`] said.
    ///
    /// # Errors
    /// `EINVAL` for another number.
    fn set_max_vcpus(&self, domid: DomId, vcpus: u32) -> Result<()>;

    /// Sets how much memory a domain may hold. `libxl` gives each domain 1024 KiB more than its memory.
    ///
    /// # Errors
    /// As said at the trait.
    fn set_max_memory(&self, domid: DomId, memory: KiB) -> Result<()>;

    /// Tells Xen how much memory an HVM domain is to hold in the end. One that started with less than it may have
    /// (populate on demand) is given as much; for all others this changes nothing.
    ///
    /// # Errors
    /// As said at the trait; `EINVAL` or `ENOSYS` for a PV domain.
    fn set_pod_target(&self, domid: DomId, memory: KiB) -> Result<()>;

    /// Sets the end of the memory map that a PV domain sees.
    ///
    /// # Errors
    /// As said at the trait.
    fn set_memory_map_limit(&self, domid: DomId, memory: KiB) -> Result<()>;

    /// Sets how much memory Xen may use to translate an HVM domain's addresses (HAP or shadow).
    ///
    /// # Errors
    /// As said at the trait.
    fn set_paging_memory(&self, domid: DomId, memory: KiB) -> Result<()>;

    /// Chooses how a domain sees the time stamp counter.
    ///
    /// # Errors
    /// As said at the trait.
    fn set_tsc_mode(&self, domid: DomId, mode: TscMode) -> Result<()>;

    /// Sets the difference of a domain's wall clock from UTC, in seconds.
    ///
    /// # Errors
    /// As said at the trait.
    fn set_time_offset(&self, domid: DomId, seconds: i32) -> Result<()>;

    /// Chooses what a domain sees of the processor.
    ///
    /// # Errors
    /// `EINVAL` when Xen cannot offer what was asked for.
    fn apply_cpuid_policy(&self, domid: DomId, policy: &CpuidPolicy) -> Result<()>;

    /// Reads a parameter of an HVM domain.
    ///
    /// # Errors
    /// `EINVAL` for a PV domain.
    fn hvm_param(&self, domid: DomId, param: HvmParam) -> Result<u64>;

    /// Sets a parameter of an HVM domain.
    ///
    /// # Errors
    /// `EINVAL` for a PV domain or a value that makes no sense, `EEXIST` for one that may be set only once.
    fn set_hvm_param(&self, domid: DomId, param: HvmParam, value: u64) -> Result<()>;

    /// Makes a port of `domid` that `remote` may bind to, and returns it.
    ///
    /// # Errors
    /// `ENOSPC` when all ports are taken.
    fn alloc_unbound_port(&self, domid: DomId, remote: DomId) -> Result<EventPort>;

    /// Gives a stubdomain the right to be its target's device model.
    ///
    /// # Errors
    /// As said at the trait; `EINVAL` for a domain that already has a target.
    fn set_target(&self, stub: DomId, target: DomId) -> Result<()>;

    /// Translates an XSM label into the number that [`DomainSpec::ssidref`] takes.
    ///
    /// # Errors
    /// `ENOSYS` when Xen runs without XSM, `EINVAL` for an unknown label.
    fn security_id(&self, label: &str) -> Result<u32>;

    /// Translates [`DomainInfo::ssidref`] into an XSM label.
    ///
    /// # Errors
    /// As for [`security_id`](Self::security_id).
    fn security_label(&self, sid: u32) -> Result<String>;

    /// Fills an HVM domain: memory, hvmloader and its firmware, the special pages, HVM parameters, memory map, grants
    /// of the console and xenstore rings, CPUs' first state.
    ///
    /// # Errors
    /// [`XenError::ReadFile`](crate::XenError::ReadFile) for the files, `ENOMEM`, `EINVAL` for a file that is not what it
    /// should be (the library's words are in the error). The domain is then to be destroyed.
    fn build_hvm(&self, domid: DomId, build: &HvmBuild) -> Result<HvmBuilt>;

    /// Fills a PV domain: memory, kernel, RAM disk, page tables, start page, grants of the console and xenstore
    /// rings, CPUs' first state.
    ///
    /// # Errors
    /// As for [`build_hvm`](Self::build_hvm).
    fn build_pv(&self, domid: DomId, build: &KernelBuild) -> Result<KernelBuilt>;

    /// Fills a PVH domain of one virtual CPU: memory, kernel, RAM disk, start information, ACPI tables, the special pages,
    /// HVM parameters, memory map, grants of the console and xenstore rings, the CPU's first state.
    ///
    /// # Errors
    /// As for [`build_hvm`](Self::build_hvm). A kernel that cannot start in such a domain is not what it should be.
    fn build_pvh(&self, domid: DomId, build: &KernelBuild) -> Result<KernelBuilt>;

    /// Writes an HVM domain's memory and CPU state to `to`, as libxc's migration stream
    /// (`docs/specs/libxc-migration-stream.pandoc` of Xen), and nothing else. The domain stays, suspended. A real
    /// hypervisor starts the caller's program again for it: see `memory_stream_helper`.
    ///
    /// The descriptor is made blocking, for whoever shares its open file too. Writing starts where it stands. With a pipe
    /// or socket, a reader that is too slow is waited for until the deadline.
    ///
    /// # Errors
    /// [`XenError::Abandoned`](crate::XenError::Abandoned) when `events` or `how.cancel` wanted no save,
    /// [`XenError::Timeout`](crate::XenError::Timeout), [`XenError::Helper`](crate::XenError::Helper); otherwise as said
    /// at the trait. In all cases Xen and, through `events`, the device model have ended to record which memory is
    /// written. What was written so far is of no use. A domain that was suspended still is: resume it.
    fn save_memory(
        &self,
        domid: DomId,
        to: BorrowedFd<'_>,
        how: &SaveMemory,
        events: &mut dyn SaveEvents,
    ) -> Result<()>;

    /// Fills an HVM domain with what [`save_memory`](Self::save_memory) has written: memory, CPU policy and state, HVM
    /// parameters, and empty xenstore and console rings with their grants. The domain stays paused. Exactly the stream is
    /// read from `from`, and not a byte behind it. [`HvmBuilt::smbios`] and [`HvmBuilt::acpi`] are `None`.
    ///
    /// The descriptor is made blocking, for whoever shares its open file too.
    ///
    /// # Errors
    /// As for [`build_hvm`](Self::build_hvm), and as for `save_memory`. For a stream that ends early or makes no
    /// sense, or one of a Xen before 4.14, libxc's words are in the error, and the number may be any. The domain is then to
    /// be destroyed.
    fn restore_memory(&self, domid: DomId, from: BorrowedFd<'_>, how: &RestoreMemory) -> Result<HvmBuilt>;

    /// Writes an HVM domain's memory and the state of its vCPUs to `to`, as the ELF core file of `xl dump-core`
    /// (`docs/misc/dump-core-format.txt` of Xen). `progress` is told how many pages of about how many were written. The domain
    /// may run meanwhile; then its pages are from different moments. A real hypervisor starts the caller's program again
    /// for it: see `memory_stream_helper`.
    ///
    /// The descriptor is made blocking, for whoever shares its open file too. Writing starts where it stands.
    ///
    /// # Errors
    /// As for [`save_memory`](Self::save_memory). What was written so far is of no use.
    fn dump_core(
        &self,
        domid: DomId,
        to: BorrowedFd<'_>,
        how: &DumpCore,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()>;

    /// Writes bytes into an HVM domain's memory, at a guest-physical address. The domain must not run.
    ///
    /// # Errors
    /// As said at the trait; also when the domain has no memory there.
    fn write_memory(&self, domid: DomId, address: u64, bytes: &[u8]) -> Result<()>;

    /// Ends Xen's recording of which memory of a domain is written, which a live save leaves behind when it is killed
    /// with its helper process. Does nothing where there is none.
    ///
    /// # Errors
    /// As said at the trait.
    fn stop_log_dirty(&self, domid: DomId) -> Result<()>;

    /// Reads what is in Xen's own console ring (`xl dmesg`), at most 256 KiB of it, the newest.
    ///
    /// # Errors
    /// As said at the trait.
    fn console_ring(&self) -> Result<Vec<u8>>;

    /// Reads what was written to Xen's own console ring from `index` on, at most 16 KiB, and gives the index behind it.
    ///
    /// Indices run freely through 32 bits; what is not kept any more is left out. Nothing new gives the index as it was.
    ///
    /// # Errors
    /// As said at the trait.
    fn console_ring_from(&self, index: u32) -> Result<(Vec<u8>, u32)>;
}
