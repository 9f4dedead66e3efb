//! Attaching and detaching network interfaces.

use std::time::Instant;

use config::Nic;
use xenbus::{DeviceId, DeviceKind};

use crate::batch::Batch;
use crate::device::backend::wait_for;
use crate::device::emulated_nic::EmulatedNic;
use crate::device::nic::{Vif, check_bridge};
use crate::device::{Detach, check_backend, release, script};
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::operation::{Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, resume, run};
use crate::record::GuestRecord;
use crate::{Guest, Toolstack, UndoFailure};

/// How many interfaces a guest may have, as in its configuration.
const MAX_NICS: usize = 64;

/// An interface being attached.
struct Attachment<'a> {
    live: Live<'a>,
    nic: Nic,
    /// QEMU's emulated NIC for it.
    emulated: Option<EmulatedNic>,
}

fn attach_steps<'b>() -> Vec<Step<Attachment<'b>>> {
    vec![
        Step::new("check", "check the network interface", Attachment::check),
        Step::new(ENTRY, "record the attachment", Attachment::note).undo(Attachment::forget).entry(),
        Step::new("write-nodes", "write its xenstore nodes", Attachment::write_nodes)
            .undo(Attachment::remove_nodes),
        Step::new("connect-bridge", "add it to its bridge", Attachment::connect).undo(Attachment::disconnect),
        Step::new("await-backend", "wait for its backend", |a: &mut Attachment<'_>| {
            let devices = a.users()?.iter().map(Vif::id).collect();
            wait_for(a.live.ts, devices)
        }),
        Step::new("plug-emulated", "plug in its emulated NIC", Attachment::plug).undo(Attachment::unplug),
        Step::new("record-device", "record the network interface", Attachment::record)
            .undo(Attachment::unrecord),
    ]
}

/// An interface being detached.
struct Detachment<'a> {
    live: Live<'a>,
    devid: u32,
    how: Detach,
}

/// Once the guest has agreed, the detachment cannot be undone.
fn detach_steps<'b>() -> Vec<Step<Detachment<'b>>> {
    vec![
        Step::new("check", "check the network interface", Detachment::check),
        Step::new(ENTRY, "record the detachment", |d: &mut Detachment<'_>| d.enter(Cursor::back(ENTRY)))
            .entry(),
        Step::new("ask-guest", "ask the guest to release the interface", Detachment::ask)
            .undo(|d: &mut Detachment<'_>| restore_nic(&mut d.live, d.devid)),
        Step::new("remove-device", "remove the interface", |d: &mut Detachment<'_>| {
            remove_nic(&mut d.live, d.devid)?;
            forget_nic(&mut d.live, d.devid);
            Ok(())
        })
        .point_of_no_return(),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::attach_nic`], in order.
    #[must_use]
    pub fn attach_nic_steps() -> Vec<&'static str> {
        ids(&attach_steps())
    }

    /// The ids of the steps of [`Self::detach_nic`], in order.
    #[must_use]
    pub fn detach_nic_steps() -> Vec<&'static str> {
        ids(&detach_steps())
    }

    /// The number of an interface that shall get the lowest one above all that the guest has.
    pub const NEXT_NIC: u32 = u32::MAX;

    /// Attaches a network interface to a running guest, which its PV driver sees at once. One that is already attached
    /// as described, with its number or its address, is left unchanged.
    ///
    /// # Errors
    /// [`Error::Step`], and everything was undone; [`Cause::NotRunning`] when the guest does not run.
    pub fn attach_nic(&self, id: GuestId, nic: &Nic, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        let nic = &numbered(&live, nic);
        if live.record.config.nics.contains(nic) {
            events(Event::Warning { text: format!("Network interface {} is already attached", nic.devid) });
            return Ok(live.guest()?);
        }
        let emulated = EmulatedNic::wanted(&live, nic)?;
        let mut attachment = Attachment { live, nic: nic.clone(), emulated };
        run(&attach_steps(), &mut attachment, &self.faults, events)?;
        Ok(attachment.live.guest()?)
    }

    /// Detaches a network interface from a running guest and its device model.
    ///
    /// # Errors
    /// As for [`Self::detach_disk`].
    pub fn detach_nic(
        &self,
        id: GuestId,
        devid: u32,
        how: Detach,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        let mut detachment = Detachment { live, devid, how };
        let left = run(&detach_steps(), &mut detachment, &self.faults, events)?;
        detachment.live.concluded(left)
    }
}

/// Undoes an attachment that an earlier process began.
pub(crate) fn resume_attach<'a>(
    live: Live<'a>,
    nic: Nic,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> Result<(Live<'a>, Result<Resumed, Vec<UndoFailure>>), Cause> {
    let is_emulated = live.record.emulated_nics.contains(&nic.devid);
    let emulated = if is_emulated { Some(EmulatedNic::of(&live, &nic)?) } else { None };
    let mut attachment = Attachment { live, nic, emulated };
    let resumed = resume(&attach_steps(), &mut attachment, cursor, events);
    Ok((attachment.live, resumed))
}

/// Ends a detachment that an earlier process began: undoes it, or removes the interface if the guest has released it.
pub(crate) fn resume_detach<'a>(
    live: Live<'a>,
    devid: u32,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let mut detachment = Detachment { live, devid, how: Detach::Force };
    let resumed = resume(&detach_steps(), &mut detachment, cursor, events);
    (detachment.live, resumed)
}

impl OnGuest for Attachment<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::AttachNic(self.nic.clone())
    }
}

impl OnGuest for Detachment<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::DetachNic { devid: self.devid }
    }

    /// Unless the guest keeps it, which is no longer asked for it then.
    fn has_passed(&mut self) -> Result<bool, Cause> {
        let id = DeviceId::of_dom0(DeviceKind::Vif, self.live.domid()?, self.devid);
        Ok(!release::withdraw(self.live.ts, id)?)
    }
}

impl Attachment<'_> {
    fn about(&self, cause: Cause) -> Cause {
        cause.about(format!("Network interface {}", self.nic.devid))
    }

    fn check(&mut self) -> StepResult {
        let (ts, record, nic) = (self.live.ts, &self.live.record, &self.nic);
        let exists = |device: String| Err(Cause::DeviceExists { name: record.name.clone(), device });
        if record.config.nics.iter().any(|other| other.devid == nic.devid) {
            return exists(format!("a network interface {}", nic.devid));
        }
        let address = nic.address(&record.uuid);
        if let Some(other) = record.config.nics.iter().find(|other| other.address(&record.uuid) == address) {
            return exists(format!("the address {address} on network interface {}", other.devid));
        }
        if record.config.nics.len() >= MAX_NICS {
            return exists(format!("{MAX_NICS} network interfaces"));
        }
        check_backend(nic.backend.as_deref()).map_err(|cause| self.about(cause))?;
        check_bridge(nic, &*ts.host).map_err(|cause| self.about(cause))
    }

    fn note(&mut self) -> StepResult {
        if self.emulated.is_some() {
            self.live.record.emulated_nics.push(self.nic.devid);
        }
        self.enter(Cursor::back(ENTRY))
    }

    /// The check has found no other interface of this number.
    fn forget(&mut self) -> StepResult {
        let devid = self.nic.devid;
        self.live.record.emulated_nics.retain(|emulated| *emulated != devid);
        Ok(())
    }

    /// The guest, and its stubdomain if QEMU emulates a NIC.
    fn users(&self) -> Result<Vec<Vif>, Cause> {
        let vif = |domid, stub| Vif { domid, nic: self.nic.clone(), stub };
        let mut users = vec![vif(self.live.domid()?, false)];
        if self.emulated.is_some() {
            users.push(vif(self.live.stub()?, true));
        }
        Ok(users)
    }

    fn write_nodes(&mut self) -> StepResult {
        let mut batch = Batch::new();
        for vif in self.users()? {
            vif.add_nodes(self.live.ts, &self.live.record.uuid, &mut batch);
        }
        batch.commit(&self.live.ts.xenstore)
    }

    fn remove_nodes(&mut self) -> StepResult {
        let ids: Vec<DeviceId> = self.users()?.iter().map(Vif::id).collect();
        release::remove(self.live.ts, &ids)
    }

    fn connect(&mut self) -> StepResult {
        let deadline = Instant::now() + self.live.ts.deadlines.backends;
        for vif in self.users()? {
            vif.connect(self.live.ts, &mut self.live.record, deadline).map_err(|cause| self.about(cause))?;
        }
        self.live.save()
    }

    fn disconnect(&mut self) -> StepResult {
        self.users()?.iter().try_for_each(|vif| leave(&mut self.live, vif))
    }

    fn plug(&mut self) -> StepResult {
        let Some(emulated) = &mut self.emulated else { return Ok(()) };
        let plugged = emulated.plug(self.live.ts);
        plugged.map_err(|cause| self.about(cause))
    }

    fn unplug(&mut self) -> StepResult {
        match self.emulated.as_ref().map(|emulated| emulated.unplug(self.live.ts, &self.live.record.name)) {
            // The guest may keep it; it has no traffic then.
            None | Some(Err(Cause::NotReleased { .. })) => Ok(()),
            Some(unplugged) => unplugged,
        }
    }

    fn record(&mut self) -> StepResult {
        self.live.record.config.nics.push(self.nic.clone());
        Ok(())
    }

    fn unrecord(&mut self) -> StepResult {
        let devid = self.nic.devid;
        self.live.record.config.nics.retain(|nic| nic.devid != devid);
        Ok(())
    }
}

impl Detachment<'_> {
    fn check(&mut self) -> StepResult {
        find_nic(&self.live, self.devid).map(drop)
    }

    fn ask(&mut self) -> StepResult {
        match self.how {
            Detach::Force => Ok(()),
            Detach::Ask => {
                let nic = find_nic(&self.live, self.devid)?;
                // A guest with PV drivers has unplugged its emulated NICs.
                if self.live.record.emulated_nics.contains(&nic.devid) && !self.live.uses_pv_devices()? {
                    EmulatedNic::of(&self.live, &nic)?.unplug(self.live.ts, &self.live.record.name)?;
                }
                let id = Vif { domid: self.live.domid()?, nic, stub: false }.id();
                release::ask(self.live.ts, &self.live.record.name, id)
            }
        }
    }
}

/// The interface with its number: that of an existing one with this address, or the next.
fn numbered(live: &Live<'_>, nic: &Nic) -> Nic {
    let nics = &live.record.config.nics;
    if nic.devid != Toolstack::NEXT_NIC {
        return nic.clone();
    }
    let same =
        nics.iter().find(|other| nic.mac.is_some() && Nic { devid: other.devid, ..nic.clone() } == **other);
    let next = || nics.iter().map(|other| other.devid + 1).max().unwrap_or(0);
    Nic { devid: same.map_or_else(next, |other| other.devid), ..nic.clone() }
}

pub(super) fn find_nic(live: &Live<'_>, devid: u32) -> Result<Nic, Cause> {
    let nic = live.record.config.nics.iter().find(|nic| nic.devid == devid);
    let (name, device) = (live.record.name.clone(), format!("network interface {devid}"));
    nic.cloned().ok_or(Cause::NoDevice { name, device })
}

/// The users of an interface: the guest, and its stubdomain if QEMU emulates a NIC for it.
pub(super) fn users(live: &Live<'_>, nic: &Nic) -> Result<Vec<Vif>, Cause> {
    let vif = |domid, stub| Vif { domid, nic: nic.clone(), stub };
    let mut users = vec![vif(live.domid()?, false)];
    if live.record.emulated_nics.contains(&nic.devid) {
        users.push(vif(live.stub()?, true));
    }
    Ok(users)
}

/// Removes an interface from its bridge, or runs its script to undo its work.
fn leave(live: &mut Live<'_>, vif: &Vif) -> StepResult {
    script::undo_of(live.ts, &mut live.record, &[vif.id()])?;
    let interface = vif.interface();
    if live.record.ports.iter().any(|port| port.interface == interface) {
        live.ts.host.remove_port(&interface, vif.backend())?;
        live.record.ports.retain(|port| port.interface != interface);
    }
    Ok(())
}

/// Removes an interface wherever it is.
fn remove_nic(live: &mut Live<'_>, devid: u32) -> StepResult {
    let known = live.record.config.nics.iter().find(|nic| nic.devid == devid);
    let Some(nic) = known.cloned() else { return Ok(()) };
    let users = users(live, &nic)?;
    let ids: Vec<DeviceId> = users.iter().map(Vif::id).collect();
    for vif in &users {
        leave(live, vif)?;
    }
    release::remove(live.ts, &ids)
}

/// The record without an interface.
fn forget_nic(live: &mut Live<'_>, devid: u32) {
    let record = &mut live.record;
    record.config.nics.retain(|nic| nic.devid != devid);
    record.emulated_nics.retain(|emulated| *emulated != devid);
}

/// Returns an interface to a guest that was asked to release it.
fn restore_nic(live: &mut Live<'_>, devid: u32) -> StepResult {
    let Ok(nic) = find_nic(live, devid) else { return Ok(()) };
    let vif = Vif { domid: live.domid()?, nic, stub: false };
    if release::withdraw(live.ts, vif.id())? {
        return Ok(());
    }
    // It has released it, so it is attached again.
    leave(live, &vif)?;
    release::remove(live.ts, &[vif.id()])?;
    let mut batch = Batch::new();
    vif.add_nodes(live.ts, &live.record.uuid, &mut batch);
    batch.commit(&live.ts.xenstore)?;
    vif.connect(live.ts, &mut live.record, Instant::now() + live.ts.deadlines.backends)?;
    wait_for(live.ts, vec![vif.id()])
}
