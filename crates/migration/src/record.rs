//! What each host writes down about a migration, and what follows from it for the guest.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xen_types::DomId;

use crate::ids::{Digest, JournalId, MigrationId};
use crate::mutation::{Mutation, Rules};
use crate::reason::Reason;

/// What a migration is about: the same in all records of one host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct About {
    /// The migration.
    pub id: MigrationId,
    /// The guest's UUID.
    pub guest: Uuid,
    /// The guest's name.
    pub name: String,
    /// The other host's name, as the operator gave it or as it introduced itself.
    pub peer: String,
    /// The other host's journal.
    pub peer_journal: JournalId,
    /// This boot of this host.
    pub boot: Uuid,
    /// The guest's domain on this host, or none if it was not built yet.
    pub domid: Option<DomId>,
    /// Which of this host's migrations it is, counted from 1: later ones have greater numbers. 0 when no guest is concerned.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub begun: u64,
    /// For how long the guest stood still, in milliseconds, as far as this host knows it; only shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stood_still_ms: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Who decided that the other host is dead, and when.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// The operator's user name.
    pub operator: String,
    /// Seconds since 1970 of the clock of the host where it was decided. Only shown, never compared.
    pub time: u64,
}

/// How a migration ended at the sender.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// The guest stays here.
    Aborted(Reason),
    /// The guest is at the receiver.
    Moved,
}

/// The sender's record.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SenderRecord {
    /// A migration begins; written before OFFER.
    Start,
    /// The guest is handed over: the sender's point of no return.
    Go {
        /// The digest of READY.
        digest: Digest,
    },
    /// The end.
    Done(Done),
    /// An operator decided that the receiver is dead.
    Forced(Decision),
    /// The receiver has confirmed this decision.
    ForcedDone(Decision),
}

/// The receiver's record.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiverRecord {
    /// A guest is coming; written before anything is built.
    Open,
    /// The guest is taken over: the receiver's point of no return.
    Committed,
    /// The guest was not taken over and never will be.
    Aborted(Reason),
    /// The sender has acknowledged COMMITTED.
    Owned,
    /// The guest was started anew at the sender; there is no copy here.
    Void(Decision),
    /// An operator decided that the sender is dead.
    Claimed(Decision),
}

/// A record of either role.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// Of the host that the guest leaves.
    Sender(SenderRecord),
    /// Of the host that it comes to.
    Receiver(ReceiverRecord),
}

/// What a record says about whose guest it is (rule 9).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Claim {
    /// This host's.
    Ours,
    /// Another host's.
    Theirs,
    /// What it was before.
    Unchanged,
    /// Not known yet: this host must not start the guest by itself.
    Undecided,
}

impl SenderRecord {
    /// Returns whose guest it is by this record.
    pub fn claim(&self) -> Claim {
        self.claim_by(Rules::default())
    }

    pub(crate) fn claim_by(&self, rules: Rules) -> Claim {
        match self {
            Self::Go { .. } if rules.broken(Mutation::StartAtGo) => Claim::Ours,
            Self::Forced(_) if rules.broken(Mutation::StartForced) => Claim::Ours,
            Self::Start | Self::Go { .. } | Self::Forced(_) => Claim::Undecided,
            Self::Done(Done::Aborted(_)) => Claim::Unchanged,
            Self::Done(Done::Moved) => Claim::Theirs,
            Self::ForcedDone(_) => Claim::Ours,
        }
    }
}

impl ReceiverRecord {
    /// Returns whose guest it is by this record.
    pub fn claim(&self) -> Claim {
        self.claim_by(Rules::default())
    }

    pub(crate) fn claim_by(&self, rules: Rules) -> Claim {
        match self {
            Self::Committed if rules.broken(Mutation::StartUnacknowledged) => Claim::Ours,
            Self::Claimed(_) if rules.broken(Mutation::StartForced) => Claim::Ours,
            Self::Open | Self::Committed | Self::Claimed(_) => Claim::Undecided,
            Self::Aborted(_) | Self::Void(_) => Claim::Unchanged,
            Self::Owned => Claim::Ours,
        }
    }
}

/// Decides whether a host may start a guest by itself, as after a reboot (rule 9).
///
/// `had_it` says that the guest was created here; `claims` are those of its migrations on this host, the oldest first.
pub fn may_start(had_it: bool, claims: impl IntoIterator<Item = Claim>) -> bool {
    let mut ours = had_it;
    for claim in claims {
        match claim {
            Claim::Ours => ours = true,
            Claim::Theirs => ours = false,
            Claim::Unchanged => {}
            Claim::Undecided => return false,
        }
    }
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_started_only_where_it_is_owned() {
        let decision = || Decision { operator: "root".to_owned(), time: 1 };
        let sent = |record: SenderRecord| may_start(true, [record.claim()]);
        assert!(may_start(true, []));
        assert!(!sent(SenderRecord::Start));
        assert!(!sent(SenderRecord::Go { digest: Digest([1; 16]) }));
        assert!(sent(SenderRecord::Done(Done::Aborted(Reason::TimedOut))));
        assert!(!sent(SenderRecord::Done(Done::Moved)));
        assert!(!sent(SenderRecord::Forced(decision())));
        assert!(sent(SenderRecord::ForcedDone(decision())));
        let came = |record: ReceiverRecord| may_start(false, [record.claim()]);
        assert!(!came(ReceiverRecord::Committed));
        assert!(!came(ReceiverRecord::Claimed(decision())));
        assert!(!came(ReceiverRecord::Aborted(Reason::Busy)));
        assert!(came(ReceiverRecord::Owned));
        // It came, left again, and the last attempt to bring it back failed.
        let claims = [ReceiverRecord::Owned.claim(), SenderRecord::Done(Done::Moved).claim()];
        assert!(!may_start(false, claims));
        assert!(!may_start(false, claims.into_iter().chain([ReceiverRecord::Aborted(Reason::Busy).claim()])));
    }
}
