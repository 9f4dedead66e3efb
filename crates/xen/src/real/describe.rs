//! Descriptions of domains: ours as Xen takes them, and Xen's as ours.

use std::time::Duration;

use xen_sys::{xen_domctl_createdomain, xen_domctl_getdomaininfo};
use xen_types::{DomId, KiB};

use super::compat;
use crate::domain::{DomainInfo, DomainKind, DomainSpec, DomainState, ShutdownReason};

/// A new domain's description as Xen takes it.
pub(super) fn create_config(spec: &DomainSpec) -> xen_domctl_createdomain {
    // Negative numbers ask for Xen's defaults.
    let limit = |limit: Option<u32>| limit.map_or(-1, |limit| i32::try_from(limit).unwrap_or(i32::MAX));
    let mut flags = kind_flags(spec);
    if spec.passthrough {
        flags |= xen_sys::XEN_DOMCTL_CDF_iommu;
    }
    if spec.vpmu {
        flags |= xen_sys::XEN_DOMCTL_CDF_vpmu;
    }
    let misc_flags = if spec.msr_relaxed { xen_sys::XEN_X86_MSR_RELAXED } else { 0 };
    let emulation_flags = compat::emulation_flags(spec.kind, spec.hvm_pirq);
    let mut config = xen_domctl_createdomain {
        ssidref: spec.ssidref,
        handle: spec.uuid,
        flags,
        max_vcpus: spec.max_vcpus,
        max_evtchn_port: spec.max_event_port,
        max_grant_frames: limit(spec.max_grant_frames),
        max_maptrack_frames: limit(spec.max_maptrack_frames),
        grant_opts: u32::from(spec.max_grant_version) & xen_sys::XEN_DOMCTL_GRANT_version_mask,
        cpupool_id: spec.cpupool,
        arch: xen_sys::xen_arch_domainconfig { emulation_flags, misc_flags },
        vmtrace_size: u32::try_from(spec.vmtrace.get().saturating_mul(1024)).unwrap_or(u32::MAX),
        ..Default::default()
    };
    compat::describe_altp2m(&mut config, spec.altp2m);
    config
}

/// The flags (`XEN_DOMCTL_CDF_*`) that follow from the kind of domain.
fn kind_flags(spec: &DomainSpec) -> u32 {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    match spec.kind {
        DomainKind::Pv => 0,
        DomainKind::Pvh => xen_sys::XEN_DOMCTL_CDF_hvm | xen_sys::XEN_DOMCTL_CDF_hap,
        DomainKind::Hvm { hap, nested } => {
            xen_sys::XEN_DOMCTL_CDF_hvm
                | flag(!spec.out_of_sync_shadow, xen_sys::XEN_DOMCTL_CDF_oos_off)
                | flag(hap, xen_sys::XEN_DOMCTL_CDF_hap)
                | flag(nested, xen_sys::XEN_DOMCTL_CDF_nested_virt)
        }
    }
}

/// Xen's words about a domain as ours; `None` for the domains that Xen keeps for itself.
pub(super) fn domain_info(raw: &xen_domctl_getdomaininfo) -> Option<DomainInfo> {
    let has = |flag: u32| raw.flags & flag != 0;
    let reason = (raw.flags >> xen_sys::XEN_DOMINF_shutdownshift) & xen_sys::XEN_DOMINF_shutdownmask;
    let reason = ShutdownReason::from_raw(u8::try_from(reason).unwrap_or(u8::MAX));
    Some(DomainInfo {
        domid: DomId::new(raw.domain).ok()?,
        uuid: raw.handle,
        hvm: has(xen_sys::XEN_DOMINF_hvm_guest),
        hap: has(xen_sys::XEN_DOMINF_hap),
        state: DomainState {
            running: has(xen_sys::XEN_DOMINF_running),
            blocked: has(xen_sys::XEN_DOMINF_blocked),
            paused: has(xen_sys::XEN_DOMINF_paused),
            dying: has(xen_sys::XEN_DOMINF_dying),
            shutdown: has(xen_sys::XEN_DOMINF_shutdown).then_some(reason),
        },
        memory: pages(raw.tot_pages),
        max_memory: pages(raw.max_pages),
        online_vcpus: raw.nr_online_vcpus,
        // All ones when there are none.
        max_vcpus: raw.max_vcpu_id.wrapping_add(1),
        cpu_time: Duration::from_nanos(raw.cpu_time),
        ssidref: raw.ssidref,
        cpupool: raw.cpupool,
    })
}

/// Pages as a size.
pub(super) fn pages(count: u64) -> KiB {
    KiB(count.saturating_mul(4))
}
