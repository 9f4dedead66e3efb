//! The stubdomain: made, built, given to its target, started.

use std::time::Instant;

use config::QmpTransport;
use stubdom_abi::paths::{device_model_dir, device_model_permissions, stub_target};
use stubdom_abi::{QMP_CONSOLE_WORD, Serves};
use xen::{Blob, CpuidPolicy, DomainKind, DomainSpec, PvBuild, TscMode};

use super::Creation;
use super::guest::{EXTRA_MEMORY, channels};
use crate::batch::Batch;
use crate::destroy::{kill, pause, wait_gone};
use crate::error::Cause;
use crate::operation::StepResult;
use crate::tree::{DomainTree, vm_dir};

impl Creation<'_> {
    /// Makes the stubdomain's domain, a PV one with one vCPU.
    pub(super) fn make_stub(&mut self) -> StepResult {
        let xen = &*self.ts.hypervisor;
        let mut spec = DomainSpec::new(DomainKind::Pv, *self.record.stub_uuid.as_bytes(), 1);
        self.limit_grants(&mut spec);
        spec.ssidref = self.labels.stub;
        let stub = xen.create_domain(&spec)?;
        self.record.stub_domid = Some(stub);
        self.record_domain()?;
        let memory = self.stub_memory();
        xen.set_max_vcpus(stub, 1)?;
        xen.set_max_memory(stub, memory + EXTRA_MEMORY)?;
        self.stub_channels = Some(channels(self.ts, stub)?);
        xen.set_memory_map_limit(stub, memory)?;
        xen.set_tsc_mode(stub, TscMode::Default)?;
        xen.apply_cpuid_policy(stub, &CpuidPolicy::default())?;
        // The right to be the guest's device model; the stubdomain does not run yet.
        xen.set_target(stub, self.domid()?)?;
        Ok(())
    }

    /// Destroys the stubdomain.
    pub(super) fn unmake_stub(&mut self) -> StepResult {
        if let Some(stub) = self.record.stub_domain(self.ts)? {
            kill(self.ts, stub)?;
            wait_gone(self.ts, vec![stub])?;
        }
        Ok(())
    }

    pub(super) fn build_stub(&mut self) -> StepResult {
        let stub = self.stub()?;
        let channels = self.stub_channels.ok_or_else(|| self.not_yet("has no event channels"))?;
        let build = PvBuild {
            kernel: Blob::File(self.image.kernel.clone()),
            ramdisk: Some(Blob::File(self.image.ramdisk.clone())),
            cmdline: self.stub_cmdline()?,
            memory: self.stub_memory(),
            max_vcpus: 1,
            claim: false,
            store: channels.store,
            console: channels.console,
        };
        self.stub_built = Some(self.ts.hypervisor.build_pv(stub, &build)?);
        Ok(())
    }

    /// The image's command line, whom it serves, and whether QEMU's monitor is on a console.
    pub(super) fn stub_cmdline(&self) -> Result<String, Cause> {
        let serves = Serves { target: self.domid()?, vm: vm_dir(self.record.uuid) };
        let qmp = match self.config.device_model.qmp {
            QmpTransport::Vchan => String::new(),
            QmpTransport::Console => format!(" {QMP_CONSOLE_WORD}"),
        };
        Ok(format!("{} {serves}{qmp}", self.image.cmdline))
    }

    pub(super) fn stub_tree<'s>(&self, name: &'s str) -> Result<DomainTree<'s>, Cause> {
        Ok(DomainTree { domid: self.stub()?, uuid: self.record.stub_uuid, name, hvm: false })
    }

    /// What binds the stubdomain to its target in xenstore.
    pub(super) fn bind_target(&self, batch: &mut Batch) -> StepResult {
        let (stub, guest) = (self.stub()?, self.domid()?);
        batch.write(&stub_target(stub), guest.to_string());
        batch.make(&device_model_dir(stub, guest), &device_model_permissions(stub, guest));
        Ok(())
    }

    /// Connects both domains to xenstored, and lets the stubdomain act for its target there.
    pub(super) fn introduce(&mut self) -> StepResult {
        let (guest, stub) = (self.domid()?, self.stub()?);
        let missing = || self.not_yet("is not built");
        let (guest_built, stub_built) =
            (self.guest_built.ok_or_else(missing)?, self.stub_built.ok_or_else(missing)?);
        let (guest_channels, stub_channels) =
            (self.guest_channels.ok_or_else(missing)?, self.stub_channels.ok_or_else(missing)?);
        let xenstore = &self.ts.xenstore;
        xenstore.introduce(guest, guest_built.store_gfn, guest_channels.store.port)?;
        xenstore.introduce(stub, stub_built.store_mfn, stub_channels.store.port)?;
        // xenstored wants both to be connected.
        xenstore.set_target(stub, guest)?;
        Ok(())
    }

    pub(super) fn start_stub(&mut self) -> StepResult {
        self.stub_started = Some(Instant::now());
        Ok(self.ts.hypervisor.unpause_domain(self.stub()?)?)
    }

    /// Stops the running stubdomain; it dies when its devices are closed.
    pub(super) fn stop_stub(&mut self) -> StepResult {
        match self.record.stub_domain(self.ts)? {
            Some(stub) => pause(self.ts, stub),
            None => Ok(()),
        }
    }
}
