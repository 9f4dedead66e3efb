//! A file that takes a console's bytes for ever without filling the disk (XSA-180).
//!
//! The limit also holds when the disk fails: bytes are counted as they are written, even if a write is cut short, and
//! nothing more is written to a full file that can be neither renamed nor emptied.

mod disk;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use thiserror::Error;

pub use disk::{Disk, HostDisk};

/// How a console's bytes are written to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStyle {
    /// Bytes after which the file is renamed to `NAME.1` and begun again; 0 means that nothing is written.
    pub limit: u64,
    /// Whether each line begins with the time (UTC, as `[2026-01-31 12:00:00] `).
    pub timestamps: bool,
    /// Whether escape characters are replaced by dots, so that showing the file cannot steer a terminal.
    pub replace_escape: bool,
    /// When the file is brought to the disk.
    pub sync: Sync,
}

/// When a console's file is brought to the disk (`fdatasync`). A crash of the host loses what was not; a crash of this
/// process loses nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sync {
    /// When the kernel finds time.
    #[default]
    Never,
    /// Before the file is renamed because it is full.
    Rotation,
    /// Before the bytes leave the ring: slow, and the guest waits for the disk.
    Always,
}

impl LogStyle {
    /// The default limit of a log: 4 MiB, and as much again in the rotated file.
    pub const DEFAULT_LIMIT: u64 = 4 * 1024 * 1024;
}

impl Default for LogStyle {
    fn default() -> Self {
        Self { limit: Self::DEFAULT_LIMIT, timestamps: false, replace_escape: false, sync: Sync::Never }
    }
}

/// Why a console's file cannot be written.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file cannot be opened for appending.
    #[error("Cannot open the console log {path}; check that its directory exists and is writable")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file cannot be appended to.
    #[error("Cannot append to the console log {path}; bytes are not logged until it can be written again")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The full file cannot be renamed.
    #[error("Cannot rename the full console log {path}; it is emptied instead")]
    Rotate {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// One console's file: appended to, renamed when full, opened again on request.
#[derive(Debug)]
pub struct LogFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: File,
    inode: u64,
    size: u64,
    style: LogStyle,
    at_line_start: bool,
    /// A failure that the next append reports.
    pending: Option<LogError>,
    /// Where the file ended that was in use before this one.
    previous: Option<Position>,
    /// Whether the file was renamed and no new one could be opened yet.
    is_rotated: bool,
}

/// Where a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The file's inode.
    pub inode: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl LogFile {
    /// Opens `path` for appending (mode 0600, no symbolic link followed), creating it when it is not there.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: PathBuf, style: LogStyle) -> Result<Self, LogError> {
        Self::open_on(Arc::new(HostDisk), path, style)
    }

    /// Does the same on a given file system.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open_on(disk: Arc<dyn Disk>, path: PathBuf, style: LogStyle) -> Result<Self, LogError> {
        let (file, inode, size) = open_append(disk.as_ref(), &path)?;
        let mut last = [b'\n'];
        if size > 0 {
            // What cannot be read begins a line.
            let _ = file.read_exact_at(&mut last, size - 1);
        }
        let at_line_start = last == [b'\n'];
        let (pending, previous, is_rotated) = (None, None, false);
        Ok(Self { disk, path, file, inode, size, style, at_line_start, pending, previous, is_rotated })
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is written.
    #[must_use]
    pub const fn style(&self) -> LogStyle {
        self.style
    }

    /// The file's inode and its size in bytes.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { inode: self.inode, size: self.size }
    }

    /// Opens the path again, as after a rename by a log rotator.
    ///
    /// # Errors
    /// When the file cannot be opened; the old one stays in use.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        let last = self.position();
        (self.file, self.inode, self.size) = open_append(self.disk.as_ref(), &self.path)?;
        self.is_rotated = false;
        if self.inode != last.inode {
            self.previous = Some(last);
        }
        Ok(())
    }

    /// Reads bytes that were appended earlier, the first of them `back` bytes before the end, at most `most` of them:
    /// from this file, or from the one that was rotated last. Nothing when they are not where they were.
    #[must_use]
    pub fn earlier(&self, back: u64, most: usize) -> Option<Vec<u8>> {
        let (file, start, end);
        let rotated_file;
        if back <= self.size {
            (file, start, end) = (&self.file, self.size - back, self.size);
        } else {
            let previous = self.previous?;
            start = previous.size.checked_sub(back - self.size)?;
            rotated_file = File::open(rotated(&self.path)).ok()?;
            let about = rotated_file.metadata().ok()?;
            if (about.ino(), about.len()) != (previous.inode, previous.size) {
                return None;
            }
            (file, end) = (&rotated_file, previous.size);
        }
        let count = usize::try_from(end - start).unwrap_or(usize::MAX).min(most);
        let mut bytes = vec![0; count];
        file.read_exact_at(&mut bytes, start).ok()?;
        Some(bytes)
    }

    /// Makes bytes ready to be appended: in the file's style, and with room for them if the limit has any.
    ///
    /// What is appended next must be what this gives: [`LogFile::position_after`] tells where the file ends then.
    /// A failed rotation is reported by the next append.
    pub fn prepare<'b>(&mut self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        if self.style.limit == 0 || bytes.is_empty() {
            return Cow::Borrowed(&[]);
        }
        let styled = self.in_style(bytes);
        let full = self.size > 0 && self.size + styled.len() as u64 > self.style.limit;
        if (full || self.is_rotated)
            && let Err(error) = self.rotate()
        {
            self.pending = Some(error);
        }
        styled
    }

    /// Bytes in the file's style.
    pub fn in_style<'b>(&mut self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        if self.style.timestamps || self.style.replace_escape {
            Cow::Owned(self.styled(bytes, &timestamp(SystemTime::now())))
        } else {
            Cow::Borrowed(bytes)
        }
    }

    /// Whether the next byte begins a line.
    #[must_use]
    pub const fn is_at_line_start(&self) -> bool {
        self.at_line_start
    }

    /// Goes back to where bytes were begun that are to be styled again.
    pub const fn set_line_start(&mut self, is: bool) {
        self.at_line_start = is;
    }

    /// Where the file ends after so many bytes more; nothing when they will be spread over two files.
    #[must_use]
    pub fn position_after(&self, count: usize) -> Option<Position> {
        let size = self.size + count as u64;
        (size <= self.style.limit).then_some(Position { inode: self.inode, size })
    }

    /// Appends bytes in the file's style, rotating as often as the limit asks.
    ///
    /// # Errors
    /// When the file cannot be written, or is full and can be neither renamed nor emptied; the remaining bytes are then
    /// not written. Also when a full file could only be emptied, which loses its content.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let styled = self.prepare(bytes);
        self.append_prepared(&styled)
    }

    /// Appends bytes as they are.
    ///
    /// # Errors
    /// As [`LogFile::append`].
    pub fn append_prepared(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let done = self.append_all(bytes);
        // Only the more serious error is reported.
        let pending = self.pending.take();
        done.and(pending.map_or(Ok(()), Err))
    }

    fn append_all(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.make_room()?;
            let room = usize::try_from(self.style.limit - self.size).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            self.write(now).map_err(|source| LogError::Write { path: self.path.clone(), source })?;
            rest = later;
        }
        Ok(())
    }

    /// Rotates a full file. Fails if the file is still full; any other failure is returned to be reported after the
    /// bytes are written.
    fn make_room(&mut self) -> Result<(), LogError> {
        if self.size < self.style.limit && !self.is_rotated {
            return Ok(());
        }
        let rotated = self.rotate();
        if self.size >= self.style.limit || self.is_rotated {
            let refilled = || LogError::Rotate {
                path: self.path.clone(),
                source: io::Error::other("another program has filled it again"),
            };
            return Err(rotated.err().unwrap_or_else(refilled));
        }
        self.pending = rotated.err().or(self.pending.take());
        Ok(())
    }

    /// Writes bytes and counts those that were written, also when an error follows.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.disk.write(&self.file, rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.size += count as u64;
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.style.sync == Sync::Always { self.disk.sync(&self.file) } else { Ok(()) }
    }

    /// Renames the full file and starts a new one; empties it if it cannot be renamed.
    fn rotate(&mut self) -> Result<(), LogError> {
        self.previous = None;
        if self.is_rotated {
            return self.reopen();
        }
        if self.style.sync == Sync::Rotation {
            let synced = self.disk.sync(&self.file);
            synced.map_err(|source| LogError::Write { path: self.path.clone(), source })?;
        }
        match self.disk.rename(&self.path, &rotated(&self.path)) {
            Ok(()) => {
                self.is_rotated = true;
                self.reopen()
            }
            // Another program removed the name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.reopen(),
            Err(source) => {
                // For instance, `.1` is a folder.
                if self.disk.empty(&self.file).is_ok() {
                    self.size = 0;
                }
                Err(LogError::Rotate { path: self.path.clone(), source })
            }
        }
    }

    fn styled(&mut self, bytes: &[u8], time: &str) -> Vec<u8> {
        let mut styled = Vec::with_capacity(bytes.len() + 32);
        for byte in bytes {
            if self.at_line_start && self.style.timestamps {
                // A guest that ends lines with "\n\r" would get the time before the return.
                if *byte == b'\r' {
                    continue;
                }
                styled.extend_from_slice(time.as_bytes());
            }
            self.at_line_start = *byte == b'\n';
            styled.push(if *byte == 0x1b && self.style.replace_escape { b'.' } else { *byte });
        }
        styled
    }
}

fn open_append(disk: &dyn Disk, path: &Path) -> Result<(File, u64, u64), LogError> {
    let open = || {
        let file = disk.open(path)?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok((file, about.ino(), about.len()))
    };
    open().map_err(|source| LogError::Open { path: path.to_owned(), source })
}

fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// The time in UTC as `[YYYY-MM-DD HH:MM:SS] `.
fn timestamp(now: SystemTime) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date in the Gregorian calendar, counted from 1 March of year 0 so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("[{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}] ")
}
