//! The file operations of a log, behind a trait so that a test can make any of them fail or hang.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// The file system that logs are on.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file for appending (mode 0600, no symbolic link followed), and creates it if it is missing.
    ///
    /// # Errors
    /// Those of the system, as for all operations here.
    fn open(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(path)
    }

    /// Appends bytes, or some of them, and returns how many.
    ///
    /// # Errors
    /// Those of the system.
    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }

    /// Brings a file's bytes to the disk.
    ///
    /// # Errors
    /// Those of the system.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Removes a file's bytes.
    ///
    /// # Errors
    /// Those of the system.
    fn empty(&self, file: &File) -> io::Result<()> {
        file.set_len(0)
    }

    /// Renames a file, over another one if there is one.
    ///
    /// # Errors
    /// Those of the system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
}

/// The host's file system.
#[derive(Clone, Copy, Debug)]
pub struct HostDisk;

impl Disk for HostDisk {}
