//! The files that one console's bytes go to, each byte once even when this process is killed.

use std::time::Instant;

use super::reader::PIECE;
use crate::history::{HISTORY, History};
use crate::logfile::{LogError, LogFile, LogStyle, Sync};
use crate::spool::{FilesRecord, Kept, KeptFile, Noted, Spool};

/// The log and the output's file.
#[derive(Debug, Default)]
pub(crate) struct Sinks {
    log: Option<LogFile>,
    file: Option<LogFile>,
    /// Up to where both were given the console's bytes.
    at: u64,
    /// Whether the last writing failed: a run of failures is told once.
    broken: bool,
    /// From where on the log has every byte of the stream. Before it, some may be missing.
    whole_from: u64,
}

/// Where older bytes of a console are found.
pub(crate) trait Archive {
    /// Gives bytes from a position of the stream on, at most `count` of them, if they are there.
    fn earlier(&self, position: u64, count: u64) -> Option<Vec<u8>>;
}

impl Archive for Sinks {
    fn earlier(&self, position: u64, count: u64) -> Option<Vec<u8>> {
        let log = self.log.as_ref().filter(|log| can_replay(log) && position >= self.whole_from)?;
        // With nothing between, what follows is not in the log.
        let back = self.at.checked_sub(position).filter(|back| *back > 0)?;
        log.earlier(back, usize::try_from(count).unwrap_or(usize::MAX).min(PIECE))
    }
}

impl Sinks {
    pub(crate) fn set_log(&mut self, log: LogFile) {
        self.log = Some(log);
    }

    pub(crate) fn set_file(&mut self, file: LogFile) {
        self.file = Some(file);
    }

    /// Whether the log has all that is kept of the console for its readers.
    pub(crate) fn has_history(&self) -> bool {
        !self.is_torn() && self.log.as_ref().is_some_and(can_replay)
    }

    /// Whether the log lacks some of the bytes that are kept for readers.
    const fn is_torn(&self) -> bool {
        self.whole_from > 0 && self.at.saturating_sub(self.whole_from) < HISTORY as u64
    }

    /// Whether bytes must be on the disk before they leave the ring.
    pub(crate) fn come_first(&self) -> bool {
        let first = |sink: &LogFile| sink.style().sync == Sync::Always;
        self.log.as_ref().is_some_and(first) || self.file.as_ref().is_some_and(first)
    }

    /// Continues after an earlier process: completes what it had begun to write. Says where the log's part of the
    /// console's stream begins, if it has one.
    pub(crate) fn take_up(&mut self, record: &FilesRecord, history: &History) -> Option<u64> {
        self.at = record.to.min(history.end());
        self.whole_from = if record.torn { self.at } else { 0 };
        let mut buffer =
            vec![0; usize::try_from(self.at.saturating_sub(record.from)).unwrap_or(0).min(PIECE)];
        let bytes = history.copy(record.from, &mut buffer);
        // Files that waited for their time may be far behind what is kept.
        let whole = record.from >= history.memory_start()
            && record.from.checked_add(bytes.len() as u64) == Some(record.to);
        for (sink, noted) in [(&mut self.log, record.log), (&mut self.file, record.file)] {
            if let (Some(sink), Some(noted), true) = (sink, noted, whole) {
                // A failure will be seen again with the next bytes.
                let _ = complete(sink, noted, bytes);
            }
        }
        let log = self.log.as_ref().filter(|_| self.has_history())?;
        Some(self.at.saturating_sub(log.position().size).max(self.whole_from))
    }

    /// Writes what a process that was killed had still to write of a console that is gone.
    pub(crate) fn finish(kept: &Kept, style: LogStyle) -> Result<(), LogError> {
        let history = History::taken_up_here(kept);
        let mut sinks = Self::default();
        let waits = kept.files.to < history.end();
        let open = |kept: &KeptFile| {
            let style = LogStyle { limit: kept.limit, ..style };
            let wanted = waits || kept.path.exists();
            wanted.then(|| LogFile::open(kept.path.clone(), style)).transpose()
        };
        sinks.log = kept.log.as_ref().map(open).transpose()?.flatten();
        sinks.file = kept.file.as_ref().map(open).transpose()?.flatten();
        sinks.take_up(&kept.files, &history);
        // No more than a spool has.
        sinks.flush(&history, |_| Ok(())).0
    }

    /// Notes where the files are.
    pub(crate) fn note_paths(&self, spool: &Spool) {
        let [log, file] =
            [&self.log, &self.file].map(|sink| sink.as_ref().map(|sink| (sink.path(), sink.style().limit)));
        spool.note_paths(log, file);
    }

    /// Writes what has come since the last time, as far as `take` allows: it is given the number of bytes, and returns
    /// when to try again if there may be none now. Until then the files wait. What is not in memory any more when they
    /// continue is left out, and a line says how many bytes these were.
    pub(crate) fn flush(
        &mut self,
        history: &History,
        mut take: impl FnMut(u64) -> Result<(), Instant>,
    ) -> (Result<(), LogError>, Option<Instant>) {
        let mut done = Ok(());
        let mut again = None;
        if self.log.is_none() && self.file.is_none() {
            self.at = history.end();
        }
        let mut buffer = [0; PIECE];
        while self.at < history.end() {
            let from = self.at.max(history.memory_start());
            let most = self.piece();
            let bytes = history.copy(from, &mut buffer[..most]);
            if let Err(at) = take(bytes.len() as u64) {
                again = Some(at);
                break;
            }
            if from > self.at {
                done = done.and(self.mark_gap(from - self.at));
                self.whole_from = from;
            }
            let to = from + bytes.len() as u64;
            done = done.and(self.write(from, to, bytes, history.spool()));
            self.at = to;
        }
        (self.told_once(done), again)
    }

    /// Says in the files that bytes are missing there.
    fn mark_gap(&mut self, count: u64) -> Result<(), LogError> {
        let mut done = Ok(());
        for sink in [&mut self.log, &mut self.file].into_iter().flatten() {
            let line = format!("\n[outrigger-consoled: {count} bytes left out here]\n");
            done = done.and(sink.append(line.as_bytes()));
        }
        done
    }

    /// Bytes that are written at once: not more than fit a file, which would be spread over two.
    fn piece(&self) -> usize {
        let limits = [&self.log, &self.file].into_iter().flatten().map(|sink| sink.style().limit);
        let least = limits.filter(|limit| *limit > 0).min().unwrap_or(PIECE as u64);
        usize::try_from(least).unwrap_or(PIECE).min(PIECE)
    }

    fn write(&mut self, from: u64, to: u64, bytes: &[u8], spool: Option<&Spool>) -> Result<(), LogError> {
        let starts = [&self.log, &self.file].map(|sink| sink.as_ref().is_some_and(LogFile::is_at_line_start));
        let for_log = self.log.as_mut().map(|log| log.prepare(bytes));
        let for_file = self.file.as_mut().map(|file| file.prepare(bytes));
        if let Some(spool) = spool {
            let log = self.log.as_ref().zip(for_log.as_ref());
            let file = self.file.as_ref().zip(for_file.as_ref());
            spool.note_files(&FilesRecord {
                from,
                to,
                torn: self.is_torn(),
                log: log.and_then(|(log, bytes)| noted(log, bytes.len(), starts[0])),
                file: file.and_then(|(file, bytes)| noted(file, bytes.len(), starts[1])),
            });
        }
        let mut done = Ok(());
        for (sink, bytes) in [(&mut self.log, for_log), (&mut self.file, for_file)] {
            if let (Some(sink), Some(bytes)) = (sink, bytes) {
                done = done.and(sink.append_prepared(&bytes));
            }
        }
        if done.is_err() {
            self.whole_from = to;
        }
        done
    }

    fn told_once(&mut self, done: Result<(), LogError>) -> Result<(), LogError> {
        let again = self.broken;
        self.broken = done.is_err();
        if again { Ok(()) } else { done }
    }

    /// Opens the files again.
    pub(crate) fn reopen(&mut self) -> Result<(), LogError> {
        let mut done = Ok(());
        for sink in [&mut self.log, &mut self.file].into_iter().flatten() {
            done = done.and(sink.reopen());
        }
        self.told_once(done)
    }
}

/// Appends what a file lacks of bytes that were noted, if it is where it was then.
fn complete(sink: &mut LogFile, noted: Noted, bytes: &[u8]) -> Result<(), LogError> {
    let position = sink.position();
    let missing = match noted.after.size.checked_sub(position.size) {
        Some(missing) if missing > 0 && missing <= u64::from(noted.count) => missing,
        _ => return Ok(()),
    };
    if position.inode != noted.after.inode {
        return Ok(());
    }
    sink.set_line_start(noted.at_line_start);
    let styled = sink.in_style(bytes);
    let missing = usize::try_from(missing).unwrap_or(usize::MAX).min(styled.len());
    sink.append_prepared(&styled[styled.len() - missing..])
}

/// Whether readers can be given what it has.
const fn can_replay(log: &LogFile) -> bool {
    is_plain(log) && log.style().limit >= HISTORY as u64
}

/// Whether it has what the console said, unchanged.
const fn is_plain(log: &LogFile) -> bool {
    !log.style().timestamps && !log.style().replace_escape
}

fn noted(sink: &LogFile, count: usize, at_line_start: bool) -> Option<Noted> {
    Some(Noted { after: sink.position_after(count)?, count: u32::try_from(count).ok()?, at_line_start })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::spool::RingRecord;

    fn open(folder: &Path, style: LogStyle, with_file: bool) -> (Sinks, History) {
        let mut sinks = Sinks::default();
        sinks.set_log(LogFile::open(folder.join("log"), style).unwrap());
        if with_file {
            sinks.set_file(LogFile::open(folder.join("file"), style).unwrap());
        }
        let kept = Spool::read_kept(&folder.join("spool"), 0).unwrap_or_default();
        let spool = Spool::create(folder.join("spool"), 4096, &kept).unwrap();
        let history = History::taken_up(spool, &kept);
        sinks.take_up(&kept.files, &history);
        (sinks, history)
    }

    fn say(sinks: &mut Sinks, history: &mut History, bytes: &[u8]) {
        history.push(bytes).unwrap();
        history.spool().unwrap().note_ring(&RingRecord { end: history.end(), from: 0, to: 0 });
        sinks.flush(history, |_| Ok(())).0.unwrap();
    }

    /// A process was killed after it had written `in_log` of thirteen bytes to the log, and `in_file` to the file.
    #[track_caller]
    fn check(style: LogStyle, in_log: u64, in_file: Option<u64>) {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("log"), b"another's ").unwrap();
        let (mut sinks, mut history) = open(folder, style, in_file.is_some());
        say(&mut sinks, &mut history, b"first\n");
        let length = |name| fs::metadata(folder.join(name)).map_or(0, |about| about.len());
        let before = ["log", "file"].map(length);
        say(&mut sinks, &mut history, b"0123\n5678\nab");
        let styled = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.split_inclusive('\n')
                .map(|line| line.replace(|c: char| c.is_ascii_digit(), "0"))
                .collect::<String>()
        };
        let wanted = ["log", "file"].map(|name| fs::read(folder.join(name)).map(styled).ok());
        for (name, before, written) in [("log", before[0], Some(in_log)), ("file", before[1], in_file)] {
            if let Some(written) = written {
                let file = fs::OpenOptions::new().write(true).open(folder.join(name)).unwrap();
                file.set_len((before + written).min(length(name))).unwrap();
            }
        }
        drop((sinks, history));
        for _ in 0..2 {
            let (mut sinks, history) = open(folder, style, in_file.is_some());
            sinks.flush(&history, |_| Ok(())).0.unwrap();
            let got = ["log", "file"].map(|name| fs::read(folder.join(name)).map(styled).ok());
            assert_eq!(got, wanted, "{in_log} {in_file:?}");
        }
        let (mut sinks, mut history) = open(folder, style, in_file.is_some());
        say(&mut sinks, &mut history, b"cd\n");
        assert!(fs::read(folder.join("log")).unwrap().ends_with(b"abcd\n"));
    }

    #[test]
    fn what_a_killed_process_began_is_completed() {
        let plain = LogStyle { limit: 1000, ..LogStyle::default() };
        for style in [plain, LogStyle { timestamps: true, ..plain }] {
            for in_log in 0..40 {
                check(style, in_log, None);
                check(style, in_log, Some(0));
                check(style, 99, Some(in_log));
            }
        }
    }

    #[test]
    fn what_was_not_begun_is_written_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let style = LogStyle { limit: 1000, ..LogStyle::default() };
        let (mut sinks, mut history) = open(folder.path(), style, false);
        say(&mut sinks, &mut history, b"one ");
        history.push(b"two ").unwrap();
        history.spool().unwrap().note_ring(&RingRecord { end: history.end(), from: 0, to: 0 });
        let (mut sinks, history) = open(folder.path(), style, false);
        sinks.flush(&history, |_| Ok(())).0.unwrap();
        assert_eq!(fs::read(folder.path().join("log")).unwrap(), b"one two ");
    }

    #[test]
    fn what_may_not_be_logged_is_left_out_with_a_line_and_the_end_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let style = LogStyle { limit: 1 << 20, ..LogStyle::default() };
        let (mut sinks, mut history) = open(folder.path(), style, true);
        say(&mut sinks, &mut history, b"begin");
        let later = Instant::now();
        for _ in 0..100 {
            history.push(&[b'x'; 1000]).unwrap();
            assert_eq!(sinks.flush(&history, |_| Err(later)).1, Some(later));
        }
        history.push(b"end").unwrap();
        // The spool of this test has 4096 bytes.
        assert_eq!(sinks.flush(&history, |_| Ok(())).1, None);
        let left_out = 100_003 - 4096;
        let line = format!("begin\n[outrigger-consoled: {left_out} bytes left out here]\n");
        let wanted = [line.as_bytes(), &[b'x'; 4093], b"end"].concat();
        for name in ["log", "file"] {
            assert!(fs::read(folder.path().join(name)).unwrap() == wanted, "{name}");
        }
        // Readers get what is whole, and nothing from before it.
        let at = history.end();
        assert!(sinks.earlier(at - 4097, 10).is_none());
        assert_eq!(sinks.earlier(at - 3, 10).unwrap(), b"end");
        assert!(!sinks.has_history());
        for _ in 0..HISTORY / 1000 {
            say(&mut sinks, &mut history, &[b'y'; 1000]);
        }
        assert!(sinks.has_history(), "the log has all that is kept");
    }
}
