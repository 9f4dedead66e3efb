//! What xenstore has of both domains once they are built: rings, consoles, arguments.

use crate::batch::Batch;
use crate::device::initial::Initial;
use crate::nodes::{StoreRing, VcpuCounts, ring_details, vm_dir};
use crate::operation::StepResult;
use crate::record::GuestRecord;
use crate::{guest, stubdomain};

/// Both domains, as they are built.
pub(super) struct Details<'a> {
    pub(super) record: &'a GuestRecord,
    pub(super) guest: guest::Built,
    pub(super) stub: stubdomain::Built,
    pub(super) spec: stubdomain::Spec<'a>,
    pub(super) devices: Initial<'a>,
}

impl Details<'_> {
    pub(super) fn write(&self) -> StepResult {
        // Neither domain runs or is introduced yet, so that only the consoles have to come whole.
        let (mut batch, mut consoles) = (Batch::new(), Batch::new());
        self.guest(&mut batch, &mut consoles)?;
        self.stubdomain(&mut batch, &mut consoles)?;
        batch.apply(&self.devices.ts.xenstore)?;
        consoles.commit(&self.devices.ts.xenstore)
    }

    fn guest(&self, batch: &mut Batch, consoles: &mut Batch) -> StepResult {
        let Initial { ts, config, .. } = self.devices;
        let guest::Built { made, places } = self.guest;
        let vcpus = VcpuCounts { online: config.vcpus, max: config.max_vcpus };
        let ring = StoreRing { port: made.channels.store.port, gfn: places.store_gfn };
        ring_details(batch, made.domain, ring, vcpus);
        guest::details(batch, made.domain, config, &places, self.stub.made.domain);
        if config.platform.vm_generation_id {
            guest::write_generation_id(ts, batch, made.domain)?;
        }
        self.devices.guest_consoles(consoles, (places.console_gfn, made.channels.console.port));
        Ok(())
    }

    fn stubdomain(&self, batch: &mut Batch, consoles: &mut Batch) -> StepResult {
        let stubdomain::Built { made, places } = self.stub;
        let ring = StoreRing { port: made.channels.store.port, gfn: places.store_mfn };
        ring_details(batch, made.domain, ring, VcpuCounts { online: 1, max: 1 });
        stubdomain::details(batch, made.domain, &self.spec);
        self.devices.stubdomain_consoles(consoles, (places.console_mfn, made.channels.console.port));
        let argv = self.devices.plan.argv(self.guest.made.domain.domid())?;
        stubdomain::arguments(batch, made.domain, &vm_dir(self.record.uuid), &argv)
    }
}
