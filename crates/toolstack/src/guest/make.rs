//! The guest's domain, with everything that must be there before its memory.

use config::{GuestConfig, Uuid};
use nix::errno::Errno;
use xen::{Altp2m, CpuMap, DomainKind, DomainSpec};
use xen_types::DomId;

use super::params::{cpuid, params, tsc_mode};
use super::prepare::Prepared;
use crate::Toolstack;
use crate::domain::{Channels, Domain, EXTRA_MEMORY, limit_grants};
use crate::error::Cause;
use crate::operation::StepResult;

/// What a guest's domain is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec<'a> {
    pub(crate) config: &'a GuestConfig,
    pub(crate) uuid: Uuid,
    pub(crate) prepared: &'a Prepared,
    /// Its vCPUs start afresh. Else a stream says what they see of the processor and of Viridian.
    pub(crate) is_fresh: bool,
}

/// A guest's domain without memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub(crate) domain: Domain,
    pub(crate) channels: Channels,
}

/// Makes the domain. `created` gets its domid as soon as Xen has it: from then on there is something to undo.
pub(crate) fn make(
    ts: &Toolstack,
    spec: Spec<'_>,
    created: &mut dyn FnMut(DomId) -> StepResult,
) -> Result<Made, Cause> {
    let Spec { config, uuid, prepared, is_fresh } = spec;
    let xen = &*ts.hypervisor;
    let domid = xen.create_domain(&domain_spec(spec))?;
    created(domid)?;
    xen.set_max_vcpus(domid, config.max_vcpus)?;
    pin_vcpus(ts, config, domid)?;
    xen.set_max_memory(domid, config.memory + EXTRA_MEMORY)?;
    let channels = Channels::allocate(ts, domid)?;
    for (param, value) in params(config, is_fresh) {
        xen.set_hvm_param(domid, param, value)?;
    }
    xen.set_tsc_mode(domid, tsc_mode(config))?;
    let offset = clock_offset(ts, config)?;
    if offset != 0 {
        xen.set_time_offset(domid, offset)?;
    }
    xen.set_paging_memory(domid, prepared.paging_memory(config))?;
    if is_fresh {
        xen.apply_cpuid_policy(domid, &cpuid(config)?)?;
    }
    Ok(Made { domain: ts.new_domain(domid, uuid)?, channels })
}

fn domain_spec(spec: Spec<'_>) -> DomainSpec {
    let Spec { config, uuid, prepared, .. } = spec;
    let kind = DomainKind::Hvm { hap: prepared.hap, nested: config.platform.nested_hvm };
    let mut spec = DomainSpec::new(kind, *uuid.as_bytes(), config.max_vcpus);
    spec.max_event_port = config.max_event_channels;
    limit_grants(&mut spec, &config.grants);
    spec.ssidref = prepared.label;
    spec.out_of_sync_shadow = config.platform.oos.unwrap_or(true);
    spec.vpmu = config.platform.vpmu;
    spec.msr_relaxed = config.platform.msr_relaxed;
    spec.altp2m = match config.platform.altp2m {
        config::Altp2m::Disabled => Altp2m::Disabled,
        config::Altp2m::Mixed => Altp2m::Mixed,
        config::Altp2m::External => Altp2m::External,
        config::Altp2m::Limited => Altp2m::Limited,
    };
    spec.hvm_pirq = config.platform.hvm_pirq;
    spec.vmtrace = config.vmtrace_buffer;
    spec
}

/// Keeps the vCPUs on the physical CPUs that the configuration names.
fn pin_vcpus(ts: &Toolstack, config: &GuestConfig, domid: DomId) -> StepResult {
    for vcpu in 0..config.max_vcpus {
        let Some(cpus) = config.affinity.of(vcpu) else { continue };
        let map = CpuMap::from_iter(cpus.iter());
        ts.hypervisor.set_vcpu_affinity(domid, vcpu, &map).map_err(|error| {
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
fn clock_offset(ts: &Toolstack, config: &GuestConfig) -> Result<i32, Cause> {
    let clock = config.platform.clock;
    let zone = if clock.localtime { ts.host.utc_offset()? } else { 0 };
    Ok(clock.offset_seconds.saturating_add(zone))
}
