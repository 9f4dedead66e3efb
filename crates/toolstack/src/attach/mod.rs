//! Devices of a guest that runs: attached, detached, moved, shown.
//!
//! Each change is a list of steps, as creating is. The state file says what is being changed from before the first
//! step that changes anything until the last one ([`crate::record::Change`]), so that a daemon that was killed leaves
//! nothing half attached: its successor puts an attachment back, and finishes a detachment that the guest had agreed
//! to ([`Toolstack::recover`]). A command that is repeated afterwards finds the guest as before, or the change made,
//! which is its success.

mod card;
mod device;
mod disk;
mod list;
mod medium;
mod nic;
mod resume;
mod screen;
mod scsi;

use config::Vdev;
use xen::{DomainState, HvmParam};
use xen_types::DomId;

use crate::create::lives;
use crate::error::{Cause, ToolstackError as Error};
use crate::record::{Change, GuestRecord, Phase};
use crate::steps::StepResult;
use crate::{Guest, Toolstack, UndoFailure};

pub use list::{DiskEntry, Link, NicEntry};
pub(crate) use resume::{needs_qemu, settle};

/// How a device is taken from a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detach {
    /// When the guest has let it go.
    #[default]
    Ask,
    /// At once, whatever the guest does with it.
    Force,
}

/// A guest that runs and is being changed.
pub(crate) struct Live<'a> {
    pub(crate) ts: &'a Toolstack,
    pub(crate) record: GuestRecord,
    pub(crate) domid: DomId,
    pub(crate) stub: DomId,
}

impl<'a> Live<'a> {
    /// Finds a guest that runs, paused or not, with its stubdomain.
    pub(crate) fn find(ts: &'a Toolstack, domid: DomId) -> Result<Self, Cause> {
        let record = ts.record_of(domid)?;
        let not_now = |why: &str| Cause::NotNow { name: record.name.clone(), why: why.to_owned() };
        let (Phase::Running, Some(stub)) = (record.phase, record.stub_domid) else {
            return Err(not_now("is being made or destroyed"));
        };
        match ts.hypervisor.domain_info(domid)?.map(|info| info.state) {
            None => return Err(not_now("is gone")),
            Some(DomainState { shutdown: Some(reason), .. }) => {
                return Err(not_now(&format!("has ended ({reason})")));
            }
            Some(_) => {}
        }
        if !lives(ts, stub)? {
            return Err(not_now("has lost its device model"));
        }
        Ok(Self { ts, record, domid, stub })
    }

    /// The same, with what an earlier daemon began brought to an end.
    fn settled(ts: &'a Toolstack, domid: DomId) -> Result<Self, Error> {
        let mut live = Self::find(ts, domid)?;
        settle(&mut live)?;
        Ok(live)
    }

    pub(crate) fn save(&self) -> StepResult {
        self.record.save(&*self.ts.host, &self.ts.paths)
    }

    pub(crate) fn note(&mut self, change: Change) -> StepResult {
        self.record.change = Some(change);
        self.save()
    }

    pub(crate) fn forget_change(&mut self) -> StepResult {
        if self.record.change.is_none() {
            return Ok(());
        }
        let change = self.record.change.take();
        self.save().inspect_err(|_| self.record.change = change)
    }

    /// The guest listens for event channels, and so for xenstore.
    pub(crate) fn has_pv_drivers(&self) -> Result<bool, Cause> {
        Ok(self.ts.hypervisor.hvm_param(self.domid, HvmParam::CallbackIrq)? != 0)
    }

    /// The guest's PV drivers are at work for its devices, so that it has unplugged what is emulated: without the
    /// platform device it cannot, and Linux then has no PV devices.
    pub(crate) fn uses_pv_devices(&self) -> Result<bool, Cause> {
        Ok(self.record.config.platform.xen_platform_pci && self.has_pv_drivers()?)
    }

    /// The stubdomain's disk behind a disk of the guest.
    pub(crate) fn stub_vdev(&self, vdev: Vdev) -> Option<Vdev> {
        self.record.emulated_disks.iter().find(|disk| disk.vdev == vdev).map(|disk| disk.stub_vdev)
    }

    pub(crate) fn guest(self) -> Guest {
        let GuestRecord { uuid, name, config, .. } = self.record;
        Guest { uuid, name, domid: self.domid, stub_domid: self.stub, config }
    }

    /// What became of a change whose steps were all run, whatever failed.
    fn concluded(self, left: Vec<UndoFailure>) -> Result<Guest, Error> {
        if left.is_empty() {
            Ok(self.guest())
        } else {
            Err(Error::NotDetached { name: self.record.name, left })
        }
    }
}
