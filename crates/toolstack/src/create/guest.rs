//! The guest's domain: made, set up, built.

use config::{GuestConfig, TscMode, ViridianGroup};
use nix::errno::Errno;
use xen::{
    Blob, Channel, CpuMap, CpuidLeaf, CpuidPolicy, DomainKind, DomainSpec, GuestMemory, HvmBuild, HvmParam,
    Viridian,
};
use xen_types::{DomId, KiB};

use super::{Channels, Creation};
use crate::Toolstack;
use crate::destroy::{kill, wait_gone};
use crate::error::Cause;
use crate::operation::StepResult;

/// What each domain may hold beyond its memory (`LIBXL_MAXMEM_CONSTANT`): QEMU's option ROMs are in it.
pub(crate) const EXTRA_MEMORY: KiB = KiB(1024);
/// `XEN_HVM_MCA_CAP_LMCE` (`xen/include/public/hvm/params.h`).
const MCA_LMCE: u64 = 1;

impl Creation<'_> {
    /// Makes the guest's domain and everything in it that must be there before its memory.
    pub(super) fn make_guest(&mut self) -> StepResult {
        let config = self.config;
        let xen = &*self.ts.hypervisor;
        let kind = DomainKind::Hvm { hap: self.hap, nested: config.platform.nested_hvm };
        let mut spec = DomainSpec::new(kind, *self.record.uuid.as_bytes(), config.max_vcpus);
        spec.max_event_port = config.max_event_channels;
        self.limit_grants(&mut spec);
        spec.ssidref = self.labels.guest;
        spec.out_of_sync_shadow = config.platform.oos.unwrap_or(true);
        spec.vpmu = config.platform.vpmu;
        spec.msr_relaxed = config.platform.msr_relaxed;
        spec.vmtrace = config.vmtrace_buffer;
        let domid = xen.create_domain(&spec)?;
        self.record.domid = Some(domid);
        self.record_domain()?;
        xen.set_max_vcpus(domid, config.max_vcpus)?;
        self.pin_vcpus(domid)?;
        xen.set_max_memory(domid, config.memory + EXTRA_MEMORY)?;
        self.guest_channels = Some(channels(self.ts, domid)?);
        for (param, value) in params(config) {
            xen.set_hvm_param(domid, param, value)?;
        }
        xen.set_tsc_mode(domid, tsc_mode(config))?;
        let offset = self.clock_offset()?;
        if offset != 0 {
            xen.set_time_offset(domid, offset)?;
        }
        xen.set_paging_memory(domid, self.paging_memory())?;
        xen.apply_cpuid_policy(domid, &cpuid(config)?)?;
        Ok(())
    }

    /// Keeps the vCPUs on the physical CPUs that the configuration names.
    fn pin_vcpus(&self, domid: DomId) -> StepResult {
        for vcpu in 0..self.config.max_vcpus {
            let Some(cpus) = self.config.affinity.of(vcpu) else { continue };
            let map = CpuMap::from_iter(cpus.iter());
            self.ts.hypervisor.set_vcpu_affinity(domid, vcpu, &map).map_err(|error| {
                // What Xen answers when none of them is online.
                if error.errno() == Some(Errno::EINVAL) {
                    Cause::NoSuchCpu { vcpu, cpus: cpus.clone() }
                } else {
                    error.into()
                }
            })?;
        }
        Ok(())
    }

    /// What the guest's clock is ahead of UTC, in seconds.
    fn clock_offset(&self) -> Result<i32, Cause> {
        let clock = self.config.platform.clock;
        let zone = if clock.localtime { self.ts.host.utc_offset()? } else { 0 };
        Ok(clock.offset_seconds.saturating_add(zone))
    }

    /// Destroys the guest's domain.
    pub(super) fn unmake_guest(&mut self) -> StepResult {
        if let Some(domain) = self.record.guest_domain(self.ts)? {
            kill(self.ts, domain)?;
            wait_gone(self.ts, vec![domain])?;
        }
        Ok(())
    }

    pub(super) fn limit_grants(&self, spec: &mut DomainSpec) {
        let grants = self.config.grants;
        spec.max_grant_frames = grants.max_grant_frames;
        spec.max_maptrack_frames = grants.max_maptrack_frames;
        if let Some(version) = grants.max_version {
            spec.max_grant_version = version;
        }
    }

    /// Fills the guest: memory, hvmloader, firmware.
    pub(super) fn build_guest(&mut self) -> StepResult {
        let config = self.config;
        let domid = self.domid()?;
        let channels = self.guest_channels.ok_or_else(|| self.not_yet("has no event channels"))?;
        let firmware = &config.firmware;
        let build = HvmBuild {
            hvmloader: Blob::File(self.files.hvmloader.clone()),
            firmware: Blob::File(self.files.firmware.clone()),
            smbios: firmware.smbios.as_ref().map(|path| Blob::File(path.into())),
            acpi: firmware.acpi.as_ref().map(|path| Blob::File(path.into())),
            memory: GuestMemory {
                target: config.memory,
                max: config.max_memory,
                video: config.display.video_memory,
            },
            max_vcpus: config.max_vcpus,
            online_vcpus: config.vcpus,
            apic: config.platform.apic,
            mmio_hole: config.platform.mmio_hole,
            claim: false,
            store: channels.store,
            console: channels.console,
        };
        self.guest_built = Some(self.ts.hypervisor.build_hvm(domid, &build)?);
        Ok(())
    }
}

/// The two event channels of a new domain, to xenstored and the console daemon, which both run in dom0.
pub(super) fn channels(ts: &Toolstack, domid: DomId) -> Result<Channels, Cause> {
    let peer = DomId::DOM0;
    let store = Channel { port: ts.hypervisor.alloc_unbound_port(domid, peer)?, peer };
    let console = Channel { port: ts.hypervisor.alloc_unbound_port(domid, peer)?, peer };
    Ok(Channels { store, console })
}

/// What must be known before a vCPU runs (`hvm_set_conf_params` in `libxl_x86.c`).
fn params(config: &GuestConfig) -> Vec<(HvmParam, u64)> {
    let platform = &config.platform;
    let mut params = vec![
        (HvmParam::HpetEnabled, u64::from(platform.hpet)),
        (HvmParam::VptAlign, u64::from(platform.vpt_align)),
        (HvmParam::TimerMode, platform.timer_mode as u64),
        (HvmParam::Altp2m, platform.altp2m as u64),
    ];
    if platform.mca_lmce {
        params.push((HvmParam::McaCap, MCA_LMCE));
    }
    let viridian = viridian(&platform.viridian);
    if viridian != Viridian::NONE {
        params.push((HvmParam::Viridian, viridian.bits()));
    }
    params
}

const VIRIDIAN_DEFAULTS: [ViridianGroup; 7] = [
    ViridianGroup::Base,
    ViridianGroup::Freq,
    ViridianGroup::TimeRefCount,
    ViridianGroup::ApicAssist,
    ViridianGroup::CrashCtl,
    ViridianGroup::NoVpLimit,
    ViridianGroup::CpuHotplug,
];
const VIRIDIAN_ALL: [ViridianGroup; 13] = [
    ViridianGroup::Base,
    ViridianGroup::Freq,
    ViridianGroup::TimeRefCount,
    ViridianGroup::ReferenceTsc,
    ViridianGroup::HcallRemoteTlbFlush,
    ViridianGroup::ApicAssist,
    ViridianGroup::CrashCtl,
    ViridianGroup::Synic,
    ViridianGroup::Stimer,
    ViridianGroup::HcallIpi,
    ViridianGroup::ExProcessorMasks,
    ViridianGroup::NoVpLimit,
    ViridianGroup::CpuHotplug,
];

/// The groups, first what is on by default, then what is asked for, less what is forbidden
/// (`hvm_set_viridian_features` in `libxl_x86.c`).
fn viridian(config: &config::Viridian) -> Viridian {
    let on = |group: &ViridianGroup| {
        let wanted = config.all
            || config.enable.contains(group)
            || (config.defaults && VIRIDIAN_DEFAULTS.contains(group));
        wanted && !config.disable.contains(group)
    };
    let mut bits = Viridian::NONE;
    for group in VIRIDIAN_ALL.iter().filter(|group| on(group)) {
        bits = bits | viridian_bits(*group);
    }
    // The frequencies are a part of the base set unless they are taken out.
    if on(&ViridianGroup::Base) && !on(&ViridianGroup::Freq) {
        bits = bits | Viridian::NO_FREQ;
    }
    bits
}

fn viridian_bits(group: ViridianGroup) -> Viridian {
    match group {
        ViridianGroup::Base => Viridian::BASE,
        ViridianGroup::Freq => Viridian::NONE,
        ViridianGroup::TimeRefCount => Viridian::TIME_REF_COUNT,
        ViridianGroup::ReferenceTsc => Viridian::REFERENCE_TSC,
        ViridianGroup::HcallRemoteTlbFlush => Viridian::HCALL_REMOTE_TLB_FLUSH,
        ViridianGroup::ApicAssist => Viridian::APIC_ASSIST,
        ViridianGroup::CrashCtl => Viridian::CRASH_CTL,
        ViridianGroup::Synic => Viridian::SYNIC,
        ViridianGroup::Stimer => Viridian::TIME_REF_COUNT | Viridian::SYNIC | Viridian::STIMER,
        ViridianGroup::HcallIpi => Viridian::HCALL_IPI,
        ViridianGroup::ExProcessorMasks => Viridian::EX_PROCESSOR_MASKS,
        ViridianGroup::NoVpLimit => Viridian::NO_VP_LIMIT,
        ViridianGroup::CpuHotplug => Viridian::CPU_HOTPLUG,
    }
}

const fn tsc_mode(config: &GuestConfig) -> xen::TscMode {
    match config.platform.tsc_mode {
        TscMode::Default => xen::TscMode::Default,
        TscMode::AlwaysEmulate => xen::TscMode::AlwaysEmulate,
        TscMode::Native => xen::TscMode::Native,
    }
}

/// What the guest sees of the processor. The time stamp counter is invariant for a guest that stays on this
/// machine, or whose counter is emulated wherever it goes.
fn cpuid(config: &GuestConfig) -> Result<CpuidPolicy, Cause> {
    let leaf = |leaf: &config::CpuidLeaf| -> Result<CpuidLeaf, Cause> {
        let mut registers = [const { None }; 4];
        for (to, from) in registers.iter_mut().zip(&leaf.registers) {
            let bits = from.as_ref().map(|text| text.parse()).transpose();
            *to = bits.map_err(|error: xen::CpuidBitsError| Cause::Unsupported {
                what: format!("cpuid leaf {:#x}", leaf.leaf),
                why: error.to_string(),
            })?;
        }
        Ok(CpuidLeaf { leaf: leaf.leaf, subleaf: leaf.subleaf, registers })
    };
    Ok(CpuidPolicy {
        restore: false,
        pae: config.platform.pae,
        invariant_tsc: config.no_migrate || config.platform.tsc_mode == TscMode::AlwaysEmulate,
        nested: config.platform.nested_hvm,
        leaves: config.platform.cpuid.leaves.iter().map(leaf).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viridian_groups_follow_libxls_order() {
        let check =
            |config: config::Viridian, bits: u64| assert_eq!(viridian(&config).bits(), bits, "{config:?}");
        let none = config::Viridian::default;
        check(none(), 0);
        let base = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 11 | 1 << 12;
        check(config::Viridian { defaults: true, ..none() }, base);
        let without = vec![ViridianGroup::Freq];
        check(config::Viridian { defaults: true, disable: without, ..none() }, base | 2);
        check(config::Viridian { all: true, ..none() }, 0x1ffd);
        let stimer = vec![ViridianGroup::Base, ViridianGroup::Freq, ViridianGroup::Stimer];
        check(config::Viridian { enable: stimer, ..none() }, 1 | 1 << 2 | 1 << 7 | 1 << 8);
    }
}
