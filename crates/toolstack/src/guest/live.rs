//! A running guest that is being changed.

use config::{Uuid, Vdev};
use xen::{DomainState, HvmParam, ShutdownReason};
use xen_types::DomId;

use crate::domain::{Domain, GuestId, lives};
use crate::error::{Cause, ToolstackError as Error};
use crate::event::{Event, warnings};
use crate::operation::{Kind, StepResult};
use crate::phase::Phase;
use crate::record::GuestRecord;
use crate::{Guest, Toolstack, UndoFailure};

/// A running guest that is being changed. Each step looks up its domains again.
pub(crate) struct Live<'a> {
    pub(crate) ts: &'a Toolstack,
    pub(crate) record: GuestRecord,
}

impl<'a> Live<'a> {
    /// Finds a guest that runs, paused or not, with its stubdomain.
    pub(crate) fn find(ts: &'a Toolstack, id: GuestId) -> Result<Self, Cause> {
        Self::found(ts, id, false)
    }

    /// Finds a guest that is suspended, with its stubdomain.
    pub(crate) fn suspended(ts: &'a Toolstack, id: GuestId) -> Result<Self, Cause> {
        let live = Self::found(ts, id, true)?;
        if super::suspend::is_suspended(ts, live.domain()?)? {
            return Ok(live);
        }
        Err(live.not_now("is not suspended"))
    }

    fn found(ts: &'a Toolstack, id: GuestId, may_be_suspended: bool) -> Result<Self, Cause> {
        let live = Self { ts, record: ts.record_of(id)? };
        if live.record.phase() != Phase::Running {
            return Err(live.not_now("is being created or destroyed"));
        }
        match ts.look(live.domain()?)?.map(|info| info.state) {
            None => return Err(live.gone()),
            // Where what was begun with it is undone, it goes on.
            Some(DomainState { shutdown: Some(ShutdownReason::Suspend), .. })
                if may_be_suspended || live.goes_on() || super::suspend::is_late(ts, live.domain()?)? => {}
            Some(DomainState { shutdown: Some(reason), .. }) => {
                return Err(Cause::NotRunning { name: live.record.name, reason: Some(reason) });
            }
            Some(_) => {}
        }
        match live.record.stub_domain(ts)? {
            Some(stub) if lives(ts, stub)? => Ok(live),
            _ => Err(live.lost()),
        }
    }

    /// Finds a guest whose domain exists, whatever it does and whether it has a stubdomain.
    pub(crate) fn present(ts: &'a Toolstack, id: GuestId) -> Result<Self, Cause> {
        let live = Self { ts, record: ts.record_of(id)? };
        if live.record.phase() != Phase::Running {
            return Err(live.not_now("is being created or destroyed"));
        }
        match ts.look(live.domain()?)? {
            Some(_) => Ok(live),
            None => Err(live.gone()),
        }
    }

    /// Why nothing else begins with a guest that has ended during a change.
    pub(crate) fn unfinished(&self) -> Cause {
        self.not_now("has ended during a change, which is not undone yet")
    }

    fn goes_on(&self) -> bool {
        let kind = self.record.operation.as_ref().map(|operation| &operation.kind);
        matches!(kind, Some(Kind::Save { .. } | Kind::Suspend | Kind::Resume | Kind::Migrate { .. }))
    }

    fn gone(&self) -> Cause {
        Cause::NotRunning { name: self.record.name.clone(), reason: None }
    }

    fn lost(&self) -> Cause {
        Cause::DeviceModelDead { name: self.record.name.clone() }
    }

    fn not_now(&self, why: &str) -> Cause {
        Cause::NotNow { name: self.record.name.clone(), why: why.to_owned() }
    }

    /// The guest's identity.
    pub(crate) const fn id(&self) -> GuestId {
        self.record.id()
    }

    /// The guest's domain, checked in Xen.
    pub(crate) fn domain(&self) -> Result<Domain, Cause> {
        self.record.guest_domain(self.ts)?.ok_or_else(|| self.gone())
    }

    /// The domid of its domain, for the entries that carry it in xenstore; no other domain has it now.
    pub(crate) fn domid(&self) -> Result<DomId, Cause> {
        self.own(self.record.domid, self.record.uuid)?.ok_or_else(|| self.gone())
    }

    /// The same for its stubdomain.
    pub(crate) fn stub(&self) -> Result<DomId, Cause> {
        let stub = self.own(self.record.stub_domid, self.record.stub_uuid)?;
        stub.ok_or_else(|| self.lost())
    }

    fn own(&self, domid: Option<DomId>, uuid: Uuid) -> Result<Option<DomId>, Cause> {
        Ok(match domid {
            Some(domid) => self.ts.holder(domid, uuid)?.ours(),
            None => None,
        })
    }

    /// The same, with what an earlier daemon began undone or completed; listeners get the warnings of that.
    pub(crate) fn settled(
        ts: &'a Toolstack,
        id: GuestId,
        events: &mut dyn FnMut(Event),
    ) -> Result<Self, Error> {
        Ok(ts.settle(Self::find(ts, id)?, &mut warnings(events))?)
    }

    pub(crate) fn save(&self) -> StepResult {
        self.record.save(&*self.ts.host, &self.ts.paths)
    }

    /// The guest listens for event channels, and so for xenstore.
    pub(crate) fn has_pv_drivers(&self) -> Result<bool, Cause> {
        Ok(self.ts.hypervisor.hvm_param(self.domain()?.domid(), HvmParam::CallbackIrq)? != 0)
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

    pub(crate) fn guest(self) -> Result<Guest, Cause> {
        let not_now = self.not_now("is being created or destroyed");
        self.record.guest().ok_or(not_now)
    }

    /// What became of a change whose steps were all run, whatever failed.
    pub(crate) fn concluded(self, left: Vec<UndoFailure>) -> Result<Guest, Error> {
        if left.is_empty() {
            Ok(self.guest()?)
        } else {
            Err(Error::NotDetached { name: self.record.name, left })
        }
    }
}
