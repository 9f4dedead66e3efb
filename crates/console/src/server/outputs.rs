//! Where one console's bytes go beside its viewers: the log and the output's file, the pseudo-terminal or pipe, the
//! output's socket; and the names under which they are found.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use super::ends::{Stream, StreamEnd};
use super::files_link::FilesLink;
use super::listener::Listener;
use super::poller::{Part, Poller, Source};
use super::reader::{Pumped, Reader};
use super::writer::Owner;
use crate::history::History;
use crate::output::Overflow;
use crate::own_path::OwnPath;
use crate::spool::Spool;

/// All outputs of one console.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// The console's key.
    key: u64,
    files: FilesLink,
    /// The main output, when it is a pseudo-terminal or a pipe.
    stream: Option<Stream>,
    /// The main output, when it is a socket.
    socket: Option<(Listener, Overflow)>,
    /// The path of the pseudo-terminal, and whether it was written to xenstore.
    tty: Option<(String, bool)>,
    /// The name of the channel, and the link with that name to the console's socket.
    name: Option<(String, Option<OwnPath>)>,
    /// Up to where the main output got everything from an earlier process, until there is one.
    resume: Option<u64>,
    /// Up to where it has got everything, as it was noted for the next process.
    noted: Option<u64>,
}

impl Outputs {
    pub(crate) fn new(key: u64, patience: Duration) -> Self {
        Self {
            key,
            files: FilesLink::new(Owner::Console(key), patience),
            stream: None,
            socket: None,
            tty: None,
            name: None,
            resume: None,
            noted: None,
        }
    }

    pub(crate) const fn files(&self) -> &FilesLink {
        &self.files
    }

    pub(crate) const fn files_mut(&mut self) -> &mut FilesLink {
        &mut self.files
    }

    /// Continues after what an earlier process gave to the main output.
    pub(crate) const fn resume_at(&mut self, reached: Option<u64>) {
        self.resume = reached;
    }

    /// Where the main output's first reader begins, if an earlier process has noted it.
    pub(crate) const fn take_resume(&mut self) -> Option<u64> {
        self.resume.take()
    }

    /// Makes a pseudo-terminal or pipe the main output, `limit` bytes of which may wait for who reads it.
    pub(crate) fn set_stream(
        &mut self,
        poller: &mut Poller,
        end: StreamEnd,
        history: &History,
    ) -> io::Result<()> {
        let source = Source::Console(self.key, Part::Output);
        let slot = poller.add(&end.fd, source, EpollFlags::empty())?;
        let cursor = self.resume.take().map_or_else(|| history.oldest(), |at| history.from(at));
        // Where nothing is to be lost, the domain waits instead.
        let limit = if end.overflow == Overflow::Block { u64::MAX } else { end.limit };
        let reader = end.takes.then(|| Reader::new(cursor).limited(limit));
        let mut stream = Stream::new(end.fd, slot, reader, end.gives, end.overflow);
        stream.arm(poller, true);
        self.stream = Some(stream);
        Ok(())
    }

    /// Makes a socket the main output.
    pub(crate) fn set_socket(
        &mut self,
        poller: &mut Poller,
        listener: UnixListener,
        path: PathBuf,
        overflow: Overflow,
    ) -> io::Result<()> {
        let source = Source::Console(self.key, Part::OutputListener);
        self.socket = Some((Listener::new(poller, source, listener, path)?, overflow));
        Ok(())
    }

    /// The socket that is the main output, and what happens to bytes that nobody takes.
    pub(crate) fn socket_mut(&mut self) -> Option<(&mut Listener, Overflow)> {
        self.socket.as_mut().map(|(listener, overflow)| (listener, *overflow))
    }

    /// Whether bytes must stay in the ring until somebody connects to the socket.
    pub(crate) const fn socket_blocks(&self) -> bool {
        matches!(self.socket, Some((_, Overflow::Block)))
    }

    pub(crate) fn set_tty(&mut self, path: String) {
        self.tty = Some((path, false));
    }

    pub(crate) fn tty(&self) -> Option<&str> {
        self.tty.as_ref().map(|(path, _)| path.as_str())
    }

    /// The path of the pseudo-terminal that still has to be written to xenstore.
    pub(crate) fn untold_tty(&self) -> Option<&str> {
        self.tty.as_ref().filter(|(_, is_told)| !is_told).map(|(path, _)| path.as_str())
    }

    pub(crate) const fn tell_tty_again(&mut self) {
        if let Some((_, is_told)) = &mut self.tty {
            *is_told = false;
        }
    }

    pub(crate) const fn tty_is_told(&mut self) {
        if let Some((_, is_told)) = &mut self.tty {
            *is_told = true;
        }
    }

    pub(crate) fn set_name(&mut self, name: String, link: Option<OwnPath>) {
        self.name = Some((name, link));
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_ref().map(|(name, _)| name.as_str())
    }

    /// Whether bytes must stay in the ring until the main output or the files have those before them.
    pub(crate) fn hold_up(&self, history: &History) -> bool {
        self.files.holds_up(history) || self.stream.as_ref().is_some_and(|stream| stream.holds_up(history))
    }

    /// Whether the main output still waits for bytes that are there.
    pub(crate) fn stream_is_waited_for(&self, history: &History) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_waited_for(history))
    }

    /// Brings the main output up to date, as far as it takes bytes. Returns false if it has failed.
    pub(crate) fn pump(&mut self, poller: &mut Poller, history: &History) -> bool {
        let pumped = self.stream.as_mut().map(|stream| stream.pump(history, &self.files));
        let is_gone = pumped == Some(Pumped::Gone);
        if is_gone {
            self.close_stream(poller);
        }
        !is_gone
    }

    /// Notes how far the main output is, for the next process.
    pub(crate) fn note(&mut self, at_socket: Option<u64>, spool: Option<&Spool>) {
        let reached = self.stream.as_ref().and_then(Stream::reached).or(at_socket);
        if let (Some(at), Some(spool)) = (reached, spool)
            && self.noted != reached
        {
            spool.note_output(at);
            self.noted = reached;
        }
    }

    /// Waits for what can happen.
    pub(crate) fn arm(&mut self, poller: &Poller, takes_input: bool) {
        if let Some(stream) = &mut self.stream {
            stream.arm(poller, takes_input);
        }
    }

    /// Does what the main output's descriptor is ready for. Returns the input's length, at most the buffer's.
    pub(crate) fn handle(
        &mut self,
        poller: &mut Poller,
        (readable, writable): (bool, bool),
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Ok(0) };
        let read =
            if readable && stream.is_readable() && !buffer.is_empty() { stream.read(buffer) } else { Ok(0) };
        if writable {
            stream.unblock();
        }
        if stream.is_finished() {
            // Its end would be reported for as long as it is waited for.
            self.close_stream(poller);
        }
        read
    }

    fn close_stream(&mut self, poller: &mut Poller) {
        if let Some(stream) = self.stream.take() {
            stream.close(poller);
        }
    }

    /// Removes the names, and takes no more clients.
    pub(crate) fn leave(&mut self, poller: &mut Poller) {
        if let Some((listener, _)) = self.socket.take() {
            listener.close(poller);
        }
        if let Some((_, Some(link))) = self.name.take() {
            link.remove();
        }
    }

    /// Closes the main output.
    pub(crate) fn close(mut self, poller: &mut Poller) {
        self.close_stream(poller);
    }
}
