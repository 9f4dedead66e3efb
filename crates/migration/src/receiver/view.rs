//! What others see of the machine.

use super::{Phase, Receiver};
use crate::message::{Body, Message};
use crate::record::ReceiverRecord as Record;
use crate::shown::State;

impl Receiver {
    /// Returns what users see; an error in the journal or at arming is the shell's to add.
    pub fn state(&self) -> State {
        match &self.phase {
            Phase::Writing { rewrite: true, .. } | Phase::Inspecting => State::Restarting,
            Phase::Blocked { record, .. } => {
                State::JournalBlocked { cancelled: matches!(record, Record::Aborted(_)) }
            }
            Phase::Writing { record, .. } => self.state_of(record),
            Phase::Building | Phase::Receiving | Phase::Loading => State::Incoming,
            Phase::Loaded | Phase::Verifying => State::IncomingPaused,
            Phase::Arming { .. } | Phase::Unpausing => State::TakingOver,
            Phase::Final | Phase::Removing | Phase::Closed => {
                self.record.as_ref().map_or(State::Incoming, |record| self.state_of(record))
            }
        }
    }

    fn state_of(&self, record: &Record) -> State {
        let outcome = self.outcome;
        match record {
            Record::Open => State::Incoming,
            Record::Committed if self.phase == Phase::Final => {
                State::TakenOver { outcome, acknowledged: false }
            }
            Record::Committed => State::TakingOver,
            Record::Aborted(reason) => State::Refused(*reason),
            Record::Owned => State::TakenOver { outcome, acknowledged: true },
            Record::Void(decision) => State::Void { operator: decision.operator.clone() },
            Record::Claimed(decision) => State::Claimed { operator: decision.operator.clone(), outcome },
        }
    }

    /// Reports whether the next operation on the guest may begin, as far as this migration is concerned (rule 10).
    pub fn allows_operation(&self) -> bool {
        match self.phase {
            Phase::Final => self.record == Some(Record::Owned),
            Phase::Closed => true,
            _ => false,
        }
    }

    /// Reports whether the guest was taken over and the sender has not acknowledged it: an operator may decide.
    pub fn is_unacknowledged(&self) -> bool {
        self.phase == Phase::Final && matches!(self.record, Some(Record::Committed | Record::Claimed(_)))
    }

    /// Returns the final answer to the sender, or none while it is not decided.
    pub fn answer(&self) -> Option<Message> {
        let body = match (&self.phase, &self.record) {
            (Phase::Final, Some(Record::Committed | Record::Owned | Record::Claimed(_))) => {
                Body::Committed(self.outcome)
            }
            (Phase::Removing | Phase::Closed, Some(Record::Aborted(reason))) => Body::Aborted(*reason),
            (Phase::Removing | Phase::Closed, Some(Record::Void(decision))) => Body::Voided(decision.clone()),
            _ => return None,
        };
        Some(self.message(body))
    }

    /// Returns the last record that is surely on disk.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }
}

#[cfg(any(test, feature = "testing"))]
impl Receiver {
    /// Forgets why it was aborted, which no decision depends on, so that the model has fewer states.
    pub(crate) fn forget_reason(&mut self) {
        if let Phase::Writing { record: Record::Aborted(reason), .. }
        | Phase::Blocked { record: Record::Aborted(reason), .. } = &mut self.phase
        {
            *reason = crate::Reason::Other;
        }
        if let Some(Record::Aborted(reason)) = &mut self.record {
            *reason = crate::Reason::Other;
        }
        if let crate::Outcome::Ended(why) = &mut self.outcome {
            *why = crate::Ended::Other;
        }
    }
}
