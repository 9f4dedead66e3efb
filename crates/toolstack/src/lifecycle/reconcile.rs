//! What the journals of migrations say about operations that an earlier daemon began.
//!
//! A guest's state file says that it is being migrated; the journal of the migration says what becomes of it. The file
//! may be a step behind.

use std::time::SystemTime;

use migration::receiver::Event as Received;
use migration::record::{Done, ReceiverRecord, Record, SenderRecord};
use migration::sender::Event as Sent;

use super::recover::Recovered;
use crate::Toolstack;
use crate::error::Cause;
use crate::handover::receiver::Arrival;
use crate::handover::sender::Departure;
use crate::handover::{Identity, JournalFile, MigrationRole, all, disks, remove_old};
use crate::operation::{Cursor, Kind, Operation, Way};
use crate::record::GuestRecord;

impl Toolstack {
    /// Decides what becomes of a guest's interrupted migration, and writes it into its state file.
    pub(super) fn reconcile(&self, record: &mut GuestRecord) -> Result<(), Cause> {
        let Some(Operation { kind, cursor }) = &record.operation else { return Ok(()) };
        let way = match kind {
            Kind::Migrate { id, .. } => match JournalFile::load(self, MigrationRole::Sender, *id)? {
                Some((_, Record::Sender(sender))) => way_of_sender(&sender),
                // Nothing was sent, unless the journal was lost.
                _ if cursor.way == Way::Peer => Way::Peer,
                _ => Way::Back,
            },
            Kind::Receive { id } => match JournalFile::load(self, MigrationRole::Receiver, *id)? {
                Some((journal, Record::Receiver(receiver))) => self.way_of_receiver(journal, &receiver)?,
                _ if cursor.way == Way::Forward => Way::Forward,
                _ => Way::Undo,
            },
            _ => return Ok(()),
        };
        if let (Kind::Migrate { id, .. }, Way::Forward) = (kind, way) {
            // They do no harm if they stay.
            let _ = disks::remove_markers(self, &record.config, *id);
        }
        if way == cursor.way {
            return Ok(());
        }
        let (kind, step) = (kind.clone(), cursor.step.clone());
        record.operation = Some(Operation { kind, cursor: Cursor { step, way } });
        record.save(&*self.host, &self.paths)
    }

    /// A guest that was not committed to never will be: that is written down before it is removed.
    fn way_of_receiver(&self, journal: JournalFile, record: &ReceiverRecord) -> Result<Way, Cause> {
        match record {
            ReceiverRecord::Committed | ReceiverRecord::Owned | ReceiverRecord::Claimed(_) => {
                Ok(Way::Forward)
            }
            ReceiverRecord::Aborted(_) | ReceiverRecord::Void(_) => Ok(Way::Undo),
            ReceiverRecord::Open => self.abort_arrival(journal).map(|()| Way::Undo),
        }
    }

    fn abort_arrival(&self, journal: JournalFile) -> Result<(), Cause> {
        let own = Identity::find(self)?.journal;
        let (mut arrival, _) = Arrival::restored(self, own, (journal, ReceiverRecord::Open), None);
        match arrival.trouble.take() {
            Some(cause) => Err(cause),
            None => {
                arrival.tell(Received::Destroyed);
                Ok(())
            }
        }
    }

    /// Settles migrations of which this host has no guest any more. To be called while no other call is under way.
    pub(super) fn settle_journals(&self, guests: &[GuestRecord], recovered: &mut Recovered) {
        let found = match all(self) {
            Ok(found) => found,
            Err(cause) => return recovered.troubles.push(cause.into()),
        };
        recovered.troubles.extend(found.unreadable.into_iter().map(Into::into));
        for (_, journal, record) in found.journals {
            let id = journal.about.id;
            let is_of = |guest: &GuestRecord| match guest.operation.as_ref().map(|operation| &operation.kind)
            {
                Some(Kind::Migrate { id: its, .. } | Kind::Receive { id: its }) => *its == id,
                _ => false,
            };
            if guests.iter().any(is_of) {
                continue;
            }
            let settled = match record {
                Record::Sender(SenderRecord::Start) => self.end_departure(journal),
                Record::Receiver(ReceiverRecord::Open) => self.abort_arrival(journal),
                _ => Ok(()),
            };
            recovered.troubles.extend(settled.err().map(Into::into));
        }
        let removed = remove_old(self, SystemTime::now());
        recovered.troubles.extend(removed.err().map(Into::into));
    }

    /// The guest has ended with its host.
    fn end_departure(&self, journal: JournalFile) -> Result<(), Cause> {
        let (mut departure, _) = Departure::restored(self, journal, SenderRecord::Start, None);
        departure.tell(Sent::GuestEnded);
        departure.trouble.take().map_or(Ok(()), Err)
    }
}

fn way_of_sender(record: &SenderRecord) -> Way {
    match record {
        SenderRecord::Start | SenderRecord::Done(Done::Aborted(_)) => Way::Back,
        SenderRecord::Go { .. } => Way::Peer,
        // It is destroyed here.
        SenderRecord::Done(Done::Moved) | SenderRecord::Forced(_) | SenderRecord::ForcedDone(_) => {
            Way::Forward
        }
    }
}
