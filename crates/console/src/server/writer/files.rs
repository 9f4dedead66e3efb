//! The files that one console's bytes go to, each byte once even when this process is killed: what a thread has of them.

use std::path::PathBuf;
use std::sync::Arc;

use crate::history::{HISTORY, History};
use crate::logfile::{Disk, LogError, LogFile, LogStyle};
use crate::server::reader::PIECE;
use crate::spool::{FilesNote, FilesRecord, Kept, KeptFile, Noted};

/// Bytes of a console's stream.
#[derive(Debug)]
pub(crate) struct Piece {
    /// The position of the first of them. What is missing between the last piece and this one is left out.
    pub(crate) from: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Piece {
    /// The position behind the last of them.
    pub(crate) fn end(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }
}

/// What files are to be opened, and how far they were.
#[derive(Debug, Default)]
pub(crate) struct FilesToOpen {
    log: Option<(PathBuf, LogStyle)>,
    file: Option<(PathBuf, LogStyle)>,
    /// Where progress is recorded for the next process.
    note: Option<FilesNote>,
    /// What an earlier process has recorded.
    record: FilesRecord,
    /// Up to where they were given the console's bytes.
    at: u64,
    /// The bytes of the record, if all of them are still there.
    begun: Option<Vec<u8>>,
}

impl FilesToOpen {
    /// A log and an output's file, and where their progress is recorded.
    pub(crate) fn new(
        log: Option<(PathBuf, LogStyle)>,
        file: Option<(PathBuf, LogStyle)>,
        note: Option<FilesNote>,
    ) -> Self {
        Self { log, file, note, ..Self::default() }
    }

    /// How the log and the output's file are written.
    pub(crate) fn styles(&self) -> [Option<LogStyle>; 2] {
        [&self.log, &self.file].map(|file| file.as_ref().map(|(_, style)| *style))
    }

    /// Continues where an earlier process has stopped.
    pub(crate) fn continued(mut self, record: &FilesRecord, history: &History) -> Self {
        self.record = *record;
        self.at = record.to.min(history.end());
        let mut buffer =
            vec![0; usize::try_from(self.at.saturating_sub(record.from)).unwrap_or(0).min(PIECE)];
        let bytes = history.copy(record.from, &mut buffer);
        // Files that waited for their time may be far behind what is kept.
        let is_whole = record.from >= history.memory_start()
            && record.from.checked_add(bytes.len() as u64) == Some(record.to);
        self.begun = is_whole.then(|| bytes.to_vec());
        self
    }

    /// Up to where they were given the console's bytes.
    pub(crate) const fn at(&self) -> u64 {
        self.at
    }
}

/// What could be opened.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// Whether there is a log, or an output's file.
    pub(crate) any: bool,
    /// Whether there is a log whose bytes readers can be given.
    pub(crate) replays: bool,
    /// Where the log's part of the console's stream begins, if it has all that readers may want.
    pub(crate) begin: Option<u64>,
    pub(crate) errors: Vec<LogError>,
}

/// The log and the output's file.
#[derive(Debug, Default)]
pub(crate) struct ConsoleFiles {
    log: Option<LogFile>,
    file: Option<LogFile>,
    note: Option<FilesNote>,
    /// Up to where both were given the console's bytes.
    at: u64,
    /// Whether the last writing failed: a run of failures is reported once.
    broken: bool,
    /// From where on the log has every byte of the stream. Before it, some may be missing.
    whole_from: u64,
}

impl ConsoleFiles {
    /// Opens the files and completes what an earlier process had begun to write.
    pub(crate) fn open(disk: &Arc<dyn Disk>, wanted: FilesToOpen) -> (Self, Opened) {
        let FilesToOpen { log, file, note, record, at, begun } = wanted;
        let mut opened = Opened::default();
        let mut open = |wanted: Option<(PathBuf, LogStyle)>| {
            let (path, style) = wanted?;
            LogFile::open_on(Arc::clone(disk), path, style).map_err(|error| opened.errors.push(error)).ok()
        };
        let (log, file) = (open(log), open(file));
        let whole_from = if record.torn { at } else { 0 };
        let mut own = Self { log, file, note, at, broken: false, whole_from };
        let mut lacking = 0;
        for (file, noted) in [(&mut own.log, record.log), (&mut own.file, record.file)] {
            let (Some(file), Some(noted)) = (file, noted) else { continue };
            match &begun {
                // A failure will be seen again with the next bytes.
                Some(bytes) => drop(complete(file, noted, bytes)),
                None => lacking = lacking.max(missing(file, noted)),
            }
        }
        // With the next bytes, what is not known any more is counted as left out.
        own.at -= lacking.min(record.to.saturating_sub(record.from)).min(own.at);
        opened.any = own.log.is_some() || own.file.is_some();
        let log = own.log.as_ref().filter(|log| can_replay(log.style()));
        opened.replays = log.is_some();
        let log = log.filter(|_| !own.is_torn());
        opened.begin = log.map(|log| own.at.saturating_sub(log.position().size).max(own.whole_from));
        (own, opened)
    }

    /// Writes what a process that was killed had still to write of a console that is gone.
    pub(crate) fn finish(disk: &Arc<dyn Disk>, kept: &Kept, style: LogStyle) -> Result<(), LogError> {
        let history = History::taken_up_here(kept);
        let waits = kept.files.to < history.end();
        let open = |kept: &KeptFile| {
            let wanted = waits || kept.path.exists();
            wanted.then(|| (kept.path.clone(), LogStyle { limit: kept.limit, ..style }))
        };
        let wanted = FilesToOpen {
            log: kept.log.as_ref().and_then(open),
            file: kept.file.as_ref().and_then(open),
            ..FilesToOpen::default()
        };
        let (mut own, opened) = Self::open(disk, wanted.continued(&kept.files, &history));
        if let Some(error) = opened.errors.into_iter().next() {
            return Err(error);
        }
        let from = own.at.max(history.memory_start());
        // No more than a spool has.
        let mut bytes = vec![0; usize::try_from(history.end() - from).unwrap_or(HISTORY)];
        history.copy(from, &mut bytes);
        own.write(&Piece { from, bytes })
    }

    /// Whether the log lacks some of the bytes that are kept for readers.
    const fn is_torn(&self) -> bool {
        self.whole_from > 0 && self.at.saturating_sub(self.whole_from) < HISTORY as u64
    }

    /// Reads at most `count` bytes of the log, from a position of the console's stream on, if they are there.
    pub(crate) fn earlier(&self, position: u64, count: u64) -> Option<Vec<u8>> {
        let log = self.log.as_ref().filter(|log| can_replay(log.style()) && position >= self.whole_from)?;
        // With nothing between, what follows is not in the log.
        let back = self.at.checked_sub(position).filter(|back| *back > 0)?;
        log.earlier(back, usize::try_from(count).unwrap_or(usize::MAX).min(PIECE))
    }

    /// Appends bytes. If some before them are missing, a line says how many bytes these were.
    pub(crate) fn write(&mut self, piece: &Piece) -> Result<(), LogError> {
        let mut done = Ok(());
        if piece.from > self.at {
            done = self.mark_gap(piece.from - self.at);
            self.whole_from = piece.from;
            self.at = piece.from;
        }
        for bytes in piece.bytes.chunks(self.chunk()) {
            done = done.and(self.append(bytes));
        }
        self.told_once(done)
    }

    /// Says in the files that bytes are missing there.
    fn mark_gap(&mut self, count: u64) -> Result<(), LogError> {
        let mut done = Ok(());
        for file in [&mut self.log, &mut self.file].into_iter().flatten() {
            let line = format!("\n[outrigger-consoled: {count} bytes left out here]\n");
            done = done.and(file.append(line.as_bytes()));
        }
        done
    }

    /// Bytes that are written at once: not more than fit a file, which would be spread over two.
    fn chunk(&self) -> usize {
        let limits = [&self.log, &self.file].into_iter().flatten().map(|file| file.style().limit);
        let least = limits.filter(|limit| *limit > 0).min().unwrap_or(PIECE as u64);
        usize::try_from(least).unwrap_or(PIECE).min(PIECE)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let (from, to) = (self.at, self.at + bytes.len() as u64);
        let starts = [&self.log, &self.file].map(|file| file.as_ref().is_some_and(LogFile::is_at_line_start));
        let for_log = self.log.as_mut().map(|log| log.prepare(bytes));
        let for_file = self.file.as_mut().map(|file| file.prepare(bytes));
        if let Some(note) = &self.note {
            let log = self.log.as_ref().zip(for_log.as_ref());
            let file = self.file.as_ref().zip(for_file.as_ref());
            note.note_files(&FilesRecord {
                from,
                to,
                torn: self.is_torn(),
                log: log.and_then(|(log, bytes)| noted(log, bytes.len(), starts[0])),
                file: file.and_then(|(file, bytes)| noted(file, bytes.len(), starts[1])),
            });
        }
        let mut done = Ok(());
        for (file, bytes) in [(&mut self.log, for_log), (&mut self.file, for_file)] {
            if let (Some(file), Some(bytes)) = (file, bytes) {
                done = done.and(file.append_prepared(&bytes));
            }
        }
        if done.is_err() {
            self.whole_from = to;
        }
        self.at = to;
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
        for file in [&mut self.log, &mut self.file].into_iter().flatten() {
            done = done.and(file.reopen());
        }
        self.told_once(done)
    }
}

/// How much a file lacks of bytes that were noted, if it is the file that it was then.
fn missing(file: &LogFile, noted: Noted) -> u64 {
    let position = file.position();
    let missing = noted.after.size.saturating_sub(position.size);
    let is_same = position.inode == noted.after.inode && missing <= u64::from(noted.count);
    if is_same { missing } else { 0 }
}

/// Appends what a file lacks of bytes that were noted.
fn complete(file: &mut LogFile, noted: Noted, bytes: &[u8]) -> Result<(), LogError> {
    let missing = missing(file, noted);
    if missing == 0 {
        return Ok(());
    }
    file.set_line_start(noted.at_line_start);
    let styled = file.in_style(bytes);
    let missing = usize::try_from(missing).unwrap_or(usize::MAX).min(styled.len());
    file.append_prepared(&styled[styled.len() - missing..])
}

/// Whether readers can be given what a log of this style has: all that is kept, as the console said it.
pub(crate) const fn can_replay(style: LogStyle) -> bool {
    !style.timestamps && !style.replace_escape && style.limit >= HISTORY as u64
}

fn noted(file: &LogFile, count: usize, at_line_start: bool) -> Option<Noted> {
    Some(Noted { after: file.position_after(count)?, count: u32::try_from(count).ok()?, at_line_start })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::logfile::HostDisk;
    use crate::spool::{RingRecord, Spool};

    fn open(folder: &Path, style: LogStyle, with_file: bool) -> (ConsoleFiles, History) {
        let kept = Spool::read_kept(&folder.join("spool"), 0).unwrap_or_default();
        let spool = Spool::create(folder.join("spool"), 4096, &kept).unwrap();
        let history = History::taken_up(spool, &kept);
        let wanted = FilesToOpen {
            log: Some((folder.join("log"), style)),
            file: with_file.then(|| (folder.join("file"), style)),
            note: history.spool().map(Spool::files_note),
            ..FilesToOpen::default()
        };
        let disk: Arc<dyn Disk> = Arc::new(HostDisk);
        let (files, opened) = ConsoleFiles::open(&disk, wanted.continued(&kept.files, &history));
        assert!(opened.errors.is_empty());
        (files, history)
    }

    /// Writes all that is in memory.
    fn flush(files: &mut ConsoleFiles, history: &History) {
        let from = files.at.max(history.memory_start());
        let mut bytes = vec![0; usize::try_from(history.end() - from).unwrap()];
        history.copy(from, &mut bytes);
        files.write(&Piece { from, bytes }).unwrap();
    }

    fn say(files: &mut ConsoleFiles, history: &mut History, bytes: &[u8]) {
        history.push(bytes).unwrap();
        history.spool().unwrap().note_ring(&RingRecord { end: history.end(), from: 0, to: 0 });
        flush(files, history);
    }

    /// A process was killed after it had written `in_log` of thirteen bytes to the log, and `in_file` to the file.
    #[track_caller]
    fn check(style: LogStyle, in_log: u64, in_file: Option<u64>) {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("log"), b"another's ").unwrap();
        let (mut files, mut history) = open(folder, style, in_file.is_some());
        say(&mut files, &mut history, b"first\n");
        let length = |name| fs::metadata(folder.join(name)).map_or(0, |about| about.len());
        let before = ["log", "file"].map(length);
        say(&mut files, &mut history, b"0123\n5678\nab");
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
        drop((files, history));
        for _ in 0..2 {
            let (mut files, history) = open(folder, style, in_file.is_some());
            flush(&mut files, &history);
            let got = ["log", "file"].map(|name| fs::read(folder.join(name)).map(styled).ok());
            assert_eq!(got, wanted, "{in_log} {in_file:?}");
        }
        let (mut files, mut history) = open(folder, style, in_file.is_some());
        say(&mut files, &mut history, b"cd\n");
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
        let (mut files, mut history) = open(folder.path(), style, false);
        say(&mut files, &mut history, b"one ");
        history.push(b"two ").unwrap();
        history.spool().unwrap().note_ring(&RingRecord { end: history.end(), from: 0, to: 0 });
        let (mut files, history) = open(folder.path(), style, false);
        flush(&mut files, &history);
        assert_eq!(fs::read(folder.path().join("log")).unwrap(), b"one two ");
    }

    #[test]
    fn what_is_not_in_memory_any_more_is_left_out_with_a_line_and_the_end_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let style = LogStyle { limit: 1 << 20, ..LogStyle::default() };
        let (mut files, mut history) = open(folder.path(), style, true);
        say(&mut files, &mut history, b"begin");
        for _ in 0..100 {
            history.push(&[b'x'; 1000]).unwrap();
        }
        history.push(b"end").unwrap();
        // The spool of this test has 4096 bytes.
        flush(&mut files, &history);
        let left_out = 100_003 - 4096;
        let line = format!("begin\n[outrigger-consoled: {left_out} bytes left out here]\n");
        let wanted = [line.as_bytes(), &[b'x'; 4093], b"end"].concat();
        for name in ["log", "file"] {
            assert!(fs::read(folder.path().join(name)).unwrap() == wanted, "{name}");
        }
        // Readers get what is whole, and nothing from before it.
        let at = history.end();
        assert!(files.earlier(at - 4097, 10).is_none());
        assert_eq!(files.earlier(at - 3, 10).unwrap(), b"end");
        assert!(files.is_torn(), "the log has all that is kept");
        for _ in 0..HISTORY / 1000 {
            say(&mut files, &mut history, &[b'y'; 1000]);
        }
        assert!(!files.is_torn(), "the log does not have all that is kept");
    }
}
