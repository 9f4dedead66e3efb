//! The file that a host's record of a migration is in: two slots, written in turn.
//!
//! The newest valid slot counts, so a write that was interrupted leaves the record before it. After a write whose sync
//! failed, a second sync of the same bytes may report success falsely; the next write therefore uses the other slot,
//! whatever became of the first one.
//!
//! | at | bytes | content (little-endian) |
//! |---|---|---|
//! | 0 | 8 | `OUTRMIG1` |
//! | 8 | 8 | sequence, from 1 on: the slot of sequence *n* is *n* modulo 2 |
//! | 16 | 4 | length of the JSON |
//! | 20 | 4 | CRC-32 of bytes 0 to 19 and the JSON |
//! | 24 | | JSON: `about`, `record`; unknown keys are ignored. Zeros up to 4096 |

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::record::{About, Record};

/// The size of a slot in bytes.
pub const SLOT_SIZE: usize = 4096;
/// The size of the file in bytes, which is allocated with the first record.
pub const JOURNAL_SIZE: usize = 2 * SLOT_SIZE;

const MARK: &[u8; 8] = b"OUTRMIG1";
const HEAD: usize = 24;

/// The number of a write: later ones are higher.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Sequence(u64);

impl Sequence {
    /// The first write's.
    pub const FIRST: Self = Self(1);

    /// Returns the next write's, which uses the other slot. It is also next after a write that failed.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A record with what it is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The migration and the guest.
    pub about: About,
    /// How far it is.
    pub record: Record,
}

/// Why a journal cannot be read or a record not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file has another size.
    #[error(
        "The journal has {found} bytes instead of {JOURNAL_SIZE}; it is damaged, or was written by another version"
    )]
    Size {
        /// Its size in bytes.
        found: usize,
    },
    /// No slot is valid.
    #[error(
        "The records of the journal are damaged; nothing is known about this migration here. Ask the other host with \
         `outrigger migrate --resolve`"
    )]
    Damaged,
    /// A newer version has written it.
    #[error(
        "The journal was written by a newer version, whose records are unknown here; install that version again"
    )]
    Newer(#[source] serde_json::Error),
    /// The record does not fit.
    #[error("The record has {length} bytes; at most {} fit into the journal", SLOT_SIZE - HEAD)]
    TooLarge {
        /// Its size in bytes.
        length: usize,
    },
}

/// The codec of a journal.
#[derive(Debug)]
pub struct Journal;

enum Slot {
    Empty,
    Damaged,
    Valid(u64, Vec<u8>),
}

impl Journal {
    /// Reads a journal: its newest valid record, or none if nothing was ever written.
    ///
    /// # Errors
    /// Fails if no slot is valid although one is not empty, or if the newest one is not understood: an older record
    /// must not be acted on in its place.
    pub fn read(bytes: &[u8]) -> Result<Option<(Sequence, Entry)>, JournalError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() != JOURNAL_SIZE {
            return Err(JournalError::Size { found: bytes.len() });
        }
        let (mut newest, mut damaged) = (None::<(u64, Vec<u8>)>, false);
        for slot in bytes.chunks_exact(SLOT_SIZE) {
            match read_slot(slot) {
                Slot::Empty => {}
                Slot::Damaged => damaged = true,
                Slot::Valid(sequence, body) => {
                    if newest.as_ref().is_none_or(|(other, _)| *other < sequence) {
                        newest = Some((sequence, body));
                    }
                }
            }
        }
        match newest {
            Some((sequence, body)) => {
                let entry = serde_json::from_slice(&body).map_err(JournalError::Newer)?;
                Ok(Some((Sequence(sequence), entry)))
            }
            None if damaged => Err(JournalError::Damaged),
            None => Ok(None),
        }
    }

    /// Returns a whole file with its first record.
    ///
    /// It has to be written and synced under another name and then renamed: so a damaged slot is never that of a first
    /// write that was interrupted, and a journal without a valid one is an error.
    ///
    /// # Errors
    /// Fails if the record does not fit.
    pub fn create(entry: &Entry) -> Result<Vec<u8>, JournalError> {
        let (_, slot) = Self::slot_to_write(Sequence::FIRST, entry)?;
        Ok([vec![0; SLOT_SIZE], slot].concat())
    }

    /// Returns what to write for a record: the offset in the file, and one whole slot.
    ///
    /// # Errors
    /// Fails if the record does not fit.
    pub fn slot_to_write(sequence: Sequence, entry: &Entry) -> Result<(u64, Vec<u8>), JournalError> {
        let body = serde_json::to_vec(entry).unwrap_or_default();
        let too_large = || JournalError::TooLarge { length: body.len() };
        if body.len() > SLOT_SIZE - HEAD {
            return Err(too_large());
        }
        let length = u32::try_from(body.len()).map_err(|_| too_large())?;
        let mut slot = Vec::with_capacity(SLOT_SIZE);
        slot.extend_from_slice(MARK);
        slot.extend_from_slice(&sequence.0.to_le_bytes());
        slot.extend_from_slice(&length.to_le_bytes());
        let sum = checksum(&slot, &body);
        slot.extend_from_slice(&sum.to_le_bytes());
        slot.extend_from_slice(&body);
        slot.resize(SLOT_SIZE, 0);
        let offset = if sequence.0.is_multiple_of(2) { 0 } else { SLOT_SIZE as u64 };
        Ok((offset, slot))
    }
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

fn read_slot(slot: &[u8]) -> Slot {
    if slot.iter().all(|byte| *byte == 0) {
        return Slot::Empty;
    }
    parse_slot(slot).map_or(Slot::Damaged, |(sequence, body)| Slot::Valid(sequence, body.to_vec()))
}

fn parse_slot(slot: &[u8]) -> Option<(u64, &[u8])> {
    let (mark, rest) = slot.split_first_chunk::<8>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let body = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let good = mark == MARK && checksum(slot.get(..HEAD - 4)?, body) == u32::from_le_bytes(*sum);
    good.then_some((u64::from_le_bytes(*sequence), body))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use xen_types::DomId;

    use super::*;
    use crate::record::{Decision, Done, ReceiverRecord, SenderRecord};
    use crate::{Digest, JournalId, MigrationId, Reason};

    fn entry(record: Record) -> Entry {
        let about = About {
            id: MigrationId([1; 16]),
            guest: Uuid::from_u128(7),
            name: "web".to_owned(),
            peer: "host-b".to_owned(),
            peer_journal: JournalId([2; 16]),
            boot: Uuid::from_u128(8),
            domid: DomId::try_from(3).ok(),
            begun: 0,
            stood_still_ms: Some(1200),
        };
        Entry { about, record }
    }

    fn write(file: &mut [u8], sequence: Sequence, entry: &Entry) {
        let (offset, slot) = Journal::slot_to_write(sequence, entry).unwrap();
        let offset = usize::try_from(offset).unwrap();
        file[offset..offset + slot.len()].copy_from_slice(&slot);
    }

    #[test]
    fn each_record_is_read_as_it_was_written() {
        let decision = || Decision { operator: "root".to_owned(), time: 1 };
        let records = [
            Record::Sender(SenderRecord::Start),
            Record::Sender(SenderRecord::Go { digest: Digest([9; 16]) }),
            Record::Sender(SenderRecord::Done(Done::Aborted(Reason::Busy))),
            Record::Sender(SenderRecord::Done(Done::Moved)),
            Record::Sender(SenderRecord::Forced(decision())),
            Record::Sender(SenderRecord::ForcedDone(decision())),
            Record::Receiver(ReceiverRecord::Open),
            Record::Receiver(ReceiverRecord::Committed),
            Record::Receiver(ReceiverRecord::Aborted(Reason::Cancelled)),
            Record::Receiver(ReceiverRecord::Owned),
            Record::Receiver(ReceiverRecord::Void(decision())),
            Record::Receiver(ReceiverRecord::Claimed(decision())),
        ];
        let mut file = vec![0; JOURNAL_SIZE];
        let mut sequence = Sequence::FIRST;
        for record in records {
            let entry = entry(record);
            write(&mut file, sequence, &entry);
            assert_eq!(Journal::read(&file).unwrap(), Some((sequence, entry)));
            sequence = sequence.next();
        }
    }

    #[test]
    fn a_torn_write_leaves_the_record_before_it() {
        let (first, second) =
            (entry(Record::Receiver(ReceiverRecord::Open)), entry(Record::Receiver(ReceiverRecord::Owned)));
        let mut file = vec![0; JOURNAL_SIZE];
        write(&mut file, Sequence::FIRST, &first);
        let before = file.clone();
        write(&mut file, Sequence::FIRST.next(), &second);
        let after = file.clone();
        for torn in 0..SLOT_SIZE {
            file[..torn].copy_from_slice(&after[..torn]);
            file[torn..].copy_from_slice(&before[torn..]);
            let (_, read) = Journal::read(&file).unwrap().unwrap();
            let complete = file[..SLOT_SIZE] == after[..SLOT_SIZE];
            assert_eq!(read, if complete { second.clone() } else { first.clone() }, "{torn}");
        }
    }

    #[test]
    fn damage_is_an_error_and_emptiness_is_not() {
        assert_eq!(Journal::read(&[]).unwrap(), None);
        assert_eq!(Journal::read(&[0; JOURNAL_SIZE]).unwrap(), None);
        assert!(matches!(Journal::read(&[0; 10]), Err(JournalError::Size { found: 10 })));
        let mut file = Journal::create(&entry(Record::Receiver(ReceiverRecord::Open))).unwrap();
        assert!(Journal::read(&file).unwrap().is_some());
        file[SLOT_SIZE + 30] ^= 1;
        assert!(matches!(Journal::read(&file), Err(JournalError::Damaged)));
        write(&mut file, Sequence::FIRST.next(), &entry(Record::Receiver(ReceiverRecord::Owned)));
        file[30] ^= 1;
        assert!(matches!(Journal::read(&file), Err(JournalError::Damaged)));
    }

    #[test]
    fn a_newer_record_is_not_replaced_by_an_older_one() {
        let mut file = vec![0; JOURNAL_SIZE];
        write(&mut file, Sequence::FIRST, &entry(Record::Receiver(ReceiverRecord::Open)));
        let body = b"{\"about\":1}";
        let mut slot = [MARK.as_slice(), &2_u64.to_le_bytes(), &11_u32.to_le_bytes()].concat();
        let sum = checksum(&slot, body);
        slot.extend_from_slice(&sum.to_le_bytes());
        slot.extend_from_slice(body);
        file[..slot.len()].copy_from_slice(&slot);
        assert!(matches!(Journal::read(&file), Err(JournalError::Newer(_))));
    }

    #[test]
    fn a_record_that_does_not_fit_is_refused() {
        let mut entry = entry(Record::Receiver(ReceiverRecord::Open));
        entry.about.name = "x".repeat(SLOT_SIZE);
        assert!(matches!(
            Journal::slot_to_write(Sequence::FIRST, &entry),
            Err(JournalError::TooLarge { .. })
        ));
    }
}
