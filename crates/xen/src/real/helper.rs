//! Saving, restoring and dumping memory in a helper process: the process itself.
//!
//! It is started by [`memory_stream`](super::memory_stream), which says what its descriptors are. It writes one stream, or
//! has libxenguest read or write one, and ends.

use core::ffi::{c_int, c_uint, c_ulong, c_void};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::getppid;
use xen_sys::restore_callbacks;
use xen_types::DomId;

use super::compat::{self, Rings};
use super::core_dump;
use super::handle::{Handle, Listener};
use super::memory_stream::ARGUMENT;
use super::memory_stream::protocol::{Message, decided};
use super::memory_writer::{self, Domain};
use crate::error::XenError;
use crate::memory::{Precopy, SaveEvents, Verdict};

/// The most memory that the process can have, its code and what it maps of the domain included. A save needs three
/// bits for each page up to the domain's highest, a restore one bit and a record of at most 128 MiB; both map at most 1024
/// pages at a time. So this is enough for a domain of 16 TiB, while a stream that tells of a page beyond all memory, for
/// which libxc wants bits too, ends here and does not take dom0's memory. A dump needs 8 bytes for each page that the
/// domain has: enough for almost 1 TiB.
const MAX_MEMORY: u64 = 2 << 30;
/// The most descriptors. It has three, and libxenctrl opens fewer than ten.
const MAX_DESCRIPTORS: u64 = 64;

/// Is the helper process that saves or restores a domain's memory, when the program's arguments, its name first, ask for
/// that; its `main` then has to return what this returns.
///
/// A program that calls [`Hypervisor::save_memory`](crate::Hypervisor::save_memory) or
/// [`restore_memory`](crate::Hypervisor::restore_memory) of a [`RealHypervisor`](crate::RealHypervisor) has to call this
/// first of all in its `main`, before it starts threads, opens files or handles signals: both start the program again
/// with such arguments.
#[must_use]
pub fn memory_stream_helper(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let arguments: Option<Vec<String>> = arguments.map(|argument| argument.into_string().ok()).collect();
    let work = arguments.as_deref().and_then(Work::parse);
    Some(match work.ok_or_else(|| "Only the program itself starts this".to_owned()).and_then(run) {
        Ok(report) => {
            tell(&report);
            if matches!(report, Message::Done(..)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(reason) => {
            say(&reason);
            ExitCode::FAILURE
        }
    })
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
struct Work {
    /// Who asked for it.
    parent: i32,
    domid: DomId,
    task: Task,
}

#[derive(Debug, PartialEq, Eq)]
enum Task {
    Save { live: bool },
    Restore(Rings),
    Dump,
}

impl Work {
    /// Reads what follows [`ARGUMENT`].
    fn parse(arguments: &[String]) -> Option<Self> {
        let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (parent, domid, task) = match texts.as_slice() {
            [parent, "save", domid, "live"] => (parent, domid, Task::Save { live: true }),
            [parent, "save", domid, "suspended"] => (parent, domid, Task::Save { live: false }),
            [parent, "dump", domid] => (parent, domid, Task::Dump),
            [parent, "restore", domid, rings @ ..] => {
                let numbers: Option<Vec<u32>> = rings.iter().map(|text| text.parse().ok()).collect();
                let [store_port, store_peer, console_port, console_peer] = numbers?.try_into().ok()?;
                let rings = Rings { store_port, store_peer, console_port, console_peer };
                (parent, domid, Task::Restore(rings))
            }
            _ => return None,
        };
        Some(Self { parent: parent.parse().ok()?, domid: domid.parse().ok()?, task })
    }
}

/// Does the work and returns what is to be reported, or why there was none.
fn run(work: Work) -> Result<Message, String> {
    let control =
        io::stdin().as_fd().try_clone_to_owned().map_err(|error| format!("No control socket: {error}"))?;
    // Nothing else sets it.
    let _ = CONTROL.set(UnixStream::from(control));
    if matches!(work.task, Task::Save { .. } | Task::Dump) {
        give_up_on_sigterm().map_err(|error| format!("SIGTERM cannot be handled: {error}"))?;
    }
    confine(work.parent).map_err(|error| format!("The process cannot be confined: {error}"))?;
    let listener = Listener { message: Some(say), progress: Some(progress) };
    let handle = Handle::open_with(listener).map_err(|error| error.to_string())?;
    let result = match work.task {
        Task::Save { live } => save(&handle, work.domid, live),
        Task::Restore(rings) => restore(&handle, work.domid, &rings),
        Task::Dump => dump(&handle, work.domid),
    };
    Ok(result.unwrap_or_else(|error| match error {
        XenError::Refused(refusal) => Message::Failed(refusal.errno as i32, refusal.said.join("; ")),
        other => Message::Failed(Errno::EINVAL as i32, other.to_string()),
    }))
}

/// Sets a name and bounds, and has the process end when the one that started it ends.
fn confine(parent: i32) -> Result<(), Errno> {
    // Instead of "exe".
    prctl::set_name(c"memory-stream")?;
    setrlimit(Resource::RLIMIT_AS, MAX_MEMORY, MAX_MEMORY)?;
    setrlimit(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS, MAX_DESCRIPTORS)?;
    // It holds parts of the guest's memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // The signal that lets a save clean up. It is sent when the thread ends that started this process, which waits for it.
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // It may have ended before.
    if getppid().as_raw() == parent { Ok(()) } else { Err(Errno::ESRCH) }
}

fn save(handle: &Handle, domid: DomId, live: bool) -> Result<Message, XenError> {
    let mut source = Domain::open(handle, domid)?;
    let given_up = || GIVEN_UP.load(Ordering::Relaxed);
    let stream = io::stdout();
    let saved = memory_writer::save(&mut source, stream.as_fd(), live, &mut Asking, &given_up);
    // What the library has said was passed on already.
    saved.inspect_err(|error| say(&error.to_string()))?;
    Ok(Message::Done(0, 0))
}

fn dump(handle: &Handle, domid: DomId) -> Result<Message, XenError> {
    let given_up = || GIVEN_UP.load(Ordering::Relaxed);
    core_dump::dump(handle, domid, io::stdout().as_fd(), progress, &given_up)
        .inspect_err(|error| say(&error.to_string()))?;
    Ok(Message::Done(0, 0))
}

/// Asks the program that started this process.
struct Asking;

impl SaveEvents for Asking {
    fn suspend(&mut self) -> bool {
        ask(&Message::Suspend) == Some(1)
    }

    fn log_dirty(&mut self, on: bool) -> bool {
        ask(&Message::LogDirty(on)) == Some(1)
    }

    fn precopy(&mut self, stats: Precopy) -> Verdict {
        ask(&Message::Precopy(stats)).map_or(Verdict::Abort, decided)
    }

    fn progress(&mut self, done: u64, total: u64) {
        progress(done, total);
    }
}

fn restore(handle: &Handle, domid: DomId, rings: &Rings) -> Result<Message, XenError> {
    let mut callbacks = restore_callbacks { static_data_done: Some(on_static_data), ..Default::default() };
    let stream = io::stdout().as_raw_fd();
    let mut frames: [c_ulong; 2] = [0; 2];
    let result = handle.call("xc_domain_restore", Some(domid), |xc| {
        // SAFETY: the connection is open; the callbacks live until the call returns, and they use no data.
        unsafe { compat::restore(xc, stream, domid, rings, &mut frames, &raw mut callbacks) }
    });
    result.map_err(|error| match error {
        // What libxc says when Xen gives the domain fewer pages than it asked for.
        XenError::Refused(mut refusal) if refusal.errno == Errno::EBUSY => {
            refusal.errno = Errno::ENOMEM;
            XenError::Refused(refusal)
        }
        other => other,
    })?;
    let [store, console] = frames;
    Ok(Message::Done(store, console))
}

/// The socket to the program that started this process.
static CONTROL: OnceLock<UnixStream> = OnceLock::new();

/// Says something; whoever is not there any more does not hear it.
fn tell(message: &Message) {
    if let Some(mut control) = CONTROL.get() {
        let _ = control.write_all(format!("{message}\n").as_bytes());
    }
}

/// Asks something and returns the answer; `None` when nobody answers.
fn ask(message: &Message) -> Option<c_int> {
    tell(message);
    let mut control = CONTROL.get()?;
    let mut answer = String::new();
    // The answers are numbers of one digit.
    while answer.len() < 8 {
        let mut byte = [0];
        control.read_exact(&mut byte).ok()?;
        match byte {
            [b'\n'] => return answer.parse().ok(),
            [byte] => answer.push(byte.into()),
        }
    }
    None
}

/// Writes a line to the standard error, which the program that started this process reads.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Passes on how far the current round is, once for each hundredth.
fn progress(done: u64, total: u64) {
    static LAST: AtomicU64 = AtomicU64::new(u64::MAX);
    let Some(hundredths) = done.saturating_mul(100).checked_div(total) else { return };
    if LAST.swap(hundredths, Ordering::Relaxed) != hundredths {
        tell(&Message::Progress(done, total));
    }
}

// The library's callback. A panic cannot leave it: it ends the process, as in every function of C's calling convention.

extern "C" fn on_static_data(missing: c_uint, _data: *mut c_void) -> c_int {
    if missing & xen_sys::XGR_SDD_MISSING_CPUID == 0 {
        return 0;
    }
    say("The stream has no CPU policy: it was written by a Xen before 4.14");
    -1
}

/// A descriptor that cannot be written to.
static READ_ONLY: AtomicI32 = AtomicI32::new(-1);
/// Whether it has taken the stream's place.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Has SIGTERM put a descriptor in the stream's place that cannot be written to. The next write then fails, and the save
/// cleans up.
fn give_up_on_sigterm() -> io::Result<()> {
    READ_ONLY.store(File::open("/dev/null")?.into_raw_fd(), Ordering::Relaxed);
    // Without SA_RESTART, so that a write that waits ends.
    let action = SigAction::new(SigHandler::Handler(replace_stream), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes one system call and keeps `errno`.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    Ok(())
}

extern "C" fn replace_stream(_signal: c_int) {
    let errno = Errno::last();
    GIVEN_UP.store(true, Ordering::Relaxed);
    // SAFETY: both are numbers of descriptors that this process keeps open, and dup2 may be called in a handler.
    unsafe { libc::dup2(READ_ONLY.load(Ordering::Relaxed), libc::STDOUT_FILENO) };
    errno.set();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Work> {
        Work::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_work_is_read_from_the_arguments() {
        let domid = DomId::new(7).expect("a domain's number");
        let save = |live| Some(Work { parent: 12, domid, task: Task::Save { live } });
        assert_eq!(parse("12 save 7 live"), save(true));
        assert_eq!(parse("12 save 7 suspended"), save(false));
        let rings = Rings { store_port: 1, store_peer: 0, console_port: 2, console_peer: 3 };
        assert_eq!(
            parse("12 restore 7 1 0 2 3"),
            Some(Work { parent: 12, domid, task: Task::Restore(rings) })
        );
        assert_eq!(parse("12 dump 7"), Some(Work { parent: 12, domid, task: Task::Dump }));
        assert_eq!(parse("12 dump 7 8"), None);
        for wrong in
            ["", "12", "12 save", "12 save 7", "12 save 7 live x", "x save 7 live", "12 save 32752 live"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        for wrong in ["12 restore 7 1 0 2", "12 restore 7 1 0 2 -3", "12 restore 7 1 0 2 3 4", "12 erase 7"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn other_arguments_are_left_to_the_program() {
        let helper = |arguments: &[&str]| memory_stream_helper(arguments.iter().map(Into::into));
        assert_eq!(helper(&[]), None);
        assert_eq!(helper(&["outriggerd"]), None);
        assert_eq!(helper(&["outriggerd", "--help"]), None);
        assert_eq!(helper(&["memory-stream", "save"]), None);
    }
}
