//! The loop's side of one console's files: what their thread was given, and what it has answered.
//!
//! The thread has at most one piece of a console's bytes at a time. Those that come meanwhile stay in the history, which
//! outlives this process. While they would push bytes out of it that the files do not have, the domain waits, but only
//! until the disk has been silent for the time limit: then the files are *stalled*, nothing waits for them any more, and
//! what falls out of the history is left out of them and counted.

use core::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::reader::{Archive, Earlier, PIECE};
use super::writer::{Done, FilesToOpen, Job, Opened, Owner, Piece, Writer, can_replay};
use crate::history::History;
use crate::logfile::{LogError, Sync};
use crate::own_path::OwnPath;
use crate::ring::OUT_SIZE;

/// Places that readers want at a time: one for each viewer, and one for the main output.
const WANTED_MAX: usize = 65;

/// One console's files.
#[derive(Debug)]
pub(crate) struct FilesLink {
    owner: Owner,
    /// How long the disk may be silent.
    patience: Duration,
    /// Without one, the console has no files.
    writer: Option<Rc<Writer>>,
    /// Whether bytes must be on the disk before they leave the ring.
    come_first: bool,
    /// Up to where the thread was given the console's bytes.
    given: u64,
    /// Up to where it has answered for them.
    written: u64,
    /// What it owes an answer for: to open or write, and from where on bytes are not in the files yet.
    writing: Option<(Instant, u64)>,
    is_stalled: bool,
    is_reopening: bool,
    is_closing: bool,
    /// When the domain's logs may have more.
    resumes_at: Option<Instant>,
    /// Whether the server will look at a time at which something is due here.
    is_scheduled: bool,
    replay: Replay,
}

/// Older bytes for readers.
#[derive(Debug, Default)]
struct Replay {
    /// Whether the log has what readers want.
    is_there: bool,
    /// Where readers want bytes, and how many.
    wanted: RefCell<VecDeque<(u64, u64)>>,
    /// Since when the thread owes an answer.
    reading: Option<Instant>,
    /// Its last answer.
    found: Option<(u64, Option<Vec<u8>>)>,
}

impl Archive for FilesLink {
    fn earlier(&self, position: u64, count: u64) -> Earlier {
        if !self.replay.is_there || self.is_stalled || position >= self.given {
            return Earlier::Missing;
        }
        if let Some((found, bytes)) = &self.replay.found
            && *found == position
        {
            return bytes.clone().map_or(Earlier::Missing, Earlier::Bytes);
        }
        let mut wanted = self.replay.wanted.borrow_mut();
        if !wanted.iter().any(|(asked, _)| *asked == position) {
            // Of readers that are gone or want something else by now.
            if wanted.len() >= WANTED_MAX {
                wanted.pop_front();
            }
            wanted.push_back((position, count));
        }
        Earlier::Later
    }
}

impl FilesLink {
    /// No files yet. A disk that is silent for `patience` is waited for no longer.
    pub(crate) fn new(owner: Owner, patience: Duration) -> Self {
        Self {
            owner,
            patience,
            writer: None,
            come_first: false,
            given: 0,
            written: 0,
            writing: None,
            is_stalled: false,
            is_reopening: false,
            is_closing: false,
            resumes_at: None,
            is_scheduled: false,
            replay: Replay::default(),
        }
    }

    /// Has the files opened, and what an earlier process had begun completed.
    pub(crate) fn open(&mut self, writer: Rc<Writer>, wanted: FilesToOpen, history: &History, now: Instant) {
        let styles = wanted.styles();
        self.come_first = styles.iter().flatten().any(|style| style.sync == Sync::Always);
        self.replay.is_there = styles[0].is_some_and(can_replay);
        (self.given, self.written) = (wanted.at(), wanted.at());
        self.writing = Some((now, self.given.max(history.memory_start())));
        writer.send(self.owner, Job::Open(Box::new(wanted)));
        self.writer = Some(writer);
    }

    /// Whether bytes must be on the disk before they leave the ring.
    pub(crate) const fn come_first(&self) -> bool {
        self.come_first
    }

    /// Whether the files have the console's bytes up to this position, or will never get them.
    pub(crate) const fn has(&self, position: u64) -> bool {
        self.writer.is_none() || self.written >= position
    }

    /// Bytes that the thread was not given yet.
    pub(crate) fn not_given(&self, history: &History) -> usize {
        usize::try_from(history.end().saturating_sub(self.given)).unwrap_or(usize::MAX)
    }

    /// Whether more bytes would push those out of the history that the files are about to get.
    pub(crate) fn holds_up(&self, history: &History) -> bool {
        let Some((_, from)) = self.writing.filter(|_| !self.is_stalled) else { return false };
        // An earlier process's successor does not trust the oldest bytes, as many as a ring has.
        history.end() + 2 * OUT_SIZE as u64 > from + history.in_memory_max()
    }

    /// Sends what has come since the last time, as far as `take` allows: it is given the number of bytes, and returns
    /// when to try again if there may be none now. Bytes that are no longer in memory when the files continue are left out.
    pub(crate) fn flush(
        &mut self,
        history: &History,
        now: Instant,
        take: impl FnOnce(u64) -> Result<(), Instant>,
    ) {
        let Some(writer) = &self.writer else {
            self.given = history.end();
            return;
        };
        if self.writing.is_some() || self.is_closing || self.given >= history.end() {
            return;
        }
        let piece = piece(history, self.given, PIECE);
        if let Err(at) = take(piece.bytes.len() as u64) {
            self.resumes_at = Some(at);
            return;
        }
        self.given = piece.end();
        self.writing = Some((now, piece.from));
        writer.send(self.owner, Job::Write(piece));
    }

    /// Waits with the files until this time, and tells the server to look then.
    pub(crate) const fn resume_at(&mut self, at: Instant) {
        self.resumes_at = Some(at);
    }

    /// Asks for what readers want.
    pub(crate) fn read(&mut self) {
        // Kept only for those who asked for it.
        self.replay.found = None;
        let Some(writer) = &self.writer else { return };
        if self.replay.reading.is_none()
            && let Some((position, count)) = self.replay.wanted.get_mut().pop_front()
        {
            self.replay.reading = Some(Instant::now());
            writer.send(self.owner, Job::Read { position, count });
        }
    }

    /// Has the files opened again.
    pub(crate) fn reopen(&mut self) {
        if let Some(writer) = &self.writer
            && !self.is_closing
            && !core::mem::replace(&mut self.is_reopening, true)
        {
            writer.send(self.owner, Job::Reopen);
        }
    }

    /// Sends the last bytes, all that are in memory. When they are written, the journal is removed. The log can still be
    /// read.
    ///
    /// # Errors
    /// When too many consoles that are gone wait for disks. Returns how many bytes are lost.
    pub(crate) fn finish(
        &mut self,
        history: &History,
        journal: Option<OwnPath>,
        now: Instant,
    ) -> Result<(), u64> {
        if core::mem::replace(&mut self.is_closing, true) {
            return Ok(());
        }
        let Some(writer) = &self.writer else {
            if let Some(journal) = journal {
                journal.remove();
            }
            return Ok(());
        };
        let lost = history.end() - self.written;
        let last = piece(history, self.given, usize::MAX);
        let last = Some(last).filter(|piece| !piece.bytes.is_empty());
        self.given = history.end();
        let since = self.writing.map_or(now, |(since, _)| since);
        if writer.send_last(self.owner, last, journal.clone()).is_err() {
            if let Some(journal) = journal {
                journal.remove();
            }
            self.writing = None;
            return Err(lost);
        }
        self.writing = Some((since, self.given));
        Ok(())
    }

    /// Whether nobody needs to wait for the files any more.
    pub(crate) const fn is_settled(&self) -> bool {
        self.writer.is_none() || self.writing.is_none() || self.is_stalled
    }

    /// Takes an answer. Returns the errors to report.
    pub(crate) fn answered(&mut self, what: Done, history: &mut History) -> Vec<LogError> {
        self.is_stalled = false;
        if let Some(writer) = &self.writer {
            writer.report_answer();
        }
        let result = match what {
            Done::Opened(opened) => return self.opened(opened, history),
            Done::Written { to, result } => {
                self.written = to;
                // The answer that closing waits for is another one.
                self.writing = self.writing.filter(|_| self.is_closing);
                result
            }
            Done::Found { position, bytes } => {
                self.replay.reading = None;
                self.replay.found = Some((position, bytes));
                Ok(())
            }
            Done::Reopened(result) => {
                self.is_reopening = false;
                result
            }
            Done::Finished(result) => {
                self.written = self.given;
                self.writing = None;
                result
            }
            Done::Closed => Ok(()),
        };
        result.err().into_iter().collect()
    }

    fn opened(&mut self, opened: Opened, history: &mut History) -> Vec<LogError> {
        self.writing = self.writing.filter(|_| self.is_closing);
        self.replay.is_there &= opened.replays;
        if let Some(begin) = opened.begin {
            history.begin_at(begin);
        }
        if !opened.any && !self.is_closing {
            self.release();
            self.come_first = false;
        }
        opened.errors
    }

    /// Has the files closed.
    fn release(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.send(self.owner, Job::Close);
        }
    }

    /// When something is due here, if the server does not look then already.
    pub(crate) fn unscheduled(&mut self) -> Option<Instant> {
        if self.is_scheduled {
            return None;
        }
        let due = [self.resumes_at, self.deadline()].into_iter().flatten().min();
        self.is_scheduled = due.is_some();
        due
    }

    /// Whether anything will be due here. If not, the server need not look.
    pub(crate) fn needs_a_look(&mut self) -> bool {
        self.is_scheduled = self.resumes_at.is_some() || self.deadline().is_some();
        self.is_scheduled
    }

    /// Until when the thread has to answer, unless it is late already.
    fn deadline(&self) -> Option<Instant> {
        let oldest = [self.writing.map(|(since, _)| since), self.replay.reading].into_iter().flatten().min();
        oldest.filter(|_| !self.is_stalled).map(|since| since + self.patience)
    }

    /// Does what is due at this time, when the server looks. Returns whether readers need not wait any more.
    pub(crate) fn look(&mut self, now: Instant) -> bool {
        self.is_scheduled = false;
        self.resumes_at = self.resumes_at.filter(|at| *at > now);
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        self.is_stalled = true;
        if let Some(writer) = &self.writer {
            writer.report_stall(now, self.patience);
        }
        true
    }
}

impl Drop for FilesLink {
    fn drop(&mut self) {
        self.release();
    }
}

/// The bytes from a position on that are in memory, at most so many.
fn piece(history: &History, position: u64, most: usize) -> Piece {
    let from = position.max(history.memory_start());
    let count = usize::try_from(history.end().saturating_sub(from)).unwrap_or(usize::MAX).min(most);
    let mut bytes = vec![0; count];
    history.copy(from, &mut bytes);
    Piece { from, bytes }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::history::HISTORY;
    use crate::logfile::{HostDisk, LogStyle};
    use crate::server::writer::Writers;
    use crate::spool::{Kept, Spool};

    const OWNER: Owner = Owner::Console(7);

    /// A console with this much memory, a log and an output's file.
    struct Scene {
        folder: tempfile::TempDir,
        writers: Writers,
        link: FilesLink,
        history: History,
    }

    impl Scene {
        fn new(memory: usize) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let spool = Spool::create(folder.path().join("spool"), memory, &Kept::default()).unwrap();
            let history = History::taken_up(spool, &Kept::default());
            let writers = Writers::new(Arc::new(HostDisk)).unwrap();
            let link = FilesLink::new(OWNER, Duration::from_secs(1));
            let mut scene = Self { folder, writers, link, history };
            let path = |name: &str| scene.folder.path().join(name);
            let (log, file) = (path("log"), path("file"));
            let style = LogStyle { limit: 1 << 20, ..LogStyle::default() };
            let writer = scene.writers.writer(&[&log, &file]).unwrap();
            let wanted = FilesToOpen::new(Some((log, style)), Some((file, style)), None);
            scene.link.open(writer, wanted, &scene.history, Instant::now());
            scene.settle();
            scene
        }

        /// Takes all answers.
        fn settle(&mut self) {
            while self.writers.owed() > 0 {
                let until = Instant::now() + Duration::from_secs(20);
                let answer = self.writers.wait_answer(until).expect("the thread answers");
                assert_eq!(answer.owner, OWNER);
                assert!(self.link.answered(answer.what, &mut self.history).is_empty());
            }
        }

        fn say(&mut self, bytes: &[u8]) {
            self.history.push(bytes).unwrap();
            self.flush();
        }

        /// Writes all pending bytes.
        fn flush(&mut self) {
            loop {
                self.link.flush(&self.history, Instant::now(), |_| Ok(()));
                if self.writers.owed() == 0 {
                    return;
                }
                self.settle();
            }
        }

        fn path(&self, name: &str) -> impl AsRef<Path> {
            self.folder.path().join(name)
        }
    }

    #[test]
    fn what_may_not_be_logged_is_left_out_with_a_line_and_the_end_is_there() {
        let mut scene = Scene::new(4096);
        scene.say(b"begin");
        let later = Instant::now() + Duration::from_secs(1);
        for round in 0..100 {
            scene.history.push(&[b'x'; 1000]).unwrap();
            scene.link.flush(&scene.history, Instant::now(), |_| Err(later));
            assert_eq!(scene.link.unscheduled(), (round == 0).then_some(later));
        }
        scene.history.push(b"end").unwrap();
        assert!(!scene.link.look(later));
        scene.flush();
        assert_eq!(scene.link.unscheduled(), None);
        let left_out = 100_003 - 4096;
        let line = format!("begin\n[outrigger-consoled: {left_out} bytes left out here]\n");
        let wanted = [line.as_bytes(), &[b'x'; 4093], b"end"].concat();
        for name in ["log", "file"] {
            assert!(fs::read(scene.path(name)).unwrap() == wanted, "{name}");
        }
    }

    #[test]
    fn readers_get_older_bytes_from_the_log_after_a_while() {
        let mut scene = Scene::new(4096);
        let stream: Vec<u8> = (0..HISTORY).map(|at| u8::try_from(at % 251).unwrap()).collect();
        for piece in stream.chunks(2000) {
            scene.say(piece);
        }
        let want = |scene: &Scene, position| scene.link.earlier(position, 5000);
        assert!(matches!(want(&scene, 1000), Earlier::Later));
        assert!(matches!(want(&scene, 1000), Earlier::Later));
        assert!(matches!(want(&scene, 3000), Earlier::Later));
        for position in [1000, 3000] {
            scene.link.read();
            // One at a time.
            scene.link.read();
            scene.settle();
            let Earlier::Bytes(bytes) = want(&scene, position as u64) else { panic!("not at {position}") };
            assert!(bytes == stream[position..position + 5000]);
        }
        // Nobody has them in memory any more, and nobody asks for more.
        scene.link.read();
        assert_eq!(scene.writers.owed(), 0);
        assert!(matches!(want(&scene, HISTORY as u64), Earlier::Missing));
    }

    #[test]
    fn the_domain_waits_for_a_silent_disk_until_it_is_late() {
        let mut scene = Scene::new(16 * 1024);
        let begin = Instant::now();
        scene.history.push(b"x").unwrap();
        scene.link.flush(&scene.history, begin, |_| Ok(()));
        // The answer is not taken before the end.
        let mut pushed = 1;
        while !scene.link.holds_up(&scene.history) {
            scene.history.push(&[b'x'; OUT_SIZE]).unwrap();
            pushed += OUT_SIZE;
        }
        assert_eq!(pushed, 1 + 16 * 1024 - 2 * OUT_SIZE);
        let late = begin + Duration::from_secs(1);
        assert_eq!(scene.link.unscheduled(), Some(late));
        assert!(!scene.link.look(late.checked_sub(Duration::from_millis(1)).unwrap()));
        assert_eq!(scene.link.unscheduled(), Some(late));
        assert!(scene.link.look(late));
        assert!(!scene.link.holds_up(&scene.history) && scene.link.is_settled());
        assert_eq!(scene.link.unscheduled(), None);
        scene.settle();
        assert!(scene.link.has(1) && !scene.link.has(2));
        scene.flush();
        assert_eq!(fs::read(scene.path("log")).unwrap().len(), pushed);
    }
}
