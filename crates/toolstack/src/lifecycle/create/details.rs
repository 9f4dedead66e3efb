//! What xenstore has of both domains once they are built: rings, consoles, arguments.

use config::Uuid;

use super::Creation;
use crate::batch::Batch;
use crate::device::initial::Initial;
use crate::guest::Generation;
use crate::nodes::{StoreRing, VcpuCounts, ring_details, vm_dir};
use crate::operation::StepResult;
use crate::{Toolstack, guest, stubdomain};

/// Nodes that are to be written.
#[derive(Default)]
pub(crate) struct Nodes {
    batch: Batch,
    /// These have to come whole: neither domain runs or is introduced before the others are there.
    consoles: Batch,
}

impl Nodes {
    pub(crate) fn write(&self, ts: &Toolstack) -> StepResult {
        self.batch.apply(&ts.xenstore)?;
        self.consoles.commit(&ts.xenstore)
    }
}

impl Creation<'_> {
    pub(in crate::lifecycle) fn describe_guest(&self, nodes: &mut Nodes) -> StepResult {
        let generation = match (&self.incoming, &self.saved) {
            (Some(_), _) => Generation::GoesOn,
            (None, Some(_)) => Generation::Branches,
            (None, None) => Generation::Begins,
        };
        of_guest(nodes, self.devices()?, self.progress.guest_built()?, generation)
    }

    pub(in crate::lifecycle) fn describe_stub(&self, nodes: &mut Nodes) -> StepResult {
        let spec = self.progress.stub_spec(self.config, &self.record)?;
        let (devices, built) = (self.devices()?, self.progress.stub_built()?);
        of_stubdomain(nodes, devices, built, &spec, self.record.uuid)
    }
}

/// The guest's.
fn of_guest(
    nodes: &mut Nodes,
    devices: Initial<'_>,
    built: guest::Built,
    generation: guest::Generation,
) -> StepResult {
    let (Initial { ts, config, .. }, Nodes { batch, consoles }) = (devices, nodes);
    let guest::Built { made, places } = built;
    let vcpus = VcpuCounts { online: config.vcpus, max: config.max_vcpus };
    let ring = StoreRing { port: made.channels.store.port, gfn: places.store_gfn };
    ring_details(batch, made.domain, ring, vcpus);
    guest::details(batch, made.domain, config, &places, devices.stub);
    if config.platform.vm_generation_id {
        guest::write_generation_id(ts, batch, made.domain, generation)?;
    }
    devices.guest_consoles(consoles, (places.console_gfn, made.channels.console.port));
    Ok(())
}

/// The stubdomain's, with QEMU's arguments. `guest` is the guest's UUID.
fn of_stubdomain(
    nodes: &mut Nodes,
    devices: Initial<'_>,
    built: stubdomain::Built,
    spec: &stubdomain::Spec<'_>,
    guest: Uuid,
) -> StepResult {
    let Nodes { batch, consoles } = nodes;
    let stubdomain::Built { made, places } = built;
    let ring = StoreRing { port: made.channels.store.port, gfn: places.store_frame };
    ring_details(batch, made.domain, ring, VcpuCounts { online: 1, max: 1 });
    stubdomain::details(batch, made.domain, spec);
    devices.stubdomain_consoles(consoles, (places.console_frame, made.channels.console.port));
    let argv = devices.plan.argv(devices.guest)?;
    stubdomain::arguments(batch, made.domain, &vm_dir(guest), &argv)
}
