//! The receiver's machine: the host that the guest comes to.
//!
//! ```text
//! OFFER ▶ Write(OPEN) ▶ Building ▶ Receiving ▶ Loading ▶ Loaded ▶ Verifying ▶ Write(COMMITTED)
//!                   any failure, SETTLE ▼                               failed ▼        ▼
//!                             Write(ABORTED) ▶ Removing ▶ Closed     Write(ABORTED) ◀ Arming ▶ Unpausing ▶ Final
//!                                                                                                ACK ▼
//!                                                                                       Write(OWNED) ▶ Final
//! ```
//!
//! Of the effects that are answered by an event, at most one is under way, as in [`crate::sender`].

mod interface;
mod view;

pub use interface::{Copy, Effect, Event, Timer};

use crate::frame::MAX_DATA;
use crate::ids::{Digest, JournalId, MigrationId};
use crate::message::{Body, Limits, Message, Waiting};
use crate::mutation::{Mutation, Rules};
use crate::reason::{Outcome, Reason};
use crate::record::ReceiverRecord as Record;

/// The identity of this host's journal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OwnJournal {
    /// The identity.
    pub id: JournalId,
    /// When the journal was made, in seconds since 1970; only shown.
    pub since: u64,
}

/// What a host does with a message about a migration that it has no record of.
#[derive(Debug)]
pub enum First {
    /// There is a machine from now on.
    Machine(Receiver, Vec<Effect>),
    /// It answers, and that is all.
    Reply(Message),
    /// The message needs no answer.
    Nothing,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    /// A record is being written; `rewrite` says that it was read after a restart.
    Writing {
        record: Record,
        rewrite: bool,
    },
    /// It could not be written.
    Blocked {
        record: Record,
        rewrite: bool,
    },
    Building,
    Receiving,
    Loading,
    Loaded,
    Verifying,
    /// `forward` says that another process committed: this one cannot abort any more.
    Arming {
        forward: bool,
    },
    Unpausing,
    Inspecting,
    /// COMMITTED, CLAIMED or OWNED, and the guest ran.
    Final,
    /// ABORTED or VOID, and the copy is being destroyed.
    Removing,
    /// ABORTED or VOID.
    Closed,
}

/// One migration at its receiver.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Receiver {
    id: MigrationId,
    own: OwnJournal,
    /// The last record that is surely on disk.
    record: Option<Record>,
    phase: Phase,
    /// What was received.
    digest: Option<Digest>,
    /// What became of the guest after it was unpaused.
    outcome: Outcome,
    rules: Rules,
}

impl Receiver {
    /// Takes the first message about a migration that has no record here.
    ///
    /// `refusal` is why an OFFER is refused, by local records and the disks: this host has another domain or an
    /// unfinished record of that guest, for instance.
    pub fn first(message: &Message, own: OwnJournal, refusal: Option<Reason>) -> First {
        Self::first_by(message, own, refusal, Rules::default())
    }

    pub(crate) fn first_by(
        message: &Message,
        own: OwnJournal,
        refusal: Option<Reason>,
        rules: Rules,
    ) -> First {
        let record = match (&message.body, refusal) {
            (Body::Offer(_), None) => Record::Open,
            (Body::Offer(_), Some(reason)) => Record::Aborted(reason),
            // Also for an id that was never heard of: a late OFFER must not open it again.
            (Body::Settle | Body::Go { .. } | Body::Forced(_), _) => Record::Aborted(Reason::NeverOffered),
            _ => return First::Nothing,
        };
        if message.journal != own.id && !rules.broken(Mutation::JournalNotCompared) {
            let body = Body::Unknown { since: own.since };
            return First::Reply(Message { id: message.id, journal: own.id, body });
        }
        let mut receiver = Self::new(message.id, own, rules);
        let effects = receiver.write(record, false);
        First::Machine(receiver, effects)
    }

    /// Continues a migration from its record after a restart of the daemon.
    ///
    /// The record is written and synced again before anything else (rule 6).
    pub fn restored(id: MigrationId, own: OwnJournal, record: Record) -> (Self, Vec<Effect>) {
        Self::restored_by(id, own, record, Rules::default())
    }

    pub(crate) fn restored_by(
        id: MigrationId,
        own: OwnJournal,
        record: Record,
        rules: Rules,
    ) -> (Self, Vec<Effect>) {
        let mut receiver = Self::new(id, own, rules);
        if rules.broken(Mutation::ActWithoutRewriting) {
            receiver.record = Some(record.clone());
            let effects = receiver.act_on(&record, true);
            return (receiver, effects);
        }
        let effects = receiver.write(record, true);
        (receiver, effects)
    }

    fn new(id: MigrationId, own: OwnJournal, rules: Rules) -> Self {
        Self { id, own, record: None, phase: Phase::Closed, digest: None, outcome: Outcome::Running, rules }
    }

    /// Takes an event and returns what is to be done, in this order.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match (&self.phase, event) {
            (Phase::Writing { .. }, Event::Written) => self.written(),
            (Phase::Writing { .. }, Event::WriteFailed) => self.write_failed(),
            (Phase::Blocked { record, rewrite }, Event::Timeout(Timer::Retry)) => {
                let (record, rewrite) = (record.clone(), *rewrite);
                self.write(record, rewrite)
            }
            (_, Event::Received(message)) => self.received(message),
            (Phase::Writing { .. } | Phase::Blocked { .. }, Event::CopyGone(why)) => {
                // Of no importance while OPEN or COMMITTED is being written: the next step looks.
                self.outcome = if self.is_committed() { Outcome::Ended(why) } else { self.outcome };
                Vec::new()
            }
            (Phase::Writing { .. } | Phase::Blocked { .. }, _) => Vec::new(),
            (Phase::Arming { .. } | Phase::Unpausing | Phase::Inspecting, event) => self.step_forward(&event),
            (Phase::Final, event) => self.step_final(event),
            (Phase::Removing | Phase::Closed, event) => self.step_closed(&event),
            (_, event) => self.step_open(&event),
        }
    }

    /// Whether COMMITTED was answered, and only what follows it is being written.
    fn is_committed(&self) -> bool {
        let (Phase::Writing { record, rewrite: false } | Phase::Blocked { record, rewrite: false }) =
            &self.phase
        else {
            return false;
        };
        matches!(record, Record::Owned | Record::Claimed(_) | Record::Void(_))
    }

    fn message(&self, body: Body) -> Message {
        Message { id: self.id, journal: self.own.id, body }
    }

    fn send(&self, body: Body) -> Effect {
        Effect::Send(self.message(body))
    }

    fn pending(&self, waiting: Waiting) -> Vec<Effect> {
        vec![self.send(Body::Pending(waiting))]
    }

    /// The final answer, if there is one.
    fn say(&self) -> Vec<Effect> {
        self.answer().map(Effect::Send).into_iter().collect()
    }

    fn write(&mut self, record: Record, rewrite: bool) -> Vec<Effect> {
        let mut effects = vec![Effect::Write(record.clone())];
        if let Record::Aborted(reason) = record
            && self.rules.broken(Mutation::AbortedBeforeSynced)
        {
            effects.push(self.send(Body::Aborted(reason)));
        }
        self.phase = Phase::Writing { record, rewrite };
        effects
    }

    fn abort(&mut self, reason: Reason) -> Vec<Effect> {
        self.write(Record::Aborted(reason), false)
    }

    fn written(&mut self) -> Vec<Effect> {
        let Phase::Writing { record, rewrite } = self.phase.clone() else { return Vec::new() };
        self.record = Some(record.clone());
        self.act_on(&record, rewrite)
    }

    /// Goes on after a record was synced.
    fn act_on(&mut self, record: &Record, rewrite: bool) -> Vec<Effect> {
        match record {
            Record::Open if rewrite => self.abort(Reason::DaemonRestarted),
            Record::Open => {
                self.phase = Phase::Building;
                vec![Effect::Build, Effect::StartTimer(Timer::Progress)]
            }
            Record::Committed | Record::Owned | Record::Claimed(_) if rewrite => {
                self.phase = Phase::Inspecting;
                vec![Effect::Inspect]
            }
            Record::Committed => {
                self.phase = Phase::Arming { forward: false };
                let early = self.rules.broken(Mutation::CommittedBeforeUnpaused);
                let early = early.then(|| self.send(Body::Committed(Outcome::Running)));
                early.into_iter().chain([Effect::Arm]).collect()
            }
            Record::Aborted(_) | Record::Void(_) => {
                self.phase = Phase::Removing;
                let mut effects = self.say();
                effects.push(Effect::DestroyIncoming);
                effects
            }
            Record::Owned => {
                self.phase = Phase::Final;
                vec![Effect::Finished]
            }
            Record::Claimed(_) => {
                self.phase = Phase::Final;
                self.boot_anew()
            }
        }
    }

    fn write_failed(&mut self) -> Vec<Effect> {
        let Phase::Writing { record, rewrite } = self.phase.clone() else { return Vec::new() };
        match record {
            // Nothing was built; nothing runs.
            Record::Open | Record::Committed if !rewrite => self.abort(Reason::JournalFailed),
            record => {
                let waiting =
                    matches!(record, Record::Aborted(_)).then(|| self.send(Body::Pending(Waiting::Journal)));
                self.phase = Phase::Blocked { record, rewrite };
                waiting.into_iter().chain([Effect::StartTimer(Timer::Retry)]).collect()
            }
        }
    }

    /// Starts the guest anew if there is none. It counts as running until the shell reports that it is gone.
    fn boot_anew(&mut self) -> Vec<Effect> {
        match self.outcome {
            Outcome::Running => Vec::new(),
            Outcome::Ended(_) => {
                self.outcome = Outcome::Running;
                vec![Effect::BootAnew]
            }
        }
    }

    fn received(&mut self, message: Message) -> Vec<Effect> {
        if message.id != self.id {
            return Vec::new();
        }
        if message.journal != self.own.id && !self.rules.broken(Mutation::JournalNotCompared) {
            return vec![self.send(Body::Unknown { since: self.own.since })];
        }
        match &self.phase {
            Phase::Writing { record, .. } | Phase::Blocked { record, .. } => {
                let waiting = match record {
                    Record::Open => Waiting::Loading,
                    Record::Committed => Waiting::TakingOver,
                    _ => Waiting::Journal,
                };
                self.pending_if_asked(&message.body, waiting)
            }
            Phase::Arming { .. } | Phase::Unpausing | Phase::Inspecting => {
                self.pending_if_asked(&message.body, Waiting::TakingOver)
            }
            Phase::Final => self.received_final(message.body),
            Phase::Removing | Phase::Closed => self.received_closed(message.body),
            _ => self.received_open(&message.body),
        }
    }

    fn pending_if_asked(&self, body: &Body, waiting: Waiting) -> Vec<Effect> {
        if matches!(body, Body::Settle | Body::Go { .. }) { self.pending(waiting) } else { Vec::new() }
    }

    fn received_open(&mut self, body: &Body) -> Vec<Effect> {
        match (&self.phase, body) {
            (_, Body::Settle | Body::Forced(_)) => self.abort(Reason::Settled),
            (Phase::Receiving, Body::StreamEnd { length, digest }) => {
                self.digest = Some(*digest);
                self.phase = Phase::Loading;
                vec![Effect::Load { length: *length, digest: *digest }]
            }
            (Phase::Loaded, Body::StreamEnd { .. }) => self.ready(),
            (Phase::Loaded, Body::Go { digest }) if Some(*digest) == self.digest => {
                self.phase = Phase::Verifying;
                vec![Effect::VerifyPaused]
            }
            (Phase::Loaded, Body::Go { .. }) => self.abort(Reason::DigestMismatch),
            _ => Vec::new(),
        }
    }

    fn ready(&self) -> Vec<Effect> {
        self.digest.map(|digest| self.send(Body::Ready { digest })).into_iter().collect()
    }

    /// Building to Verifying: OPEN is on disk, nothing else is.
    fn step_open(&mut self, event: &Event) -> Vec<Effect> {
        match (&self.phase, event) {
            (_, Event::Timeout(Timer::Progress)) => self.abort(Reason::TimedOut),
            (_, Event::Cancel) => self.abort(Reason::Cancelled),
            (_, Event::CopyGone(_)) => self.abort(Reason::CopyDestroyed),
            (_, Event::LoadFailed) => self.abort(Reason::LoadFailed),
            (_, Event::BuildFailed(reason)) => self.abort(*reason),
            // Later, all bytes are here, and READY can go through another channel.
            (Phase::Building | Phase::Receiving, Event::Cut) => self.abort(Reason::ConnectionLost),
            (Phase::Building, Event::Built) => {
                self.phase = Phase::Receiving;
                let data = u32::try_from(MAX_DATA).unwrap_or(u32::MAX);
                vec![self.send(Body::Accept(Limits { data }))]
            }
            (Phase::Loading, Event::Loaded) => {
                self.phase = Phase::Loaded;
                let mut effects = self.ready();
                effects.push(Effect::StartTimer(Timer::Progress));
                if self.rules.broken(Mutation::ArmBeforeCommitted) {
                    effects.push(Effect::Arm);
                }
                effects
            }
            (Phase::Loaded, Event::Connected) => self.ready(),
            (Phase::Verifying, Event::StillPaused) if self.rules.broken(Mutation::RunWithoutCommitted) => {
                self.phase = Phase::Arming { forward: false };
                vec![Effect::Arm]
            }
            (Phase::Verifying, Event::StillPaused) => self.write(Record::Committed, false),
            _ => Vec::new(),
        }
    }

    /// Arming, unpausing and the look at what there is: COMMITTED is on disk.
    fn step_forward(&mut self, event: &Event) -> Vec<Effect> {
        match (&self.phase, event) {
            (Phase::Arming { .. }, Event::Armed) => {
                self.phase = Phase::Unpausing;
                vec![Effect::Unpause]
            }
            (Phase::Arming { forward: false }, Event::ArmFailed) => self.abort(Reason::ArmFailed),
            (Phase::Arming { .. }, Event::ArmFailed) | (Phase::Unpausing, Event::UnpauseFailed) => {
                vec![Effect::StartTimer(Timer::Retry)]
            }
            (Phase::Arming { .. }, Event::Timeout(Timer::Retry)) => vec![Effect::Arm],
            (Phase::Unpausing, Event::Timeout(Timer::Retry)) => vec![Effect::Unpause],
            (Phase::Unpausing, Event::Unpaused) | (Phase::Inspecting, Event::Inspected(Copy::Running)) => {
                self.settled(Outcome::Running)
            }
            (Phase::Inspecting, Event::Inspected(Copy::Paused)) if self.record == Some(Record::Committed) => {
                if self.rules.broken(Mutation::RestartAbortsCommitted) {
                    return self.abort(Reason::DaemonRestarted);
                }
                self.phase = Phase::Arming { forward: true };
                vec![Effect::Arm]
            }
            // We have unpaused it already: if it is paused again, someone else did that and has to unpause it.
            (Phase::Inspecting, Event::Inspected(Copy::Paused)) => self.settled(Outcome::Running),
            (Phase::Inspecting, Event::Inspected(Copy::Gone(why))) => self.settled(Outcome::Ended(*why)),
            (Phase::Arming { .. } | Phase::Unpausing, Event::CopyGone(why)) => {
                self.settled(Outcome::Ended(*why))
            }
            _ => Vec::new(),
        }
    }

    fn settled(&mut self, outcome: Outcome) -> Vec<Effect> {
        self.outcome = outcome;
        self.phase = Phase::Final;
        let mut effects = self.say();
        effects.push(match self.record {
            Some(Record::Owned) => Effect::Finished,
            _ => Effect::StartTimer(Timer::Repeat),
        });
        effects
    }

    fn step_final(&mut self, event: Event) -> Vec<Effect> {
        match (&self.record, event) {
            (_, Event::CopyGone(why)) => {
                self.outcome = Outcome::Ended(why);
                Vec::new()
            }
            (Some(Record::Owned), _) => Vec::new(),
            (_, Event::Connected) => self.say(),
            (_, Event::Timeout(Timer::Repeat)) => {
                let mut effects = self.say();
                effects.push(Effect::StartTimer(Timer::Repeat));
                effects
            }
            (Some(Record::Committed), Event::AssumeSenderDead(decision)) => {
                self.write(Record::Claimed(decision), false)
            }
            (Some(Record::Claimed(_)), Event::AssumeSenderDead(_)) => self.boot_anew(),
            _ => Vec::new(),
        }
    }

    fn received_final(&mut self, body: Body) -> Vec<Effect> {
        match (&self.record, body, self.outcome) {
            (_, Body::Settle | Body::Go { .. }, _) => self.say(),
            (Some(Record::Committed | Record::Claimed(_)), Body::Ack, _) => self.write(Record::Owned, false),
            (Some(Record::Committed), Body::Forced(decision), Outcome::Ended(_)) => {
                self.write(Record::Void(decision), false)
            }
            (Some(Record::Committed), Body::Forced(_), Outcome::Running) => {
                vec![Effect::PauseCopy, Effect::ReportTwoCopies]
            }
            (_, Body::Forced(_), _) => vec![Effect::ReportTwoCopies],
            _ => Vec::new(),
        }
    }

    fn step_closed(&mut self, event: &Event) -> Vec<Effect> {
        match (&self.phase, event) {
            (Phase::Removing, Event::Destroyed) => {
                self.phase = Phase::Closed;
                vec![Effect::Finished]
            }
            (Phase::Removing, Event::DestroyFailed) => vec![Effect::StartTimer(Timer::Retry)],
            (Phase::Removing, Event::Timeout(Timer::Retry)) => vec![Effect::DestroyIncoming],
            (_, Event::Connected) => self.say(),
            _ => Vec::new(),
        }
    }

    fn received_closed(&mut self, body: Body) -> Vec<Effect> {
        match (&self.record, body) {
            (Some(Record::Aborted(_)), Body::Offer(_)) if self.rules.broken(Mutation::AbortedNotFinal) => {
                self.write(Record::Open, false)
            }
            (Some(Record::Aborted(_)), Body::Forced(decision)) => vec![self.send(Body::Voided(decision))],
            (_, Body::Offer(_) | Body::Settle | Body::Go { .. } | Body::Forced(_)) => self.say(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
