//! libxl's records around libxc's stream.
//!
//! ```text
//! header := "LibxlFmt"  version:u32 = 2  options:u32 = 0          big-endian
//! record := type:u32  length:u32  body[length]  0…                little-endian, padded to 8 bytes
//! stream := header  LIBXC_CONTEXT(1)  libxc's stream  [EMULATOR_XENSTORE_DATA(2)]  EMULATOR_CONTEXT(3)  END(0)
//! ```
//!
//! The bodies of 2 and 3 begin with the emulator (2: upstream QEMU) and its index (0). libxl refuses every other type.

use std::io::Read;

use crate::error::StreamError;
use crate::source::Source;

const MAGIC: &[u8; 8] = b"LibxlFmt";
const VERSION: u32 = 2;
const END: u32 = 0;
const LIBXC_CONTEXT: u32 = 1;
const EMULATOR_XENSTORE_DATA: u32 = 2;
const EMULATOR_CONTEXT: u32 = 3;
const CHECKPOINT_END: u32 = 4;
const CHECKPOINT_STATE: u32 = 5;
/// `emulator_id`: upstream QEMU.
const QEMU: u32 = 2;
const STREAM: &str = "libxl's stream";
const STATE: &str = "the state of QEMU";
const XENSTORE: &str = "the xenstore data of QEMU";
const MAX_XENSTORE: u32 = 64 << 10;
/// Bytes of a body before what it carries.
const EMULATOR_HEAD: u32 = 8;

/// Returns what comes before libxc's stream: the header, and the record that announces libxc's stream.
#[must_use]
pub fn begin() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&0_u32.to_be_bytes());
    bytes.extend_from_slice(&head(LIBXC_CONTEXT, 0));
    bytes
}

/// Returns the record with the state of QEMU, which follows libxc's stream.
///
/// # Errors
/// When the state is larger than a record can be.
pub fn emulator_context(blob: &[u8]) -> Result<Vec<u8>, StreamError> {
    let limit = u32::MAX - EMULATOR_HEAD - 8;
    let length = u32::try_from(blob.len()).ok().filter(|length| *length <= limit);
    let too_large =
        StreamError::TooLarge { what: STATE, offset: 0, length: blob.len() as u64, limit: limit.into() };
    let length = length.ok_or(too_large)? + EMULATOR_HEAD;
    let mut bytes = head(EMULATOR_CONTEXT, length).to_vec();
    bytes.extend_from_slice(&QEMU.to_le_bytes());
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes.extend_from_slice(blob);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    Ok(bytes)
}

/// Returns the record that ends the stream.
#[must_use]
pub fn end() -> Vec<u8> {
    head(END, 0).to_vec()
}

fn head(kind: u32, length: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (kind.to_le_bytes(), length.to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

/// Reads what comes before libxc's stream, and no byte beyond it.
///
/// # Errors
/// When the bytes are something else, or are not all there.
pub fn read_begin(from: &mut impl Read) -> Result<(), StreamError> {
    let mut source = Source::new(from);
    if &source.array(STREAM)? != MAGIC {
        return Err(StreamError::Mark { what: STREAM, offset: 0 });
    }
    let version = source.u32_be(STREAM)?;
    if version != VERSION {
        return Err(StreamError::Version { what: STREAM, offset: 8, found: version, known: VERSION });
    }
    let options = source.u32_be(STREAM)?;
    if options != 0 {
        return Err(StreamError::Options { what: STREAM, offset: 12, found: options.into() });
    }
    let offset = source.at();
    match (source.u32_le(STREAM)?, source.u32_le(STREAM)?) {
        (LIBXC_CONTEXT, 0) => Ok(()),
        (kind @ LIBXC_CONTEXT, length) => {
            Err(StreamError::RecordLength { stream: STREAM, kind, offset, length })
        }
        (kind, _) => Err(StreamError::OutOfOrder {
            stream: STREAM,
            kind,
            offset,
            expected: "libxc's stream (LIBXC_CONTEXT)",
        }),
    }
}

/// What followed libxc's stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// The state of QEMU.
    pub emulator: Vec<u8>,
    /// How many bytes of xenstore data were dropped, if there were any.
    ///
    /// A QEMU from before Xen 4.10 had there the addresses of its video memory in the guest. Every later one finds
    /// them itself.
    pub dropped_xenstore: Option<u32>,
}

/// Reads what follows libxc's stream up to the end, and no byte beyond it. The state has at most `limit` bytes.
///
/// # Errors
/// When a record is unknown, doubled, of Remus or COLO, too large, or of another emulator than upstream QEMU, when
/// QEMU's state is missing, or when the bytes are not all there.
pub fn read_rest(from: &mut impl Read, limit: usize) -> Result<Rest, StreamError> {
    let mut source = Source::new(from);
    let (mut emulator, mut dropped_xenstore) = (None, None);
    loop {
        let offset = source.at();
        let kind = source.u32_le(STREAM)?;
        let length = source.u32_le(STREAM)?;
        let doubled = StreamError::DoubledRecord { stream: STREAM, kind, offset };
        match kind {
            END if length != 0 => {
                return Err(StreamError::RecordLength { stream: STREAM, kind, offset, length });
            }
            END => {
                let emulator = emulator.ok_or(StreamError::NoEmulator { offset })?;
                return Ok(Rest { emulator, dropped_xenstore });
            }
            EMULATOR_CONTEXT if emulator.is_some() => return Err(doubled),
            EMULATOR_CONTEXT => {
                let limit = u32::try_from(limit).unwrap_or(u32::MAX);
                emulator = Some(body(&mut source, Record { kind, length, offset }, STATE, limit)?);
            }
            EMULATOR_XENSTORE_DATA if dropped_xenstore.is_some() => return Err(doubled),
            EMULATOR_XENSTORE_DATA => {
                body(&mut source, Record { kind, length, offset }, XENSTORE, MAX_XENSTORE)?;
                dropped_xenstore = Some(length - EMULATOR_HEAD);
            }
            LIBXC_CONTEXT => return Err(doubled),
            CHECKPOINT_END | CHECKPOINT_STATE => {
                return Err(StreamError::Checkpoint { stream: STREAM, kind, offset });
            }
            _ => return Err(StreamError::UnknownRecord { stream: STREAM, kind, offset }),
        }
    }
}

#[derive(Clone, Copy)]
struct Record {
    kind: u32,
    length: u32,
    offset: u64,
}

/// What a record carries for QEMU, without the emulator's number, and without padding.
fn body(
    source: &mut Source<'_, impl Read>,
    record: Record,
    what: &'static str,
    limit: u32,
) -> Result<Vec<u8>, StreamError> {
    let Record { kind, length, offset } = record;
    let short = StreamError::RecordLength { stream: STREAM, kind, offset, length };
    let content = length.checked_sub(EMULATOR_HEAD).ok_or(short)?;
    if content > limit {
        return Err(StreamError::TooLarge { what, offset, length: content.into(), limit: limit.into() });
    }
    let (id, index) = (source.u32_le(what)?, source.u32_le(what)?);
    if (id, index) != (QEMU, 0) {
        return Err(StreamError::Emulator { offset, id, index });
    }
    let bytes = source.bytes(content as usize, what)?;
    let at = source.at();
    let padding = source.bytes((8 - content as usize % 8) % 8, what)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(StreamError::Padding { stream: STREAM, offset: at });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = head(kind, u32::try_from(body.len()).unwrap()).to_vec();
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn rest(records: &[Vec<u8>]) -> Result<Rest, StreamError> {
        read_rest(&mut records.concat().as_slice(), 1000)
    }

    #[test]
    fn streams_have_libxls_layout_and_only_their_bytes_are_read() {
        assert_eq!(begin(), b"LibxlFmt\0\0\0\x02\0\0\0\0\x01\0\0\0\0\0\0\0");
        assert_eq!(emulator_context(b"abc").unwrap(), b"\x03\0\0\0\x0b\0\0\0\x02\0\0\0\0\0\0\0abc\0\0\0\0\0");
        assert_eq!(end(), [0; 8]);
        let bytes = [begin(), b"after".to_vec()].concat();
        let mut from = bytes.as_slice();
        read_begin(&mut from).unwrap();
        assert_eq!(from, b"after");
        let bytes = [emulator_context(b"abc").unwrap(), end(), b"after".to_vec()].concat();
        let mut from = bytes.as_slice();
        assert_eq!(
            read_rest(&mut from, 3).unwrap(),
            Rest { emulator: b"abc".to_vec(), dropped_xenstore: None }
        );
        assert_eq!(from, b"after");
    }

    #[test]
    fn xenstore_data_is_dropped_and_noted() {
        let xenstore = record(2, b"\x02\0\0\0\0\0\0\0physmap/0/name\0vga.vram\0");
        let read = rest(&[xenstore.clone(), emulator_context(b"abc").unwrap(), end()]).unwrap();
        assert_eq!(read, Rest { emulator: b"abc".to_vec(), dropped_xenstore: Some(24) });
        let doubled = rest(&[xenstore.clone(), xenstore]);
        assert!(matches!(doubled, Err(StreamError::DoubledRecord { kind: 2, .. })));
        let large = rest(&[head(2, (64 << 10) + 9).to_vec()]);
        assert!(matches!(large, Err(StreamError::TooLarge { limit: 65_536, .. })));
    }

    #[test]
    fn what_libxl_would_not_restore_is_named() {
        let state = || emulator_context(b"abc").unwrap();
        assert!(matches!(rest(&[end()]), Err(StreamError::NoEmulator { offset: 0 })));
        assert!(matches!(
            rest(&[state(), state()]),
            Err(StreamError::DoubledRecord { kind: 3, offset: 24, .. })
        ));
        assert!(matches!(rest(&[begin()[16..].to_vec()]), Err(StreamError::DoubledRecord { kind: 1, .. })));
        for kind in [4, 5] {
            assert!(matches!(rest(&[record(kind, b"")]), Err(StreamError::Checkpoint { .. })));
        }
        for kind in [6, 0x8000_0006] {
            assert!(matches!(rest(&[record(kind, b"")]), Err(StreamError::UnknownRecord { .. })));
        }
        assert!(matches!(
            rest(&[record(3, b"\x01\0\0\0\0\0\0\0")]),
            Err(StreamError::Emulator { id: 1, .. })
        ));
        assert!(matches!(
            rest(&[record(3, b"\x02\0\0\0\x01\0\0\0")]),
            Err(StreamError::Emulator { index: 1, .. })
        ));
        assert!(matches!(
            rest(&[record(3, b"\x02\0\0\0")]),
            Err(StreamError::RecordLength { length: 4, .. })
        ));
        assert!(matches!(rest(&[state(), record(0, b"12345678")]), Err(StreamError::RecordLength { .. })));
        assert!(matches!(rest(&[head(3, 1009).to_vec()]), Err(StreamError::TooLarge { length: 1001, .. })));
        assert!(matches!(rest(&[head(3, u32::MAX).to_vec()]), Err(StreamError::TooLarge { .. })));
        let mut padded = state();
        *padded.last_mut().unwrap() = 1;
        assert!(matches!(rest(&[padded, end()]), Err(StreamError::Padding { offset: 19, .. })));
    }

    #[test]
    fn every_cut_is_named() {
        let bytes = begin();
        for cut in 0..bytes.len() {
            assert!(matches!(read_begin(&mut &bytes[..cut]), Err(StreamError::Truncated { .. })), "{cut}");
        }
        let bytes = [emulator_context(b"abc").unwrap(), end()].concat();
        for cut in 0..bytes.len() {
            assert!(
                matches!(read_rest(&mut &bytes[..cut], 1000), Err(StreamError::Truncated { .. })),
                "{cut}"
            );
        }
    }

    #[test]
    fn every_changed_byte_is_an_error_or_another_state() {
        let bytes = begin();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            read_begin(&mut changed.as_slice()).unwrap_err();
        }
        let bytes = [emulator_context(b"abc").unwrap(), end()].concat();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            if let Ok(rest) = read_rest(&mut changed.as_slice(), 1000) {
                assert_ne!(rest.emulator, b"abc", "byte {at}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn states_are_read_as_written(blob: Vec<u8>) {
            let bytes = [emulator_context(&blob).unwrap(), end()].concat();
            proptest::prop_assert_eq!(read_rest(&mut bytes.as_slice(), blob.len()).unwrap().emulator, blob);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = read_begin(&mut bytes.as_slice());
            let _ = read_rest(&mut bytes.as_slice(), 100);
        }
    }
}
