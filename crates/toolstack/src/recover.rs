//! Recovery after the daemon was killed or the host was restarted.

use config::Uuid;

use crate::attach::{Live, needs_qemu, settle};
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::lifecycle::{Decision, GuestEvent, decide};
use crate::record::{Found, GuestRecord, LOOP_TAG, Phase, Records};
use crate::{Guest, Toolstack};

/// What was found at the start of a daemon.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Guests that run, or have ended while no daemon was running: to be watched from now on.
    pub guests: Vec<Guest>,
    /// Those of them with an interrupted change, see [`Toolstack::settle_change`].
    pub changing: Vec<GuestId>,
    /// Incomplete guests, to be destroyed.
    pub unfinished: Vec<Unfinished>,
    /// Names of those of them that [`Toolstack::recover`] has destroyed.
    pub cleaned: Vec<String>,
    /// Guests that ended with an earlier boot of the host. Their state files are removed.
    pub ended: Vec<EndedWithHost>,
    /// What could not be read or cleaned.
    pub troubles: Vec<Error>,
}

/// A guest whose create or destroy was interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its identity.
    pub id: GuestId,
    /// Its name.
    pub name: String,
    /// The guest, if both its domains were made.
    pub guest: Option<Guest>,
}

/// A guest that ended with an earlier boot of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedWithHost {
    /// Its identity.
    pub id: GuestId,
    /// Its name.
    pub name: String,
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
    pub fn take_up(&self) -> Result<Recovered, Error> {
        let Records { guests, past, unreadable, copies } = self.records()?;
        let mut recovered = Recovered::default();
        recovered.troubles.extend(unreadable.into_iter().chain(copies).map(|file| Error::from(file.cause)));
        for record in past {
            self.end_with_host(&record, &mut recovered);
        }
        for record in guests {
            self.sort_out(record, &mut recovered);
        }
        Ok(recovered)
    }

    /// The same, and waits until everything that was cut off is settled: changes are put back or ended, half guests are
    /// destroyed, loop devices without a guest are detached.
    ///
    /// # Errors
    /// When Xen does not answer or the folder of the state files cannot be read.
    pub fn recover(&self, events: &mut dyn FnMut(Event)) -> Result<Recovered, Error> {
        let mut recovered = self.take_up()?;
        for id in std::mem::take(&mut recovered.changing) {
            match self.settle_change(id) {
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
            match self.destroy(id, events) {
                Ok(()) => recovered.cleaned.push(name),
                Err(error) => recovered.troubles.push(error),
            }
        }
        self.detach_unused_loops(events)?;
        Ok(recovered)
    }

    /// Only the file outlived the boot of the host.
    fn end_with_host(&self, record: &GuestRecord, recovered: &mut Recovered) {
        if decide(&record.config, &GuestEvent::EndedWithHost) != Decision::Destroy {
            return;
        }
        match record.remove(&*self.host, &self.paths) {
            Ok(()) => {
                recovered.ended.push(EndedWithHost { id: record.id(), name: record.name.clone() });
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
        let (id, phase) = (record.id(), record.phase);
        let changing = record.change.is_some() && !needs_qemu(&record);
        let GuestRecord { uuid, stub_uuid, name, config, domid, stub_domid, .. } = record;
        let guest = match (domid, stub_domid) {
            (Some(domid), Some(stub_domid)) => {
                Some(Guest { uuid, stub_uuid, name: name.clone(), domid, stub_domid, config })
            }
            _ => None,
        };
        match guest {
            // One that has ended or is gone is given back too: what is done with it is its configuration's to say.
            Some(guest) if phase == Phase::Running => {
                recovered.guests.push(guest);
                if changing {
                    recovered.changing.push(id);
                }
            }
            guest => recovered.unfinished.push(Unfinished { id, name, guest }),
        }
    }

    /// Undoes or completes an interrupted change; returns the guest after it, or nothing when the guest does not run.
    ///
    /// What fails is tried again before the guest's next change; a guest that has ended meanwhile is destroyed with all
    /// that it has. What QEMU has to put back waits until there is a session with it.
    ///
    /// # Errors
    /// When something is left of the change.
    pub fn settle_change(&self, id: GuestId) -> Result<Option<Guest>, Error> {
        let Ok(live) = Live::find(self, id) else { return Ok(None) };
        let live = if needs_qemu(&live.record) { live } else { settle(live)? };
        Ok(Some(live.guest()?))
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
