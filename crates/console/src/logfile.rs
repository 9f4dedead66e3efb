//! A file that takes a console's bytes for ever without filling the disk (XSA-180).

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::OFlag;
use thiserror::Error;

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
    /// The limit of a log when nobody says another: 4 MiB, and as much again in the rotated file.
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
    #[error("Cannot open the console log {path}; check that its folder exists and is writable")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be appended to.
    #[error("Cannot append to the console log {path}; bytes are not logged until it can be written again")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The full file cannot be renamed.
    #[error("Cannot rename the full console log {path}; it is begun again instead")]
    Rotate {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// One console's file: appended to, renamed when full, opened again on request.
#[derive(Debug)]
pub struct LogFile {
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
        let (file, inode, size) = open_append(&path)?;
        let mut last = [b'\n'];
        if size > 0 {
            // What cannot be read begins a line.
            let _ = file.read_exact_at(&mut last, size - 1);
        }
        let at_line_start = last == [b'\n'];
        Ok(Self { path, file, inode, size, style, at_line_start, pending: None, previous: None })
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
        (self.file, self.inode, self.size) = open_append(&self.path)?;
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
        if full && let Err(error) = self.rotate() {
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
    /// When the file cannot be written or renamed; in the first case the rest of the bytes is not written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let styled = self.prepare(bytes);
        self.append_prepared(&styled)
    }

    /// Appends bytes as they are.
    ///
    /// # Errors
    /// As [`LogFile::append`].
    pub fn append_prepared(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.size >= self.style.limit {
                self.rotate()?;
            }
            let room = usize::try_from(self.style.limit - self.size).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            let write = self.file.write_all(now).and_then(|()| match self.style.sync {
                Sync::Always => self.file.sync_data(),
                Sync::Never | Sync::Rotation => Ok(()),
            });
            write.map_err(|source| LogError::Write { path: self.path.clone(), source })?;
            self.size += now.len() as u64;
            rest = later;
        }
        self.pending.take().map_or(Ok(()), Err)
    }

    fn rotate(&mut self) -> Result<(), LogError> {
        self.previous = None;
        if self.style.sync == Sync::Rotation {
            let synced = self.file.sync_data();
            synced.map_err(|source| LogError::Write { path: self.path.clone(), source })?;
        }
        let renamed = fs::rename(&self.path, rotated(&self.path));
        if let Err(source) = renamed {
            // Someone removed the name (or made `.1` a folder). The limit holds all the same.
            let _ = self.file.set_len(0);
            self.size = 0;
            return match source.kind() {
                io::ErrorKind::NotFound => self.reopen(),
                _ => Err(LogError::Rotate { path: self.path.clone(), source }),
            };
        }
        self.reopen()
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

fn open_append(path: &Path) -> Result<(File, u64, u64), LogError> {
    let open = || {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(path)?;
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

/// Makes a file name of a domain's name: no separators, no leading dot, no control characters, at most 128 bytes.
///
/// The name is a person's choice and usually well behaved, but it ends up in a path of a root-owned folder.
#[must_use]
pub fn file_stem(name: &str) -> String {
    let mut stem: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() && c != '/' || c.is_alphanumeric() { c } else { '_' })
        .collect();
    while stem.len() > 128 {
        stem.pop();
    }
    if stem.is_empty() || stem.starts_with('.') { format!("_{stem}") } else { stem }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn style(limit: u64) -> LogStyle {
        LogStyle { limit, ..LogStyle::default() }
    }

    #[test]
    fn a_flood_leaves_two_files_of_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.0.log");
        let mut log = LogFile::open(path.clone(), style(1000)).unwrap();
        for at in 0..100u8 {
            log.append(&[at; 333]).unwrap();
        }
        assert_eq!(fs::metadata(folder.path().join("a.0.log.1")).unwrap().len(), 999);
        assert_eq!(fs::metadata(&path).unwrap().len(), 333);
        assert_eq!(fs::read(&path).unwrap()[332], 99);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn more_than_the_limit_at_once_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(path.clone(), style(10)).unwrap();
        log.append(b"0123456789abcdefghijklmno").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"klmno");
        assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), b"abcdefghij");
    }

    #[test]
    fn where_the_file_will_end_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(folder.path().join("log"), style(10)).unwrap();
        for bytes in [b"0123".as_slice(), b"4567", b"89ab", b"c"] {
            let ready = log.prepare(bytes);
            let wanted = log.position_after(ready.len());
            log.append_prepared(&ready).unwrap();
            assert_eq!(Some(log.position()), wanted);
        }
        assert_eq!(log.position().size, 5);
    }

    #[test]
    fn a_file_that_was_moved_away_is_written_anew_after_reopen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(path.clone(), style(1000)).unwrap();
        log.append(b"old").unwrap();
        fs::rename(&path, folder.path().join("kept")).unwrap();
        log.reopen().unwrap();
        log.append(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn appending_goes_on_after_a_restart_and_counts_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        LogFile::open(path.clone(), style(10)).unwrap().append(b"12345678").unwrap();
        LogFile::open(path.clone(), style(10)).unwrap().append(b"abcd").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abcd");
        assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), b"12345678");
    }

    #[test]
    fn a_symbolic_link_and_a_pipe_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(matches!(LogFile::open(link, style(10)), Err(LogError::Open { .. })));
        assert!(matches!(LogFile::open("/dev/null".into(), style(10)), Err(LogError::Open { .. })));
    }

    #[test]
    fn lines_get_the_time_and_lose_their_escapes() {
        let folder = tempfile::tempdir().unwrap();
        let wanted =
            LogStyle { limit: 10_000, timestamps: true, replace_escape: true, ..LogStyle::default() };
        let mut log = LogFile::open(folder.path().join("log"), wanted).unwrap();
        let styled = log.styled(b"a\x1b[1m\n\rb", "[t] ");
        assert_eq!(styled, b"[t] a.[1m\n[t] b");
    }

    #[test]
    fn the_time_is_written_in_utc() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_210_096);
        assert_eq!(timestamp(at), "[2024-02-29 12:34:56] ");
    }

    #[test]
    fn names_of_domains_become_names_of_files() {
        for (name, stem) in [("guest-dm", "guest-dm"), ("../x y", "_.._x_y"), ("", "_"), ("Grün", "Grün")] {
            assert_eq!(file_stem(name), stem, "{name:?}");
        }
        assert_eq!(file_stem(&"ü".repeat(200)).len(), 128);
    }

    #[test]
    fn what_was_appended_is_found_again_across_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let style = LogStyle { limit: 10, ..LogStyle::default() };
        let mut log = LogFile::open(path.clone(), style).unwrap();
        log.append(b"01234567").unwrap();
        assert_eq!(log.earlier(9, 100), None);
        log.append(b"89abcdef").unwrap();
        assert_eq!(log.earlier(8, 100).as_deref(), Some(&b"89abcdef"[..]));
        assert_eq!(log.earlier(13, 4).as_deref(), Some(&b"3456"[..]));
        assert_eq!(log.earlier(13, 100).as_deref(), Some(&b"34567"[..]));
        assert_eq!(log.earlier(17, 100), None);
        fs::remove_file(rotated(&path)).unwrap();
        fs::write(rotated(&path), b"another's").unwrap();
        assert_eq!(log.earlier(13, 4), None);
        assert_eq!(log.earlier(3, 2).as_deref(), Some(&b"de"[..]));
    }
}
