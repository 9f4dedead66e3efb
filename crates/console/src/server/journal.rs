use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::fcntl::OFlag;

/// Which bytes are about to be appended to a log: what the next process needs to know to log each byte once.
///
/// Appending to the log and freeing the bytes in the ring are two acts, and the process may be killed between them.
/// The next one compares: if the log has grown to `log_size` and the ring still begins at `from`, the bytes up to
/// `to` are in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The ring's consumer index before.
    pub(crate) from: u32,
    /// The ring's consumer index after.
    pub(crate) to: u32,
    /// The log's inode.
    pub(crate) log_inode: u64,
    /// The log's size after.
    pub(crate) log_size: u64,
}

const LENGTH: usize = 24;

/// The file of the last [`Entry`], beside the console's socket. Writes are to memory (tmpfs) and survive this process.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    pub(crate) fn open(path: PathBuf) -> std::io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(&path)?;
        Ok(Self { file, path })
    }

    /// Notes what is about to be done. When it cannot be noted, a kill in the next moment doubles some bytes.
    pub(crate) fn note(&self, entry: &Entry) {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&entry.from.to_le_bytes());
        bytes[4..8].copy_from_slice(&entry.to.to_le_bytes());
        bytes[8..16].copy_from_slice(&entry.log_inode.to_le_bytes());
        bytes[16..].copy_from_slice(&entry.log_size.to_le_bytes());
        let _ = self.file.write_all_at(&bytes, 0);
    }

    /// What was noted last.
    pub(crate) fn last(&self) -> Option<Entry> {
        let mut bytes = [0; LENGTH];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        Some(Entry {
            from: u32::from_le_bytes(bytes[..4].try_into().ok()?),
            to: u32::from_le_bytes(bytes[4..8].try_into().ok()?),
            log_inode: u64::from_le_bytes(bytes[8..16].try_into().ok()?),
            log_size: u64::from_le_bytes(bytes[16..].try_into().ok()?),
        })
    }

    pub(crate) fn remove(self) {
        // It may be gone with the whole folder.
        let _ = fs::remove_file(self.path);
    }
}
