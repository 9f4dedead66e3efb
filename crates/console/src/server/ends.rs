//! What a console's bytes go to and come from, each behind one descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::epoll::EpollFlags;

use super::poller::{Poller, Slot};
use super::reader::{Archive, Pumped, Reader};
use crate::history::History;
use crate::output::{Direction, Overflow};
use crate::pty::Pty;

/// A pseudo-terminal or a named pipe: a main output that is waited for.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: StreamFd,
    slot: Slot,
    /// What it was given so far, unless bytes only come from it.
    reader: Option<Reader>,
    /// Whether bytes come from it.
    readable: bool,
    overflow: Overflow,
}

/// What a main output that is a stream is to be.
#[derive(Debug)]
pub(crate) struct StreamEnd {
    pub(crate) fd: StreamFd,
    /// Whether it is given the console's bytes.
    pub(crate) takes: bool,
    /// Whether bytes come from it.
    pub(crate) gives: bool,
    pub(crate) overflow: Overflow,
    /// Bytes that may wait for who reads it.
    pub(crate) limit: u64,
}

#[derive(Debug)]
pub(crate) enum StreamFd {
    Pty(Pty),
    Pipe(File),
}

impl AsFd for StreamFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pty(pty) => pty.as_fd(),
            Self::Pipe(file) => file.as_fd(),
        }
    }
}

impl StreamFd {
    /// Opens a named pipe that someone else made.
    pub(crate) fn pipe(path: &Path, direction: Direction) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            // A pipe that is open for both never fails for want of a reader: it fills up and waits for one.
            .write(direction == Direction::Out)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(path)?;
        if !file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a named pipe"));
        }
        Ok(Self::Pipe(file))
    }
}

impl Stream {
    pub(crate) const fn new(
        fd: StreamFd,
        slot: Slot,
        reader: Option<Reader>,
        readable: bool,
        overflow: Overflow,
    ) -> Self {
        Self { fd, slot, reader, readable, overflow }
    }

    /// Whether bytes must stay in the ring until this output has taken those before them.
    pub(crate) fn holds_up(&self, history: &History) -> bool {
        self.overflow == Overflow::Block
            && self.reader.as_ref().is_some_and(|reader| reader.is_behind(history))
    }

    /// Whether it waits for bytes that are there.
    pub(crate) fn is_waited_for(&self, history: &History) -> bool {
        self.overflow == Overflow::Block
            && self.reader.as_ref().is_some_and(|reader| reader.behind(history) > 0)
    }

    /// Up to where it was given everything, if it is given anything.
    pub(crate) fn reached(&self) -> Option<u64> {
        self.reader.as_ref().map(Reader::reached)
    }

    pub(crate) fn pump(&mut self, history: &History, archive: &dyn Archive) -> Pumped {
        let fd = self.fd.as_fd();
        match &mut self.reader {
            None => Pumped::UpToDate,
            Some(reader) => reader.pump(history, archive, |bytes| Ok(nix::unistd::write(fd, bytes)?)),
        }
    }

    pub(crate) const fn unblock(&mut self) {
        if let Some(reader) = &mut self.reader {
            reader.unblock();
        }
    }

    /// Reads what came; 0 is the end of it.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = nix::unistd::read(&self.fd, buffer)?;
        // A pipe whose writers are gone would be readable for ever.
        self.readable &= count > 0;
        Ok(count)
    }

    pub(crate) fn arm(&mut self, poller: &Poller, takes_input: bool) {
        let blocked = self.reader.as_ref().is_some_and(Reader::is_blocked);
        poller.set(&mut self.slot, &self.fd, interest(takes_input && self.readable, blocked));
    }

    pub(crate) fn close(self, poller: &mut Poller) {
        poller.remove(&self.slot, &self.fd);
    }

    /// Whether it will neither give nor take any more.
    pub(crate) const fn is_finished(&self) -> bool {
        !self.readable && self.reader.is_none()
    }

    pub(crate) const fn is_readable(&self) -> bool {
        self.readable
    }
}

/// The role of a connected client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A viewer at the console's own socket: all of them may write.
    Viewer,
    /// A client of the socket that is the console's output: the one connected longest may write.
    Output(Overflow),
    /// The other end of a stream: the domain waits for it, and it learns when the guest has taken all of its bytes.
    Stream,
}

/// A person or program that has connected to the console.
#[derive(Debug)]
pub(crate) struct Viewer {
    stream: UnixStream,
    slot: Slot,
    reader: Reader,
    role: Role,
    /// Bytes that it still gets, when it has closed its writing half.
    remaining: Option<u64>,
    /// Whether it has closed its writing half.
    input_ended: bool,
}

impl Viewer {
    pub(crate) const fn new(stream: UnixStream, slot: Slot, reader: Reader, role: Role) -> Self {
        Self { stream, slot, reader, role, remaining: None, input_ended: false }
    }

    pub(crate) const fn role(&self) -> Role {
        self.role
    }

    /// Whether it has closed its writing half.
    pub(crate) const fn input_ended(&self) -> bool {
        self.input_ended
    }

    /// Whether it is a stream whose sender has sent the end.
    pub(crate) fn is_ended_stream(&self) -> bool {
        self.role == Role::Stream && self.input_ended
    }

    /// Whether bytes must stay in the ring until this one has taken those before them.
    pub(crate) fn holds_up(&self, history: &History) -> bool {
        matches!(self.role, Role::Stream | Role::Output(Overflow::Block)) && self.reader.is_behind(history)
    }

    /// Up to where it was given everything.
    pub(crate) const fn reached(&self) -> u64 {
        self.reader.reached()
    }

    pub(crate) fn pump(&mut self, history: &History, archive: &dyn Archive) -> Pumped {
        let stream = &self.stream;
        let mut remaining = self.remaining;
        let pumped = self.reader.pump(history, archive, |bytes| {
            let most = remaining.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
            if most == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let count = io::Write::write(&mut &*stream, &bytes[..bytes.len().min(most)])?;
            remaining = remaining.map(|left| left.saturating_sub(count as u64));
            Ok(count)
        });
        self.remaining = remaining;
        if remaining == Some(0) { Pumped::Gone } else { pumped }
    }

    pub(crate) const fn unblock(&mut self) {
        self.reader.unblock();
    }

    /// Reads its input; at the end of it, a viewer is to be sent what there is now and no more.
    pub(crate) fn read(&mut self, buffer: &mut [u8], history: &History) -> io::Result<usize> {
        let count = io::Read::read(&mut &self.stream, buffer)?;
        if count == 0 {
            self.input_ended = true;
            if self.role == Role::Viewer {
                self.remaining = Some(self.reader.behind(history));
            }
        }
        Ok(count)
    }

    pub(crate) fn arm(&mut self, poller: &Poller, takes_input: bool) {
        let readable = takes_input && !self.input_ended;
        poller.set(&mut self.slot, &self.stream, interest(readable, self.reader.is_blocked()));
    }

    pub(crate) fn close(self, poller: &mut Poller) {
        poller.remove(&self.slot, &self.stream);
    }
}

fn interest(readable: bool, blocked: bool) -> EpollFlags {
    let mut flags = EpollFlags::empty();
    flags.set(EpollFlags::EPOLLIN, readable);
    flags.set(EpollFlags::EPOLLOUT, blocked);
    flags
}

/// Where a named pipe leads, for each direction: QEMU's convention of `PATH.in` and `PATH.out` if they are there, else
/// `PATH` itself in the direction that the console's number has.
pub(crate) fn pipe_path(path: &Path, number: u32) -> (PathBuf, Direction) {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let natural = Direction::of_console(number);
    let suffixed = with(match natural {
        Direction::In => ".in",
        Direction::Out => ".out",
    });
    if suffixed.exists() { (suffixed, natural) } else { (path.to_owned(), natural) }
}
