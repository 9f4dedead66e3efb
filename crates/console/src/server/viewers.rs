//! The clients of a console: viewers, streams, and readers of an output's socket.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::sys::epoll::EpollFlags;

use super::ends::{Role, Viewer};
use super::listener::Listener;
use super::poller::{Part, Poller, Source};
use super::reader::{Archive, Pumped, Reader};
use crate::history::{Cursor, History};
use crate::output::Overflow;

/// Clients of one console at a time.
const VIEWERS_MAX: usize = 64;

/// All clients of one console, and the socket to which viewers connect.
#[derive(Debug)]
pub(crate) struct Viewers {
    /// The console's key.
    key: u64,
    listener: Option<Listener>,
    clients: BTreeMap<u64, Viewer>,
    next: u64,
    /// Up to where the last reader of a blocking output's socket got everything.
    reached: Option<u64>,
}

impl Viewers {
    pub(crate) const fn new(key: u64) -> Self {
        Self { key, listener: None, clients: BTreeMap::new(), next: 0, reached: None }
    }

    /// Takes viewers at a socket.
    pub(crate) fn listen(
        &mut self,
        poller: &mut Poller,
        listener: UnixListener,
        path: PathBuf,
    ) -> io::Result<()> {
        let source = Source::Console(self.key, Part::Listener);
        self.listener = Some(Listener::new(poller, source, listener, path)?);
        Ok(())
    }

    pub(crate) fn listener_mut(&mut self) -> Option<&mut Listener> {
        self.listener.as_mut()
    }

    /// Takes no more viewers.
    pub(crate) fn stop_listening(&mut self, poller: &mut Poller) {
        if let Some(listener) = self.listener.take() {
            listener.close(poller);
        }
    }

    /// Why a client is refused, if it is.
    pub(crate) fn refuses(&self, role: Role) -> Option<&'static str> {
        if self.clients.len() >= VIEWERS_MAX {
            return Some("this console has reached its limit of viewers");
        }
        let taken = role == Role::Stream && self.clients.values().any(|viewer| viewer.role() == Role::Stream);
        taken.then_some("this console's stream is already in use")
    }

    /// Adds a client that begins at a position, and returns its number.
    pub(crate) fn add(
        &mut self,
        poller: &mut Poller,
        stream: UnixStream,
        role: Role,
        cursor: Cursor,
    ) -> io::Result<u64> {
        let number = self.next;
        self.next += 1;
        stream.set_nonblocking(true)?;
        let source = Source::Console(self.key, Part::Viewer(number));
        let slot = poller.add(&stream, source, EpollFlags::empty())?;
        self.clients.insert(number, Viewer::new(stream, slot, Reader::new(cursor), role));
        Ok(number)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut Viewer> {
        self.clients.get_mut(&number)
    }

    /// Whether bytes must stay in the ring until a client has taken those before them.
    pub(crate) fn hold_up(&self, history: &History) -> bool {
        self.clients.values().any(|viewer| viewer.holds_up(history))
    }

    /// The client that may write to the output's socket: the one connected longest.
    pub(crate) fn output_writer(&self) -> Option<u64> {
        self.at_output().next().map(|(number, _)| number)
    }

    /// Up to where that client got everything.
    pub(crate) fn output_reached(&self) -> Option<u64> {
        self.at_output().next().map(|(_, viewer)| viewer.reached())
    }

    /// Where a reader of a blocking output's socket continues after one that is gone.
    pub(crate) const fn take_reached(&mut self) -> Option<u64> {
        self.reached.take()
    }

    fn at_output(&self) -> impl Iterator<Item = (u64, &Viewer)> {
        let all = self.clients.iter().map(|(number, viewer)| (*number, viewer));
        all.filter(|(_, viewer)| matches!(viewer.role(), Role::Output(_)))
    }

    /// Brings all clients up to date, as far as they take bytes. If this is the `end`, those that have everything are
    /// closed.
    pub(crate) fn pump_all(
        &mut self,
        poller: &mut Poller,
        history: &History,
        archive: &dyn Archive,
        end: bool,
    ) {
        let numbers: Vec<u64> = self.clients.keys().copied().collect();
        for number in numbers {
            self.pump(number, poller, history, archive, end);
        }
    }

    /// Does the same for one client.
    pub(crate) fn pump(
        &mut self,
        number: u64,
        poller: &mut Poller,
        history: &History,
        archive: &dyn Archive,
        end: bool,
    ) {
        let Some(viewer) = self.clients.get_mut(&number) else { return };
        let pumped = viewer.pump(history, archive);
        if pumped == Pumped::Gone || (pumped == Pumped::UpToDate && end) {
            self.remove(poller, number);
        }
    }

    /// Waits for what can happen.
    pub(crate) fn arm(&mut self, poller: &Poller, takes_input: bool) {
        for viewer in self.clients.values_mut() {
            viewer.arm(poller, takes_input);
        }
    }

    /// Closes a client's connection.
    pub(crate) fn remove(&mut self, poller: &mut Poller, number: u64) {
        if let Some(viewer) = self.clients.remove(&number) {
            if viewer.role() == Role::Output(Overflow::Block) {
                self.reached = Some(viewer.reached());
            }
            viewer.close(poller);
        }
    }

    /// Closes a stream whose other end is gone: it waits for no word that the guest has taken everything, and the next
    /// one can have the stream.
    pub(crate) fn remove_ended_stream(&mut self, poller: &mut Poller, number: u64) {
        if self.clients.get(&number).is_some_and(Viewer::is_ended_stream) {
            self.remove(poller, number);
        }
    }

    /// Closes the streams whose sender has sent the end: the guest has read everything.
    pub(crate) fn end_streams(&mut self, poller: &mut Poller) {
        let ended = self.clients.iter().filter(|(_, viewer)| viewer.is_ended_stream());
        let numbers: Vec<u64> = ended.map(|(number, _)| *number).collect();
        for number in numbers {
            self.remove(poller, number);
        }
    }

    /// Closes all connections.
    pub(crate) fn close(mut self, poller: &mut Poller) {
        let numbers: Vec<u64> = self.clients.keys().copied().collect();
        for number in numbers {
            self.remove(poller, number);
        }
        self.stop_listening(poller);
    }
}
