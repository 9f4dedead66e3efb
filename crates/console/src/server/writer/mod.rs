//! The threads that write logs and output files, so that a disk that hangs stops no console.
//!
//! The loop opens, writes, reads, syncs and renames nothing on a disk that logs may be on: it sends a [`Job`] and goes
//! on, and the thread's [`Answer`] wakes it. A thread does one job after the other, so that what belongs to one file
//! stays in order. Each folder has its own thread: files of one folder are on one file system, and so one disk that
//! hangs stops the files on it and no others. Which file system that is cannot be asked first, since asking a dead NFS
//! server hangs too.
//!
//! What waits for a thread is bounded: the loop sends a console's next bytes only after the answer for those before
//! them ([`FilesLink`](super::files_link::FilesLink)), and of consoles that are gone at most [`QUEUE_MAX`] bytes.

mod files;

use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::{info, warn};

use crate::logfile::{Disk, LogError, LogStyle};
use crate::own_path::OwnPath;
use crate::spool::Kept;
use files::ConsoleFiles;

pub(crate) use files::{FilesToOpen, Opened, Piece, can_replay};

/// Threads at a time. Further folders share them.
const THREADS_MAX: usize = 16;
/// Bytes of consoles that are gone that may wait for disks, in memory and in journals.
const QUEUE_MAX: u64 = 16 * 1024 * 1024;
/// What a console that is gone takes beside its bytes: its journal.
const JOURNAL: u64 = 64 * 1024;
/// How often at most a line says that a thread does not answer.
const LINES_DISTANCE: Duration = Duration::from_secs(60);
/// How long a server that is dropped waits for the jobs that its threads are doing.
const DROP_WAIT: Duration = Duration::from_secs(1);

/// Whose files a job is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    /// The console with this key.
    Console(u64),
    /// Xen's own console.
    Hypervisor,
    /// A console of an earlier process.
    Journal(u64),
}

/// What a thread is to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Open files and complete what an earlier process had begun.
    Open(Box<FilesToOpen>),
    /// Append bytes.
    Write(Piece),
    /// Append bytes of Xen's own console, and note up to where it was read.
    WriteXen { piece: Piece, note: PathBuf, index: u32 },
    /// Read at most so many bytes of the log, from a position of the console's stream on.
    Read { position: u64, count: u64 },
    /// Open the files again, for a log rotator.
    Reopen,
    /// Append the last bytes, and remove the journal. The log can still be read.
    Finish { last: Option<Piece>, journal: Option<OwnPath> },
    /// Close the files.
    Close,
    /// Write what an earlier process had still to write, and remove its journal.
    FinishEarlier { kept: Box<Kept>, style: LogStyle, journal: Option<OwnPath> },
}

/// A thread's answer: one for each job.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) owner: Owner,
    pub(crate) what: Done,
}

/// What a job has led to.
#[derive(Debug)]
pub(crate) enum Done {
    /// The files are open, except those for which there is an error.
    Opened(Opened),
    /// The files have everything up to this position, except after an error.
    Written { to: u64, result: Result<(), LogError> },
    /// The log's bytes at this position, if it has them.
    Found { position: u64, bytes: Option<Vec<u8>> },
    /// The files are open again.
    Reopened(Result<(), LogError>),
    /// The files have their last bytes.
    Finished(Result<(), LogError>),
    /// The files are closed.
    Closed,
}

/// Jobs in their order.
type Jobs = Vec<(Owner, Job)>;

/// One thread, as the loop sees it. It ends when nobody uses it any more and it has done all its jobs.
#[derive(Debug)]
pub(crate) struct Writer {
    folders: Vec<PathBuf>,
    jobs: Sender<Jobs>,
    /// Jobs of this turn: sent together, they wake the thread once.
    batch: RefCell<Jobs>,
    /// Jobs that the thread has not done.
    undone: Arc<AtomicUsize>,
    owed: Rc<Cell<usize>>,
    /// Bytes of consoles that are gone.
    leaving: Rc<RefCell<BTreeMap<Owner, u64>>>,
    /// When a line said that this thread does not answer, and whether another one is to say that it does again.
    warned: Cell<Option<Instant>>,
    is_stalled: Cell<bool>,
}

impl Writer {
    /// Sends a job at the end of the turn; its answer comes later.
    pub(crate) fn send(&self, owner: Owner, job: Job) {
        self.batch.borrow_mut().push((owner, job));
        self.undone.fetch_add(1, Ordering::Relaxed);
        self.owed.set(self.owed.get() + 1);
    }

    fn send_all(&self) {
        let jobs = self.batch.take();
        if !jobs.is_empty() {
            // A thread that is gone answers nothing, as one that hangs.
            let _ = self.jobs.send(jobs);
        }
    }

    /// Sends the last job of a console that is gone, unless too many bytes of such consoles wait already.
    pub(crate) fn send_last(
        &self,
        owner: Owner,
        last: Option<Piece>,
        journal: Option<OwnPath>,
    ) -> Result<(), QueueFull> {
        let mut leaving = self.leaving.borrow_mut();
        let count = last.as_ref().map_or(0, |piece| piece.bytes.len() as u64) + JOURNAL;
        if journal.is_some() && leaving.values().sum::<u64>() + count > QUEUE_MAX {
            return Err(QueueFull);
        }
        leaving.insert(owner, count);
        drop(leaving);
        self.send(owner, Job::Finish { last, journal });
        Ok(())
    }

    /// Reports that files have had no answer for this long.
    pub(crate) fn report_stall(&self, now: Instant, after: Duration) {
        let recent = self.warned.get().is_some_and(|at| now.saturating_duration_since(at) < LINES_DISTANCE);
        if !recent && !self.is_stalled.replace(true) {
            self.warned.set(Some(now));
            warn!(
                "the disk of {} has not answered for {} ms; until it does, bytes are left out of the files there",
                self.names(),
                after.as_millis()
            );
        }
    }

    /// Reports that it answers again.
    pub(crate) fn report_answer(&self) {
        if self.is_stalled.replace(false) {
            info!("the disk of {} answers again", self.names());
        }
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        names.join(" or ")
    }
}

/// Too many bytes of consoles that are gone wait for disks.
#[derive(Debug)]
pub(crate) struct QueueFull;

/// Wakes the loop, if it sleeps: a loop that floods keep busy looks for answers anyway, without a system call.
#[derive(Debug)]
struct Bell {
    fd: EventFd,
    sleeps: AtomicBool,
}

impl Bell {
    fn new() -> io::Result<Self> {
        let fd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { fd, sleeps: AtomicBool::new(false) })
    }

    /// Call it after the answer was sent. The loop looks for answers after it has said that it will sleep.
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeps.swap(false, Ordering::SeqCst) {
            let _ = self.fd.write(1);
        }
    }
}

/// All threads, and their answers.
#[derive(Debug)]
pub(crate) struct Writers {
    disk: Arc<dyn Disk>,
    /// Those that nobody else uses and that have nothing to do end with the next turn.
    threads: Vec<Rc<Writer>>,
    answers: Receiver<Answer>,
    sender: Option<Sender<Answer>>,
    /// Readable when there is an answer while the loop sleeps.
    bell: Arc<Bell>,
    owed: Rc<Cell<usize>>,
    leaving: Rc<RefCell<BTreeMap<Owner, u64>>>,
    /// Whether jobs that were not begun are to be left.
    is_abandoned: Arc<AtomicBool>,
}

impl Writers {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> io::Result<Self> {
        let (sender, answers) = channel();
        Ok(Self {
            disk,
            threads: Vec::new(),
            answers,
            sender: Some(sender),
            bell: Arc::new(Bell::new()?),
            owed: Rc::default(),
            leaving: Rc::default(),
            is_abandoned: Arc::default(),
        })
    }

    /// Readable when there is an answer while the loop sleeps.
    pub(crate) fn bell(&self) -> &EventFd {
        &self.bell.fd
    }

    /// Says that the loop is about to sleep, or no longer. Then answers make the bell readable.
    pub(crate) fn set_sleeping(&self, sleeps: bool) {
        if self.owed.get() > 0 || !sleeps {
            self.bell.sleeps.store(sleeps, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
    }

    /// The thread for files at these paths.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn writer(&mut self, paths: &[&Path]) -> io::Result<Rc<Writer>> {
        let folder = |path: &&Path| path.parent().unwrap_or(path).to_owned();
        let mut folders: Vec<PathBuf> = paths.iter().map(folder).collect();
        folders.sort();
        folders.dedup();
        self.send_all();
        if let Some(writer) = self.threads.iter().find(|writer| writer.folders == folders) {
            return Ok(Rc::clone(writer));
        }
        if self.threads.len() >= THREADS_MAX {
            let mut hasher = DefaultHasher::new();
            folders.hash(&mut hasher);
            let place = usize::try_from(hasher.finish() % THREADS_MAX as u64).unwrap_or(0);
            if let Some(writer) = self.threads.get(place) {
                return Ok(Rc::clone(writer));
            }
        }
        let writer = Rc::new(self.start(folders)?);
        self.threads.push(Rc::clone(&writer));
        Ok(writer)
    }

    fn start(&self, folders: Vec<PathBuf>) -> io::Result<Writer> {
        let (jobs, todo) = channel();
        let answers = self.sender.clone().ok_or(io::ErrorKind::BrokenPipe)?;
        let undone = Arc::new(AtomicUsize::new(0));
        let thread = Thread {
            disk: Arc::clone(&self.disk),
            files: BTreeMap::new(),
            answers,
            bell: Arc::clone(&self.bell),
            is_abandoned: Arc::clone(&self.is_abandoned),
            undone: Arc::clone(&undone),
        };
        std::thread::Builder::new().name("log writer".to_owned()).spawn(move || thread.run(&todo))?;
        Ok(Writer {
            folders,
            jobs,
            batch: RefCell::default(),
            undone,
            owed: Rc::clone(&self.owed),
            leaving: Rc::clone(&self.leaving),
            warned: Cell::new(None),
            is_stalled: Cell::new(false),
        })
    }

    /// Sends the jobs of this turn.
    pub(crate) fn send_all(&mut self) {
        self.threads.retain(|writer| {
            writer.send_all();
            // One whose disk hangs goes on to be the one for its folders: jobs stay in their order.
            Rc::strong_count(writer) > 1 || writer.undone.load(Ordering::Relaxed) > 0
        });
    }

    /// The next answer, if there is one.
    pub(crate) fn next_answer(&self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok();
        self.count(answer)
    }

    /// Sends the jobs of this turn, and waits for the next answer until then.
    pub(crate) fn wait_answer(&mut self, until: Instant) -> Option<Answer> {
        self.send_all();
        let answer = self.answers.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
        self.count(answer)
    }

    /// Clears the bell; call it before taking answers.
    pub(crate) fn clear_bell(&self) {
        // Nothing to read: an earlier turn has taken the answers.
        let _ = self.bell.fd.read();
    }

    fn count(&self, answer: Option<Answer>) -> Option<Answer> {
        if let Some(answer) = &answer {
            self.owed.set(self.owed.get().saturating_sub(1));
            if matches!(answer.what, Done::Finished(_)) {
                self.leaving.borrow_mut().remove(&answer.owner);
            }
        }
        answer
    }

    /// Answers that threads owe.
    pub(crate) fn owed(&self) -> usize {
        self.owed.get()
    }
}

impl Drop for Writers {
    /// Leaves jobs that were not begun to the next process, which finds their bytes in the journals, and waits for
    /// those that were: two servers in one process never write to the same file.
    fn drop(&mut self) {
        self.is_abandoned.store(true, Ordering::Release);
        self.sender = None;
        self.threads.clear();
        let until = Instant::now() + DROP_WAIT;
        // Ends when all threads have.
        while self.answers.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

/// What one thread has.
struct Thread {
    disk: Arc<dyn Disk>,
    files: BTreeMap<Owner, ConsoleFiles>,
    answers: Sender<Answer>,
    bell: Arc<Bell>,
    is_abandoned: Arc<AtomicBool>,
    undone: Arc<AtomicUsize>,
}

impl Thread {
    fn run(mut self, todo: &Receiver<Jobs>) {
        for (owner, job) in todo.iter().flatten() {
            if self.is_abandoned.load(Ordering::Acquire) {
                continue;
            }
            let what = self.work(owner, job);
            // Without a receiver, the server has ended.
            if self.answers.send(Answer { owner, what }).is_ok() {
                self.bell.ring();
            }
            self.undone.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn write(&mut self, owner: Owner, piece: &Piece) -> Done {
        let files = self.files.get_mut(&owner);
        Done::Written { to: piece.end(), result: files.map_or(Ok(()), |files| files.write(piece)) }
    }

    fn work(&mut self, owner: Owner, job: Job) -> Done {
        match job {
            Job::Open(wanted) => {
                let (files, opened) = ConsoleFiles::open(&self.disk, *wanted);
                self.files.insert(owner, files);
                Done::Opened(opened)
            }
            Job::Write(piece) => self.write(owner, &piece),
            Job::WriteXen { piece, note, index } => {
                let written = self.write(owner, &piece);
                // Without it, the next process begins with what Xen still keeps.
                let _ = std::fs::write(note, index.to_string());
                written
            }
            Job::Read { position, count } => {
                let files = self.files.get(&owner);
                Done::Found { position, bytes: files.and_then(|files| files.earlier(position, count)) }
            }
            Job::Reopen => Done::Reopened(self.files.get_mut(&owner).map_or(Ok(()), ConsoleFiles::reopen)),
            Job::Finish { last, journal } => {
                let files = self.files.get_mut(&owner);
                let result = files.zip(last).map_or(Ok(()), |(files, piece)| files.write(&piece));
                if let Some(journal) = journal {
                    journal.remove();
                }
                Done::Finished(result)
            }
            Job::Close => {
                self.files.remove(&owner);
                Done::Closed
            }
            Job::FinishEarlier { kept, style, journal } => {
                let result = ConsoleFiles::finish(&self.disk, &kept, style);
                if let Some(journal) = journal {
                    journal.remove();
                }
                Done::Finished(result)
            }
        }
    }
}

#[cfg(test)]
mod tests;
