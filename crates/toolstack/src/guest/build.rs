//! A guest's memory.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use xen::{Blob, Cancel, GuestMemory, HvmBuild, HvmBuilt, RestoreMemory};

use super::make::{Made, Spec};
use crate::Toolstack;
use crate::domain::Channels;
use crate::error::Cause;

/// Where a guest's memory and the state of its vCPUs come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// It starts afresh: hvmloader and the firmware, and everything else zero.
    Fresh,
    /// It goes on: libxenguest's stream begins with the next byte, and no byte behind it is read.
    Stream(BorrowedFd<'a>, &'a Cancel),
}

/// A guest's domain that has its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Built {
    pub(crate) made: Made,
    /// Where its rings and tables are.
    pub(crate) places: HvmBuilt,
}

/// Fills the domain from the source.
pub(crate) fn build(ts: &Toolstack, spec: Spec<'_>, made: Made, source: Source<'_>) -> Result<Built, Cause> {
    let places = match source {
        Source::Fresh => ts.hypervisor.build_hvm(made.domain.domid(), &fresh(spec, made))?,
        Source::Stream(from, cancel) => {
            let Made { domain, channels } = made;
            let deadline = Instant::now() + ts.deadlines.memory;
            let Channels { store, console } = channels;
            let how = RestoreMemory { store, console, deadline, cancel: cancel.clone() };
            ts.hypervisor.restore_memory(domain.domid(), from, &how)?
        }
    };
    Ok(Built { made, places })
}

fn fresh(spec: Spec<'_>, made: Made) -> HvmBuild {
    let Spec { config, prepared, .. } = spec;
    let firmware = &config.firmware;
    HvmBuild {
        hvmloader: Blob::File(prepared.hvmloader.clone()),
        firmware: Blob::File(prepared.firmware.clone()),
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
        store: made.channels.store,
        console: made.channels.console,
    }
}
