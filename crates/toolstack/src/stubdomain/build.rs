//! A stubdomain's memory: kernel and RAM disk.

use config::{QmpTransport, StubdomainKind};
use stubdom_abi::{HOLD_WORD, QMP_CONSOLE_WORD};
use xen::{Blob, KernelBuild, KernelBuilt};

use super::make::{Made, Spec};
use crate::Toolstack;
use crate::error::Cause;

/// A stubdomain that has its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Built {
    pub(crate) made: Made,
    /// Where its rings are.
    pub(crate) places: KernelBuilt,
}

/// Fills the domain.
pub(crate) fn build(ts: &Toolstack, spec: &Spec<'_>, made: Made) -> Result<Built, Cause> {
    let build = KernelBuild {
        kernel: Blob::File(spec.prepared.image.kernel.clone()),
        ramdisk: Some(Blob::File(spec.prepared.image.ramdisk.clone())),
        cmdline: command_line(spec),
        memory: spec.prepared.memory,
        max_vcpus: 1,
        claim: false,
        store: made.channels.store,
        console: made.channels.console,
    };
    let domid = made.domain.domid();
    let places = match spec.prepared.kind {
        StubdomainKind::Pv => ts.hypervisor.build_pv(domid, &build)?,
        StubdomainKind::Pvh => ts.hypervisor.build_pvh(domid, &build)?,
    };
    Ok(Built { made, places })
}

/// The image's command line, the guest that is served, whether QEMU's monitor is on a console, and whether QEMU is held.
pub(crate) fn command_line(spec: &Spec<'_>) -> String {
    let mut line = spec.prepared.image.cmdline.clone();
    if let Some(serves) = &spec.target {
        line.push_str(&format!(" {serves}"));
    }
    if spec.qmp == QmpTransport::Console {
        line.push_str(&format!(" {QMP_CONSOLE_WORD}"));
    }
    if spec.hold {
        line.push_str(&format!(" {HOLD_WORD}"));
    }
    line
}
