//! The bytes of messages.
//!
//! A frame, little-endian: length of the body (32 bits, at most 64 KiB), type (16 bits), body, CRC-32 of all that
//! (32 bits). A body begins with its version (8 bits: 1), the migration and the receiver's journal (16 bytes each);
//! that of HELLO with its version. Bytes behind the known fields are ignored, so that a later version can add some.

mod body;
mod error;
mod fields;

pub use error::{FrameError, MAX_BODY};
use error::{HEAD, MAX_BUFFER, SUM};

use crate::ids::{JournalId, MigrationId};
use crate::message::Packet;

/// How many bytes of a stream fit into one DATA.
pub const MAX_DATA: usize = MAX_BODY - PREFIX;

/// Version, migration and journal.
const PREFIX: usize = 1 + 16 + 16;
/// How many pieces of memory are kept for what comes next.
const SPARE: usize = 16;

/// Returns the bytes of a packet.
///
/// # Errors
/// Fails if it does not fit into a frame.
pub fn encode(packet: &Packet) -> Result<Vec<u8>, FrameError> {
    let (kind, body) = body::encode(packet);
    let too_long = || FrameError::CannotSend { length: body.len() };
    if body.len() > MAX_BODY {
        return Err(too_long());
    }
    let length = u32::try_from(body.len()).map_err(|_| too_long())?;
    let mut frame = Vec::with_capacity(HEAD + body.len() + SUM);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&kind.to_le_bytes());
    frame.extend_from_slice(&body);
    frame.extend_from_slice(&crc32fast::hash(&frame).to_le_bytes());
    Ok(frame)
}

/// The frames of DATA, one after the other in the same memory: they are many, and memory that is asked for and given back
/// for each costs more than what is in it.
#[derive(Debug)]
pub struct DataFrame(Vec<u8>);

impl DataFrame {
    /// Frames of a migration.
    pub fn of(id: MigrationId, journal: JournalId) -> Self {
        let mut frame = Vec::with_capacity(HEAD + MAX_BODY + SUM);
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&body::DATA.to_le_bytes());
        body::begin(&mut frame, id, journal);
        Self(frame)
    }

    /// Returns the frame with these bytes of a stream.
    ///
    /// # Errors
    /// Fails if they are more than [`MAX_DATA`].
    pub fn with(&mut self, bytes: &[u8]) -> Result<&[u8], FrameError> {
        let size = PREFIX + bytes.len();
        let length = u32::try_from(size).ok().filter(|_| size <= MAX_BODY);
        let length = length.ok_or(FrameError::CannotSend { length: size })?;
        let Self(frame) = self;
        frame.truncate(HEAD + PREFIX);
        frame.extend_from_slice(bytes);
        if let Some(place) = frame.first_chunk_mut() {
            *place = length.to_le_bytes();
        }
        frame.extend_from_slice(&crc32fast::hash(frame).to_le_bytes());
        Ok(frame)
    }
}

/// Reads packets from bytes that arrive in pieces. It never stores more than two of the largest frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// How much of the buffer was returned already.
    used: usize,
    /// Memory for the bytes of DATA.
    spare: Vec<Vec<u8>>,
}

impl Decoder {
    /// Returns how many bytes the next [`Decoder::push`] may have.
    pub fn room(&self) -> usize {
        MAX_BUFFER - (self.buffer.len() - self.used)
    }

    /// Appends bytes of the channel.
    ///
    /// # Errors
    /// Fails if they are more than [`Decoder::room`]; call [`Decoder::next`] until it has no packet left.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        if bytes.len() > self.room() {
            return Err(FrameError::Overflow);
        }
        self.buffer.drain(..self.used);
        self.used = 0;
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes the bytes of a DATA back when they are not needed any more, so that their memory is used again.
    pub fn give_back(&mut self, mut bytes: Vec<u8>) {
        if self.spare.len() < SPARE {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Returns the next packet, or none until more bytes were pushed.
    ///
    /// # Errors
    /// Fails if the bytes are not a packet. [`FrameError::UnknownType`] and [`FrameError::UnknownVersion`] leave out
    /// that one packet; after all other errors the decoder returns the same one again.
    #[expect(clippy::should_implement_trait, reason = "None does not mean the end")]
    pub fn next(&mut self) -> Result<Option<Packet>, FrameError> {
        let waiting = self.buffer.get(self.used..).unwrap_or_default();
        let Some((length, rest)) = waiting.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length);
        let size = usize::try_from(length).ok().filter(|size| *size <= MAX_BODY);
        let size = size.ok_or(FrameError::TooLong { length })?;
        let Some((kind, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
        let kind = u16::from_le_bytes(*kind);
        let Some((body, rest)) = rest.split_at_checked(size) else { return Ok(None) };
        let Some((sum, _)) = rest.split_first_chunk::<SUM>() else { return Ok(None) };
        let summed = waiting.get(..HEAD + size).unwrap_or_default();
        if crc32fast::hash(summed) != u32::from_le_bytes(*sum) {
            return Err(FrameError::Checksum { kind });
        }
        let packet = body::decode(kind, body, &mut self.spare);
        if !matches!(packet, Err(FrameError::Field { .. })) {
            self.used += HEAD + size + SUM;
        }
        packet.map(Some)
    }
}

#[cfg(test)]
mod tests;
