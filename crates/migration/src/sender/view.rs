//! What others see of the machine.

use super::{Phase, Sender};
use crate::mutation::Mutation;
use crate::reason::Reason;
use crate::record::{Done, SenderRecord as Record};
use crate::shown::State;

impl Sender {
    /// Returns what users see; an error in the journal or at resuming is the shell's to add.
    pub fn state(&self) -> State {
        let reason = self.reason.unwrap_or(Reason::Other);
        match &self.phase {
            Phase::Writing { rewrite: true, .. } => State::Restarting,
            Phase::Blocked { .. } => State::JournalBlocked { cancelled: self.reason.is_some() },
            Phase::Writing { record, .. } => match record {
                Record::Start => State::Migrating,
                Record::Go { .. } => State::HandingOver,
                record => Self::state_of(record),
            },
            Phase::Offered | Phase::Precopy => State::Migrating,
            Phase::Suspending | Phase::Saving | Phase::AwaitingReady | Phase::Verifying => State::HandingOver,
            Phase::Asking => State::NoAnswer,
            Phase::Settling => State::Unresolved { other_journal: self.other_journal },
            Phase::Resuming => State::ComingBack(reason),
            Phase::Destroying | Phase::Finished => {
                self.record.as_ref().map_or(State::NotMigrated(reason), Self::state_of)
            }
        }
    }

    /// Reports whether the next operation on the guest may begin, as far as this migration is concerned (rule 10).
    pub fn allows_operation(&self) -> bool {
        if self.rules.broken(Mutation::BeginBeforeDone) && self.is_writing_aborted() {
            return true;
        }
        matches!(self.phase, Phase::Finished)
            && !matches!(self.record, Some(Record::Start | Record::Go { .. } | Record::Forced(_)))
    }

    /// Reports whether the record is GO and an operator may decide about it.
    pub fn is_unresolved(&self) -> bool {
        matches!(self.phase, Phase::Asking | Phase::Settling)
    }

    /// Returns the last record that is surely on disk.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    fn is_writing_aborted(&self) -> bool {
        let (Phase::Writing { record, .. } | Phase::Blocked { record, .. }) = &self.phase else {
            return false;
        };
        matches!(record, Record::Done(Done::Aborted(_)))
    }

    fn state_of(record: &Record) -> State {
        match record {
            Record::Start | Record::Go { .. } => State::Unresolved { other_journal: false },
            Record::Done(Done::Aborted(Reason::GuestEnded)) => State::EndedHere,
            Record::Done(Done::Aborted(reason)) => State::NotMigrated(*reason),
            Record::Done(Done::Moved) => State::Moved,
            Record::Forced(decision) => {
                State::StartedAnew { operator: decision.operator.clone(), confirmed: false }
            }
            Record::ForcedDone(decision) => {
                State::StartedAnew { operator: decision.operator.clone(), confirmed: true }
            }
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl Sender {
    /// Forgets why it was aborted, which no decision depends on, so that the model has fewer states.
    pub(crate) fn forget_reason(&mut self) {
        if self.reason.is_some() {
            self.reason = Some(Reason::Other);
        }
        if let Phase::Writing { record: Record::Done(Done::Aborted(reason)), .. }
        | Phase::Blocked { record: Record::Done(Done::Aborted(reason)), .. } = &mut self.phase
        {
            *reason = Reason::Other;
        }
        if let Some(Record::Done(Done::Aborted(reason))) = &mut self.record {
            *reason = Reason::Other;
        }
    }
}
