//! Saving, restoring and dumping memory in a helper process: the side of the program that starts it.
//!
//! A stream's reader or writer may be slow or gone, and is waited for in system calls. libxenguest, which restores, asserts
//! too, cannot be told to stop, and reads a stream that may come from anywhere. So both work in a process of their own
//! ([`helper`](super::helper)), which can be killed, whose memory is bounded, and whose end ends nothing else.
//!
//! The helper is this very program, started again with the argument [`ARGUMENT`]. Its standard input is a socket, over
//! which it asks and is answered ([`protocol`]); its standard output is the stream, in both directions; its standard
//! error is read here, and the last of it is part of the error when something fails. It has no other descriptor of
//! this program: all of them are closed by `execve` (Rust and libxenctrl open them with `O_CLOEXEC`).

pub(super) mod protocol;
#[cfg(test)]
mod tests;

use core::time::Duration;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xen_types::{DomId, Gfn};

use self::protocol::{Lines, Message, ProtocolError, verdict, yes_or_no};
use crate::build::HvmBuilt;
use crate::error::{Abandoned, Refusal, Result, XenError};
use crate::memory::{Cancel, DumpCore, RestoreMemory, SaveEvents, SaveMemory, Verdict, make_blocking};

/// The helper's first argument.
pub(super) const ARGUMENT: &str = "memory-stream";

/// How long a helper that was told to stop may clean up: libxl gives QEMU ten seconds to switch log-dirty off.
const GRACE: Duration = Duration::from_secs(15);
/// How long a killed helper may take to be gone: it may be in a system call that does not end.
const REAP: Duration = Duration::from_secs(5);
/// How often the caller's wish to give up is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How much of what the helper says on its standard error is kept.
const MAX_WORDS: usize = 4096;

/// The program that is the helper.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    /// What it is called in lists of processes.
    name: OsString,
    /// What stands before [`ARGUMENT`].
    before: Vec<OsString>,
    grace: Duration,
}

impl Program {
    /// This program itself, also when its file was replaced since it was started.
    pub(super) fn own() -> Self {
        let path = PathBuf::from("/proc/self/exe");
        let name = std::env::args_os().next().unwrap_or_else(|| path.clone().into());
        Self { path, name, before: Vec::new(), grace: GRACE }
    }
}

/// Saves a domain's memory. `stop_log_dirty` ends Xen's log-dirty mode when the helper did not do it.
pub(super) fn save(
    program: &Program,
    domid: DomId,
    to: BorrowedFd<'_>,
    how: &SaveMemory,
    events: &mut dyn SaveEvents,
    stop_log_dirty: impl FnOnce(),
) -> Result<()> {
    let what = What { operation: "The save", call: "save_memory", domid };
    let live = if how.live { "live" } else { "suspended" };
    let arguments = ["save".to_owned(), domid.to_string(), live.to_owned()];
    let helper = Helper::start(program, &what, &arguments, to)?;
    let mut save = Save { events, recorded: false, refused: None };
    let end = helper.run(how.deadline, &how.cancel, &mut |request| save.answer(request));
    // The helper has cleaned up only when it says what came out.
    if end.report.is_none() {
        stop_log_dirty();
    }
    if save.recorded {
        save.events.log_dirty(false);
    }
    let refused = save.refused;
    end.result(&what, refused).map(drop)
}

/// Restores a domain's memory.
pub(super) fn restore(
    program: &Program,
    domid: DomId,
    from: BorrowedFd<'_>,
    how: &RestoreMemory,
) -> Result<HvmBuilt> {
    let what = What { operation: "The restore", call: "xc_domain_restore", domid };
    let RestoreMemory { store, console, .. } = how;
    let mut arguments = vec!["restore".to_owned(), domid.to_string()];
    for channel in [store, console] {
        arguments.extend([channel.port.to_string(), channel.peer.to_string()]);
    }
    let helper = Helper::start(program, &what, &arguments, from)?;
    let end = helper.run(how.deadline, &how.cancel, &mut |_| Err(ProtocolError::Misplaced));
    let (store_gfn, console_gfn) = end.result(&what, None)?;
    Ok(HvmBuilt { store_gfn: Gfn(store_gfn), console_gfn: Gfn(console_gfn), smbios: None, acpi: None })
}

/// Dumps a domain's memory.
pub(super) fn dump(
    program: &Program,
    domid: DomId,
    to: BorrowedFd<'_>,
    how: &DumpCore,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let what = What { operation: "The dump", call: "xc_domain_dumpcore_via_callback", domid };
    let arguments = ["dump".to_owned(), domid.to_string()];
    let helper = Helper::start(program, &what, &arguments, to)?;
    let end = helper.run(how.deadline, &how.cancel, &mut |request| match request.message {
        Message::Progress(done, total) => {
            progress(done, total);
            Ok(None)
        }
        _ => Err(ProtocolError::Misplaced),
    });
    end.result(&what, None).map(drop)
}

/// What a helper is for, for errors.
struct What {
    operation: &'static str,
    call: &'static str,
    domid: DomId,
}

/// What the helper wants to know.
struct Request {
    message: Message,
    /// It was told to stop.
    stopping: bool,
}

/// Answers for a save.
struct Save<'a> {
    events: &'a mut dyn SaveEvents,
    /// The device model reports what it writes.
    recorded: bool,
    refused: Option<Abandoned>,
}

impl Save<'_> {
    fn answer(&mut self, request: Request) -> Result<Option<&'static str>, ProtocolError> {
        let Request { message, stopping } = request;
        match message {
            Message::Suspend => {
                let suspended = !stopping && self.events.suspend();
                if !suspended {
                    self.refused.get_or_insert(Abandoned::NotSuspended);
                }
                Ok(Some(yes_or_no(suspended)))
            }
            Message::LogDirty(true) => {
                self.recorded = !stopping && self.events.log_dirty(true);
                if !self.recorded {
                    self.refused.get_or_insert(Abandoned::NoLogDirty);
                }
                Ok(Some(yes_or_no(self.recorded)))
            }
            Message::LogDirty(false) => {
                self.recorded = false;
                Ok(Some(yes_or_no(self.events.log_dirty(false))))
            }
            Message::Precopy(_) if stopping => Ok(Some(verdict(Verdict::Abort))),
            Message::Precopy(stats) => {
                let decided = self.events.precopy(stats);
                if decided == Verdict::Abort {
                    self.refused.get_or_insert(Abandoned::Aborted);
                }
                Ok(Some(verdict(decided)))
            }
            Message::Progress(done, total) => {
                self.events.progress(done, total);
                Ok(None)
            }
            Message::Done(..) | Message::Failed(..) => Err(ProtocolError::Misplaced),
        }
    }
}

/// How a helper ended.
struct End {
    /// What it said about its work.
    report: Option<Message>,
    /// Why it was told to stop.
    stopped: Option<Stopped>,
    wrong: Option<ProtocolError>,
    /// How its process ended; `None` when it could not even be killed.
    status: Option<ExitStatus>,
    said: Vec<String>,
    started: Instant,
}

#[derive(Clone, Copy)]
enum Stopped {
    Cancelled,
    Late,
}

impl End {
    /// What the whole came to: the frames of both rings.
    fn result(self, what: &What, refused: Option<Abandoned>) -> Result<(u64, u64)> {
        let What { operation, call, domid } = *what;
        let abandoned = |why| XenError::Abandoned { operation, domid, why };
        let said = self.said;
        match (self.report, self.stopped) {
            // It was complete before it could be stopped.
            (Some(Message::Done(store, console)), _) => Ok((store, console)),
            (_, Some(Stopped::Cancelled)) => Err(abandoned(Abandoned::Cancelled)),
            (_, Some(Stopped::Late)) => {
                let waited_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                Err(XenError::Timeout { operation, domid, waited_ms })
            }
            (Some(Message::Failed(errno, text)), None) => Err(match refused {
                Some(why) => abandoned(why),
                None => {
                    let said = if said.is_empty() { vec![text] } else { said };
                    let errno = Errno::from_raw(errno);
                    let domid = Some(domid);
                    XenError::Refused(Box::new(Refusal { operation: call, domid, errno, said, free: None }))
                }
            }),
            _ => {
                let reason = match (self.wrong, self.status) {
                    (Some(wrong), _) => wrong.to_string(),
                    (None, Some(status)) => format!("it ended with {status}"),
                    (None, None) => "it does not end".to_owned(),
                };
                Err(XenError::Helper { operation, domid, reason, said })
            }
        }
    }
}

/// The running helper.
struct Helper {
    // Taken when it is reaped.
    child: Option<Child>,
    control: UnixStream,
    // Until it is closed.
    errors: Option<ChildStderr>,
    lines: Lines,
    words: Vec<u8>,
    grace: Duration,
    started: Instant,
}

impl Helper {
    fn start(program: &Program, what: &What, arguments: &[String], stream: BorrowedFd<'_>) -> Result<Self> {
        let started = Instant::now();
        let refused = |errno| XenError::refused(what.call, Some(what.domid), errno);
        make_blocking(stream).map_err(refused)?;
        let launch = || -> io::Result<Self> {
            let (control, theirs) = UnixStream::pair()?;
            control.set_nonblocking(true)?;
            let mut child = Command::new(&program.path)
                .arg0(&program.name)
                .args(&program.before)
                .arg(ARGUMENT)
                .arg(std::process::id().to_string())
                .args(arguments)
                .stdin(OwnedFd::from(theirs))
                .stdout(stream.try_clone_to_owned()?)
                .stderr(Stdio::piped())
                .spawn()?;
            let errors = child.stderr.take().ok_or(ErrorKind::BrokenPipe)?;
            fcntl(&errors, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let (child, errors) = (Some(child), Some(errors));
            let (lines, words) = (Lines::default(), Vec::new());
            Ok(Self { child, control, errors, lines, words, grace: program.grace, started })
        };
        launch().map_err(|error| XenError::Helper {
            operation: what.operation,
            domid: what.domid,
            reason: format!("it could not be started: {error}"),
            said: Vec::new(),
        })
    }

    /// Serves the helper until it ends, or is ended.
    fn run(
        mut self,
        deadline: Instant,
        cancel: &Cancel,
        answer: &mut dyn FnMut(Request) -> Result<Option<&'static str>, ProtocolError>,
    ) -> End {
        let (mut report, mut wrong, mut stopped) = (None, None, None);
        // When it is killed, or given up after it was.
        let (mut limit, mut killed) = (None, false);
        let ended = loop {
            let now = Instant::now();
            if stopped.is_none() && wrong.is_none() {
                stopped = if cancel.is_cancelled() {
                    Some(Stopped::Cancelled)
                } else if now >= deadline {
                    Some(Stopped::Late)
                } else {
                    None
                };
                if stopped.is_some() {
                    self.signal(Signal::SIGTERM);
                    limit = Some(now + self.grace);
                }
            }
            if limit.is_some_and(|limit| now >= limit) {
                if killed {
                    break false;
                }
                self.signal(Signal::SIGKILL);
                (killed, limit) = (true, Some(now + REAP));
            }
            let wake = limit.unwrap_or(deadline).saturating_duration_since(now).min(LOOK);
            if !self.receive(wake) {
                break true;
            }
            if wrong.is_none() {
                wrong = self.serve(stopped.is_some(), &mut report, answer).err();
                if wrong.is_some() {
                    limit = Some(Instant::now());
                }
            }
        };
        let status = self.reap(ended);
        let said = self.said();
        End { report, stopped, wrong, status, said, started: self.started }
    }

    /// Answers what has been received.
    fn serve(
        &mut self,
        stopping: bool,
        report: &mut Option<Message>,
        answer: &mut dyn FnMut(Request) -> Result<Option<&'static str>, ProtocolError>,
    ) -> Result<(), ProtocolError> {
        while let Some(line) = self.lines.next()? {
            let message = Message::parse(&line)?;
            if report.is_some() {
                return Err(ProtocolError::Misplaced);
            }
            match message {
                Message::Done(..) | Message::Failed(..) => *report = Some(message),
                // A helper that is told to stop while it restores may still say how far it is.
                message => {
                    if let Some(line) = answer(Request { message, stopping })? {
                        self.reply(line)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends an answer. One that is dead does not take it, and is noticed by that.
    fn reply(&mut self, line: &str) -> Result<(), ProtocolError> {
        match self.control.write_all(line.as_bytes()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ProtocolError::Deaf),
            _ => Ok(()),
        }
    }

    /// Waits for the helper, and takes what it says. `false` when its end of the socket is closed.
    fn receive(&mut self, wait: Duration) -> bool {
        // Rounded up, so that a wait for less than a millisecond is none that ends at once.
        let wait = PollTimeout::try_from(wait.as_millis() + 1).unwrap_or(PollTimeout::ZERO);
        let sources = [Some(self.control.as_fd()), self.errors.as_ref().map(ChildStderr::as_fd)];
        let sources = sources.into_iter().flatten();
        let mut sources: Vec<PollFd<'_>> = sources.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // An interrupted wait is as good as one that is over.
        let _ = poll(&mut sources, wait);
        self.hear();
        let mut buffer = [0; 1024];
        match self.control.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.lines.push(buffer.get(..count).unwrap_or_default());
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// Takes what has come on the standard error, at most 64 KiB at a time, and keeps the last of it.
    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..16 {
            let Some(errors) = &mut self.errors else { return };
            match errors.read(&mut buffer) {
                Ok(0) => self.errors = None,
                Ok(count) => {
                    self.words.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    let spare = self.words.len().saturating_sub(MAX_WORDS);
                    self.words.drain(..spare);
                }
                Err(_) => return,
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        if let Some(pid) = pid {
            // It was not waited for yet, so the number is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for the end of a process that has closed its socket, and so has begun to end. What does not end after that
    /// either is killed and left to a thread.
    fn reap(&mut self, ending: bool) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        let until = Instant::now() + REAP;
        while ending && Instant::now() < until {
            if let Ok(Some(status)) = child.try_wait() {
                self.hear();
                return Some(status);
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let _ = child.kill();
        wait_elsewhere(child);
        None
    }

    /// The last lines on the standard error.
    fn said(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.words);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

impl Drop for Helper {
    /// Ends a helper whose events panicked: it cleans up by itself when nobody answers it.
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.control.shutdown(Shutdown::Both);
            self.signal(Signal::SIGTERM);
        }
        if let Some(child) = self.child.take() {
            wait_elsewhere(child);
        }
    }
}

/// Has a thread wait for a process, so that nothing is left of it in the system. Without a thread, it is left until
/// this program ends.
fn wait_elsewhere(mut child: Child) {
    let _ = std::thread::Builder::new().spawn(move || child.wait());
}
