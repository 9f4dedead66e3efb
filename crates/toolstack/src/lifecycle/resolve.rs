//! Migrations that are known here, and what an operator does about one whose other host does not answer.

use std::cmp::Reverse;
use std::time::Duration;

use migration::message::Message;
use migration::receiver::Event as Received;
use migration::record::{Decision, Done, ReceiverRecord, Record, SenderRecord};
use migration::resolve::{AnswerLine, Contact, assume_receiver_dead, assume_sender_dead};
use migration::sender::Event as Sent;
use migration::shown::{Shown, State};
use migration::{MigrationId, Outcome};
use xen::Cancel;

use super::migrate::Migration;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::handover::receiver::{Arrival, Work as ReceiverWork};
use crate::handover::sender::{Departure, Work};
use crate::handover::{
    HandoverError, Identity, JournalFile, MigrationRole, PeerChannel, all, seconds_since_1970,
};
use crate::operation::Kind;
use crate::record::GuestRecord;
use crate::{Guest, Toolstack};

/// How a migration is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// By asking the other host; at the receiver, by aborting what was not taken over.
    Ask,
    /// By the receiver's answer, which an operator has carried over.
    Answer(String),
    /// By an operator's word that the receiver's host is off.
    AssumeReceiverDead {
        /// His user name.
        operator: String,
    },
    /// By an operator's word that the sender's host is off.
    AssumeSenderDead {
        /// His user name.
        operator: String,
    },
}

/// What became of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveOutcome {
    /// In words.
    pub state: String,
    /// The answer for the sender, as a line.
    pub answer: Option<String>,
    /// The guest, if it is here now.
    pub guest: Option<Guest>,
    /// The guest's memory is lost: it was started anew, or may be created anew here from its configuration.
    pub boots: bool,
}

/// A migration that is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationInfo {
    /// Its identity.
    pub id: String,
    /// The guest's identity.
    pub guest: GuestId,
    /// The guest's name.
    pub name: String,
    /// The other host.
    pub peer: String,
    /// Which side this host was.
    pub role: MigrationRole,
    /// How far it is, in words.
    pub state: String,
    /// It is not known which host has the guest, until the other one or an operator says so.
    pub unresolved: bool,
    /// For how long the guest stood still, as far as this host knows it.
    pub stood_still: Option<Duration>,
}

impl Toolstack {
    /// The migrations that this host has journals of.
    ///
    /// # Errors
    /// When a journal cannot be read.
    pub fn migrations(&self) -> Result<Vec<MigrationInfo>, Error> {
        // One that cannot be read was reported when the daemon began.
        let found = all(self)?.journals;
        Ok(found.into_iter().map(|(role, journal, record)| info(role, &journal, &record)).collect())
    }

    /// Resolves the migration of a guest, by its name or UUID, or by the migration's identity.
    ///
    /// # Errors
    /// [`HandoverError::Unresolved`] when it is still not known which host has the guest; when there is no such
    /// migration, or the operator's decision is refused.
    pub fn resolve(
        &self,
        guest: &str,
        how: &Resolve,
        channel: Option<PeerChannel>,
        events: &mut dyn FnMut(Event),
    ) -> Result<ResolveOutcome, Error> {
        let mut found = all(self)?.journals;
        found.retain(|(_, journal, _)| {
            let about = &journal.about;
            [about.name.clone(), about.guest.to_string(), about.id.to_string()].iter().any(|its| its == guest)
        });
        let record = match found.first() {
            Some((_, journal, _)) => self.record_if_any(GuestId(journal.about.guest))?,
            None => None,
        };
        let entry = record.as_ref().and_then(migration_of);
        // Of several that have ended alike, the last one is meant.
        found.sort_by_cached_key(|(_, journal, record)| {
            (entry != Some(journal.about.id), rank(record), Reverse(journal.written(self)))
        });
        let none = || Cause::from(HandoverError::NoMigration { guest: guest.chars().take(80).collect() });
        let (_, journal, state) = found.into_iter().next().ok_or_else(none)?;
        match state {
            Record::Sender(state) => self.resolve_sender((journal, state), record, how, channel, events),
            Record::Receiver(state) => self.resolve_receiver(journal, state, how, channel),
        }
    }

    fn record_if_any(&self, id: GuestId) -> Result<Option<GuestRecord>, Cause> {
        match self.record_of(id) {
            Ok(record) => Ok(Some(record)),
            Err(Cause::NoGuest(_)) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    fn resolve_sender(
        &self,
        (journal, state): (JournalFile, SenderRecord),
        record: Option<GuestRecord>,
        how: &Resolve,
        channel: Option<PeerChannel>,
        events: &mut dyn FnMut(Event),
    ) -> Result<ResolveOutcome, Error> {
        let (about, peer) = (journal.about.clone(), journal.about.peer_journal);
        let leaving = record.filter(|record| migration_of(record) == Some(about.id));
        if state == SenderRecord::Start && leaving.is_some() {
            let why = "is being migrated; cancel that, or wait for its end".to_owned();
            return Err(Cause::NotNow { name: about.name, why }.into());
        }
        let contact =
            channel.as_ref().map_or(Contact::Silent, |channel| Contact::Answers(channel.peer.journal));
        let (mut departure, mut work) = Departure::restored(self, journal, state, channel);
        if work.is_none()
            && let Some(event) = told(how, &departure, peer, contact)?
        {
            work = departure.tell(event);
        }
        if work.is_none() {
            work = departure.wait(&Cancel::new());
        }
        let boots = match leaving {
            Some(record) => {
                let shared = std::cell::RefCell::new(events);
                let tell = |event| (shared.borrow_mut())(event);
                let live = Live { ts: self, record };
                let migration = Migration::resumed(live, (about.id, about.peer.clone()), &tell);
                migration.with(departure, work).settled(&mut |event| tell(event))?;
                matches!(how, Resolve::AssumeReceiverDead { .. })
            }
            None => self.conclude_without_copy((departure, work), how, contact)?,
        };
        // Whatever it was, only its own state file says that it is here.
        let record = self.record_if_any(GuestId(about.guest))?;
        let guest = record.and_then(GuestRecord::guest);
        let state = self.text_of(MigrationRole::Sender, about.id)?;
        Ok(ResolveOutcome { state, answer: None, boots, guest })
    }

    /// The suspended copy is not on this host any more: its host was rebooted, the guest has come back, or it was booted
    /// anew. Returns whether it may be booted anew.
    fn conclude_without_copy(
        &self,
        (mut departure, work): (Departure<'_>, Option<Work>),
        how: &Resolve,
        contact: Contact,
    ) -> Result<bool, Cause> {
        let here = self.record_if_any(GuestId(departure.journal().about.guest))?;
        let mut next = match work {
            Some(Work::DestroyCopy) => departure.tell(Sent::Destroyed),
            Some(Work::Resume) if here.is_some() => departure.tell(Sent::Resumed),
            Some(Work::Resume) => departure.tell(Sent::GuestEnded),
            other => other,
        };
        // The decision was made before, and a daemon was killed before the guest was booted.
        if here.is_none() && next != Some(Work::BootAnew) && matches!(how, Resolve::AssumeReceiverDead { .. })
        {
            let peer = departure.journal().about.peer_journal;
            next = told(how, &departure, peer, contact)?.and_then(|event| departure.tell(event));
        }
        departure.await_confirmation();
        if departure.two_copies {
            let about = &departure.journal().about;
            let (name, host) = (about.name.clone(), about.peer.clone());
            return Err(HandoverError::TwoCopies { name, host }.into());
        }
        match departure.trouble.take() {
            Some(cause) => Err(cause),
            None => Ok(next == Some(Work::BootAnew)),
        }
    }

    fn resolve_receiver(
        &self,
        journal: JournalFile,
        record: ReceiverRecord,
        how: &Resolve,
        channel: Option<PeerChannel>,
    ) -> Result<ResolveOutcome, Error> {
        let about = journal.about.clone();
        if record == ReceiverRecord::Open || self.receptions.has(about.id) {
            // Until it has committed, whoever receives it gives it up.
            let _ = self.cancel(GuestId(about.guest));
            let why = "is being received; this is being cancelled. Repeat the command".to_owned();
            return Err(Cause::NotNow { name: about.name, why }.into());
        }
        let own = Identity::find(self)?.journal;
        let (mut arrival, first) = Arrival::restored(self, own, (journal, record), None);
        self.work_off(&mut arrival, first)?;
        let mut boots = false;
        if let Resolve::AssumeSenderDead { operator } = how {
            let contact =
                channel.as_ref().map_or(Contact::Silent, |channel| Contact::Answers(channel.peer.journal));
            let event =
                assume_sender_dead(arrival.machine(), about.peer_journal, contact, decision(operator));
            let event: Received = event.map_err(HandoverError::from).map_err(Cause::from)?;
            boots = arrival.tell(event) == Some(ReceiverWork::BootAnew);
        } else if *how != Resolve::Ask {
            let why =
                "was migrated to this host; use --answer or --assume-receiver-dead on the host that it left"
                    .to_owned();
            return Err(Cause::NotNow { name: about.name, why }.into());
        }
        if let (Some(channel), Some(answer), Resolve::Ask) = (channel, arrival.machine().answer(), how) {
            // Its host asks what it has to know then, and acknowledges.
            channel.send(&answer);
            arrival.channel = Some(channel);
            self.converse(&mut arrival, None)?;
        }
        if let Some(cause) = arrival.trouble.take() {
            return Err(cause.into());
        }
        let answer = arrival.machine().answer().and_then(|message| AnswerLine::new(&message));
        let guest = self.record_of(GuestId(about.guest)).ok().and_then(GuestRecord::guest);
        let shown = Shown { state: arrival.state(), id: about.id, guest: &about.name, peer: &about.peer };
        Ok(ResolveOutcome {
            state: shown.to_string(),
            answer: answer.map(|line| line.to_string()),
            guest,
            boots,
        })
    }

    fn text_of(&self, role: MigrationRole, id: MigrationId) -> Result<String, Cause> {
        let found = JournalFile::load(self, role, id)?;
        Ok(found.map_or_else(String::new, |(journal, record)| info(role, &journal, &record).state))
    }
}

/// What the sender's machine is told.
fn told(
    how: &Resolve,
    departure: &Departure<'_>,
    peer: migration::JournalId,
    contact: Contact,
) -> Result<Option<Sent>, Cause> {
    Ok(match how {
        Resolve::Ask => None,
        Resolve::Answer(line) => {
            let line: AnswerLine = line.trim().parse().map_err(HandoverError::from)?;
            let message: Message = line.message();
            Some(Sent::Received(message))
        }
        Resolve::AssumeReceiverDead { operator } => {
            let event = assume_receiver_dead(departure.machine(), peer, contact, decision(operator));
            Some(event.map_err(HandoverError::from)?)
        }
        Resolve::AssumeSenderDead { .. } => {
            let why =
                "was migrated from this host; use --assume-sender-dead on the host that it was migrated to"
                    .to_owned();
            return Err(Cause::NotNow { name: departure.journal().about.name.clone(), why });
        }
    })
}

fn decision(operator: &str) -> Decision {
    Decision { operator: operator.chars().take(60).collect(), time: seconds_since_1970() }
}

/// The migration that a guest's entry is of.
fn migration_of(record: &GuestRecord) -> Option<MigrationId> {
    match record.operation.as_ref().map(|operation| &operation.kind) {
        Some(Kind::Migrate { id, .. } | Kind::Receive { id }) => Some(*id),
        _ => None,
    }
}

/// Which of several migrations of a guest is meant, the lowest first: those of which it is not known where the guest is,
/// those that have not ended, those that an operator has decided, all others.
fn rank(record: &Record) -> u8 {
    match record {
        Record::Sender(SenderRecord::Go { .. }) => 0,
        Record::Receiver(ReceiverRecord::Open | ReceiverRecord::Committed) => 1,
        Record::Sender(SenderRecord::Start) => 2,
        Record::Sender(SenderRecord::Forced(_)) | Record::Receiver(ReceiverRecord::Claimed(_)) => 3,
        Record::Sender(_) | Record::Receiver(_) => 4,
    }
}

fn info(role: MigrationRole, journal: &JournalFile, record: &Record) -> MigrationInfo {
    let about = &journal.about;
    let shown = Shown { state: state_of(record), id: about.id, guest: &about.name, peer: &about.peer };
    MigrationInfo {
        id: about.id.to_string(),
        guest: GuestId(about.guest),
        name: about.name.clone(),
        peer: about.peer.clone(),
        role,
        state: shown.to_string(),
        unresolved: matches!(record, Record::Sender(SenderRecord::Go { .. })),
        stood_still: about.stood_still_ms.map(Duration::from_millis),
    }
}

/// What a record alone says.
fn state_of(record: &Record) -> State {
    let outcome = Outcome::Running;
    match record {
        Record::Sender(SenderRecord::Start) => State::Migrating,
        Record::Sender(SenderRecord::Go { .. }) => State::Unresolved { other_journal: false },
        Record::Sender(SenderRecord::Done(Done::Aborted(reason))) => State::NotMigrated(*reason),
        Record::Sender(SenderRecord::Done(Done::Moved)) => State::Moved,
        Record::Sender(SenderRecord::Forced(by)) => {
            State::StartedAnew { operator: by.operator.clone(), confirmed: false }
        }
        Record::Sender(SenderRecord::ForcedDone(by)) => {
            State::StartedAnew { operator: by.operator.clone(), confirmed: true }
        }
        Record::Receiver(ReceiverRecord::Open) => State::Incoming,
        Record::Receiver(ReceiverRecord::Committed) => State::TakenOver { outcome, acknowledged: false },
        Record::Receiver(ReceiverRecord::Owned) => State::TakenOver { outcome, acknowledged: true },
        Record::Receiver(ReceiverRecord::Aborted(reason)) => State::Refused(*reason),
        Record::Receiver(ReceiverRecord::Void(by)) => State::Void { operator: by.operator.clone() },
        Record::Receiver(ReceiverRecord::Claimed(by)) => {
            State::Claimed { operator: by.operator.clone(), outcome }
        }
    }
}
