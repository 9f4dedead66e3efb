//! One console's connection to its ring: the mapped page, the event channel, and what waits for either direction.

use std::collections::VecDeque;

use xen_types::EventPort;

use crate::handshake::{Link, Offer};
use crate::ring::{BackendRing, Batch, CorruptRing, OUT_SIZE, RingMemory};
use crate::spool::RingRecord;

/// Input that waits for the guest; its sources are not read beyond it.
pub(crate) const INPUT_MAX: usize = 4096;

/// The ring, if one is mapped, and the guest's input.
#[derive(Debug)]
pub(crate) struct RingLink<M> {
    ring: Option<Ring<M>>,
    /// The handshake (secondary) or what was mapped (primary).
    handshake: Link,
    input: VecDeque<u8>,
}

/// A ring in use.
#[derive(Debug)]
struct Ring<M> {
    ring: BackendRing<M>,
    /// This side's port.
    port: EventPort,
    /// Whether the port has fired and waits to be unmasked.
    has_fired: bool,
    /// Bytes that stay in the ring until the console's files have them, and their end in the console's stream.
    held: Option<(Batch, u64)>,
}

impl<M: RingMemory> RingLink<M> {
    pub(crate) const fn new() -> Self {
        Self { ring: None, handshake: Link::None, input: VecDeque::new() }
    }

    pub(crate) const fn handshake(&self) -> Link {
        self.handshake
    }

    pub(crate) const fn set_handshake(&mut self, link: Link) {
        self.handshake = link;
    }

    /// Notes that the frontend has seen the connection.
    pub(crate) const fn confirm(&mut self) {
        if let Link::Connected { confirmed, .. } = &mut self.handshake {
            *confirmed = true;
        }
    }

    /// Notes that the ring of this offer is corrupted.
    pub(crate) const fn refuse(&mut self, offer: Offer) {
        self.handshake = Link::Refused(offer);
    }

    pub(crate) const fn is_connected(&self) -> bool {
        self.ring.is_some()
    }

    pub(crate) fn port(&self) -> Option<EventPort> {
        self.ring.as_ref().map(|ring| ring.port)
    }

    /// Uses a ring whose port is bound.
    pub(crate) fn attach(&mut self, ring: BackendRing<M>, port: EventPort) {
        self.ring = Some(Ring { ring, port, has_fired: false, held: None });
    }

    /// Releases the ring, which unmaps its page, and returns the port to unbind.
    pub(crate) fn detach(&mut self) -> Option<EventPort> {
        self.ring.take().map(|ring| ring.port)
    }

    /// Frees the room of bytes that a killed predecessor had read, if these are still the same.
    pub(crate) fn release_earlier(&mut self, record: &RingRecord, is_same: impl FnOnce(&[u8]) -> bool) {
        let Some(Ring { ring, .. }) = &mut self.ring else { return };
        let count = usize::try_from(record.to.wrapping_sub(record.from)).unwrap_or(usize::MAX);
        let mut buffer = [0; OUT_SIZE];
        // A corrupted ring is found when it is first served. Another ring may begin at the same index.
        if let Ok(batch) = ring.copy(&mut buffer)
            && batch.start() == record.from
            && count <= batch.count()
            && is_same(&buffer[..count])
        {
            ring.release(batch.truncated(count));
        }
    }

    /// Notes that the port has fired.
    pub(crate) fn fire(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.has_fired = true;
        }
    }

    /// The port, if it has fired since it was unmasked; the caller unmasks it.
    pub(crate) fn take_fired(&mut self) -> Option<EventPort> {
        let ring = self.ring.as_mut()?;
        core::mem::take(&mut ring.has_fired).then_some(ring.port)
    }

    /// Copies the guest's output, which stays in the ring. Nothing while bytes before it are held.
    ///
    /// # Errors
    /// When the ring is corrupted.
    pub(crate) fn copy(&self, buffer: &mut [u8]) -> Result<Option<Batch>, CorruptRing> {
        let Some(ring) = &self.ring else { return Ok(None) };
        let most = if ring.held.is_some() { 0 } else { buffer.len() };
        let batch = ring.ring.copy(buffer.get_mut(..most).unwrap_or_default())?;
        Ok((batch.count() > 0).then_some(batch))
    }

    /// Frees the room of bytes that were copied.
    pub(crate) fn release(&mut self, batch: Batch) {
        if let Some(ring) = &mut self.ring {
            ring.ring.release(batch);
        }
    }

    /// Leaves bytes in the ring until [`RingLink::release_held`]. `end` is their end in the console's stream.
    pub(crate) fn hold(&mut self, batch: Batch, end: u64) {
        if let Some(ring) = &mut self.ring {
            ring.held = Some((batch, end));
        }
    }

    /// Whether bytes are held in the ring.
    pub(crate) fn holds(&self) -> bool {
        self.ring.as_ref().is_some_and(|ring| ring.held.is_some())
    }

    /// Frees the room of the bytes that were held, if `is_safe` is true of their end. Returns the port to notify.
    pub(crate) fn release_held(&mut self, is_safe: impl FnOnce(u64) -> bool) -> Option<EventPort> {
        let ring = self.ring.as_mut()?;
        let (batch, _) = ring.held.take_if(|(_, end)| is_safe(*end))?;
        ring.ring.release(batch);
        Some(ring.port)
    }

    /// Gives the guest as much input as fits, and returns how much that was.
    ///
    /// # Errors
    /// When the ring is corrupted.
    pub(crate) fn put_input(&mut self) -> Result<usize, CorruptRing> {
        let Some(ring) = &mut self.ring else { return Ok(0) };
        let count = ring.ring.put(self.input.as_slices().0)?;
        if count > 0 {
            self.input.drain(..count);
        }
        Ok(count)
    }

    /// Whether the guest has read all of its input.
    ///
    /// # Errors
    /// When the ring is corrupted.
    pub(crate) fn guest_took_all(&self) -> Result<bool, CorruptRing> {
        let Some(ring) = self.ring.as_ref().filter(|_| self.input.is_empty()) else { return Ok(false) };
        Ok(ring.ring.room()? == M::IN_SIZE)
    }

    /// Input that may be added.
    pub(crate) fn input_room(&self) -> usize {
        INPUT_MAX.saturating_sub(self.input.len())
    }

    /// Adds input for the guest.
    pub(crate) fn add_input(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
    }
}
