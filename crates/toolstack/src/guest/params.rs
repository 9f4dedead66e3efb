//! What a guest is told of its platform through Xen: HVM parameters, Viridian, the time stamp counter, CPUID.

use config::{GuestConfig, TscMode, ViridianGroup};
use xen::{CpuidLeaf, CpuidPolicy, HvmParam, Viridian};

use crate::error::Cause;

/// `XEN_HVM_MCA_CAP_LMCE` (`xen/include/public/hvm/params.h`).
const MCA_LMCE: u64 = 1;

/// What must be known before a vCPU runs (`hvm_set_conf_params` in `libxl_x86.c`). A stream has Viridian itself, which can
/// be set once only.
pub(super) fn params(config: &GuestConfig, is_fresh: bool) -> Vec<(HvmParam, u64)> {
    let platform = &config.platform;
    let mut params = vec![
        (HvmParam::HpetEnabled, u64::from(platform.hpet)),
        (HvmParam::VptAlign, u64::from(platform.vpt_align)),
        (HvmParam::TimerMode, platform.timer_mode as u64),
    ];
    if platform.mca_lmce {
        params.push((HvmParam::McaCap, MCA_LMCE));
    }
    let viridian = viridian(&platform.viridian);
    if is_fresh && viridian != Viridian::NONE {
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

pub(super) const fn tsc_mode(config: &GuestConfig) -> xen::TscMode {
    match config.platform.tsc_mode {
        TscMode::Default => xen::TscMode::Default,
        TscMode::AlwaysEmulate => xen::TscMode::AlwaysEmulate,
        TscMode::Native => xen::TscMode::Native,
    }
}

/// What the guest sees of the processor. The time stamp counter is invariant for a guest that stays on this
/// machine, or whose counter is emulated wherever it goes.
pub(super) fn cpuid(config: &GuestConfig) -> Result<CpuidPolicy, Cause> {
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
