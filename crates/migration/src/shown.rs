//! What users see of a migration, on either host.

use std::fmt;

use crate::ids::MigrationId;
use crate::reason::{Outcome, Reason};

/// How far a migration is, for users.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// S: the memory is being sent; the guest runs. The shell adds the round and the figures.
    Migrating,
    /// S: the guest is suspended, and the rest is being sent.
    HandingOver,
    /// S: GO was sent.
    NoAnswer,
    /// S: GO was sent, no answer arrived. It waits for the peer or for an operator.
    Unresolved {
        /// The peer answers with another journal than the one that the guest was handed to.
        other_journal: bool,
    },
    /// S: the guest is resumed here.
    ComingBack(Reason),
    /// S: the guest stayed here.
    NotMigrated(Reason),
    /// S: the guest ended while it was being migrated.
    EndedHere,
    /// S: the guest is at the peer.
    Moved,
    /// S: an operator decided that the receiver is dead.
    StartedAnew {
        /// Who.
        operator: String,
        /// The receiver has recorded it.
        confirmed: bool,
    },
    /// R: the guest is being received.
    Incoming,
    /// R: the guest is loaded.
    IncomingPaused,
    /// R: the guest is taken over.
    TakingOver,
    /// R: the guest was taken over.
    TakenOver {
        /// What became of it.
        outcome: Outcome,
        /// The sender has acknowledged it.
        acknowledged: bool,
    },
    /// R: an operator decided that the sender is dead.
    Claimed {
        /// Who.
        operator: String,
        /// What became of the guest here.
        outcome: Outcome,
    },
    /// R: the guest was not taken over.
    Refused(Reason),
    /// R: the guest was started anew at the sender.
    Void {
        /// Who decided it.
        operator: String,
    },
    /// Either: a daemon was restarted and writes down what it found.
    Restarting,
    /// Either: the journal cannot be written; it is tried again.
    JournalBlocked {
        /// The migration was aborted, and this is to be recorded.
        cancelled: bool,
    },
}

/// A state with the names that its text needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown<'a> {
    /// How far it is.
    pub state: State,
    /// The migration.
    pub id: MigrationId,
    /// The guest's name.
    pub guest: &'a str,
    /// The other host's name.
    pub peer: &'a str,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guest, peer, .. } = self;
        match &self.state {
            State::Migrating => write!(f, "migrating to {peer}"),
            State::HandingOver => write!(f, "handing over to {peer}"),
            State::NoAnswer => write!(f, "handed over to {peer}, no answer yet"),
            State::Unresolved { other_journal: false } => {
                write!(
                    f,
                    "UNRESOLVED: {peer} does not answer; run outrigger migrate --resolve {guest} {peer}"
                )
            }
            State::Unresolved { other_journal: true } => write!(
                f,
                "UNRESOLVED: {peer} has another journal than the host that got the guest; run outrigger migrate \
                 --resolve {guest}"
            ),
            State::ComingBack(reason) => write!(f, "not migrated: {reason}; resuming here"),
            State::NotMigrated(reason) => write!(f, "not migrated: {reason}; stayed here"),
            State::EndedHere => f.write_str("not migrated: the guest ended here"),
            State::Moved => write!(f, "moved to {peer}"),
            State::StartedAnew { operator, confirmed: false } => {
                write!(f, "started anew by {operator}; {peer} has not confirmed")
            }
            State::StartedAnew { operator, confirmed: true } => write!(f, "started anew by {operator}"),
            State::Incoming => write!(f, "incoming from {peer}"),
            State::IncomingPaused => write!(f, "incoming from {peer}, paused"),
            State::TakingOver => write!(f, "taking over from {peer}"),
            State::TakenOver { outcome, acknowledged: true } => {
                write!(f, "taken over from {peer}: {outcome}")
            }
            State::TakenOver { outcome, acknowledged: false } => {
                write!(f, "{outcome}; {peer} has not acknowledged")
            }
            State::Claimed { operator, outcome } => {
                write!(f, "{outcome}; {operator} declared {peer} dead, which has not acknowledged")
            }
            State::Refused(reason) => write!(f, "not taken over from {peer}: {reason}"),
            State::Void { operator } => write!(f, "started anew at {peer} by {operator}; no copy here"),
            State::Restarting => f.write_str("recording what was found after a restart"),
            State::JournalBlocked { cancelled: true } => {
                f.write_str("cancelled; cannot write the journal, trying again")
            }
            State::JournalBlocked { cancelled: false } => {
                f.write_str("cannot write the journal, trying again")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ended;

    #[test]
    fn users_read_what_happened_to_the_guest() {
        let text = |state| Shown { state, id: MigrationId([1; 16]), guest: "web", peer: "b" }.to_string();
        assert_eq!(text(State::NoAnswer), "handed over to b, no answer yet");
        assert_eq!(
            text(State::Unresolved { other_journal: false }),
            "UNRESOLVED: b does not answer; run outrigger migrate --resolve web b"
        );
        assert_eq!(text(State::NotMigrated(Reason::Cancelled)), "not migrated: cancelled; stayed here");
        let taken = |outcome| text(State::TakenOver { outcome, acknowledged: false });
        assert_eq!(taken(Outcome::Running), "runs; b has not acknowledged");
        assert_eq!(
            taken(Outcome::Ended(Ended::HostRebooted)),
            "ended: host rebooted; b has not acknowledged"
        );
        assert_eq!(
            text(State::StartedAnew { operator: "ann".to_owned(), confirmed: false }),
            "started anew by ann; b has not confirmed"
        );
    }
}
