//! The journal, as the engine sees it: one entry, which is made, moved and removed.

use super::entry::{Cursor, Kind, Operation, Way};
use super::step::StepResult;
use crate::Toolstack;
use crate::error::Cause;
use crate::record::GuestRecord;

/// Refuses to begin anything with a guest while another host has to decide about an operation.
pub(crate) fn must_be_free(record: &GuestRecord) -> StepResult {
    match &record.operation {
        Some(Operation { cursor: Cursor { way: Way::Peer, .. }, .. }) => {
            Err(Cause::Held { name: record.name.clone() })
        }
        _ => Ok(()),
    }
}

/// The id of the steps that make an entry.
pub(crate) const ENTRY: &str = "write-record";

/// What an operation works on, with its entry in the journal.
pub(crate) trait Journal {
    /// Makes the entry durable with this cursor.
    fn enter(&mut self, cursor: Cursor) -> StepResult;

    /// Removes the entry of an operation that is complete.
    fn complete(&mut self) -> StepResult;

    /// Removes the entry of an operation that was undone, or was not begun. Where the guest goes on without the
    /// operation, also when something of it could not be undone: the guest's end removes that.
    fn withdraw(&mut self, is_clean: bool) -> StepResult;

    /// Whether the operation, found with an entry before its point of no return, is beyond it all the same.
    fn has_passed(&mut self) -> Result<bool, Cause>;
}

/// An operation whose entry is in a guest's state file.
pub(crate) trait OnGuest {
    /// The toolstack, and the guest's record.
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord);

    /// What is done.
    fn kind(&self) -> Kind;

    /// As [`Journal::complete`].
    fn complete(&mut self) -> StepResult {
        remove_entry(self.parts())
    }

    /// As [`Journal::withdraw`].
    fn withdraw(&mut self, _is_clean: bool) -> StepResult {
        remove_entry(self.parts())
    }

    /// As [`Journal::has_passed`].
    fn has_passed(&mut self) -> Result<bool, Cause> {
        Ok(false)
    }
}

impl<T: OnGuest> Journal for T {
    fn enter(&mut self, cursor: Cursor) -> StepResult {
        let kind = self.kind();
        let (ts, record) = self.parts();
        // Only the operation itself goes on, once the other host has decided.
        if record.operation.as_ref().is_some_and(|before| !kind.may_follow(before)) {
            must_be_free(record)?;
        }
        record.operation = Some(Operation { kind, cursor });
        record.save(&*ts.host, &ts.paths)
    }

    fn complete(&mut self) -> StepResult {
        OnGuest::complete(self)
    }

    fn withdraw(&mut self, is_clean: bool) -> StepResult {
        OnGuest::withdraw(self, is_clean)
    }

    fn has_passed(&mut self) -> Result<bool, Cause> {
        OnGuest::has_passed(self)
    }
}

/// Saves the record without its entry, which stays when that fails.
fn remove_entry((ts, record): (&Toolstack, &mut GuestRecord)) -> StepResult {
    let Some(entry) = record.operation.take() else { return Ok(()) };
    record.save(&*ts.host, &ts.paths).inspect_err(|_| record.operation = Some(entry))
}
