//! The sender's machine: the host that the guest leaves.
//!
//! ```text
//! Write(START) ▶ Offered ▶ Precopy ▶ Suspending ▶ Saving ▶ AwaitingReady ▶ Verifying ▶ Write(GO)
//!      any failure ▼                                                          failed ▼      ▼
//!               Resuming ◀──────────────── ABORTED ──────────────────────────┬────── Asking, Settling
//!                   ▼                                                        │ COMMITTED ▼       ▼ operator
//!             Write(DONE aborted) ▶ Finished                    Write(DONE moved)      Write(FORCED)
//!                                                                            ▼               ▼
//!                                                                       Destroying ▶ Finished (boot anew)
//! ```
//!
//! Of the effects that are answered by an event, at most one is under way. A later one replaces it, and the shell ends
//! the former first; a [`Effect::Write`] is never replaced, and what arrives meanwhile and matters is repeated by the
//! peer or by a timer.

mod interface;
mod view;

pub use interface::{Effect, Event, Timer};

use crate::ids::{Digest, JournalId, MigrationId};
use crate::message::{Body, Message};
use crate::mutation::{Mutation, Rules};
use crate::reason::{Outcome, Reason};
use crate::record::{Done, SenderRecord as Record};

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
    Offered,
    Precopy,
    Suspending,
    Saving,
    AwaitingReady,
    Verifying,
    Asking,
    Settling,
    Resuming,
    Destroying,
    Finished,
}

/// One migration at its sender.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sender {
    id: MigrationId,
    /// The receiver's journal, as in START.
    peer: JournalId,
    /// The last record that is surely on disk.
    record: Option<Record>,
    phase: Phase,
    /// Why it is aborted, from the first failure on.
    reason: Option<Reason>,
    /// What was sent.
    digest: Option<Digest>,
    /// An operator has just decided here that the guest is to be booted anew.
    boot: bool,
    /// The peer has answered with another journal.
    other_journal: bool,
    rules: Rules,
}

impl Sender {
    /// Begins a migration. Nothing may have been sent yet.
    pub fn begin(id: MigrationId, peer: JournalId) -> (Self, Vec<Effect>) {
        Self::with(id, peer, Record::Start, false, Rules::default())
    }

    /// Continues a migration from its record after a restart of the daemon.
    ///
    /// The record is written and synced again before anything else (rule 6).
    pub fn restored(id: MigrationId, peer: JournalId, record: Record) -> (Self, Vec<Effect>) {
        Self::with(id, peer, record, true, Rules::default())
    }

    pub(crate) fn with(
        id: MigrationId,
        peer: JournalId,
        record: Record,
        rewrite: bool,
        rules: Rules,
    ) -> (Self, Vec<Effect>) {
        let phase = Phase::Finished;
        let mut sender = Self {
            id,
            peer,
            record: None,
            phase,
            reason: None,
            digest: None,
            boot: false,
            other_journal: false,
            rules,
        };
        if rewrite && rules.broken(Mutation::ActWithoutRewriting) {
            sender.record = Some(record.clone());
            let effects = sender.act_on(&record, true);
            return (sender, effects);
        }
        let effects = sender.write(record, rewrite);
        (sender, effects)
    }

    /// Takes an event and returns what is to be done, in this order.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match (&self.phase, event) {
            (Phase::Writing { .. }, Event::Written) => self.written(),
            (Phase::Writing { .. }, Event::WriteFailed { doubtful }) => self.write_failed(doubtful),
            (Phase::Blocked { record, rewrite }, Event::Timeout(Timer::Retry)) => {
                let (record, rewrite) = (record.clone(), *rewrite);
                self.write(record, rewrite)
            }
            // Until GO was written, the migration can be given up; the record being written is START or GO.
            (Phase::Writing { record: Record::Go { .. }, rewrite: false }, event) => {
                if let Some(reason) = self.failure(&event) {
                    self.reason.get_or_insert(reason);
                }
                Vec::new()
            }
            (Phase::Writing { .. } | Phase::Blocked { .. }, _) => Vec::new(),
            (Phase::Asking | Phase::Settling, event) => self.step_after_go(event),
            (Phase::Resuming, event) => self.step_resuming(&event),
            (Phase::Destroying | Phase::Finished, event) => self.step_at_end(event),
            (_, event) => self.step_before_go(event),
        }
    }

    fn send(&self, body: Body) -> Effect {
        Effect::Send(Message { id: self.id, journal: self.peer, body })
    }

    fn write(&mut self, record: Record, rewrite: bool) -> Vec<Effect> {
        self.phase = Phase::Writing { record: record.clone(), rewrite };
        vec![Effect::Write(record)]
    }

    /// The body of a message about this migration from the journal that START names; others are not answers (rule 7).
    fn heard(&mut self, message: Message) -> Option<Body> {
        if message.id != self.id {
            return None;
        }
        if message.journal != self.peer && !self.rules.broken(Mutation::JournalNotCompared) {
            self.other_journal = true;
            return None;
        }
        Some(message.body)
    }

    fn written(&mut self) -> Vec<Effect> {
        let Phase::Writing { record, rewrite } = self.phase.clone() else { return Vec::new() };
        self.record = Some(record.clone());
        self.act_on(&record, rewrite)
    }

    /// Goes on after a record was synced.
    fn act_on(&mut self, record: &Record, rewrite: bool) -> Vec<Effect> {
        match record {
            Record::Start if rewrite => self.resume(Reason::DaemonRestarted),
            Record::Start => {
                self.phase = Phase::Offered;
                vec![Effect::SendOffer, Effect::StartTimer(Timer::Progress)]
            }
            Record::Go { digest } if rewrite => {
                self.digest = Some(*digest);
                if self.rules.broken(Mutation::GoAfterRestart) {
                    return self.ask(*digest);
                }
                self.settle()
            }
            Record::Go { digest } => match self.reason {
                // GO was not sent: this process may still give up.
                Some(reason) => self.resume(reason),
                None => self.ask(*digest),
            },
            Record::Done(Done::Aborted(_)) => {
                self.phase = Phase::Finished;
                vec![self.send(Body::Settle), Effect::Finished]
            }
            Record::Done(Done::Moved) => {
                self.phase = Phase::Destroying;
                vec![self.send(Body::Ack), Effect::DestroyCopy]
            }
            Record::Forced(_) if self.rules.broken(Mutation::ForcedResumes) => self.resume(Reason::Other),
            Record::Forced(decision) => {
                self.phase = Phase::Destroying;
                vec![self.send(Body::Forced(decision.clone())), Effect::DestroyCopy]
            }
            Record::ForcedDone(_) => {
                self.phase = Phase::Finished;
                vec![Effect::Finished]
            }
        }
    }

    fn write_failed(&mut self, doubtful: bool) -> Vec<Effect> {
        let Phase::Writing { record, rewrite } = self.phase.clone() else { return Vec::new() };
        match record {
            // Nothing was sent. What may be on disk is overwritten.
            Record::Start if !rewrite && doubtful => self.resume(Reason::JournalFailed),
            Record::Start if !rewrite => {
                self.reason = Some(Reason::JournalFailed);
                self.phase = Phase::Finished;
                vec![Effect::Finished]
            }
            // Even if GO is on disk, it was not sent and never will be (rules 1, 3).
            Record::Go { .. } if !rewrite => self.resume(Reason::JournalFailed),
            record => {
                self.phase = Phase::Blocked { record, rewrite };
                vec![Effect::StartTimer(Timer::Retry)]
            }
        }
    }

    fn ask(&mut self, digest: Digest) -> Vec<Effect> {
        self.phase = Phase::Asking;
        vec![self.send(Body::Go { digest }), Effect::StartTimer(Timer::Answer)]
    }

    fn settle(&mut self) -> Vec<Effect> {
        self.phase = Phase::Settling;
        vec![self.send(Body::Settle), Effect::StartTimer(Timer::Answer)]
    }

    fn resume(&mut self, reason: Reason) -> Vec<Effect> {
        self.reason = Some(reason);
        self.phase = Phase::Resuming;
        vec![Effect::Resume]
    }

    /// Why an event before GO ends the migration, or none if it does not.
    fn failure(&mut self, event: &Event) -> Option<Reason> {
        match event {
            Event::Timeout(Timer::Progress) => Some(Reason::TimedOut),
            Event::Cut => Some(Reason::ConnectionLost),
            Event::Cancel => Some(Reason::Cancelled),
            Event::GuestEnded => Some(Reason::GuestEnded),
            Event::SuspendFailed => Some(Reason::SuspendFailed),
            Event::SaveFailed => Some(Reason::SaveFailed),
            Event::Received(message) => match self.heard(message.clone())? {
                Body::Aborted(reason) => Some(reason),
                _ => None,
            },
            _ => None,
        }
    }

    fn step_before_go(&mut self, event: Event) -> Vec<Effect> {
        if let Some(reason) = self.failure(&event) {
            return self.resume(reason);
        }
        let (next, effects) = match (&self.phase, event) {
            (Phase::Precopy, Event::Converged) => (Phase::Suspending, vec![Effect::Suspend]),
            (Phase::Suspending, Event::Suspended) => (Phase::Saving, vec![Effect::StopAndSave]),
            (Phase::Saving, Event::Saved { length, digest }) => {
                self.digest = Some(digest);
                let end = self.send(Body::StreamEnd { length, digest });
                (Phase::AwaitingReady, vec![end, Effect::StartTimer(Timer::Progress)])
            }
            (Phase::Verifying, Event::StillSuspended) => return self.write_go(),
            (_, Event::Received(message)) => return self.received_before_go(message),
            _ => return Vec::new(),
        };
        self.phase = next;
        effects
    }

    fn received_before_go(&mut self, message: Message) -> Vec<Effect> {
        match (self.heard(message), &self.phase) {
            (Some(Body::Accept(limits)), Phase::Offered) => {
                self.phase = Phase::Precopy;
                vec![Effect::Stream(limits)]
            }
            (Some(Body::Ready { digest }), Phase::AwaitingReady) if Some(digest) == self.digest => {
                if self.rules.broken(Mutation::GoWithoutVerifying) {
                    return self.write_go();
                }
                self.phase = Phase::Verifying;
                vec![Effect::VerifySuspended]
            }
            (Some(Body::Ready { .. }), Phase::AwaitingReady) => self.resume(Reason::DigestMismatch),
            _ => Vec::new(),
        }
    }

    fn write_go(&mut self) -> Vec<Effect> {
        let Some(digest) = self.digest else { return self.resume(Reason::DigestMismatch) };
        let mut effects = self.write(Record::Go { digest }, false);
        if self.rules.broken(Mutation::GoSentBeforeSynced) {
            effects.extend(self.ask(digest));
        }
        effects
    }

    fn step_after_go(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Timeout(Timer::Answer) if self.rules.broken(Mutation::ResumeOnTimeout) => {
                self.resume(Reason::TimedOut)
            }
            // The channel was replaced before it was found broken: the same process may repeat GO (rule 3).
            Event::Connected if self.phase == Phase::Asking => {
                self.digest.map(|digest| self.send(Body::Go { digest })).into_iter().collect()
            }
            Event::Timeout(Timer::Answer) | Event::Cut | Event::Cancel | Event::Connected => self.settle(),
            Event::AssumeReceiverDead(decision) => {
                self.boot = true;
                self.write(Record::Forced(decision), false)
            }
            Event::Received(message) => match self.heard(message) {
                Some(Body::Committed(_)) => self.write(Record::Done(Done::Moved), false),
                Some(Body::Aborted(reason)) => self.resume(reason),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    fn step_resuming(&mut self, event: &Event) -> Vec<Effect> {
        match event {
            Event::Resumed => {
                self.write(Record::Done(Done::Aborted(self.reason.unwrap_or(Reason::Other))), false)
            }
            Event::GuestEnded => self.write(Record::Done(Done::Aborted(Reason::GuestEnded)), false),
            Event::ResumeFailed => vec![Effect::StartTimer(Timer::Retry)],
            Event::Timeout(Timer::Retry) => vec![Effect::Resume],
            _ => self.contradiction(event),
        }
    }

    fn step_at_end(&mut self, event: Event) -> Vec<Effect> {
        let Some(record) = self.record.clone() else { return Vec::new() };
        match (&record, event) {
            (_, Event::Destroyed) if self.phase == Phase::Destroying => self.destroyed(&record),
            (_, Event::DestroyFailed) => vec![Effect::StartTimer(Timer::Retry)],
            (_, Event::Timeout(Timer::Retry)) if self.phase == Phase::Destroying => vec![Effect::DestroyCopy],
            (Record::Done(Done::Aborted(_)), Event::Connected) => vec![self.send(Body::Settle)],
            (Record::Done(Done::Moved), Event::Connected) => vec![self.send(Body::Ack)],
            (Record::Forced(decision), Event::Connected) => vec![self.send(Body::Forced(decision.clone()))],
            (Record::Forced(_), Event::AssumeReceiverDead(_)) if self.phase == Phase::Finished => {
                vec![Effect::BootAnew]
            }
            (_, Event::Received(message)) => self.received_at_end(record, message),
            _ => Vec::new(),
        }
    }

    fn destroyed(&mut self, record: &Record) -> Vec<Effect> {
        self.phase = Phase::Finished;
        match record {
            Record::Forced(_) if std::mem::take(&mut self.boot) => vec![Effect::BootAnew, Effect::Finished],
            _ => vec![Effect::Finished],
        }
    }

    fn received_at_end(&mut self, record: Record, message: Message) -> Vec<Effect> {
        let repeated = message.clone();
        match (record, self.heard(message)) {
            (Record::Done(Done::Moved), Some(Body::Committed(_))) => vec![self.send(Body::Ack)],
            // Not while the suspended copy is being destroyed: FORCED is repeated, and so is its answer.
            (Record::Forced(decision), Some(Body::Voided(_))) if self.phase == Phase::Finished => {
                self.write(Record::ForcedDone(decision), false)
            }
            (Record::Done(Done::Moved), _) => Vec::new(),
            _ => self.contradiction(&Event::Received(repeated)),
        }
    }

    /// COMMITTED, of a guest that runs, when the guest is resumed or was booted anew here: someone was wrong, and no protocol helps.
    fn contradiction(&mut self, event: &Event) -> Vec<Effect> {
        let Event::Received(message) = event else { return Vec::new() };
        match self.heard(message.clone()) {
            Some(Body::Committed(Outcome::Running)) => vec![Effect::ReportTwoCopies],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
