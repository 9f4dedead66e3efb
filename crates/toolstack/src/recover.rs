//! Taking up after a daemon that was killed.

use xen_types::DomId;

use crate::attach::{Live, needs_qemu, settle};
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::record::{GuestRecord, LOOP_TAG, Phase};
use crate::{Guest, Toolstack};

/// What was found at the start of a daemon.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Guests that run, or have ended while nobody watched: to be watched from now on.
    pub guests: Vec<Guest>,
    /// Names of guests that were half made or half destroyed, and are gone now.
    pub cleaned: Vec<String>,
    /// What could not be read or cleaned.
    pub troubles: Vec<Error>,
}

impl Toolstack {
    /// Reads the state files and Xen's list: clears what was half made or half destroyed, and gives the others back.
    ///
    /// To be called while no other call is under way.
    ///
    /// # Errors
    /// When Xen does not answer or the folder of the state files cannot be read.
    pub fn recover(&self, events: &mut dyn FnMut(Event)) -> Result<Recovered, Error> {
        let (records, bad) = GuestRecord::load_all(&*self.host, &self.paths)?;
        let mut recovered =
            Recovered { troubles: bad.into_iter().map(Error::from).collect(), ..Recovered::default() };
        for mut record in records {
            self.find_domains(&mut record)?;
            // One that has ended or is gone is given back too: what is done with it is its configuration's to say.
            if record.phase == Phase::Running
                && let (Some(domid), Some(stub_domid)) = (record.domid, record.stub_domid)
            {
                if record.change.is_some() {
                    self.settle_change(&mut record, domid, &mut recovered.troubles);
                }
                let GuestRecord { uuid, name, config, .. } = record;
                recovered.guests.push(Guest { uuid, name, domid, stub_domid, config });
                continue;
            }
            let name = record.name.clone();
            match self.tear_down(record, events) {
                Ok(()) => recovered.cleaned.push(name),
                Err(error) => recovered.troubles.push(error),
            }
        }
        self.detach_orphans(&recovered, events)?;
        Ok(recovered)
    }

    /// Puts back or ends a change that was cut off. What fails is tried again before the guest's next change; a guest
    /// that has ended meanwhile is destroyed with all that it has.
    fn settle_change(&self, record: &mut GuestRecord, domid: DomId, troubles: &mut Vec<Error>) {
        // What QEMU has to put back waits until there is a session with it.
        if needs_qemu(record) {
            return;
        }
        let Ok(mut live) = Live::find(self, domid) else { return };
        if let Err(cause) = settle(&mut live) {
            troubles.push(cause.into());
        }
        *record = live.record;
    }

    /// Finds the domains of a record by their UUIDs: one that was just made is not in the file yet.
    fn find_domains(&self, record: &mut GuestRecord) -> Result<(), Cause> {
        for info in self.hypervisor.list_domains()? {
            if info.uuid == *record.uuid.as_bytes() {
                record.domid = Some(info.domid);
            }
            if info.uuid == *record.stub_uuid.as_bytes() {
                record.stub_domid = Some(info.domid);
            }
        }
        Ok(())
    }

    /// Detaches loop devices with our tag whose guest nobody knows.
    fn detach_orphans(&self, recovered: &Recovered, events: &mut dyn FnMut(Event)) -> Result<(), Cause> {
        let known: Vec<String> =
            recovered.guests.iter().map(|guest| format!("{LOOP_TAG}{}", guest.uuid)).collect();
        for attachment in self.host.find_loops(LOOP_TAG)? {
            if !known.contains(&attachment.tag) {
                let device = attachment.device.path.display();
                events(Event::Warning { text: format!("Detaching {device}, which no guest uses any more") });
                self.host.detach_loop(&attachment)?;
            }
        }
        Ok(())
    }
}
