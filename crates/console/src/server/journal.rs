use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::fcntl::OFlag;

use crate::logfile::Position;

/// Which bytes are about to be appended to a console's files: what the next process needs to know to write each byte
/// once.
///
/// Appending to a file and freeing the bytes in the ring are two acts, and the process may be killed between them, or
/// in the middle of the first. The next one compares: if the ring still begins at `from`, each file's size says how
/// much of the bytes up to `to` it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The ring's consumer index before.
    pub(crate) from: u32,
    /// The ring's consumer index after.
    pub(crate) to: u32,
    /// What the log gets.
    pub(crate) log: Option<Noted>,
    /// What the output's file gets.
    pub(crate) file: Option<Noted>,
}

/// One file's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// Where the file ends afterwards.
    pub(crate) after: Position,
    /// Bytes that are appended, which may be more than came from the ring.
    pub(crate) count: u32,
}

const NOTED: usize = 20;
const BORN: usize = 16;
const LENGTH: usize = 8 + 2 * NOTED;

/// The file of the last [`Entry`], beside the console's socket. Writes are to memory (tmpfs) and survive this process.
///
/// Before the entry stands where the log ended when the console was first met, so that the next process knows which
/// part of the log is this console's.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    born: Option<Position>,
}

impl Journal {
    /// Opens it, or makes it for a console that is met for the first time.
    pub(crate) fn open(path: PathBuf, log: Option<Position>) -> std::io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(&path)?;
        let mut bytes = [0; BORN];
        let born = if file.read_exact_at(&mut bytes, 0).is_ok() {
            Some(Position { inode: number(&bytes[..8]), size: number(&bytes[8..]) })
        } else {
            if let Some(log) = log {
                bytes[..8].copy_from_slice(&log.inode.to_le_bytes());
                bytes[8..].copy_from_slice(&log.size.to_le_bytes());
            }
            file.write_all_at(&bytes, 0)?;
            None
        };
        Ok(Self { file, path, born })
    }

    /// Gives, once, where the log ended when an earlier process met this console; nothing when this one is the first.
    pub(crate) const fn take_born(&mut self) -> Option<Position> {
        self.born.take()
    }

    /// Notes what is about to be done. When it cannot be noted, a kill in the next moment doubles some bytes.
    pub(crate) fn note(&self, entry: &Entry) {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&entry.from.to_le_bytes());
        bytes[4..8].copy_from_slice(&entry.to.to_le_bytes());
        for (noted, place) in [entry.log, entry.file].into_iter().zip(bytes[8..].chunks_exact_mut(NOTED)) {
            if let Some(Noted { after, count }) = noted {
                place[..8].copy_from_slice(&after.inode.to_le_bytes());
                place[8..16].copy_from_slice(&after.size.to_le_bytes());
                place[16..].copy_from_slice(&count.to_le_bytes());
            }
        }
        let _ = self.file.write_all_at(&bytes, BORN as u64);
    }

    /// What was noted last.
    pub(crate) fn last(&self) -> Option<Entry> {
        let mut bytes = [0; LENGTH];
        self.file.read_exact_at(&mut bytes, BORN as u64).ok()?;
        let noted = |at: usize| {
            let place = &bytes[at..at + NOTED];
            let after = Position { inode: number(&place[..8]), size: number(&place[8..16]) };
            // No file has the inode 0.
            (after.inode != 0).then_some(Noted { after, count: short_number(&place[16..]) })
        };
        Some(Entry {
            from: short_number(&bytes[..4]),
            to: short_number(&bytes[4..8]),
            log: noted(8),
            file: noted(8 + NOTED),
        })
    }

    pub(crate) fn remove(self) {
        // It may be gone with the whole folder.
        let _ = fs::remove_file(self.path);
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn short_number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.0.journal");
        let born = Position { inode: 7, size: 100 };
        let mut journal = Journal::open(path.clone(), Some(born)).unwrap();
        assert_eq!((journal.take_born(), journal.last()), (None, None));
        let log = Noted { after: Position { inode: 1 << 40, size: 1 << 33 }, count: 9 };
        let entry = Entry { from: u32::MAX - 1, to: 7, log: Some(log), file: None };
        journal.note(&entry);
        let mut next = Journal::open(path.clone(), None).unwrap();
        assert_eq!((next.take_born(), next.last()), (Some(born), Some(entry)));
        next.remove();
        assert!(!path.exists());
    }
}
