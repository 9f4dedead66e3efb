//! The stubdomain's domain.

use config::{GrantLimits, QmpTransport, StubdomainKind, Uuid};
use stubdom_abi::Serves;
use xen::{CpuidPolicy, DomainKind, DomainSpec, HvmParam, TscMode};
use xen_types::DomId;

use super::prepare::Prepared;
use crate::Toolstack;
use crate::domain::{Channels, Domain, EXTRA_MEMORY, limit_grants};
use crate::error::Cause;
use crate::operation::StepResult;

/// Missed timer ticks are not delivered late: libxl's default (`timer_mode` in `libxl_x86.c`).
const NO_DELAY: u64 = 1;

/// What a stubdomain is made of.
#[derive(Clone, Debug)]
pub(crate) struct Spec<'a> {
    pub(crate) uuid: Uuid,
    pub(crate) prepared: &'a Prepared,
    pub(crate) grants: &'a GrantLimits,
    /// How QEMU's monitor is reached.
    pub(crate) qmp: QmpTransport,
    /// Its agent prepares everything, and starts QEMU only when it is told.
    pub(crate) hold: bool,
    /// The guest that it serves, as its kernel's command line says; a stubdomain without a target is told later, through
    /// xenstore.
    pub(crate) target: Option<Serves>,
}

/// A stubdomain without memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub(crate) domain: Domain,
    pub(crate) channels: Channels,
}

/// Makes the domain, with one vCPU. `created` gets its domid as soon as Xen has it: from then on there is
/// something to undo.
pub(crate) fn make(
    ts: &Toolstack,
    spec: &Spec<'_>,
    created: &mut dyn FnMut(DomId) -> StepResult,
) -> Result<Made, Cause> {
    let xen = &*ts.hypervisor;
    let kind = match spec.prepared.kind {
        StubdomainKind::Pv => DomainKind::Pv,
        StubdomainKind::Pvh => DomainKind::Pvh,
    };
    let mut domain = DomainSpec::new(kind, *spec.uuid.as_bytes(), 1);
    limit_grants(&mut domain, spec.grants);
    domain.ssidref = spec.prepared.label;
    let stub = xen.create_domain(&domain)?;
    created(stub)?;
    let memory = spec.prepared.memory;
    xen.set_max_vcpus(stub, 1)?;
    xen.set_max_memory(stub, memory + EXTRA_MEMORY)?;
    let channels = Channels::allocate(ts, stub)?;
    if spec.prepared.kind == StubdomainKind::Pv {
        xen.set_memory_map_limit(stub, memory)?;
    }
    xen.set_tsc_mode(stub, TscMode::Default)?;
    if let Some(paging) = spec.prepared.paging_memory {
        xen.set_hvm_param(stub, HvmParam::TimerMode, NO_DELAY)?;
        xen.set_paging_memory(stub, paging)?;
    }
    xen.apply_cpuid_policy(stub, &CpuidPolicy::default())?;
    Ok(Made { domain: ts.new_domain(stub, spec.uuid)?, channels })
}
