//! Recovery after the daemon was killed or the host was restarted.

use config::{Disk, Uuid};

use super::create::START;
use super::decide::{Decision, GuestEvent, decide};
use super::dump_core::resume_dump;
use super::max_memory::resume_max_memory;
use super::memory::resume_memory;
use super::migrate::resume_migration;
use super::pin::resume_pins;
use super::receive::resume_reception;
use super::rename::resume_rename;
use super::save::resume_save;
use super::suspend::{go_on, resume_suspension};
use super::vcpus::resume_vcpus;
use crate::device::scsi::is_plugged;
use crate::device::{cdrom, disk, nic};
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error, UndoFailure};
use crate::event::Event;
use crate::guest::{Live, suspend};
use crate::operation::{Cursor, Kind, Operation, Restart, Resumed, Stage, Turn, Way};
use crate::query::screenshot::resume_shot;
use crate::record::{Found, GuestRecord, LOOP_TAG, Records};
use crate::{Guest, Toolstack};

/// What was found at the start of a daemon.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Guests that run, or have ended while no daemon was running: to be watched from now on.
    pub guests: Vec<Guest>,
    /// Those of them with an interrupted change, see [`Toolstack::settle_change`].
    pub changing: Vec<GuestId>,
    /// Those of them that are restarted when their turn has come.
    pub delayed: Vec<(GuestId, Turn)>,
    /// Those of them whose operation a peer has to decide: they are locked.
    pub held: Vec<GuestId>,
    /// Incomplete guests, see [`Toolstack::finish`].
    pub unfinished: Vec<Unfinished>,
    /// Names of those of them that [`Toolstack::recover`] has removed.
    pub cleaned: Vec<String>,
    /// Guests that ended with an earlier boot of the host. Their state files are removed.
    pub ended: Vec<EndedWithHost>,
    /// What could not be read or cleaned.
    pub troubles: Vec<Error>,
}

/// A guest whose create, destroy or restart was interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its identity.
    pub id: GuestId,
    /// Its name.
    pub name: String,
    /// The guest, if both its domains were made.
    pub guest: Option<Guest>,
    /// The turn of the restart that goes on; nothing when the guest is to be removed.
    pub restart: Option<Turn>,
}

/// A guest that ended with an earlier boot of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedWithHost {
    /// Its identity.
    pub id: GuestId,
    /// Its name.
    pub name: String,
    /// It was being restarted.
    pub was_restarting: bool,
}

impl Toolstack {
    /// Reads the state files: returns the guests, and those that are incomplete. Waits for
    /// nothing but the disk.
    ///
    /// A guest from an earlier boot of the host has only its state file left; the file is removed. A file that cannot
    /// be read is reported, and its guest is left alone.
    ///
    /// To be called while no other call is under way.
    ///
    /// # Errors
    /// When Xen does not answer or the folder of the state files cannot be read.
    pub fn adopt(&self) -> Result<Recovered, Error> {
        let Records { guests, past, unreadable, copies } = self.records()?;
        let mut recovered = Recovered::default();
        recovered.troubles.extend(unreadable.into_iter().chain(copies).map(|file| Error::from(file.cause)));
        for record in past {
            self.end_with_host(&record, &mut recovered);
        }
        let mut guests = guests;
        // One whose journal says nothing is left alone: it may be another host's.
        guests.retain_mut(|record| match self.reconcile(record) {
            Ok(()) => true,
            Err(cause) => {
                recovered.troubles.push(cause.into());
                false
            }
        });
        self.settle_journals(&guests, &mut recovered);
        for record in &guests {
            if !is_planned_too_early(record, &guests) {
                self.sort_out(record.clone(), &mut recovered);
            } else if let Err(cause) = record.remove(&*self.host, &self.paths) {
                recovered.troubles.push(cause.into());
            }
        }
        Ok(recovered)
    }

    /// The same, and waits until everything that was cut off is settled: changes are undone or completed, incomplete
    /// guests are removed or restarted, loop devices without a guest are detached.
    ///
    /// # Errors
    /// When Xen does not answer or the folder of the state files cannot be read.
    pub fn recover(&self, events: &mut dyn FnMut(Event)) -> Result<Recovered, Error> {
        let mut recovered = self.adopt()?;
        for id in std::mem::take(&mut recovered.changing) {
            match self.settle_change(id, events) {
                Ok(settled) => {
                    let place = recovered.guests.iter_mut().find(|guest| guest.id() == id);
                    if let (Some(place), Some(settled)) = (place, settled) {
                        *place = settled;
                    }
                }
                Err(error) => recovered.troubles.push(error),
            }
        }
        for Unfinished { id, name, .. } in std::mem::take(&mut recovered.unfinished) {
            match self.finish(id, events) {
                Ok(Some(guest)) => recovered.guests.push(guest),
                Ok(None) => recovered.cleaned.push(name),
                Err(error) => recovered.troubles.push(error),
            }
        }
        self.detach_unused_loops(events)?;
        Ok(recovered)
    }

    /// Ends a create, destroy or restart that was interrupted. A create is undone, a destroy completed; a restart goes
    /// on, and its guest is returned.
    ///
    /// # Errors
    /// [`Error::NotClean`] when something is left; as for [`Self::restart`].
    pub fn finish(&self, id: GuestId, events: &mut dyn FnMut(Event)) -> Result<Option<Guest>, Error> {
        let record = self.record_of(id)?;
        match record.operation.clone() {
            Some(Operation { kind: Kind::Restart(_), .. }) => self.finish_restart(id, events).map(Some),
            Some(operation @ Operation { kind: Kind::Create { .. } | Kind::Receive { .. }, .. }) => {
                let is_started = operation.cursor.is_at(START);
                let record = self.resume_create(record, operation, events)?;
                Ok(record.guest().filter(|_| is_started))
            }
            _ => self.destroy(id, events).map(|()| None),
        }
    }

    /// Whether this guest's create, destroy or restart has ended and is not complete, so that [`Self::destroy`] has
    /// something to remove. To be called when none is under way. A guest of this UUID with another name is another one.
    /// Where the state file cannot be read now, it may be so.
    #[must_use]
    pub fn is_incomplete(&self, id: GuestId, name: &str) -> bool {
        match self.record_of(id) {
            Ok(record) => {
                record.name == name && record.operation.is_some_and(|operation| operation.is_of_domains())
            }
            Err(Cause::NoGuest(_)) => false,
            Err(_) => true,
        }
    }

    /// Only the file outlived the boot of the host.
    fn end_with_host(&self, record: &GuestRecord, recovered: &mut Recovered) {
        if decide(&record.config, &GuestEvent::EndedWithHost) != Decision::Destroy {
            return;
        }
        let operation = record.operation.as_ref();
        let was_restarting = operation.is_some_and(|operation| matches!(operation.kind, Kind::Restart(_)));
        match record.remove(&*self.host, &self.paths) {
            Ok(()) => {
                recovered.ended.push(EndedWithHost {
                    id: record.id(),
                    name: record.name.clone(),
                    was_restarting,
                });
            }
            Err(cause) => recovered.troubles.push(cause.into()),
        }
    }

    fn sort_out(&self, record: GuestRecord, recovered: &mut Recovered) {
        // Later its stubdomain, which showed that it is of this boot, may be gone.
        if !record.has_stored_boot()
            && let Err(cause) = record.save(&*self.host, &self.paths)
        {
            recovered.troubles.push(cause.into());
        }
        let record = match self.started(record.clone()) {
            Ok(record) => record,
            Err(error) => {
                recovered.troubles.push(error);
                record
            }
        };
        let (id, name, operation) = (record.id(), record.name.clone(), record.operation.clone());
        let can_settle = !needs_qemu(&record);
        let guest = record.guest();
        let restart = match &operation {
            Some(Operation { kind: Kind::Restart(restart), .. }) => Some(restart.turn),
            _ => None,
        };
        let (Some(guest), false) = (guest.clone(), operation.as_ref().is_some_and(Operation::is_of_domains))
        else {
            recovered.unfinished.push(Unfinished { id, name, guest, restart });
            return;
        };
        // One that has ended or is gone is given back too: what is done with it is its configuration's to say.
        recovered.guests.push(guest);
        match operation {
            None => {}
            Some(Operation { cursor: Cursor { way: Way::Peer, .. }, .. }) => recovered.held.push(id),
            Some(Operation { kind: Kind::Restart(restart), .. }) => {
                recovered.delayed.push((id, restart.turn));
            }
            Some(_) if can_settle => recovered.changing.push(id),
            Some(_) => {}
        }
    }

    /// Starts a guest whose create was interrupted before only that was missing.
    fn started(&self, record: GuestRecord) -> Result<GuestRecord, Error> {
        match &record.operation {
            Some(operation @ Operation { kind, cursor })
                if cursor.is_at(START)
                    && (matches!(kind, Kind::Create { .. })
                        || matches!(kind, Kind::Restart(Restart { stage: Stage::Creating, .. }))) =>
            {
                let operation = operation.clone();
                self.resume_create(record, operation, &mut |_| ())
            }
            _ => Ok(record),
        }
    }

    /// Undoes or completes an interrupted change; returns the guest after it, or nothing when the guest does not run.
    ///
    /// What fails is tried again before the guest's next change; a guest that has ended meanwhile is destroyed with all
    /// that it has. What QEMU has to put back waits until there is a session with it.
    ///
    /// # Errors
    /// When something is left of the change.
    pub fn settle_change(&self, id: GuestId, events: &mut dyn FnMut(Event)) -> Result<Option<Guest>, Error> {
        if let Ok(live) = Live::find(self, id) {
            let live = if needs_qemu(&live.record) { live } else { self.settle(live, events)? };
            return Ok(Some(live.guest()?));
        }
        let record = self.record_of(id)?;
        match record.operation.clone() {
            Some(Operation { kind: Kind::Rename { from, for_good }, cursor }) => {
                let (record, resumed) = resume_rename(self, record, (from, for_good), &cursor, events);
                settled(&record, resumed)?;
                Ok(record.guest())
            }
            Some(Operation { kind: Kind::DumpCore { id, to, paused }, cursor }) => {
                let live = Live { ts: self, record };
                let (live, resumed) = resume_dump(live, (id, to, paused), &cursor, events);
                settled(&live.record, resumed)?;
                Ok(live.record.guest())
            }
            _ => Ok(None),
        }
    }

    /// Undoes or completes what an earlier daemon began with a guest that runs. When something of it stays, so does its
    /// entry, for the next attempt.
    pub(crate) fn settle<'a>(
        &'a self,
        live: Live<'a>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Live<'a>, Cause> {
        let Some(Operation { kind, cursor }) = live.record.operation.clone() else {
            if suspend::is_late(self, live.domain()?)? {
                go_on(&live)?;
            }
            return Ok(live);
        };
        let (live, resumed) = match kind {
            Kind::AttachDisk(disk) => disk::attach::resume_attach(live, disk, &cursor, events),
            Kind::DetachDisk { vdev } => disk::attach::resume_detach(live, vdev, &cursor, events),
            Kind::ChangeMedium { vdev } => {
                cdrom::resume_change(live, vdev, &cursor, events).map_err(earlier)?
            }
            Kind::Screenshot { vdev } => resume_shot(live, vdev, &cursor, events),
            Kind::AttachNic(nic) => {
                nic::attach::resume_attach(live, nic, &cursor, events).map_err(earlier)?
            }
            Kind::DetachNic { devid } => nic::attach::resume_detach(live, devid, &cursor, events),
            Kind::MoveNic { devid } => nic::bridge::resume_move(live, devid, &cursor, events),
            Kind::SetMemory { from } => resume_memory(live, from, &cursor, events),
            Kind::SetMaxMemory { from } => resume_max_memory(live, from, &cursor, events),
            Kind::SetVcpus { from } => resume_vcpus(live, from, &cursor, events),
            Kind::PinVcpus { from } => resume_pins(live, from, &cursor, events),
            // Given up, it is the driver's to destroy.
            Kind::Save { .. } | Kind::Migrate { .. } if cursor.way == Way::Forward => return Ok(live),
            kind @ (Kind::Suspend | Kind::Resume) => resume_suspension(live, kind, &cursor, events),
            Kind::Save { id, to, after } => resume_save(live, (id, to, after), &cursor, events),
            Kind::DumpCore { id, to, paused } => resume_dump(live, (id, to, paused), &cursor, events),
            Kind::Migrate { id, to } => resume_migration(live, (id, to), &cursor),
            Kind::Receive { id } => resume_reception(live, id)?,
            Kind::Rename { from, for_good } => {
                let Live { ts, record } = live;
                let (record, resumed) = resume_rename(ts, record, (from, for_good), &cursor, events);
                (Live { ts, record }, resumed)
            }
            // The driver's to continue.
            Kind::Create { .. } | Kind::Destroy | Kind::Restart(_) => return Ok(live),
        };
        settled(&live.record, resumed)?;
        Ok(live)
    }

    /// Detaches loop devices with our tag whose guest has neither a state file nor a domain. Other calls may be under
    /// way.
    ///
    /// # Errors
    /// When Xen does not answer, the state files cannot be read or a loop device cannot be detached.
    pub fn detach_unused_loops(&self, events: &mut dyn FnMut(Event)) -> Result<(), Error> {
        // First of all: the state file of each of them was written before it was attached.
        let mut loops = self.host.find_loops(LOOP_TAG).map_err(Cause::from)?;
        if loops.is_empty() {
            return Ok(());
        }
        let Records { guests, unreadable, .. } = self.records()?;
        if unreadable.iter().any(|file| file.uuid.is_none()) {
            let text = "Unused loop devices are not detached: they may belong to a guest whose state file has no UUID";
            events(Event::Warning { text: text.to_owned() });
            return Ok(());
        }
        let files = unreadable.iter().filter_map(|file| file.uuid);
        let known: Vec<Uuid> = guests.iter().map(|record| record.uuid).chain(files).collect();
        let domains = self.hypervisor.list_domains().map_err(Cause::from)?;
        let has_guest =
            |uuid: &Uuid| known.contains(uuid) || domains.iter().any(|info| info.uuid == *uuid.as_bytes());
        loops.retain(|attachment| {
            let uuid = attachment.tag.strip_prefix(LOOP_TAG).and_then(|uuid| uuid.parse().ok());
            !uuid.as_ref().is_some_and(has_guest)
        });
        for attachment in loops {
            // A guest may have been created again meanwhile, with the same UUID: its file comes first.
            let uuid = attachment.tag.strip_prefix(LOOP_TAG).and_then(|uuid| uuid.parse::<Uuid>().ok());
            let file = uuid.map(|uuid| GuestRecord::load(&*self.host, &GuestRecord::path(&self.paths, uuid)));
            if file.is_some_and(|found| !matches!(found, Found::Nothing)) {
                continue;
            }
            let device = attachment.device.path.display();
            events(Event::Warning { text: format!("Detaching {device}, which no guest uses any longer") });
            self.host.detach_loop(&attachment).map_err(Cause::from)?;
        }
        Ok(())
    }
}

/// Whether a guest is to follow one that does not have its other name yet. Nothing was made of it, and the renaming is
/// undone: the ended guest's configuration decides once more.
fn is_planned_too_early(record: &GuestRecord, guests: &[GuestRecord]) -> bool {
    let Some(Operation { kind: Kind::Restart(Restart { predecessor: Some(old), .. }), cursor }) =
        &record.operation
    else {
        return false;
    };
    let is_renaming =
        |other: &GuestRecord| matches!(&other.operation, Some(Operation { kind: Kind::Rename { .. }, .. }));
    let is_renamed = |other: &GuestRecord| other.name != other.config.name && !is_renaming(other);
    cursor.step.is_empty() && guests.iter().any(|other| other.uuid == old.uuid && !is_renamed(other))
}

/// Whether QEMU has to undo the change; there is no session with it yet when a daemon starts.
fn needs_qemu(record: &GuestRecord) -> bool {
    match record.operation.as_ref().map(|operation| &operation.kind) {
        Some(Kind::ChangeMedium { .. }) => true,
        Some(Kind::AttachDisk(Disk { vdev, .. }) | Kind::DetachDisk { vdev }) => is_plugged(record, *vdev),
        Some(Kind::AttachNic(nic)) => record.emulated_nics.contains(&nic.devid),
        _ => false,
    }
}

fn earlier(cause: Cause) -> Cause {
    Cause::EarlierChange(Box::new(cause))
}

/// What became of an interrupted change.
fn settled(record: &GuestRecord, resumed: Result<Resumed, Vec<UndoFailure>>) -> Result<(), Cause> {
    match resumed {
        Ok(Resumed::Undone | Resumed::Completed) => Ok(()),
        Ok(Resumed::Held) => Err(Cause::Held { name: record.name.clone() }),
        Err(left) => match left.into_iter().next() {
            Some(failure) => Err(earlier(failure.cause)),
            None => Ok(()),
        },
    }
}
