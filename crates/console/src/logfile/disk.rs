//! The file operations of a log, behind a trait so that a test can make any of them fail.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// The file system that a log is on.
pub(super) trait Disk: fmt::Debug + Send {
    /// Opens a file for appending (mode 0600, no symbolic link followed), and creates it if it is missing.
    fn open(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(path)
    }

    /// Appends bytes, or some of them.
    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn empty(&self, file: &File) -> io::Result<()> {
        file.set_len(0)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
}

/// The host's file system.
#[derive(Debug)]
pub(super) struct HostDisk;

impl Disk for HostDisk {}
