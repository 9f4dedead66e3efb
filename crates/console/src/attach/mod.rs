//! The reading end for people: a terminal on a console's socket.
//!
//! ```no_run
//! use console::attach::{AttachOptions, attach, connect};
//! # let domid = xen_types::DomId::new(3)?;
//! let stream = connect("/run/outrigger/console".as_ref(), domid, 0)?;
//! let ended = attach(&stream, &AttachOptions::default())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The protocol is bytes without a frame. The daemon first sends the last 64 KiB of the console, then what comes.
//! A viewer that closes its writing half is sent what there is and nothing more: that is `follow: false`. [`ask`] comes
//! to the same by the daemon's control socket, where more can be said ([`crate::request`]).

mod terminal;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;
use xen_types::DomId;

use crate::request::{CONTROL, LINE_MAX, Request};

pub use terminal::{RawTerminal, Signals};

/// Ctrl-], the key that ends an attachment.
pub const ESCAPE: u8 = 0x1d;
/// The folder of the consoles' sockets, unless the daemon was told another.
pub const SOCKET_DIR: &str = "/run/outrigger/console";
/// How long the daemon may take for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Bytes of input that wait for a console that does not take them; reading the terminal stops then.
const PENDING_MAX: usize = 64 * 1024;

/// How to attach.
#[derive(Clone, Copy, Debug)]
pub struct AttachOptions {
    /// Whether to stay for what comes, after the replay.
    pub follow: bool,
    /// Whether the person's input goes to the console.
    pub input: bool,
    /// Whether control characters that could steer the terminal are shown as dots.
    pub plain: bool,
    /// The key that ends the attachment, when the input is a terminal.
    pub escape: u8,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self { follow: true, input: true, plain: false, escape: ESCAPE }
    }
}

/// Why an attachment ended, other than by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The person pressed the escape key.
    Escape,
    /// The console is gone: its domain ended, or the daemon did. With `follow: false`, everything was shown.
    Closed,
    /// This signal asked the process to end.
    Signal(i32),
}

/// Why a console cannot be shown.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Nothing listens at the console's socket.
    #[error(
        "Cannot connect to console {number} of domain {domid} at {path}; check that the domain is running \
         and has this console, and that outrigger-consoled is running"
    )]
    Connect {
        /// The domain.
        domid: DomId,
        /// The console's number.
        number: u32,
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon's control socket is missing.
    #[error("Cannot reach outrigger-consoled at {path}; check that it is running, and that you are root")]
    Ask {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon has refused.
    #[error("outrigger-consoled refused: {answer}")]
    Refused {
        /// Its answer.
        answer: String,
    },
    /// The terminal cannot be switched to raw mode.
    #[error("Cannot switch the terminal to raw mode")]
    Terminal(#[source] io::Error),
    /// Bytes cannot be moved between terminal and console.
    #[error("Cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> AttachError {
    move |source| AttachError::Io { doing, source }
}

/// The path of a console's socket in the daemon's socket folder ([`SOCKET_DIR`]).
#[must_use]
pub fn socket_path(folder: &Path, domid: DomId, number: u32) -> PathBuf {
    folder.join(format!("{domid}.{number}"))
}

/// Connects to a console's socket.
///
/// # Errors
/// When there is no such console, or no daemon.
pub fn connect(folder: &Path, domid: DomId, number: u32) -> Result<UnixStream, AttachError> {
    let path = socket_path(folder, domid, number);
    UnixStream::connect(&path).map_err(|source| AttachError::Connect { domid, number, path, source })
}

/// Asks the daemon for something at its control socket. What comes after its `ok` is what was asked for.
///
/// # Errors
/// When the daemon does not run or refuses.
pub fn ask(folder: &Path, request: &Request) -> Result<UnixStream, AttachError> {
    let path = folder.join(CONTROL);
    let failed = |source| AttachError::Ask { path: path.clone(), source };
    let mut stream = UnixStream::connect(&path).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER_TIME)).map_err(failed)?;
    stream.write_all(request.to_string().as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line is not for here.
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(failed)?;
        if byte == *b"\n" || answer.len() >= LINE_MAX {
            break;
        }
        answer.extend_from_slice(&byte);
    }
    stream.set_read_timeout(None).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.strip_prefix("error ") {
        None if answer == "ok" => Ok(stream),
        refusal => Err(AttachError::Refused { answer: refusal.unwrap_or(&answer).to_owned() }),
    }
}

/// Shows a console on this process's standard streams until the person, the console or a signal ends it.
///
/// If standard input is a terminal it is in raw mode meanwhile, and as it was afterwards on every way out: return,
/// error, panic, SIGINT, SIGTERM, SIGHUP and SIGQUIT (which are caught and reported; the caller ends the process then).
///
/// # Errors
/// When the terminal refuses or a stream breaks.
pub fn attach(stream: &UnixStream, options: &AttachOptions) -> Result<Ended, AttachError> {
    let signals = Signals::catch().map_err(failed("receive signals"))?;
    if !options.follow {
        stream.shutdown(Shutdown::Write).map_err(failed("request the console's stored output"))?;
    }
    let takes_input = options.follow && options.input;
    let raw = if takes_input { RawTerminal::enter().map_err(AttachError::Terminal)? } else { None };
    stream.set_nonblocking(true).map_err(failed("prepare the console's socket"))?;
    let mut session = Session {
        stream,
        options,
        escape: raw.is_some().then_some(options.escape),
        reads_stdin: takes_input,
        pending: Vec::new(),
    };
    let ended = session.run(&signals);
    drop(raw);
    ended
}

struct Session<'a> {
    stream: &'a UnixStream,
    options: &'a AttachOptions,
    escape: Option<u8>,
    reads_stdin: bool,
    pending: Vec<u8>,
}

/// Which descriptors have something to do.
struct Ready {
    stdin: bool,
    readable: bool,
    writable: bool,
    signal: bool,
}

impl Session<'_> {
    fn run(&mut self, signals: &Signals) -> Result<Ended, AttachError> {
        loop {
            let ready = self.wait(signals.as_fd()).map_err(failed("wait for the console"))?;
            if ready.signal
                && let Some(number) = signals.next().map_err(failed("receive signals"))?
            {
                return Ok(Ended::Signal(number));
            }
            if ready.writable {
                self.send().map_err(failed("send input to the console"))?;
            }
            if ready.stdin && self.read_input().map_err(failed("read the terminal"))? {
                self.send().map_err(failed("send input to the console"))?;
                return Ok(Ended::Escape);
            }
            if ready.readable && self.show().map_err(failed("show the console"))? {
                return Ok(Ended::Closed);
            }
        }
    }

    fn wait(&self, signals: BorrowedFd<'_>) -> io::Result<Ready> {
        let stdin = io::stdin();
        let mut on_stream = PollFlags::POLLIN;
        on_stream.set(PollFlags::POLLOUT, !self.pending.is_empty());
        let wants_input = self.reads_stdin && self.pending.len() < PENDING_MAX;
        let on_stdin = if wants_input { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(self.stream.as_fd(), on_stream),
            PollFd::new(signals, PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), on_stdin),
        ];
        let count = if wants_input { 3 } else { 2 };
        match poll(&mut fds[..count], PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let has = |at: usize, flags: PollFlags| fds[at].revents().is_some_and(|seen| seen.intersects(flags));
        let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
        Ok(Ready {
            stdin: wants_input && has(2, PollFlags::POLLIN | ended),
            readable: has(0, PollFlags::POLLIN | ended),
            writable: has(0, PollFlags::POLLOUT),
            signal: has(1, PollFlags::POLLIN),
        })
    }

    /// Takes input; says whether it held the escape key.
    fn read_input(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let count = match nix::unistd::read(io::stdin(), &mut buffer) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        // A closed input does not end the showing.
        self.reads_stdin = count != 0;
        let bytes = &buffer[..count];
        let escape_at = self.escape.and_then(|escape| bytes.iter().position(|byte| *byte == escape));
        self.pending.extend_from_slice(&bytes[..escape_at.unwrap_or(count)]);
        Ok(escape_at.is_some())
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match (&mut &*self.stream).write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The reading side learns of the end, after the last bytes.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.pending.clear(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Shows what has come; says whether the console ended.
    fn show(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let count = match (&mut &*self.stream).read(&mut buffer) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error),
        };
        let bytes = &mut buffer[..count];
        if self.options.plain {
            bytes.iter_mut().filter(|byte| is_control(**byte)).for_each(|byte| *byte = b'.');
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        Ok(count == 0)
    }
}

fn is_control(byte: u8) -> bool {
    (byte < 0x20 && !matches!(byte, b'\n' | b'\r' | b'\t' | 8)) || byte == 0x7f
}
