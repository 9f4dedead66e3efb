use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use xen::EventChannels;
use xen_types::{DomId, EventPort};

use crate::error::VchanError;
use crate::pages::RingPages;
use crate::ring::{Moved, Ring, RingLie};

/// A ring and the event channel to its other end: what server and client have in common.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) ring: Ring<RingPages>,
    pub(crate) port: EventPort,
    pub(crate) peer: DomId,
}

impl Channel {
    /// Reads; `is_open` is whether the other side was there before.
    pub(crate) fn read(
        &mut self,
        events: &EventChannels,
        into: &mut [u8],
        is_open: bool,
    ) -> Result<usize, VchanError> {
        let moved = self.ring.read(into);
        match self.done(events, moved)? {
            0 if !is_open && !into.is_empty() => Err(VchanError::Closed),
            count => Ok(count),
        }
    }

    /// Writes.
    pub(crate) fn write(&mut self, events: &EventChannels, from: &[u8]) -> Result<usize, VchanError> {
        let moved = self.ring.write(from);
        self.done(events, moved)
    }

    fn done(&self, events: &EventChannels, moved: Result<Moved, RingLie>) -> Result<usize, VchanError> {
        let moved = moved?;
        if moved.kick {
            self.kick(events)?;
        }
        Ok(moved.count)
    }

    /// Wakes the other side.
    pub(crate) fn kick(&self, events: &EventChannels) -> Result<(), VchanError> {
        events.notify(self.port).map_err(VchanError::xen("wake the other end", self.peer))
    }

    /// Takes what the event channel has for this side; gives whether it was woken.
    ///
    /// The channel can fire again from here on, so that nothing is missed that happens while the ring is looked at.
    pub(crate) fn take_wakeup(&self, events: &EventChannels) -> Result<bool, VchanError> {
        let woken = self.has_fired(events)?;
        if woken {
            self.unmask(events)?;
        }
        Ok(woken)
    }

    /// Takes a wake-up; when there was one, the next can come only after [`unmask`](Self::unmask).
    pub(crate) fn has_fired(&self, events: &EventChannels) -> Result<bool, VchanError> {
        while let Some(port) = events.pending().map_err(VchanError::xen("read the wake-ups", self.peer))? {
            // A port of an earlier ring may still be in the queue.
            if port == self.port {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets the event channel fire again.
    pub(crate) fn unmask(&self, events: &EventChannels) -> Result<(), VchanError> {
        events.unmask(self.port).map_err(VchanError::xen("take a wake-up", self.peer))
    }
}

/// The descriptor of event channels, for those who hold them beside a [`Channel`].
pub(crate) fn fd(events: &EventChannels) -> BorrowedFd<'_> {
    events.as_fd()
}

/// The same as a number.
pub(crate) fn raw_fd(events: &EventChannels) -> RawFd {
    events.as_raw_fd()
}
