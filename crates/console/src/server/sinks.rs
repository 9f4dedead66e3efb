//! The files that one console's bytes go to, each byte once even when this process is killed.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::journal::{Entry, Journal, Noted};
use crate::history::HISTORY;
use crate::logfile::{LogError, LogFile, Position};

/// Bytes that are read from the log at once.
const ARCHIVE_MAX: usize = 8 * 1024;

/// The log, the output's file, and the note about both.
#[derive(Debug, Default)]
pub(crate) struct Sinks {
    log: Option<LogFile>,
    file: Option<LogFile>,
    journal: Option<Journal>,
    /// Whether the last writing failed: a run of failures is told once.
    broken: bool,
    /// Whether the log lacks something.
    torn: bool,
}

/// Where older bytes of a console are found.
pub(crate) trait Archive {
    /// Gives bytes of which the first came `back` bytes before the newest, at most `count` of them, if they are there.
    fn earlier(&self, back: u64, count: u64) -> Option<Vec<u8>>;
}

impl Archive for Sinks {
    fn earlier(&self, back: u64, count: u64) -> Option<Vec<u8>> {
        let log = self.log.as_ref().filter(|_| self.has_history())?;
        log.earlier(back, usize::try_from(count).unwrap_or(usize::MAX).min(ARCHIVE_MAX))
    }
}

impl Sinks {
    pub(crate) fn set_log(&mut self, log: LogFile) {
        self.log = Some(log);
    }

    pub(crate) fn set_file(&mut self, file: LogFile) {
        self.file = Some(file);
    }

    pub(crate) fn set_journal(&mut self, journal: Journal) {
        self.journal = Some(journal);
    }

    /// Gives, once, the end of what an earlier process has logged of this console.
    pub(crate) fn replay(&mut self) -> Vec<u8> {
        let born = self.journal.as_mut().and_then(Journal::take_born);
        match (&self.log, born) {
            (Some(log), Some(born)) if is_plain(log) => tail(log, born).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// Whether the log has all that is kept of the console for its readers.
    pub(crate) fn has_history(&self) -> bool {
        let has = |log: &LogFile| is_plain(log) && log.style().limit >= HISTORY as u64;
        !self.torn && self.log.as_ref().is_some_and(has)
    }

    /// Where the log ends.
    pub(crate) fn log_position(&self) -> Option<Position> {
        self.log.as_ref().map(LogFile::position)
    }

    /// Writes bytes that stand in the ring at `from`, if they are still there.
    pub(crate) fn record(&mut self, from: Option<u32>, bytes: &[u8]) -> Result<(), LogError> {
        let for_log = self.log.as_mut().map(|log| log.prepare(bytes));
        let for_file = self.file.as_mut().map(|file| file.prepare(bytes));
        if let (Some(from), Some(journal)) = (from, &self.journal)
            && (self.log.is_some() || self.file.is_some())
        {
            let to = from.wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            let log = self.log.as_ref().zip(for_log.as_ref()).and_then(|(log, b)| noted(log, b.len()));
            let file = self.file.as_ref().zip(for_file.as_ref()).and_then(|(file, b)| noted(file, b.len()));
            journal.note(&Entry { from, to, log, file });
        }
        let mut done = Ok(());
        for (sink, bytes) in [(&mut self.log, for_log), (&mut self.file, for_file)] {
            if let (Some(sink), Some(bytes)) = (sink, bytes) {
                done = done.and(sink.append_prepared(&bytes));
            }
        }
        self.torn |= done.is_err();
        self.told_once(done)
    }

    fn told_once(&mut self, done: Result<(), LogError>) -> Result<(), LogError> {
        let again = self.broken;
        self.broken = done.is_err();
        if again { Ok(()) } else { done }
    }

    /// Completes what a killed process had begun with the bytes that stand in the ring at `from`; says how many of
    /// them are written and can be freed.
    pub(crate) fn complete(&mut self, from: u32, bytes: &[u8]) -> usize {
        let Some(entry) = self.journal.as_ref().and_then(Journal::last) else { return 0 };
        let count = usize::try_from(entry.to.wrapping_sub(entry.from)).unwrap_or(usize::MAX);
        if entry.from != from || count > bytes.len() {
            return 0;
        }
        let missing = [(&self.log, entry.log), (&self.file, entry.file)].map(|(sink, noted)| {
            let (sink, noted) = (sink.as_ref()?, noted?);
            let position = sink.position();
            let missing = noted.after.size.checked_sub(position.size)?;
            let fits = position.inode == noted.after.inode && missing <= u64::from(noted.count);
            fits.then_some((missing, u64::from(noted.count)))
        });
        let begun = missing.iter().flatten().any(|(missing, count)| missing < count);
        if !begun {
            return 0;
        }
        for (sink, missing) in [&mut self.log, &mut self.file].into_iter().zip(missing) {
            if let (Some(sink), Some((missing, _))) = (sink, missing)
                && missing > 0
            {
                let styled = sink.prepare(&bytes[..count]);
                let missing = usize::try_from(missing).unwrap_or(usize::MAX).min(styled.len());
                // A failure will be seen again with the next bytes.
                let _ = sink.append_prepared(&styled[styled.len() - missing..]);
            }
        }
        count
    }

    /// Opens the files again.
    pub(crate) fn reopen(&mut self) -> Result<(), LogError> {
        let mut done = Ok(());
        for sink in [&mut self.log, &mut self.file].into_iter().flatten() {
            done = done.and(sink.reopen());
        }
        self.told_once(done)
    }

    /// The console is gone: no process will come back to it.
    pub(crate) fn forget(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.remove();
        }
    }
}

/// Whether it has what the console said, unchanged.
const fn is_plain(log: &LogFile) -> bool {
    !log.style().timestamps && !log.style().replace_escape
}

fn noted(sink: &LogFile, count: usize) -> Option<Noted> {
    Some(Noted { after: sink.position_after(count)?, count: u32::try_from(count).ok()? })
}

/// The end of a log from where it was at the console's birth; the whole file when that one was renamed since.
fn tail(log: &LogFile, born: Position) -> std::io::Result<Vec<u8>> {
    let Position { inode, size } = log.position();
    let start = if inode == born.inode { born.size } else { 0 };
    let count = size.saturating_sub(start).min(HISTORY as u64);
    let mut bytes = vec![0; usize::try_from(count).unwrap_or_default()];
    File::open(log.path())?.read_exact_at(&mut bytes, size - count)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::logfile::LogStyle;

    /// A process was killed after it had noted ten bytes at index 5 and written `written` of them to the log.
    #[track_caller]
    fn check(written: usize, with_file: bool, freed: usize) {
        let folder = tempfile::tempdir().unwrap();
        let (log, file) = (folder.path().join("log"), folder.path().join("file"));
        let open = || {
            let style = LogStyle { limit: 1000, ..LogStyle::default() };
            let mut sinks = Sinks::default();
            sinks.set_log(LogFile::open(log.clone(), style).unwrap());
            if with_file {
                sinks.set_file(LogFile::open(file.clone(), style).unwrap());
            }
            let journal = Journal::open(folder.path().join("j"), sinks.log_position()).unwrap();
            sinks.set_journal(journal);
            sinks
        };
        fs::write(&log, b"another's ").unwrap();
        open().record(Some(0), b"first").unwrap();
        open().record(Some(5), b"0123456789").unwrap();
        let cut = |path, length: usize| {
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length as u64).unwrap();
        };
        cut(&log, 15 + written);
        if with_file {
            cut(&file, 5);
        }
        let mut next = open();
        assert_eq!(next.complete(6, b"0123456789 and more"), 0, "another place in the ring");
        assert_eq!(next.complete(5, b"0123456789 and more"), freed);
        assert_eq!(next.replay(), [b"first", &b"0123456789"[..freed]].concat());
        assert!(next.replay().is_empty());
        let whole = if freed > 0 { "another's first0123456789" } else { "another's first" };
        assert_eq!(fs::read_to_string(&log).unwrap(), whole);
        if with_file && freed > 0 {
            assert_eq!(fs::read_to_string(&file).unwrap(), "first0123456789");
        }
    }

    #[test]
    fn what_a_killed_process_began_is_completed() {
        for with_file in [false, true] {
            check(0, with_file, 0);
            check(3, with_file, 10);
            check(10, with_file, 10);
        }
    }
}
