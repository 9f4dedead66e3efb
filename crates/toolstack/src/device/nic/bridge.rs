//! Moving network interfaces to another bridge.

use config::Nic;
use xenstore::Store;

use super::attach::{find_nic, users};
use super::{Vif, bridge_of, check_bridge};
use crate::dom0::HostError;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::nodes::below;
use crate::operation::{Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, resume, run};
use crate::record::GuestRecord;
use crate::{Guest, Toolstack, UndoFailure};

/// An interface being moved to another bridge.
struct Move<'a> {
    live: Live<'a>,
    devid: u32,
    from: Option<String>,
    to: String,
    /// What an undo could not put back as it was.
    warnings: Vec<String>,
}

fn move_steps<'b>() -> Vec<Step<Move<'b>>> {
    vec![
        Step::new("check", "check the network interface and the bridge", Move::check),
        Step::new(ENTRY, "record the move", |m: &mut Move<'_>| m.enter(Cursor::back(ENTRY))).entry(),
        Step::new("move-guest", "move the guest's interface", |m: &mut Move<'_>| m.go(false))
            .undo(|m: &mut Move<'_>| m.back(false)),
        Step::new("move-device-model", "move the device model's interface", |m: &mut Move<'_>| m.go(true))
            .undo(|m: &mut Move<'_>| m.back(true)),
        Step::new("record-bridge", "record the bridge", Move::record).undo(Move::unrecord),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::set_bridge`], in order.
    #[must_use]
    pub fn set_bridge_steps() -> Vec<&'static str> {
        ids(&move_steps())
    }

    /// Moves a network interface to another bridge, with the PV interface and the emulated NIC.
    ///
    /// # Errors
    /// [`Error::Step`], and everything was undone; [`Cause::NotNow`] when the guest does not run.
    pub fn set_bridge(
        &self,
        id: GuestId,
        devid: u32,
        to: &str,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        let from = find_nic(&live, devid)?.bridge;
        let mut moving = Move { live, devid, from, to: to.to_owned(), warnings: Vec::new() };
        let moved = run(&move_steps(), &mut moving, &self.faults, events);
        moving.warn(events);
        moved?;
        Ok(moving.live.guest()?)
    }
}

/// Undoes a move that an earlier process began.
pub(crate) fn resume_move<'a>(
    live: Live<'a>,
    devid: u32,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let from = find_nic(&live, devid).ok().and_then(|nic| nic.bridge);
    let mut moving = Move { live, devid, to: String::new(), from, warnings: Vec::new() };
    let resumed = resume(&move_steps(), &mut moving, cursor, events);
    moving.warn(events);
    (moving.live, resumed)
}

impl OnGuest for Move<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::MoveNic { devid: self.devid }
    }
}

impl Move<'_> {
    /// The interface's users as they would be on another bridge.
    fn vif(&self, stub: bool, bridge: Option<String>) -> Result<Option<Vif>, Cause> {
        let mut nic = find_nic(&self.live, self.devid)?;
        if let Some(bridge) = bridge {
            nic.bridge = Some(bridge);
        }
        Ok(users(&self.live, &nic)?.into_iter().find(|vif| vif.stub == stub))
    }

    fn check(&mut self) -> StepResult {
        let nic = find_nic(&self.live, self.devid)?;
        let about = |cause: Cause| cause.about(format!("Network interface {}", self.devid));
        if let Some(script) = &nic.script {
            return Err(about(Cause::Unsupported {
                what: "another bridge".to_owned(),
                why: format!("its script {script} connects it; detach it and attach it again"),
            }));
        }
        check_bridge(&Nic { bridge: Some(self.to.clone()), ..nic }, &*self.live.ts.host).map_err(about)
    }

    fn go(&mut self, stub: bool) -> StepResult {
        let vif = self.vif(stub, Some(self.to.clone()))?;
        vif.map_or(Ok(()), |vif| place(&mut self.live, &vif))
    }

    fn back(&mut self, stub: bool) -> StepResult {
        let Some(vif) = self.vif(stub, None)? else { return Ok(()) };
        match place(&mut self.live, &vif) {
            // Someone has deleted it. Trying again would fail too, and the guest could not be changed any more.
            Err(Cause::Host(HostError::NoBridge(deleted))) => self.leave(&vif, &deleted),
            other => other,
        }
    }

    fn warn(&mut self, events: &mut dyn FnMut(Event)) {
        self.warnings.drain(..).for_each(|text| events(Event::Warning { text }));
    }

    /// Leaves an interface where it is, and records that.
    fn leave(&mut self, vif: &Vif, deleted: &str) -> StepResult {
        let bridge = self.live.ts.host.bridge_of(&vif.interface(), vif.backend())?;
        let is_where = bridge
            .as_ref()
            .map_or_else(|| "is on no bridge".to_owned(), |bridge| format!("stays on {bridge}"));
        self.warnings.push(format!(
            "The interface {} of the guest {} {is_where}: its bridge {deleted} was deleted",
            vif.interface(),
            self.live.record.name
        ));
        // An interface whose bridge was deleted is on none; the configuration keeps that bridge's name.
        let Some(bridge) = bridge else { return Ok(()) };
        if !vif.stub {
            set_bridge_of(&mut self.live, self.devid, Some(&bridge));
        }
        note_bridge(&mut self.live, vif, &bridge)
    }

    fn record(&mut self) -> StepResult {
        let (devid, to) = (self.devid, self.to.clone());
        set_bridge_of(&mut self.live, devid, Some(&to));
        Ok(())
    }

    fn unrecord(&mut self) -> StepResult {
        let (devid, from) = (self.devid, self.from.clone());
        set_bridge_of(&mut self.live, devid, from.as_deref());
        Ok(())
    }
}

fn set_bridge_of(live: &mut Live<'_>, devid: u32, bridge: Option<&str>) {
    for nic in live.record.config.nics.iter_mut().filter(|nic| nic.devid == devid) {
        nic.bridge = bridge.map(str::to_owned);
    }
}

/// Puts an interface that is connected on the bridge that it names.
fn place(live: &mut Live<'_>, vif: &Vif) -> StepResult {
    let to = bridge_of(&vif.nic);
    live.ts.host.move_port(&vif.interface(), vif.backend(), to)?;
    note_bridge(live, vif, to)
}

fn note_bridge(live: &mut Live<'_>, vif: &Vif, bridge: &str) -> StepResult {
    let interface = vif.interface();
    for port in live.record.ports.iter_mut().filter(|port| port.interface == interface) {
        bridge.clone_into(&mut port.bridge);
    }
    Ok(live.ts.xenstore.write(&below(&vif.id().back(), "bridge"), bridge.as_bytes())?)
}
