//! xl's header: what kind of file this is, and the guest's configuration.
//!
//! ```text
//! magic[32]  byteorder:u32  mandatory_flags:u32  optional_flags:u32  optional_data_len:u32
//! json_len:u32  json[json_len - 1] 0  tail[optional_data_len - 4 - json_len]
//! ```
//!
//! Numbers are little-endian. xl skips the tail, and ours is [`crate::Metadata`].

use std::io::Read;

use crate::error::StreamError;
use crate::source::Source;

const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
/// It reads otherwise in the other byte order.
const BYTE_ORDER: u32 = 0x0102_0304;
/// `mandatory_flags`: the configuration is libxl's JSON.
const JSON: u32 = 1;
/// `mandatory_flags`: libxl's stream of version 2 follows.
const STREAM_V2: u32 = 2;
const WHAT: &str = "xl's header";
const CONFIGURATION: &str = "the configuration in xl's header";

/// xl's header with what it carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The guest's configuration as libxl's JSON, without the NUL at its end.
    pub json: Vec<u8>,
    /// What follows the JSON, which xl skips; empty in files of xl.
    pub tail: Vec<u8>,
}

impl Header {
    /// The most that JSON and tail may have together with their framing, in bytes.
    pub const MAX_OPTIONAL: u32 = 4 << 20;

    /// Returns the header's bytes.
    ///
    /// # Errors
    /// When JSON and tail are too large, or the JSON contains a NUL.
    pub fn encode(&self) -> Result<Vec<u8>, StreamError> {
        let offset = MAGIC.len() as u64 + 16;
        if self.json.contains(&0) {
            return Err(StreamError::JsonBounds { offset: offset + 4, why: "contains a NUL" });
        }
        let length = self.json.len().saturating_add(self.tail.len()).saturating_add(5);
        let limit = Self::MAX_OPTIONAL;
        let optional = u32::try_from(length).ok().filter(|length| *length <= limit);
        let too_large =
            StreamError::TooLarge { what: CONFIGURATION, offset, length: length as u64, limit: limit.into() };
        let optional = optional.ok_or(too_large)?;
        let json = optional.saturating_sub(4).saturating_sub(u32::try_from(self.tail.len()).unwrap_or(0));
        let mut bytes = MAGIC.to_vec();
        for number in [BYTE_ORDER, JSON | STREAM_V2, 0, optional, json] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.json);
        bytes.push(0);
        bytes.extend_from_slice(&self.tail);
        Ok(bytes)
    }

    /// Reads a header, and no byte beyond it.
    ///
    /// # Errors
    /// When the bytes are not a header that this crate can act on, or are not all there.
    pub fn read(from: &mut impl Read) -> Result<Self, StreamError> {
        let mut source = Source::new(from);
        if &source.array(WHAT)? != MAGIC {
            return Err(StreamError::Mark { what: WHAT, offset: 0 });
        }
        let order = source.u32_le(WHAT)?;
        if order != BYTE_ORDER {
            return Err(StreamError::ByteOrder { found: order });
        }
        let flags = source.u32_le(WHAT)?;
        let unknown = flags & !(JSON | STREAM_V2);
        if unknown != 0 {
            return Err(StreamError::MandatoryFlags { unknown });
        }
        if flags & JSON == 0 {
            return Err(StreamError::NoJson);
        }
        if flags & STREAM_V2 == 0 {
            return Err(StreamError::NotStreamV2);
        }
        // Optional flags need not be known, and none has ever been defined.
        source.u32_le(WHAT)?;
        let length = source.u32_le(WHAT)?;
        if length > Self::MAX_OPTIONAL {
            return Err(StreamError::TooLarge {
                what: CONFIGURATION,
                offset: source.at(),
                length: length.into(),
                limit: Self::MAX_OPTIONAL.into(),
            });
        }
        Self::read_optional(&mut source, length)
    }

    fn read_optional(source: &mut Source<'_, impl Read>, length: u32) -> Result<Self, StreamError> {
        let offset = source.at();
        let bad = |why| StreamError::JsonBounds { offset, why };
        let rest = length.checked_sub(4).ok_or_else(|| bad("is missing"))?;
        let json_length = source.u32_le(CONFIGURATION)?;
        let tail = rest.checked_sub(json_length).ok_or_else(|| bad("is longer than the header"))?;
        let mut json = source.bytes(json_length as usize, CONFIGURATION)?;
        if json.pop() != Some(0) {
            return Err(bad("does not end with a NUL"));
        }
        if json.contains(&0) {
            return Err(bad("contains a NUL"));
        }
        let tail = source.bytes(tail as usize, "what follows the configuration in xl's header")?;
        Ok(Self { json, tail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        Header { json: b"{\"c_info\":{}}".to_vec(), tail: b"tail".to_vec() }
    }

    #[test]
    fn header_has_xls_layout_and_only_its_bytes_are_read() {
        let bytes = sample().encode().unwrap();
        assert_eq!(&bytes[..27], b"Xen saved domain, xl format");
        assert_eq!(bytes[32..36], [4, 3, 2, 1]);
        assert_eq!(bytes[36..40], [3, 0, 0, 0]);
        assert_eq!(bytes[44..48], [22, 0, 0, 0]);
        assert_eq!(bytes[48..52], [14, 0, 0, 0]);
        let mut more = bytes.clone();
        more.extend_from_slice(b"LibxlFmt");
        let mut from = more.as_slice();
        assert_eq!(Header::read(&mut from).unwrap(), sample());
        assert_eq!(from, b"LibxlFmt");
    }

    #[test]
    fn every_cut_is_named() {
        let bytes = sample().encode().unwrap();
        for cut in 0..bytes.len() {
            let error = Header::read(&mut &bytes[..cut]).unwrap_err();
            assert!(
                matches!(error, StreamError::Truncated { offset, .. } if offset == cut as u64),
                "{cut}: {error}"
            );
        }
    }

    #[test]
    fn every_changed_byte_is_an_error_or_another_header() {
        let bytes = sample().encode().unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                match Header::read(&mut changed.as_slice()) {
                    // Optional flags may have any value.
                    Ok(_) if (40..44).contains(&at) => {}
                    Ok(header) => assert!(header != sample() && at >= 44, "byte {at}"),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_restored_is_named() {
        let with = |at: usize, number: u32| {
            let mut bytes = sample().encode().unwrap();
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            Header::read(&mut bytes.as_slice()).unwrap_err()
        };
        assert!(matches!(with(0, 0), StreamError::Mark { offset: 0, .. }));
        assert!(matches!(with(32, 0x0403_0201), StreamError::ByteOrder { found: 0x0403_0201 }));
        assert!(matches!(with(36, 7), StreamError::MandatoryFlags { unknown: 4 }));
        assert!(matches!(with(36, 2), StreamError::NoJson));
        assert!(matches!(with(36, 1), StreamError::NotStreamV2));
        assert!(matches!(with(44, (4 << 20) + 1), StreamError::TooLarge { .. }));
        assert!(matches!(with(44, 3), StreamError::JsonBounds { .. }));
        assert!(matches!(with(48, 0), StreamError::JsonBounds { .. }));
        assert!(matches!(with(48, 19), StreamError::JsonBounds { .. }));
        assert!(matches!(with(48, 13), StreamError::JsonBounds { .. }));
    }

    #[test]
    fn limit_holds_on_both_sides() {
        let most = Header { json: b"{}".to_vec(), tail: vec![7; (4 << 20) - 7] };
        let bytes = most.encode().unwrap();
        assert_eq!(Header::read(&mut bytes.as_slice()).unwrap(), most);
        let more = Header { tail: vec![7; (4 << 20) - 6], ..most };
        assert!(matches!(more.encode(), Err(StreamError::TooLarge { .. })));
        assert!(matches!(
            Header { json: b"{\0}".to_vec(), tail: Vec::new() }.encode(),
            Err(StreamError::JsonBounds { .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn headers_are_read_as_written(json in "[^\0]{0,60}", tail: Vec<u8>) {
            let header = Header { json: json.into_bytes(), tail };
            let bytes = header.encode().unwrap();
            proptest::prop_assert_eq!(Header::read(&mut bytes.as_slice()).unwrap(), header);
        }

        #[test]
        fn any_bytes_are_read_without_panic(start in 0..60_usize, bytes: Vec<u8>) {
            let mut all = sample().encode().unwrap();
            all.truncate(start);
            all.extend_from_slice(&bytes);
            let _ = Header::read(&mut all.as_slice());
        }
    }
}
