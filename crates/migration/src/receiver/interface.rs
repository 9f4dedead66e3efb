use crate::ids::Digest;
use crate::message::Message;
use crate::reason::{Ended, Reason};
use crate::record::{Decision, ReceiverRecord};

/// What a timer is for. A machine has one timer: starting one replaces the former. How long each runs is the shell's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Timer {
    /// The stream's progress, which the shell watches, and GO.
    Progress,
    /// The answer is sent again.
    Repeat,
    /// What failed is tried again.
    Retry,
}

/// What there is of the incoming guest on this host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Copy {
    /// It was never unpaused.
    Paused,
    /// It runs.
    Running,
    /// It has ended, or the host was rebooted.
    Gone(Ended),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The record is on disk and synced.
    Written,
    /// The record could not be written. It may nevertheless be there; the next write uses the other slot.
    WriteFailed,
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
    /// The domains are built: the guest and the stubdomain are paused, their disks not open.
    Built,
    /// They cannot be built.
    BuildFailed(Reason),
    /// The guest and QEMU are loaded and checked, and the disks are fenced.
    Loaded,
    /// They cannot be loaded.
    LoadFailed,
    /// The copy is still there, paused.
    StillPaused,
    /// The copy is gone. It may come at any time.
    CopyGone(Ended),
    /// The disks can be written.
    Armed,
    /// The disks cannot be used; they are fenced again.
    ArmFailed,
    /// The guest runs.
    Unpaused,
    /// The guest cannot be unpaused.
    UnpauseFailed,
    /// The answer to [`Effect::Inspect`].
    Inspected(Copy),
    /// The paused copy is gone.
    Destroyed,
    /// The paused copy cannot be destroyed.
    DestroyFailed,
    /// An operator decided that the sender is dead; see [`crate::resolve`] for when he may.
    AssumeSenderDead(Decision),
}

/// What is to be done. Those that name an event are answered by it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Write the record and sync it; then [`Event::Written`] or [`Event::WriteFailed`].
    Write(ReceiverRecord),
    /// Send a message if there is a channel.
    Send(Message),
    /// Build the guest and its stubdomain, paused; then [`Event::Built`] or [`Event::BuildFailed`].
    Build,
    /// Load what was received, check it against length and digest, pause the stubdomain, pause the guest twice; then
    /// [`Event::Loaded`] or [`Event::LoadFailed`].
    Load {
        /// The stream's length in bytes.
        length: u64,
        /// Its digest.
        digest: Digest,
    },
    /// Look whether the copy is still there; then [`Event::StillPaused`] or [`Event::CopyGone`].
    VerifyPaused,
    /// Drop caches, unpause the stubdomain, let QEMU open its images; then [`Event::Armed`], [`Event::ArmFailed`] or
    /// [`Event::CopyGone`].
    Arm,
    /// Let QEMU continue and unpause the guest; then [`Event::Unpaused`], [`Event::UnpauseFailed`] or
    /// [`Event::CopyGone`].
    Unpause,
    /// Look what there is of the guest; then [`Event::Inspected`].
    Inspect,
    /// Destroy the paused copy, if it still exists; then [`Event::Destroyed`] or [`Event::DestroyFailed`].
    DestroyIncoming,
    /// Boot the guest anew from its disks.
    BootAnew,
    /// Pause the running copy: the sender has started the guest anew.
    PauseCopy,
    /// Start the timer.
    StartTimer(Timer),
    /// Nothing is left to do but to answer.
    Finished,
    /// The sender runs the guest too, or may. Both hosts report it; only a person can decide.
    ReportTwoCopies,
}
