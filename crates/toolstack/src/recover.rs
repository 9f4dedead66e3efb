//! Recovery after the daemon was killed or the host was restarted.

use config::Uuid;

use crate::attach::{Live, needs_qemu, settle};
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::lifecycle::{Decision, GuestEvent, decide};
use crate::record::{GuestRecord, LOOP_TAG, Phase, Records};
use crate::{Guest, Toolstack};

/// What was found at the start of a daemon.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Guests that run, or have ended while nobody watched: to be watched from now on.
    pub guests: Vec<Guest>,
    /// Names of guests that were half made or half destroyed, and are gone now.
    pub cleaned: Vec<String>,
    /// Guests that ended with an earlier boot of the host. Their state files are removed.
    pub ended: Vec<EndedWithHost>,
    /// What could not be read or cleaned.
    pub troubles: Vec<Error>,
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
    /// Reads the state files and Xen's list: clears what was half made or half destroyed, and gives the others back.
    ///
    /// A guest from an earlier boot of the host has only its state file left; the file is removed. A file that cannot
    /// be read is reported, and its guest is left alone.
    ///
    /// To be called while no other call is under way.
    ///
    /// # Errors
    /// When Xen does not answer or the folder of the state files cannot be read.
    pub fn recover(&self, events: &mut dyn FnMut(Event)) -> Result<Recovered, Error> {
        let Records { guests, past, unreadable, copies } = self.records()?;
        let mut recovered = Recovered::default();
        let certain = unreadable.iter().all(|file| file.uuid.is_some());
        let mut known: Vec<Uuid> = unreadable.iter().filter_map(|file| file.uuid).collect();
        recovered.troubles.extend(unreadable.into_iter().chain(copies).map(|file| Error::from(file.cause)));
        for record in past {
            self.end_with_host(&record, &mut recovered);
        }
        for record in guests {
            known.push(record.uuid);
            self.take_up(record, &mut recovered, events)?;
        }
        if certain {
            self.detach_orphans(&known, events)?;
        } else {
            let text = "Unused loop devices are not detached: a state file without a UUID may be that of their guest";
            events(Event::Warning { text: text.to_owned() });
        }
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

    fn take_up(
        &self,
        mut record: GuestRecord,
        recovered: &mut Recovered,
        events: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        // Later its stubdomain, which showed that it is of this boot, may be gone.
        if !record.has_stored_boot()
            && let Err(cause) = record.save(&*self.host, &self.paths)
        {
            recovered.troubles.push(cause.into());
        }
        // One that has ended or is gone is given back too: what is done with it is its configuration's to say.
        if record.phase == Phase::Running
            && let (Some(domid), Some(stub_domid)) = (record.domid, record.stub_domid)
        {
            if record.change.is_some() {
                self.settle_change(&mut record, &mut recovered.troubles);
            }
            let GuestRecord { uuid, stub_uuid, name, config, .. } = record;
            recovered.guests.push(Guest { uuid, stub_uuid, name, domid, stub_domid, config });
            return Ok(());
        }
        self.find_domains(&mut record)?;
        let name = record.name.clone();
        match self.tear_down(record, events) {
            Ok(()) => recovered.cleaned.push(name),
            Err(error) => recovered.troubles.push(error),
        }
        Ok(())
    }

    /// Puts back or ends a change that was cut off. What fails is tried again before the guest's next change; a guest
    /// that has ended meanwhile is destroyed with all that it has.
    fn settle_change(&self, record: &mut GuestRecord, troubles: &mut Vec<Error>) {
        // What QEMU has to put back waits until there is a session with it.
        if needs_qemu(record) {
            return;
        }
        let Ok(live) = Live::find(self, record.id()) else { return };
        match settle(live) {
            Ok(live) => *record = live.record,
            Err(cause) => troubles.push(cause.into()),
        }
    }

    /// Detaches loop devices with our tag whose guest has neither a state file nor a domain.
    fn detach_orphans(&self, known: &[Uuid], events: &mut dyn FnMut(Event)) -> Result<(), Cause> {
        let mut loops = self.host.find_loops(LOOP_TAG)?;
        if loops.is_empty() {
            return Ok(());
        }
        let domains = self.hypervisor.list_domains()?;
        let has_guest =
            |uuid: &Uuid| known.contains(uuid) || domains.iter().any(|info| info.uuid == *uuid.as_bytes());
        loops.retain(|attachment| {
            let uuid = attachment.tag.strip_prefix(LOOP_TAG).and_then(|uuid| uuid.parse().ok());
            !uuid.as_ref().is_some_and(has_guest)
        });
        for attachment in loops {
            let device = attachment.device.path.display();
            events(Event::Warning { text: format!("Detaching {device}, which no guest uses any more") });
            self.host.detach_loop(&attachment)?;
        }
        Ok(())
    }
}
