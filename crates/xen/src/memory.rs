//! What saving and restoring an HVM domain's memory and CPU state needs to be told, and whom it asks.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::build::Channel;

/// How a domain's memory is saved.
#[derive(Clone, Debug)]
pub struct SaveMemory {
    /// Whether the domain runs while most of its memory is written, in rounds. Otherwise it is suspended first.
    pub live: bool,
    /// When the whole save has to be complete.
    pub deadline: Instant,
    /// Gives the save up early.
    pub cancel: Cancel,
}

/// How a domain's memory is restored.
#[derive(Clone, Debug)]
pub struct RestoreMemory {
    /// The xenstore ring's event channel.
    pub store: Channel,
    /// The console ring's event channel.
    pub console: Channel,
    /// When the whole restore has to be complete.
    pub deadline: Instant,
    /// Gives the restore up early.
    pub cancel: Cancel,
}

/// How a domain's memory is dumped.
#[derive(Clone, Debug)]
pub struct DumpCore {
    /// When the whole dump has to be complete.
    pub deadline: Instant,
    /// Gives the dump up early.
    pub cancel: Cancel,
}

/// What a save asks while it works. All calls are made on the thread that called `Hypervisor::save_memory`, which waits
/// for them: a call that takes long has to keep to the deadline itself.
///
/// The order is libxc's: [`log_dirty`](Self::log_dirty) on; for a live save [`precopy`](Self::precopy) for each round;
/// [`suspend`](Self::suspend); `log_dirty` off. Whatever goes wrong, a `log_dirty` that was answered with `true` is
/// followed by one that switches it off.
pub trait SaveEvents {
    /// Suspends the domain and returns whether that worked. The domain must then have shut down with the reason
    /// [`Suspend`](crate::ShutdownReason::Suspend). With `false`, the save fails.
    fn suspend(&mut self) -> bool;

    /// Tells the device model to report the memory that it writes, or to end that, and returns whether that worked. It
    /// is asked of a save that is not live too. With `false` for `on`, the save fails.
    fn log_dirty(&mut self, on: bool) -> bool;

    /// Decides how a live save goes on: before and after each round.
    fn precopy(&mut self, stats: Precopy) -> Verdict;

    /// Tells how much of the current round has been written, in pages.
    fn progress(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }
}

/// How far a live save is (`struct precopy_stats` in `xenguest.h`, and a time).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Precopy {
    /// Rounds that are complete.
    pub round: u32,
    /// Pages that were written in them.
    pub written_pages: u64,
    /// Pages that have to be written again; `None` while Xen has not been asked, after a round.
    pub dirty_pages: Option<u64>,
    /// How long the last complete round took, in which [`written_pages`](Self::written_pages) grew by its pages; zero
    /// before there was one. A reader of the stream who is slow makes it long.
    pub elapsed: Duration,
}

/// How a live save goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With another round while the domain runs.
    Continue,
    /// With the suspend, and what is then left to be written.
    StopAndCopy,
    /// Not at all: the save fails.
    Abort,
}

/// Lets any thread give up a save, a restore or a dump. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Makes one that has not been used.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives up what was begun with it, which notices within a tenth of a second.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was given up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Makes reads and writes of a stream wait, as libxc and the helper process expect. `O_NONBLOCK` belongs to the open file, so that the
/// caller's descriptor is blocking afterwards too.
pub(crate) fn make_blocking(stream: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(stream, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) {
        fcntl(stream, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
    }
    Ok(())
}
