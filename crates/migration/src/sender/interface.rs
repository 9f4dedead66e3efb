use crate::ids::Digest;
use crate::message::{Limits, Message};
use crate::record::{Decision, SenderRecord};

/// What a timer is for. A machine has one timer: starting one replaces the former. How long each runs is the shell's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Timer {
    /// The peer's ACCEPT or READY; also the stream's progress, which the shell watches.
    Progress,
    /// The answer to GO or SETTLE.
    Answer,
    /// What failed is tried again.
    Retry,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The record is on disk and synced.
    Written,
    /// The record could not be written.
    WriteFailed {
        /// It may nevertheless be there, now or later. The next write uses the other slot.
        doubtful: bool,
    },
    /// A message arrived, on whichever channel.
    Received(Message),
    /// A channel to the peer was opened, and both said HELLO.
    Connected,
    /// The channel broke.
    Cut,
    /// A timer ran out.
    Timeout(Timer),
    /// A user cancels the migration.
    Cancel,
    /// The memory that is still to be sent fits into the allowed downtime.
    Converged,
    /// The guest is suspended.
    Suspended,
    /// The guest cannot be suspended.
    SuspendFailed,
    /// The stream is complete; the guest is suspended, QEMU stopped with its images released, the rings are empty, the
    /// caches of dom0 synced, the stubdomain paused.
    Saved {
        /// The stream's length in bytes.
        length: u64,
        /// Its digest.
        digest: Digest,
    },
    /// The guest cannot be saved.
    SaveFailed,
    /// The guest is still suspended by this migration.
    StillSuspended,
    /// The guest's domain has ended or is gone. It may come at any time.
    GuestEnded,
    /// The guest runs.
    Resumed,
    /// The guest cannot be resumed.
    ResumeFailed,
    /// The suspended copy is gone.
    Destroyed,
    /// The suspended copy cannot be destroyed.
    DestroyFailed,
    /// An operator decided that the receiver is dead; see [`crate::resolve`] for when he may.
    AssumeReceiverDead(Decision),
}

/// What is to be done. Those that name an event are answered by it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Write the record and sync it; then [`Event::Written`] or [`Event::WriteFailed`].
    Write(SenderRecord),
    /// Send a message if there is a channel.
    Send(Message),
    /// Send OFFER with the guest's configuration.
    SendOffer,
    /// Send the guest's memory as DATA; then [`Event::Converged`].
    Stream(Limits),
    /// Suspend the guest; then [`Event::Suspended`], [`Event::SuspendFailed`] or [`Event::GuestEnded`].
    Suspend,
    /// Stop QEMU, send the rest, flush and fence; then [`Event::Saved`] or [`Event::SaveFailed`].
    StopAndSave,
    /// Look whether the guest is still suspended; then [`Event::StillSuspended`] or [`Event::GuestEnded`].
    VerifySuspended,
    /// Let the guest run again, whatever of suspending and saving was done: arm its disks, resume QEMU and the guest;
    /// then [`Event::Resumed`], [`Event::ResumeFailed`] or [`Event::GuestEnded`].
    Resume,
    /// Destroy the suspended copy, if it still exists, but never a running one; then [`Event::Destroyed`] or
    /// [`Event::DestroyFailed`].
    DestroyCopy,
    /// Boot the guest anew from its disks.
    BootAnew,
    /// Start the timer.
    StartTimer(Timer),
    /// Nothing is left to do but to answer.
    Finished,
    /// The peer runs a guest that runs here too. Both hosts report it; only a person can decide.
    ReportTwoCopies,
}
