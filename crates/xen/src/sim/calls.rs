//! What the simulated hypervisor does when it is asked.

use core::time::Duration;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use xen_types::{DomId, EventPort, Gfn, KiB};

use super::{SimDomain, SimHypervisor, host, memory};
use crate::build::{Blob, Channel, HvmBuild, HvmBuilt, KernelBuild, KernelBuilt, Placed};
use crate::cpuid::CpuidPolicy;
use crate::domain::{
    DomainInfo, DomainKind, DomainSpec, HostInfo, ResumeWay, ShutdownReason, Trigger, TscMode, VersionInfo,
};
use crate::error::Result;
use crate::hypervisor::Hypervisor;
use crate::memory::{DumpCore, RestoreMemory, SaveEvents, SaveMemory};
use crate::param::HvmParam;

/// Special pages of an HVM domain, and the hole in its memory for a graphics adapter.
const SPECIAL_PAGES: u64 = 64;
const VGA_HOLE: u64 = 128;
/// The special pages of a PVH domain, and its ACPI tables.
const PVH_PAGES: KiB = KiB(40);

impl Hypervisor for SimHypervisor {
    fn version_info(&self) -> Result<VersionInfo> {
        self.call("version_info", None, |state| {
            Ok(VersionInfo {
                major: state.release.major,
                minor: state.release.minor,
                extra: ".0-sim".to_owned(),
                capabilities: "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_64".to_owned(),
            })
        })
    }

    fn host_info(&self) -> Result<HostInfo> {
        self.call("host_info", None, |state| Ok(host(state)))
    }

    fn list_domains(&self) -> Result<Vec<DomainInfo>> {
        self.call("list_domains", None, |state| {
            Ok(state.domains.iter().map(|(domid, domain)| info(*domid, domain)).collect())
        })
    }

    fn domain_info(&self, domid: DomId) -> Result<Option<DomainInfo>> {
        self.call("domain_info", Some(domid), |state| {
            Ok(state.domains.get(&domid).map(|domain| info(domid, domain)))
        })
    }

    fn create_domain(&self, spec: &DomainSpec) -> Result<DomId> {
        self.call("create_domain", spec.domid, |state| {
            if spec.max_vcpus == 0 || !matches!(spec.max_grant_version, 1 | 2) || spec.cpupool != 0 {
                return Err(Errno::EINVAL);
            }
            // This host's processor has neither.
            if spec.vpmu || spec.vmtrace.get() > 0 {
                return Err(Errno::EINVAL);
            }
            let domid = match spec.domid {
                Some(domid) if state.domains.contains_key(&domid) => return Err(Errno::EEXIST),
                Some(domid) => domid,
                None => state.next_domid()?,
            };
            state.domains.insert(domid, SimDomain::new(spec));
            Ok(domid)
        })
    }

    fn destroy_domain(&self, domid: DomId) -> Result<()> {
        self.call("destroy_domain", Some(domid), |state| state.destroy(domid))
    }

    fn pause_domain(&self, domid: DomId) -> Result<()> {
        self.on("pause_domain", domid, |domain| {
            if domid == DomId::DOM0 {
                return Err(Errno::EINVAL);
            }
            domain.pauses += 1;
            Ok(())
        })
    }

    fn unpause_domain(&self, domid: DomId) -> Result<()> {
        self.on("unpause_domain", domid, |domain| {
            domain.pauses = domain.pauses.checked_sub(1).ok_or(Errno::EINVAL)?;
            Ok(())
        })
    }

    fn shutdown_domain(&self, domid: DomId, reason: ShutdownReason) -> Result<()> {
        self.on("shutdown_domain", domid, |domain| {
            domain.shutdown.get_or_insert(reason);
            Ok(())
        })
    }

    fn resume_domain(&self, domid: DomId, way: ResumeWay) -> Result<()> {
        self.on("resume_domain", domid, |domain| {
            if way == ResumeWay::Cooperative && domain.shutdown != Some(ShutdownReason::Suspend) {
                return Err(Errno::EINVAL);
            }
            domain.shutdown = None;
            Ok(())
        })
    }

    fn send_trigger(&self, domid: DomId, trigger: Trigger, vcpu: u32) -> Result<()> {
        self.on("send_trigger", domid, |domain| {
            let hardware = matches!(trigger, Trigger::Power | Trigger::Sleep);
            if vcpu >= domain.vcpus {
                return Err(Errno::ESRCH);
            }
            if hardware && !domain.spec.kind.is_hvm() {
                return Err(Errno::EINVAL);
            }
            domain.triggers.push(trigger);
            Ok(())
        })
    }

    fn set_max_vcpus(&self, domid: DomId, vcpus: u32) -> Result<()> {
        self.on("set_max_vcpus", domid, |domain| {
            if vcpus != domain.spec.max_vcpus {
                return Err(Errno::EINVAL);
            }
            domain.vcpus = vcpus;
            Ok(())
        })
    }

    fn set_max_memory(&self, domid: DomId, memory: KiB) -> Result<()> {
        self.on("set_max_memory", domid, |domain| {
            domain.max_memory = memory;
            Ok(())
        })
    }

    fn set_pod_target(&self, domid: DomId, memory: KiB) -> Result<()> {
        self.on("set_pod_target", domid, |domain| {
            if !domain.spec.kind.is_hvm() {
                return Err(Errno::EINVAL);
            }
            domain.memory_target = memory;
            Ok(())
        })
    }

    fn set_memory_map_limit(&self, domid: DomId, _memory: KiB) -> Result<()> {
        self.on("set_memory_map_limit", domid, |_| Ok(()))
    }

    fn set_paging_memory(&self, domid: DomId, memory: KiB) -> Result<()> {
        self.call("set_paging_memory", Some(domid), |state| {
            let domain = state.living(domid)?;
            if !domain.spec.kind.is_hvm() {
                return Err(Errno::EINVAL);
            }
            let held = core::mem::take(&mut domain.paging_memory);
            state.free = state.free + held;
            let (taken, result) = match state.take_memory(memory) {
                Ok(()) => (memory, Ok(())),
                Err(errno) => {
                    // It fitted before.
                    state.take_memory(held)?;
                    (held, Err(errno))
                }
            };
            state.living(domid)?.paging_memory = taken;
            result
        })
    }

    fn set_tsc_mode(&self, domid: DomId, _mode: TscMode) -> Result<()> {
        self.on("set_tsc_mode", domid, |_| Ok(()))
    }

    fn set_time_offset(&self, domid: DomId, _seconds: i32) -> Result<()> {
        self.on("set_time_offset", domid, |_| Ok(()))
    }

    fn apply_cpuid_policy(&self, domid: DomId, _policy: &CpuidPolicy) -> Result<()> {
        self.on("apply_cpuid_policy", domid, |_| Ok(()))
    }

    fn hvm_param(&self, domid: DomId, param: HvmParam) -> Result<u64> {
        self.on("hvm_param", domid, |domain| {
            if !domain.spec.kind.is_hvm() {
                return Err(Errno::EINVAL);
            }
            Ok(domain.params.get(&param).copied().unwrap_or(0))
        })
    }

    fn set_hvm_param(&self, domid: DomId, param: HvmParam, value: u64) -> Result<()> {
        self.on("set_hvm_param", domid, |domain| {
            if !domain.spec.kind.is_hvm() {
                return Err(Errno::EINVAL);
            }
            let old = domain.params.get(&param).copied().unwrap_or(0);
            let once = matches!(
                param,
                HvmParam::Viridian
                    | HvmParam::IoreqServerPfn
                    | HvmParam::NrIoreqServerPages
                    | HvmParam::Altp2m
                    | HvmParam::McaCap
            );
            if once && old != 0 && old != value {
                return Err(Errno::EEXIST);
            }
            domain.params.insert(param, value);
            Ok(())
        })
    }

    fn alloc_unbound_port(&self, domid: DomId, remote: DomId) -> Result<EventPort> {
        self.on("alloc_unbound_port", domid, |domain| {
            // Port 0 is never given out.
            let free = (1..=domain.spec.max_event_port).map(EventPort);
            let port = free.into_iter().find(|port| !domain.ports.contains_key(port)).ok_or(Errno::ENOSPC)?;
            domain.ports.insert(port, remote);
            Ok(port)
        })
    }

    fn set_target(&self, stub: DomId, target: DomId) -> Result<()> {
        self.call("set_target", Some(stub), |state| {
            state.living(stub)?;
            state.living(target)?;
            let domain = state.living(stub)?;
            if stub == target || domain.target.is_some() {
                return Err(Errno::EINVAL);
            }
            domain.target = Some(target);
            Ok(())
        })
    }

    fn security_id(&self, _label: &str) -> Result<u32> {
        // Debian's Xen is built without XSM.
        self.call("security_id", None, |_| Err(Errno::ENOSYS))
    }

    fn security_label(&self, _sid: u32) -> Result<String> {
        self.call("security_label", None, |_| Err(Errno::ENOSYS))
    }

    fn build_hvm(&self, domid: DomId, build: &HvmBuild) -> Result<HvmBuilt> {
        // The files first, as the real one does.
        build.hvmloader.read("hvmloader")?;
        build.firmware.read("system firmware")?;
        let smbios = build.smbios.as_ref().map(|blob| placed(blob, 0x10_0000)).transpose()?;
        let acpi = build.acpi.as_ref().map(|blob| placed(blob, 0x20_0000)).transpose()?;
        self.call("build_hvm", Some(domid), |state| {
            let memory = build.memory;
            let ram = memory.target.get().saturating_sub(memory.video.get());
            if ram < 1024
                || memory.target > memory.max
                || build.online_vcpus > build.max_vcpus
                || build.max_vcpus > 128
            {
                return Err(Errno::EINVAL);
            }
            let size = KiB(ram - VGA_HOLE + SPECIAL_PAGES);
            state.fill(domid, true, size, [build.store, build.console])?;
            state.living(domid)?.set_rings(build.store, build.console);
            let (store_gfn, console_gfn) = (Gfn(STORE_GFN), Gfn(CONSOLE_GFN));
            Ok(HvmBuilt { store_gfn, console_gfn, smbios, acpi })
        })
    }

    fn build_pv(&self, domid: DomId, build: &KernelBuild) -> Result<KernelBuilt> {
        build.kernel.read("kernel")?;
        build.ramdisk.as_ref().map(|blob| blob.read("RAM disk")).transpose()?;
        self.call("build_pv", Some(domid), |state| {
            if build.memory.get() < 1024 || !build.memory.get().is_multiple_of(1024) {
                return Err(Errno::EINVAL);
            }
            state.fill(domid, false, build.memory, [build.store, build.console])?;
            // Machine frames: some that no other domain of the simulation has.
            let first = 0x10_0000 + u64::from(domid.get()) * 2;
            Ok(KernelBuilt { store_frame: Gfn(first), console_frame: Gfn(first + 1) })
        })
    }

    fn build_pvh(&self, domid: DomId, build: &KernelBuild) -> Result<KernelBuilt> {
        build.kernel.read("kernel")?;
        build.ramdisk.as_ref().map(|blob| blob.read("RAM disk")).transpose()?;
        self.call("build_pvh", Some(domid), |state| {
            let fits =
                (1024..3 << 20).contains(&build.memory.get()) && build.memory.get().is_multiple_of(1024);
            if !fits || build.max_vcpus != 1 {
                return Err(Errno::EINVAL);
            }
            state.fill(domid, true, build.memory + PVH_PAGES, [build.store, build.console])?;
            state.living(domid)?.set_rings(build.store, build.console);
            Ok(KernelBuilt { store_frame: Gfn(STORE_GFN), console_frame: Gfn(CONSOLE_GFN) })
        })
    }

    fn save_memory(
        &self,
        domid: DomId,
        to: BorrowedFd<'_>,
        how: &SaveMemory,
        events: &mut dyn SaveEvents,
    ) -> Result<()> {
        memory::save(self, domid, to, how, events)
    }

    fn restore_memory(&self, domid: DomId, from: BorrowedFd<'_>, how: &RestoreMemory) -> Result<HvmBuilt> {
        memory::restore(self, domid, from, how)
    }

    fn dump_core(
        &self,
        domid: DomId,
        to: BorrowedFd<'_>,
        how: &DumpCore,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        memory::dump(self, domid, to, how, progress)
    }

    fn write_memory(&self, domid: DomId, address: u64, bytes: &[u8]) -> Result<()> {
        self.on("write_memory", domid, |domain| {
            // Its special pages, just below 4 GiB, are left out.
            if !domain.spec.kind.is_hvm() || address / 1024 >= domain.memory.get() {
                return Err(Errno::EINVAL);
            }
            domain.written.push((address, bytes.to_vec()));
            Ok(())
        })
    }

    fn stop_log_dirty(&self, domid: DomId) -> Result<()> {
        self.on("stop_log_dirty", domid, |domain| {
            domain.log_dirty = false;
            Ok(())
        })
    }

    fn console_ring(&self) -> Result<Vec<u8>> {
        self.call("console_ring", None, |_| Ok(SIMULATED.to_vec()))
    }

    fn console_ring_from(&self, index: u32) -> Result<(Vec<u8>, u32)> {
        self.call("console_ring_from", None, |_| {
            let end = u32::try_from(SIMULATED.len()).unwrap_or(u32::MAX);
            let start = usize::try_from(index.min(end)).unwrap_or_default();
            Ok((SIMULATED[start..].to_vec(), end))
        })
    }
}

/// What the simulated Xen has said.
const SIMULATED: &[u8] = b"(XEN) simulated\n";

/// Where libxenguest puts the rings' pages of every HVM domain.
const STORE_GFN: u64 = 0xfeffc;
const CONSOLE_GFN: u64 = 0xfefff;

impl SimDomain {
    /// Notes where the rings of an HVM or PVH domain are.
    fn set_rings(&mut self, store: Channel, console: Channel) {
        for (param, value) in [
            (HvmParam::StorePfn, STORE_GFN),
            (HvmParam::ConsolePfn, CONSOLE_GFN),
            (HvmParam::StoreEvtchn, store.port.get().into()),
            (HvmParam::ConsoleEvtchn, console.port.get().into()),
        ] {
            self.params.insert(param, value);
        }
    }
}

fn placed(blob: &Blob, address: u64) -> Result<Placed> {
    let bytes = blob.read("firmware tables")?;
    Ok(Placed { address, length: u32::try_from(bytes.len()).unwrap_or(u32::MAX) })
}

fn info(domid: DomId, domain: &SimDomain) -> DomainInfo {
    DomainInfo {
        domid,
        uuid: domain.spec.uuid,
        hvm: domain.spec.kind.is_hvm(),
        hap: matches!(domain.spec.kind, DomainKind::Hvm { hap: true, .. } | DomainKind::Pvh),
        state: domain.state(),
        memory: domain.memory,
        max_memory: domain.max_memory,
        online_vcpus: if domain.built { domain.vcpus } else { 0 },
        max_vcpus: domain.vcpus,
        cpu_time: Duration::ZERO,
        ssidref: domain.spec.ssidref,
        cpupool: domain.spec.cpupool,
    }
}
