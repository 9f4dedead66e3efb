//! Rules that tests break, to see that the model notices.

/// A rule of the protocol that a machine breaks on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(not(any(test, feature = "testing")), expect(unreachable_pub, dead_code, reason = "tests only"))]
pub enum Mutation {
    /// Rule 1: GO is sent while it is being written.
    GoSentBeforeSynced,
    /// Rule 1: GO is written without a look at the suspended guest.
    GoWithoutVerifying,
    /// Rule 2: the sender resumes when no answer comes.
    ResumeOnTimeout,
    /// Rule 3: a restarted sender sends GO.
    GoAfterRestart,
    /// Rule 4: the disks are armed when the guest is loaded.
    ArmBeforeCommitted,
    /// Rule 4: the guest runs without COMMITTED.
    RunWithoutCommitted,
    /// Rule 4: COMMITTED is not synced; this is broken by the shell.
    CommittedNotSynced,
    /// Rule 4: COMMITTED is answered before the guest was unpaused.
    CommittedBeforeUnpaused,
    /// Rule 4: a restarted receiver turns COMMITTED into ABORTED.
    RestartAbortsCommitted,
    /// Rule 5: ABORTED is answered while it is being written.
    AbortedBeforeSynced,
    /// Rule 5: a migration that was aborted accepts its OFFER again.
    AbortedNotFinal,
    /// Rule 6: a restarted daemon acts on what it read.
    ActWithoutRewriting,
    /// Rule 7: the identity of the journal is not compared.
    JournalNotCompared,
    /// Rule 8: the suspended copy is resumed when the receiver is assumed dead.
    ForcedResumes,
    /// Rule 9: a host starts a guest whose hand-over is open at GO.
    StartAtGo,
    /// Rule 9: a host starts a guest that it received and the sender has not acknowledged.
    StartUnacknowledged,
    /// Rule 9: a host starts a guest after an operator's decision that the peer has not confirmed.
    StartForced,
    /// Rule 10: the next migration begins before DONE is synced.
    BeginBeforeDone,
}

#[cfg(any(test, feature = "testing"))]
impl Mutation {
    /// Returns all of them.
    pub const ALL: &[Self] = &[
        Self::GoSentBeforeSynced,
        Self::GoWithoutVerifying,
        Self::ResumeOnTimeout,
        Self::GoAfterRestart,
        Self::ArmBeforeCommitted,
        Self::RunWithoutCommitted,
        Self::CommittedNotSynced,
        Self::CommittedBeforeUnpaused,
        Self::RestartAbortsCommitted,
        Self::AbortedBeforeSynced,
        Self::AbortedNotFinal,
        Self::ActWithoutRewriting,
        Self::JournalNotCompared,
        Self::ForcedResumes,
        Self::StartAtGo,
        Self::StartUnacknowledged,
        Self::StartForced,
        Self::BeginBeforeDone,
    ];
}

/// The rules as a machine follows them: all of them, except in tests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Rules {
    #[cfg(any(test, feature = "testing"))]
    broken: Option<Mutation>,
}

impl Rules {
    /// All rules but one.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn without(broken: Option<Mutation>) -> Self {
        Self { broken }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn broken(self, mutation: Mutation) -> bool {
        self.broken == Some(mutation)
    }

    #[cfg(not(any(test, feature = "testing")))]
    pub(crate) fn broken(self, _: Mutation) -> bool {
        false
    }
}
