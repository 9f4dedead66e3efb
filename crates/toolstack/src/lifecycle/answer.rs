//! What another host asks: to take a guest, or what became of one.

use std::time::{Instant, SystemTime};

use config::Uuid;
use migration::message::{Body, Message};
use migration::receiver::{Copy, Event as Told};
use migration::record::{About, Record};
use migration::{Ended, MigrationId};
use xen::Cancel;

use super::receive::{IncomingGuest, take_over};
use crate::Toolstack;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::guest::Live;
use crate::handover::receiver::{Arrival, Work};
use crate::handover::{
    HandoverError, Heard, Identity, JournalFile, MigrationRole, PeerChannel, plain, remove_old,
};
use crate::operation::{Kind, Operation};

/// What another host wants.
#[derive(Debug)]
pub enum Incoming {
    /// That this host takes a guest.
    Guest(Box<IncomingGuest>),
    /// It has asked about a guest, and was answered.
    Answered,
    /// It says what became of a guest that left this host, and waits to be asked: [`Toolstack::resolve`] with this channel
    /// and the migration's identity.
    Told {
        /// The migration.
        migration: String,
        /// The guest.
        guest: GuestId,
        /// The way to the host.
        channel: PeerChannel,
    },
}

impl Toolstack {
    /// Reads what another host wants. A question about an earlier migration is answered from its journal, and one about
    /// a guest that is being received is passed on to where that is done.
    ///
    /// # Errors
    /// When it says nothing, or something that cannot be used.
    pub fn accept_peer(&self, mut channel: PeerChannel) -> Result<Incoming, Error> {
        let own = Identity::find(self)?;
        let after = self.deadlines.peer_work;
        let message = match channel.hear(Instant::now() + after, &Cancel::new()) {
            Heard::Message(message) => message,
            Heard::Cut | Heard::Cancelled => return Err(Cause::from(HandoverError::Closed).into()),
            Heard::Late => return Err(Cause::from(HandoverError::Silent { after }).into()),
        };
        let known = JournalFile::load(self, MigrationRole::Receiver, message.id)?;
        let is_new = known.is_none() && message.journal == own.journal.id;
        if is_new && matches!(message.body, Body::Offer(_)) {
            let guest = IncomingGuest::read(self, channel, own, message)?;
            return Ok(Incoming::Guest(Box::new(guest)));
        }
        if let Body::Committed(_) | Body::Aborted(_) = message.body
            && let Some((journal, _)) = JournalFile::load(self, MigrationRole::Sender, message.id)?
        {
            let (migration, guest) = (message.id.to_string(), GuestId(journal.about.guest));
            return Ok(Incoming::Told { migration, guest, channel });
        }
        if let Err((channel, message)) = self.receptions.pass_on(message.id, (channel, message)) {
            self.answer(&own, channel, message, known)?;
        }
        Ok(Incoming::Answered)
    }

    /// Answers from the journal until the other host has nothing more to say.
    fn answer(
        &self,
        own: &Identity,
        channel: PeerChannel,
        message: Message,
        known: Option<(JournalFile, Record)>,
    ) -> Result<(), Cause> {
        let (mut arrival, work) = match known {
            Some((journal, Record::Receiver(record))) => {
                let (mut arrival, first) =
                    Arrival::restored(self, own.journal, (journal, record), Some(channel));
                self.work_off(&mut arrival, first)?;
                let work = arrival.tell(Told::Received(message));
                (arrival, work)
            }
            _ => {
                // Each answer to such a question leaves one.
                let _ = remove_old(self, SystemTime::now());
                let about = unknown(&channel, own, message.id);
                let journal = JournalFile::new(self, MigrationRole::Receiver, about);
                match Arrival::first(self, own.journal, &message, None, (journal, channel)) {
                    Some(begun) => begun,
                    None => return Ok(()),
                }
            }
        };
        self.converse(&mut arrival, work)
    }

    /// Answers until the other host has nothing more to say.
    pub(super) fn converse(&self, arrival: &mut Arrival<'_>, work: Option<Work>) -> Result<(), Cause> {
        let (limit, mut work) = (Instant::now() + self.deadlines.peer, work);
        loop {
            self.work_off(arrival, work)?;
            if arrival.two_copies {
                let about = &arrival.journal().about;
                let (name, host) = (about.name.clone(), about.peer.clone());
                return Err(HandoverError::TwoCopies { name, host }.into());
            }
            if arrival.channel.is_none() || Instant::now() >= limit {
                return Ok(());
            }
            work = arrival.wait(limit.min(Instant::now() + self.deadlines.peer), &Cancel::new());
            if work.is_none() {
                return Ok(());
            }
        }
    }

    /// Does what the machine of a guest wants that is not being received now.
    pub(super) fn work_off(&self, arrival: &mut Arrival<'_>, work: Option<Work>) -> Result<(), Cause> {
        let mut next = work;
        while let Some(work) = next {
            next = match work {
                Work::Inspect => {
                    let copy = self.copy_of(&arrival.journal().about.clone())?;
                    arrival.tell(Told::Inspected(copy))
                }
                // The guest's own driver removes it, by its state file.
                Work::DestroyIncoming => arrival.tell(Told::Destroyed),
                Work::Arm => {
                    let guest = GuestId(arrival.journal().about.guest);
                    let taken = Live::find(self, guest).and_then(take_over);
                    arrival.tell(if taken.is_ok() { Told::Armed } else { Told::ArmFailed })
                }
                Work::Unpause => arrival.tell(Told::Unpaused),
                Work::PauseCopy => {
                    self.pause(GuestId(arrival.journal().about.guest)).map_err(cause)?;
                    None
                }
                _ => None,
            };
        }
        Ok(())
    }

    /// What there is of a guest that was taken over.
    pub(super) fn copy_of(&self, about: &About) -> Result<Copy, Cause> {
        let gone = || -> Result<Copy, Cause> {
            let same = self.host.boot_id()?.0 == about.boot;
            Ok(Copy::Gone(if same { Ended::Destroyed } else { Ended::HostRebooted }))
        };
        let record = match self.record_of(GuestId(about.guest)) {
            Ok(record) => record,
            Err(Cause::NoGuest(_)) => return gone(),
            Err(cause) => return Err(cause),
        };
        let Some(info) = record.guest_domain(self)?.map(|domain| self.look(domain)).transpose()?.flatten()
        else {
            return gone();
        };
        let is_being_taken = matches!(
            &record.operation,
            Some(Operation { kind: Kind::Receive { id }, .. }) if *id == about.id
        );
        Ok(if is_being_taken && info.state.paused { Copy::Paused } else { Copy::Running })
    }
}

fn cause(error: Error) -> Cause {
    match error {
        Error::Cause(cause) => cause,
        other => Cause::NotNow { name: "the copy".to_owned(), why: other.to_string() },
    }
}

/// A migration of which nothing is known here.
fn unknown(channel: &PeerChannel, own: &Identity, id: MigrationId) -> About {
    About {
        id,
        guest: Uuid::nil(),
        name: String::new(),
        peer: plain(&channel.peer.host),
        peer_journal: channel.peer.journal,
        boot: own.boot,
        domid: None,
        begun: 0,
        stood_still_ms: None,
    }
}
