//! The console ring: two byte queues in one page that the guest writes at any moment.
//!
//! Layout and meaning are those of `struct xencons_interface` (`xen/include/public/io/console.h`): the guest
//! produces into `out` and consumes from `in`; this side consumes `out` and produces `in`. Indices run freely
//! through 32 bits and are masked only when a byte is addressed.
//!
//! [`BackendRing`] holds the rules and touches memory only through [`RingMemory`], so that the same code runs
//! over a mapped page, over plain memory in tests, and over a weak memory model. Every operation reads each
//! index **once**, checks the difference, copies, and only then publishes its own index.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use thiserror::Error;

/// Bytes in the ring that the guest writes (`xencons_interface.out`).
pub const OUT_SIZE: usize = 2048;
/// Bytes in the ring that the guest reads (`xencons_interface.in`).
pub const IN_SIZE: usize = 1024;

/// Where the page says since Xen 4.21 whether its console is served (`xencons_interface.connection`). Before, nobody
/// looks at this byte.
pub(crate) const CONNECTION_OFFSET: usize = 3088;
/// The console is served (`XENCONSOLE_CONNECTED`).
pub(crate) const CONNECTED: u8 = 0;
/// The console is not served yet (`XENCONSOLE_DISCONNECTED`): what libxenguest writes into a new domain's page. Linux
/// writes nothing to its console then.
const DISCONNECTED: u8 = 1;

/// Names one of the four shared indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// How far the guest has read its input.
    InCons,
    /// How far this side has written the guest's input.
    InProd,
    /// How far this side has read the guest's output.
    OutCons,
    /// How far the guest has written its output.
    OutProd,
}

/// Names one of the two queues, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// From this side to the guest.
    In,
    /// From the guest to this side.
    Out,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "input",
            Self::Out => "output",
        })
    }
}

/// Says that the guest's indices cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "The guest's console ring claims {} bytes in its {queue} queue of {size} (producer {prod:#x}, consumer \
     {cons:#x}); the console is closed until the guest offers a new ring",
    prod.wrapping_sub(*cons)
)]
pub struct CorruptRing {
    /// The queue whose indices disagree.
    pub queue: Queue,
    /// The producer's index as it was read.
    pub prod: u32,
    /// The consumer's index as it was read.
    pub cons: u32,
    /// The queue's true size in bytes.
    pub size: usize,
}

/// Gives access to the shared bytes and indices, one volatile access each, with no reference to shared memory.
///
/// `load` acquires and `store` releases, so that bytes copied between them are ordered as the protocol needs.
pub trait RingMemory {
    /// Bytes in the input queue: a power of two.
    const IN_SIZE: usize = IN_SIZE;
    /// Bytes in the output queue: a power of two.
    const OUT_SIZE: usize = OUT_SIZE;

    /// Reads an index, with acquire ordering.
    fn load(&self, index: Index) -> u32;
    /// Writes an index, with release ordering.
    fn store(&self, index: Index, value: u32);
    /// Copies bytes of the output queue that start at `offset` and do not wrap.
    fn copy_out(&self, offset: usize, to: &mut [u8]);
    /// Copies bytes into the input queue from `offset` on; they do not wrap.
    fn copy_in(&self, offset: usize, from: &[u8]);
    /// Tells the guest that its console is served, where the page has a place for that.
    fn mark_connected(&self) {}
}

/// The shared page as Xen's header lays it out, each field atomic because the guest writes it at any moment.
#[repr(C)]
#[derive(Debug)]
pub struct XenconsInterface {
    input: [AtomicU8; IN_SIZE],
    output: [AtomicU8; OUT_SIZE],
    in_cons: AtomicU32,
    in_prod: AtomicU32,
    out_cons: AtomicU32,
    out_prod: AtomicU32,
    connection: AtomicU8,
}

const _: () = {
    assert!(core::mem::offset_of!(XenconsInterface, output) == 1024);
    assert!(core::mem::offset_of!(XenconsInterface, in_cons) == 3072);
    assert!(core::mem::offset_of!(XenconsInterface, in_prod) == 3076);
    assert!(core::mem::offset_of!(XenconsInterface, out_cons) == 3080);
    assert!(core::mem::offset_of!(XenconsInterface, out_prod) == 3084);
    assert!(core::mem::offset_of!(XenconsInterface, connection) == CONNECTION_OFFSET);
};

impl Default for XenconsInterface {
    fn default() -> Self {
        Self {
            input: [const { AtomicU8::new(0) }; IN_SIZE],
            output: [const { AtomicU8::new(0) }; OUT_SIZE],
            in_cons: AtomicU32::new(0),
            in_prod: AtomicU32::new(0),
            out_cons: AtomicU32::new(0),
            out_prod: AtomicU32::new(0),
            connection: AtomicU8::new(DISCONNECTED),
        }
    }
}

impl XenconsInterface {
    fn index(&self, index: Index) -> &AtomicU32 {
        match index {
            Index::InCons => &self.in_cons,
            Index::InProd => &self.in_prod,
            Index::OutCons => &self.out_cons,
            Index::OutProd => &self.out_prod,
        }
    }

    /// Plays the guest: writes an index without any check, as a hostile guest may.
    pub fn guest_set(&self, index: Index, value: u32) {
        self.index(index).store(value, Ordering::Release);
    }

    /// Plays the guest: looks whether its console is served.
    #[must_use]
    pub fn guest_is_served(&self) -> bool {
        self.connection.load(Ordering::Acquire) == CONNECTED
    }

    /// Plays the guest: reads an index.
    #[must_use]
    pub fn guest_get(&self, index: Index) -> u32 {
        self.index(index).load(Ordering::Acquire)
    }

    /// Plays the guest: puts as many bytes as fit into the output queue and returns how many.
    pub fn guest_write(&self, bytes: &[u8]) -> usize {
        let prod = self.out_prod.load(Ordering::Relaxed);
        let used = prod.wrapping_sub(self.out_cons.load(Ordering::Acquire)) as usize;
        let count = bytes.len().min(OUT_SIZE.saturating_sub(used));
        let mut at = prod;
        for byte in &bytes[..count] {
            self.output[at as usize & (OUT_SIZE - 1)].store(*byte, Ordering::Relaxed);
            at = at.wrapping_add(1);
        }
        self.out_prod.store(at, Ordering::Release);
        count
    }

    /// Plays the guest: takes every byte of the input queue.
    pub fn guest_read(&self) -> Vec<u8> {
        let mut cons = self.in_cons.load(Ordering::Relaxed);
        let prod = self.in_prod.load(Ordering::Acquire);
        let mut bytes = Vec::new();
        while cons != prod && bytes.len() < IN_SIZE {
            bytes.push(self.input[cons as usize & (IN_SIZE - 1)].load(Ordering::Relaxed));
            cons = cons.wrapping_add(1);
        }
        self.in_cons.store(cons, Ordering::Release);
        bytes
    }
}

impl RingMemory for XenconsInterface {
    fn load(&self, index: Index) -> u32 {
        self.index(index).load(Ordering::Acquire)
    }

    fn store(&self, index: Index, value: u32) {
        self.index(index).store(value, Ordering::Release);
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) {
        for (byte, shared) in to.iter_mut().zip(&self.output[offset..]) {
            *byte = shared.load(Ordering::Relaxed);
        }
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        for (byte, shared) in from.iter().zip(&self.input[offset..]) {
            shared.store(*byte, Ordering::Relaxed);
        }
    }

    fn mark_connected(&self) {
        self.connection.store(CONNECTED, Ordering::Release);
    }
}

impl<M: RingMemory> RingMemory for std::sync::Arc<M> {
    const IN_SIZE: usize = M::IN_SIZE;
    const OUT_SIZE: usize = M::OUT_SIZE;

    fn load(&self, index: Index) -> u32 {
        (**self).load(index)
    }

    fn store(&self, index: Index, value: u32) {
        (**self).store(index, value);
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) {
        (**self).copy_out(offset, to);
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        (**self).copy_in(offset, from);
    }

    fn mark_connected(&self) {
        (**self).mark_connected();
    }
}

/// Bytes that were copied out of a ring and are still in it.
#[derive(Debug)]
#[must_use = "the bytes stay in the ring until they are released"]
pub struct Batch {
    count: usize,
    start: u32,
}

impl Batch {
    /// How many bytes.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The ring's index before the first of them.
    #[must_use]
    pub const fn start(&self) -> u32 {
        self.start
    }

    /// The ring's index after the last of them.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.start.wrapping_add(low32(self.count))
    }

    /// The same without the bytes after `count`.
    pub fn truncated(self, count: usize) -> Self {
        Self { count: self.count.min(count), start: self.start }
    }
}

/// This side of a console ring: takes what the guest wrote, gives what the guest shall read.
///
/// Both own indices are read from the page at each operation and not kept: a ring outlives this process (a
/// restarted daemon goes on where the last one stopped), and a guest that was reset starts from zero.
#[derive(Debug)]
pub struct BackendRing<M> {
    memory: M,
}

impl<M: RingMemory> BackendRing<M> {
    /// Continues a ring at its current indices.
    pub const fn new(memory: M) -> Self {
        Self { memory }
    }

    /// Tells the guest that its console is served.
    pub fn mark_connected(&self) {
        self.memory.mark_connected();
    }

    /// Gives the memory back, for unmapping.
    pub fn into_memory(self) -> M {
        self.memory
    }

    /// Gives the memory, for a test that plays the guest.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Copies at most `buffer.len()` bytes of the guest's output, and leaves them in the ring until
    /// [`release`](Self::release).
    ///
    /// # Errors
    /// When the guest's indices claim more bytes than the queue holds; nothing is copied then.
    pub fn copy(&self, buffer: &mut [u8]) -> Result<Batch, CorruptRing> {
        let cons = self.memory.load(Index::OutCons);
        let prod = self.memory.load(Index::OutProd);
        let count = used(Queue::Out, prod, cons, M::OUT_SIZE)?.min(buffer.len());
        let start = cons as usize & (M::OUT_SIZE - 1);
        let first = count.min(M::OUT_SIZE - start);
        let (head, tail) = buffer[..count].split_at_mut(first);
        self.memory.copy_out(start, head);
        self.memory.copy_out(0, tail);
        Ok(Batch { count, start: cons })
    }

    /// Frees the room of bytes that were copied.
    #[expect(clippy::needless_pass_by_value, reason = "a batch is freed once")]
    pub fn release(&mut self, batch: Batch) {
        if batch.count > 0 {
            self.memory.store(Index::OutCons, batch.end());
        }
    }

    /// Takes at most `buffer.len()` bytes of the guest's output, frees their room, and returns how many.
    ///
    /// # Errors
    /// When the guest's indices claim more bytes than the queue holds; nothing is taken then.
    pub fn take(&mut self, buffer: &mut [u8]) -> Result<usize, CorruptRing> {
        let batch = self.copy(buffer)?;
        let count = batch.count();
        self.release(batch);
        Ok(count)
    }

    /// Says how many bytes the guest has written and this side not yet taken.
    ///
    /// # Errors
    /// When the guest's indices claim more bytes than the queue holds.
    pub fn available(&self) -> Result<usize, CorruptRing> {
        let cons = self.memory.load(Index::OutCons);
        let prod = self.memory.load(Index::OutProd);
        used(Queue::Out, prod, cons, M::OUT_SIZE)
    }

    /// Says how many bytes the input queue has room for.
    ///
    /// # Errors
    /// When the guest's indices claim more bytes than the queue holds.
    pub fn room(&self) -> Result<usize, CorruptRing> {
        let prod = self.memory.load(Index::InProd);
        let cons = self.memory.load(Index::InCons);
        Ok(M::IN_SIZE - used(Queue::In, prod, cons, M::IN_SIZE)?)
    }

    /// Puts as many bytes as fit into the guest's input and returns how many.
    ///
    /// # Errors
    /// When the guest's indices claim more bytes than the queue holds; nothing is put then.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize, CorruptRing> {
        let prod = self.memory.load(Index::InProd);
        let cons = self.memory.load(Index::InCons);
        let used = used(Queue::In, prod, cons, M::IN_SIZE)?;
        let count = bytes.len().min(M::IN_SIZE - used);
        if count == 0 {
            return Ok(0);
        }
        let start = prod as usize & (M::IN_SIZE - 1);
        let first = count.min(M::IN_SIZE - start);
        let (head, tail) = bytes[..count].split_at(first);
        self.memory.copy_in(start, head);
        self.memory.copy_in(0, tail);
        self.memory.store(Index::InProd, prod.wrapping_add(low32(count)));
        Ok(count)
    }
}

fn used(queue: Queue, prod: u32, cons: u32, size: usize) -> Result<usize, CorruptRing> {
    let used = prod.wrapping_sub(cons) as usize;
    if used > size { Err(CorruptRing { queue, prod, cons, size }) } else { Ok(used) }
}

fn low32(count: usize) -> u32 {
    u32::try_from(count).expect("a count is at most a queue's size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wrap_around_the_end_of_the_queue_and_of_the_index() {
        let page = XenconsInterface::default();
        for index in [Index::OutProd, Index::OutCons] {
            page.guest_set(index, u32::MAX - 3);
        }
        assert_eq!(page.guest_write(b"0123456789"), 10);
        let mut ring = BackendRing::new(page);
        let mut buffer = [0; 64];
        assert_eq!(ring.take(&mut buffer), Ok(10));
        assert_eq!(&buffer[..10], b"0123456789");
        assert_eq!(ring.memory().guest_get(Index::OutCons), 6);
    }

    #[test]
    fn indices_that_claim_more_than_the_queue_take_nothing() {
        let page = XenconsInterface::default();
        page.guest_set(Index::OutProd, 2049);
        page.guest_set(Index::InCons, 1);
        let mut ring = BackendRing::new(page);
        let mut buffer = [0; 4096];
        assert_eq!(ring.take(&mut buffer).unwrap_err().queue, Queue::Out);
        assert_eq!(ring.put(b"x").unwrap_err().queue, Queue::In);
        assert_eq!(ring.memory().guest_get(Index::OutCons), 0);
        assert_eq!(ring.memory().guest_get(Index::InProd), 0);
    }

    #[test]
    fn a_full_queue_is_not_corrupted() {
        let page = XenconsInterface::default();
        assert_eq!(page.guest_write(&[7; 5000]), OUT_SIZE);
        let mut ring = BackendRing::new(page);
        let mut buffer = [0; 4096];
        assert_eq!(ring.take(&mut buffer), Ok(OUT_SIZE));
        assert_eq!(ring.put(&[1; 5000]), Ok(IN_SIZE));
        assert_eq!(ring.room(), Ok(0));
        assert_eq!(ring.memory().guest_read().len(), IN_SIZE);
    }
}
