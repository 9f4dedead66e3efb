//! The first step: what both domains and their devices are made of.

use config::{GuestConfig, Uuid};
use qemu_args::{Facts, Plan};

use crate::device::claims::claim;
use crate::device::initial;
use crate::error::Cause;
use crate::guest::identity;
use crate::operation::StepResult;
use crate::record::GuestRecord;
use crate::saved::Saved;
use crate::{Toolstack, guest, stubdomain};

/// What both domains and their devices are made of: found once, in the first step.
pub(super) struct Prepared {
    pub(super) guest: guest::Prepared,
    pub(super) stubdomain: stubdomain::Prepared,
    /// QEMU's devices, and its arguments once the guest's domid is known.
    pub(super) plan: Plan,
    /// Memory and devices come from a stream.
    pub(super) incoming: bool,
}

impl Prepared {
    /// Everything that can be known to fail while a guest with this name and UUID may still exist.
    pub(super) fn find(
        ts: &Toolstack,
        config: &GuestConfig,
        uuid: Uuid,
        saved: Option<&Saved>,
    ) -> Result<Self, Cause> {
        let guest = guest::Prepared::find(ts, config)?;
        let stubdomain = stubdomain::Prepared::find(ts, config)?;
        let qemu = stubdomain.image.qemu.clone();
        // QEMU has as many processors as its state, whatever the guest was told to use since.
        let mut emulated = config.clone();
        emulated.vcpus = saved.map_or(config.vcpus, |saved| saved.processors);
        let plan = qemu_args::plan(&emulated, &Facts { uuid, qemu, incoming: saved.is_some() })?;
        if let Some(saved) = saved {
            saved.check_machine(plan.machine)?;
        }
        initial::check(ts, config)?;
        Ok(Self { guest, stubdomain, plan, incoming: saved.is_some() })
    }

    pub(super) fn check_memory(&self, ts: &Toolstack, config: &GuestConfig) -> StepResult {
        let need = self.guest.memory_needed(config) + self.stubdomain.memory_needed();
        ts.check_free_memory("guest and stubdomain need", need)
    }
}

/// Checks whether a guest could be created again, as far as it can be known while it still has its name, its UUID and
/// its memory: what would fail after it is destroyed would lose it.
pub(super) fn check_restart(ts: &Toolstack, mut record: GuestRecord) -> StepResult {
    let config = record.config.clone();
    let prepared = Prepared::find(ts, &config, record.uuid, None)?;
    prepared.guest.warning(ts, &config)?;
    identity::check_unreadable(&record, &ts.records()?)?;
    let lock = ts.lock_disks();
    // Released again: they are claimed when the guest is created.
    claim(ts, &lock, &mut record, &config.disks).map(drop)
}
