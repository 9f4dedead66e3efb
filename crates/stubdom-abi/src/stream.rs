//! A stream with an end, over a console that has none: frames with length and checksum. Nothing here does I/O.
//!
//! ```text
//! stream := "OUTRSTM1" frame* end
//! frame  := length:u32 (1 to 65536)  bytes  crc32(bytes):u32
//! end    := 0:u32  length of all bytes:u64  crc32(all bytes):u32
//! ```
//! Numbers are little-endian. The checksum is CRC-32 (IEEE 802.3, as in gzip): it finds what a console or a driver
//! loses, doubles or mangles; it is no protection against an attacker.

use thiserror::Error;

/// What a stream begins with.
const MAGIC: &[u8; 8] = b"OUTRSTM1";
/// The most bytes in one frame.
pub const CHUNK_MAX: usize = 64 * 1024;

/// Why bytes are no stream, or not the one that was sent.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// It does not begin as one.
    #[error("The stream does not begin with its mark; the sender may not use frames")]
    Mark,
    /// A frame is longer than frames are.
    #[error("A frame of {0} bytes is longer than the {CHUNK_MAX} that a frame may have")]
    TooLong(u32),
    /// A frame's bytes are not those that were sent.
    #[error("The checksum of the frame before byte {at} is wrong")]
    Checksum {
        /// Bytes up to the frame's end.
        at: u64,
    },
    /// Not all frames came, or not in order.
    #[error("The stream has {got} bytes, but {sent} were sent, or its bytes differ")]
    Whole {
        /// Bytes that came.
        got: u64,
        /// Bytes that the sender counted.
        sent: u64,
    },
}

/// Length and checksum of what has gone by.
#[derive(Clone, Debug, Default)]
struct Sum {
    length: u64,
    crc: crc32fast::Hasher,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.crc.update(bytes);
    }

    fn crc(&self) -> u32 {
        self.crc.clone().finalize()
    }
}

/// The sending side.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    sum: Sum,
    begun: bool,
}

impl Encoder {
    /// Appends bytes to `to`, as frames.
    pub fn data(&mut self, bytes: &[u8], to: &mut Vec<u8>) {
        self.begin(to);
        for chunk in bytes.chunks(CHUNK_MAX) {
            let length = u32::try_from(chunk.len()).expect("a chunk is at most CHUNK_MAX");
            to.extend_from_slice(&length.to_le_bytes());
            to.extend_from_slice(chunk);
            to.extend_from_slice(&crc32fast::hash(chunk).to_le_bytes());
            self.sum.add(chunk);
        }
    }

    /// Appends the end to `to`: nothing may follow.
    pub fn end(&mut self, to: &mut Vec<u8>) {
        self.begin(to);
        to.extend_from_slice(&0_u32.to_le_bytes());
        to.extend_from_slice(&self.sum.length.to_le_bytes());
        to.extend_from_slice(&self.sum.crc().to_le_bytes());
    }

    /// Bytes so far, without frames.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.sum.length
    }

    fn begin(&mut self, to: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.begun, true) {
            to.extend_from_slice(MAGIC);
        }
    }
}

/// What bytes turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A frame's bytes, whole and checked.
    Data(Vec<u8>),
    /// The end: everything came.
    End {
        /// Bytes in all, without frames.
        length: u64,
    },
    /// A part of something.
    More,
}

/// The receiving side: takes bytes in any pieces.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    sum: Sum,
    expects: Expects,
    /// What is there of what is expected, never more than a frame.
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expects {
    #[default]
    Mark,
    Length,
    Frame(u32),
    End,
    Nothing,
}

impl Expects {
    fn bytes(self) -> usize {
        match self {
            Self::Mark => MAGIC.len(),
            Self::Length => 4,
            // It was checked against CHUNK_MAX.
            Self::Frame(length) => length as usize + 4,
            Self::End => 12,
            Self::Nothing => 0,
        }
    }
}

impl Decoder {
    /// Takes some of the bytes, says how many, and what they complete. After the end it takes none.
    ///
    /// # Errors
    /// When the bytes cannot be a stream, or are not the one that was sent; the decoder is of no use then.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, Piece), FrameError> {
        if self.expects == Expects::Nothing {
            return Ok((0, Piece::End { length: self.sum.length }));
        }
        let wanted = self.expects.bytes() - self.buffer.len();
        let used = wanted.min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..used]);
        if used < wanted {
            return Ok((used, Piece::More));
        }
        Ok((used, self.complete()?))
    }

    /// Whether the end has come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.expects == Expects::Nothing
    }

    fn complete(&mut self) -> Result<Piece, FrameError> {
        let mut bytes = std::mem::take(&mut self.buffer);
        match self.expects {
            Expects::Mark if bytes != MAGIC => return Err(FrameError::Mark),
            Expects::Mark => self.expects = Expects::Length,
            Expects::Length => {
                let length = u32::from_le_bytes(array(&bytes));
                self.expects = match length {
                    0 => Expects::End,
                    _ if length as usize > CHUNK_MAX => return Err(FrameError::TooLong(length)),
                    _ => Expects::Frame(length),
                };
            }
            Expects::Frame(length) => {
                let crc = u32::from_le_bytes(array(&bytes[length as usize..]));
                bytes.truncate(length as usize);
                self.sum.add(&bytes);
                if crc32fast::hash(&bytes) != crc {
                    return Err(FrameError::Checksum { at: self.sum.length });
                }
                self.expects = Expects::Length;
                return Ok(Piece::Data(bytes));
            }
            Expects::End => {
                let sent = u64::from_le_bytes(array(&bytes));
                let crc = u32::from_le_bytes(array(&bytes[8..]));
                if (sent, crc) != (self.sum.length, self.sum.crc()) {
                    return Err(FrameError::Whole { got: self.sum.length, sent });
                }
                self.expects = Expects::Nothing;
                return Ok(Piece::End { length: sent });
            }
            Expects::Nothing => {}
        }
        Ok(Piece::More)
    }
}

/// The first bytes of as many as were waited for.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(pieces: &[&[u8]]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        let mut stream = Vec::new();
        for piece in pieces {
            encoder.data(piece, &mut stream);
        }
        encoder.end(&mut stream);
        stream
    }

    /// Decodes a stream that comes in pieces of a size; gives the bytes and whether the end came.
    fn decode(stream: &[u8], size: usize) -> Result<(Vec<u8>, bool), FrameError> {
        let mut decoder = Decoder::default();
        let mut all = Vec::new();
        for piece in stream.chunks(size) {
            let mut rest = piece;
            while !rest.is_empty() && !decoder.is_complete() {
                let (used, piece) = decoder.take(rest)?;
                rest = &rest[used..];
                if let Piece::Data(bytes) = piece {
                    all.extend(bytes);
                }
            }
        }
        Ok((all, decoder.is_complete()))
    }

    #[test]
    fn a_stream_arrives_whatever_pieces_it_comes_in() {
        let long = vec![7; CHUNK_MAX + 5];
        for pieces in [vec![], vec![b"a".as_slice()], vec![b"hello", b"", b" there", &long]] {
            let stream = encode(&pieces);
            for size in [1, 3, 1000, stream.len()] {
                assert_eq!(decode(&stream, size), Ok((pieces.concat(), true)));
            }
        }
    }

    #[test]
    fn a_missing_tail_is_no_end() {
        let stream = encode(&[b"hello"]);
        for length in 0..stream.len() {
            assert!(!decode(&stream[..length], 64).unwrap().1, "{length}");
        }
    }

    #[test]
    fn every_changed_bit_is_found() {
        let stream = encode(&[b"hello", b"there"]);
        for at in 0..stream.len() {
            for bit in 0..8 {
                let mut changed = stream.clone();
                changed[at] ^= 1 << bit;
                let whole = decode(&changed, 64).is_ok_and(|(_, complete)| complete);
                assert!(!whole, "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn a_lost_or_doubled_frame_is_found() {
        let (one, two) = (encode(&[b"one"]), encode(&[b"one", b"two"]));
        let frame = 4 + 3 + 4;
        let lost = [&two[..8], &two[8 + frame..]].concat();
        let doubled = [&one[..8 + frame], &one[8..]].concat();
        assert_eq!(decode(&lost, 64), Err(FrameError::Whole { got: 3, sent: 6 }));
        assert_eq!(decode(&doubled, 64), Err(FrameError::Whole { got: 6, sent: 3 }));
    }

    #[test]
    fn a_length_is_bounded_before_anything_is_stored() {
        let mut stream = MAGIC.to_vec();
        stream.extend_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&stream, 64), Err(FrameError::TooLong(u32::MAX)));
    }
}
