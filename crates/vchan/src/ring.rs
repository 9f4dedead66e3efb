//! The rules of a vchan, without I/O and over any memory.
//!
//! Two streams of bytes, each a ring with a producer's and a consumer's index that run freely through 32 bits, and two
//! bytes of bits in which each side asks the other for wake-ups. The rule that loses none: who finds nothing to do
//! asks, then looks again, and only then waits; who has moved an index takes back the question and wakes the other if
//! there was one. Between the two halves of either stands a full barrier.
//!
//! Each side keeps its own two indices here and only publishes them: what the other side writes over them has no
//! effect. The other side's index is read once for each look, and a difference beyond the ring's size is a
//! [`RingLie`].

use core::fmt;

use thiserror::Error;

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected.
    Client,
    /// Who made the rings.
    Server,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// The stream that this side reads.
    #[must_use]
    pub const fn reads(self) -> Stream {
        match self {
            Self::Client => Stream::Right,
            Self::Server => Stream::Left,
        }
    }

    /// The stream that this side writes.
    #[must_use]
    pub const fn writes(self) -> Stream {
        self.other().reads()
    }
}

/// One of the two streams, by libxenvchan's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// From the client to the server.
    Left,
    /// From the server to the client.
    Right,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "left",
            Self::Right => "right",
        })
    }
}

/// One of the four shared indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// How far a stream was read, ever.
    Consumer(Stream),
    /// How far a stream was written, ever.
    Producer(Stream),
}

/// What a side can ask to be woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// That the other side has written (`VCHAN_NOTIFY_WRITE`).
    Written,
    /// That the other side has read (`VCHAN_NOTIFY_READ`).
    Read,
}

impl Wish {
    /// The wish's bit.
    #[must_use]
    pub const fn bit(self) -> u8 {
        match self {
            Self::Written => 1,
            Self::Read => 2,
        }
    }
}

/// Access to what both sides share: one volatile access each, and no reference to it is ever given out.
pub trait RingMemory {
    /// Bytes in a stream's ring: a power of two that never changes.
    fn size(&self, stream: Stream) -> usize;
    /// Reads an index, acquiring.
    fn load(&self, index: Index) -> u32;
    /// Writes an index, releasing.
    fn store(&self, index: Index, value: u32);
    /// Asks `side` for a wake-up; then a full barrier.
    fn ask(&self, side: Side, wish: Wish);
    /// A full barrier; then takes back what `side` was asked for, and gives whether it was.
    fn take_ask(&self, side: Side, wish: Wish) -> bool;
    /// Copies bytes out of a ring from `offset` on; they do not wrap.
    fn copy_out(&self, stream: Stream, offset: usize, to: &mut [u8]);
    /// Copies bytes into a ring from `offset` on; they do not wrap.
    fn copy_in(&self, stream: Stream, offset: usize, from: &[u8]);
}

impl<M: RingMemory + ?Sized> RingMemory for std::sync::Arc<M> {
    fn size(&self, stream: Stream) -> usize {
        (**self).size(stream)
    }

    fn load(&self, index: Index) -> u32 {
        (**self).load(index)
    }

    fn store(&self, index: Index, value: u32) {
        (**self).store(index, value);
    }

    fn ask(&self, side: Side, wish: Wish) {
        (**self).ask(side, wish);
    }

    fn take_ask(&self, side: Side, wish: Wish) -> bool {
        (**self).take_ask(side, wish)
    }

    fn copy_out(&self, stream: Stream, offset: usize, to: &mut [u8]) {
        (**self).copy_out(stream, offset, to);
    }

    fn copy_in(&self, stream: Stream, offset: usize, from: &[u8]) {
        (**self).copy_in(stream, offset, from);
    }
}

/// Says that the other side's index cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "The other end of the vchan claims {claimed} bytes in its {stream} ring of {size}; the connection must be closed"
)]
pub struct RingLie {
    /// The stream whose indices disagree.
    pub stream: Stream,
    /// How many bytes would be in the ring.
    pub claimed: u32,
    /// How many can be.
    pub size: usize,
}

/// What reading or writing has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the other side waits for the wake-up that it has asked for"]
pub struct Moved {
    /// How many bytes were moved; with zero, a wake-up was asked for.
    pub count: usize,
    /// Whether the other side wants to be woken now.
    pub kick: bool,
}

/// One side of a vchan's rings.
#[derive(Debug)]
pub struct Ring<M> {
    memory: M,
    side: Side,
    /// How far this side has read.
    consumed: u32,
    /// How far this side has written.
    produced: u32,
}

impl<M: RingMemory> Ring<M> {
    /// Continues one side at its own indices: zero in fresh memory.
    pub fn new(memory: M, side: Side) -> Self {
        let consumed = memory.load(Index::Consumer(side.reads()));
        let produced = memory.load(Index::Producer(side.writes()));
        Self { memory, side, consumed, produced }
    }

    /// The memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// How many bytes wait to be read. Asks for nothing.
    ///
    /// # Errors
    /// When the other side's index cannot be true.
    pub fn ready(&self) -> Result<usize, RingLie> {
        let stream = self.side.reads();
        let claimed = self.memory.load(Index::Producer(stream)).wrapping_sub(self.consumed);
        self.checked(stream, claimed)
    }

    /// How many bytes may be written. Asks for nothing.
    ///
    /// # Errors
    /// When the other side's index cannot be true.
    pub fn space(&self) -> Result<usize, RingLie> {
        Ok(self.memory.size(self.side.writes()) - self.unread()?)
    }

    /// How many bytes the other side has not read yet.
    ///
    /// # Errors
    /// When the other side's index cannot be true.
    pub fn unread(&self) -> Result<usize, RingLie> {
        let stream = self.side.writes();
        let claimed = self.produced.wrapping_sub(self.memory.load(Index::Consumer(stream)));
        self.checked(stream, claimed)
    }

    fn checked(&self, stream: Stream, claimed: u32) -> Result<usize, RingLie> {
        let size = self.memory.size(stream);
        usize::try_from(claimed).ok().filter(|count| *count <= size).ok_or(RingLie { stream, claimed, size })
    }

    /// Reads at most `into.len()` bytes. When there are none, the other side is asked for a wake-up.
    ///
    /// # Errors
    /// When the other side's index cannot be true; nothing is read then.
    pub fn read(&mut self, into: &mut [u8]) -> Result<Moved, RingLie> {
        let other = self.side.other();
        let mut ready = self.ready()?;
        if ready == 0 && !into.is_empty() {
            self.memory.ask(other, Wish::Written);
            ready = self.ready()?;
        }
        let count = ready.min(into.len());
        if count == 0 {
            return Ok(Moved { count, kick: false });
        }
        let stream = self.side.reads();
        let size = self.memory.size(stream);
        let start = masked(self.consumed, size);
        let (head, tail) = into[..count].split_at_mut(count.min(size - start));
        self.memory.copy_out(stream, start, head);
        self.memory.copy_out(stream, 0, tail);
        self.consumed = advanced(self.consumed, count);
        self.memory.store(Index::Consumer(stream), self.consumed);
        Ok(Moved { count, kick: self.memory.take_ask(self.side, Wish::Read) })
    }

    /// Writes as much of `from` as there is room for. When there is none, the other side is asked for a wake-up.
    ///
    /// # Errors
    /// When the other side's index cannot be true; nothing is written then.
    pub fn write(&mut self, from: &[u8]) -> Result<Moved, RingLie> {
        let other = self.side.other();
        let mut space = self.space()?;
        if space == 0 && !from.is_empty() {
            self.memory.ask(other, Wish::Read);
            space = self.space()?;
        }
        let count = space.min(from.len());
        if count == 0 {
            return Ok(Moved { count, kick: false });
        }
        let stream = self.side.writes();
        let size = self.memory.size(stream);
        let start = masked(self.produced, size);
        let (head, tail) = from[..count].split_at(count.min(size - start));
        self.memory.copy_in(stream, start, head);
        self.memory.copy_in(stream, 0, tail);
        self.produced = advanced(self.produced, count);
        self.memory.store(Index::Producer(stream), self.produced);
        Ok(Moved { count, kick: self.memory.take_ask(self.side, Wish::Written) })
    }

    /// Throws away what waits to be read.
    pub fn discard(&mut self) {
        let stream = self.side.reads();
        self.consumed = self.memory.load(Index::Producer(stream));
        self.memory.store(Index::Consumer(stream), self.consumed);
    }
}

/// The place of an index in a ring whose size is a power of two.
fn masked(index: u32, size: usize) -> usize {
    usize::try_from(index).unwrap_or(0) & (size - 1)
}

/// An index that runs on by no more than a ring's size, freely through 32 bits.
fn advanced(index: u32, count: usize) -> u32 {
    index.wrapping_add(u32::try_from(count).unwrap_or(0))
}
