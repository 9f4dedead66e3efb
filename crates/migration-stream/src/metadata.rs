//! What Outrigger adds to a file: behind the JSON in xl's header, where xl looks at nothing.
//!
//! ```text
//! "OUTRIGGER-SAVE-1\n"  length:u32  json[length]  crc32(json):u32         little-endian
//! ```

use config::{GuestConfig, Uuid};
use serde::{Deserialize, Serialize};

use crate::error::StreamError;

const MAGIC: &[u8] = b"OUTRIGGER-SAVE-1\n";
/// The most bytes that the JSON may have.
const MAX: u32 = 1 << 20;

/// What a restore needs to know of a saved guest beyond what stock xl stores.
///
/// Unknown fields are ignored, so a later version may add some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Identifies this save: random, new for each.
    pub id: Uuid,
    /// The guest's name.
    pub name: String,
    /// The guest's UUID.
    pub uuid: Uuid,
    /// The guest's configuration, with what stock xl's cannot express.
    pub config: GuestConfig,
    /// QEMU's machine type with its version, such as `xenfv-4.2`. States of different ones do not mix, and QEMU does
    /// not always notice.
    pub machine: String,
    /// QEMU's version, as it names it.
    #[serde(default)]
    pub qemu_version: String,
    /// Xen's version, such as `4.17.5`.
    #[serde(default)]
    pub xen_version: String,
    /// Xen's release, such as `4.17`.
    #[serde(default)]
    pub xen_release: String,
    /// How many vCPUs QEMU has.
    pub vcpus_online: u32,
    /// The PCI devices that QEMU has, each with its address.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Whether QEMU's state has section footers. If not, a state of another machine type can be loaded in part without
    /// an error.
    #[serde(default)]
    pub footers: bool,
    /// Whether QEMU may start before the guest's memory has arrived, and finds what it needs of it afterwards: the memory
    /// of the display, if there is one, is at the address that the guest has given it. Only for a guest that comes from
    /// another host, which looks again once the guest is suspended.
    #[serde(default)]
    pub starts_early: bool,
    /// When it was saved, in seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// The version of Outrigger that saved it.
    #[serde(default)]
    pub outrigger: String,
}

impl Metadata {
    /// Returns the tail for [`crate::Header`].
    ///
    /// # Errors
    /// When it is larger than 1 MiB.
    pub fn encode(&self) -> Result<Vec<u8>, StreamError> {
        let json = serde_json::to_vec(self).map_err(StreamError::Metadata)?;
        let length = u32::try_from(json.len()).ok().filter(|length| *length <= MAX);
        let too_large = StreamError::TooLarge {
            what: "Outrigger's part of the header",
            offset: 0,
            length: json.len() as u64,
            limit: MAX.into(),
        };
        let length = length.ok_or(too_large)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&json);
        bytes.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
        Ok(bytes)
    }

    /// Reads the tail of a [`crate::Header`]; `None` if it is not ours, as in a file of xl.
    ///
    /// # Errors
    /// When it is ours and damaged, or of a version with other fields.
    pub fn decode(tail: &[u8]) -> Result<Option<Self>, StreamError> {
        let Some(rest) = tail.strip_prefix(MAGIC) else { return Ok(None) };
        let cut = || StreamError::Tail { why: "is cut off" };
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length);
        if length > MAX {
            return Err(StreamError::Tail { why: "is longer than it can be" });
        }
        let (json, rest) = rest.split_at_checked(length as usize).ok_or_else(cut)?;
        let (sum, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        if crc32fast::hash(json) != u32::from_le_bytes(*sum) {
            return Err(StreamError::Tail { why: "does not have its checksum" });
        }
        if !rest.is_empty() {
            return Err(StreamError::Tail { why: "is followed by something else" });
        }
        serde_json::from_slice(json).map(Some).map_err(StreamError::Metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let text = "type = 'hvm'\nname = 'hello'\nmemory = 64\ndisk = [ '/dev/a,,hda' ]\nserial = 'pty'\n";
        Metadata {
            id: Uuid::from_u128(7),
            name: "hello".to_owned(),
            uuid: Uuid::from_u128(8),
            config: config::load_str("hello.cfg", text).config.unwrap(),
            machine: "xenfv-4.2".to_owned(),
            qemu_version: "7.2.0".to_owned(),
            xen_version: "4.17.5".to_owned(),
            xen_release: "4.17".to_owned(),
            vcpus_online: 1,
            devices: vec!["0000:00:01.1 piix3-ide".to_owned()],
            footers: false,
            starts_early: false,
            created: 1_800_000_000,
            outrigger: "0.1.0".to_owned(),
        }
    }

    fn framed(json: &[u8]) -> Vec<u8> {
        let length = u32::try_from(json.len()).unwrap().to_le_bytes();
        [MAGIC, &length, json, &crc32fast::hash(json).to_le_bytes()].concat()
    }

    #[test]
    fn metadata_is_read_as_written() {
        assert_eq!(Metadata::decode(&sample().encode().unwrap()).unwrap(), Some(sample()));
    }

    #[test]
    fn tail_of_others_is_none() {
        for tail in [b"".as_slice(), b"OUTRIGGER-SAVE-2\n", b"something else", &[0; 600]] {
            assert_eq!(Metadata::decode(tail).unwrap(), None);
        }
    }

    #[test]
    fn every_damage_is_named() {
        let bytes = sample().encode().unwrap();
        for cut in MAGIC.len()..bytes.len() {
            let cut = Metadata::decode(&bytes[..cut]);
            assert!(matches!(cut, Err(StreamError::Tail { .. })));
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            match Metadata::decode(&changed) {
                Ok(None) => assert!(at < MAGIC.len()),
                found => assert!(matches!(found, Err(StreamError::Tail { .. })), "byte {at}: {found:?}"),
            }
        }
        let more = [bytes, vec![0]].concat();
        assert!(matches!(Metadata::decode(&more), Err(StreamError::Tail { .. })));
    }

    #[test]
    fn other_versions_may_add_fields_and_need_not_have_all() {
        let mut json = serde_json::to_value(sample()).unwrap();
        let fields = json.as_object_mut().unwrap();
        fields.insert("future".to_owned(), serde_json::json!([1, 2]));
        for optional in
            ["qemu_version", "xen_version", "xen_release", "devices", "footers", "created", "outrigger"]
        {
            fields.remove(optional);
        }
        let text = serde_json::to_vec(&json).unwrap();
        let read = Metadata::decode(&framed(&text)).unwrap().unwrap();
        assert_eq!((read.machine, read.created, read.footers), ("xenfv-4.2".to_owned(), 0, false));
        json.as_object_mut().unwrap().remove("machine");
        let text = serde_json::to_vec(&json).unwrap();
        assert!(matches!(Metadata::decode(&framed(&text)), Err(StreamError::Metadata(_))));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Metadata::decode(&bytes);
            let _ = Metadata::decode(&framed(&bytes));
        }
    }
}
