use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::sys::epoll::EpollFlags;

use super::poller::{Poller, Slot, Source};
use crate::own_path::OwnPath;

/// A socket to which people and programs connect.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: UnixListener,
    slot: Slot,
    name: OwnPath,
    is_resting: bool,
}

impl Listener {
    pub(crate) fn new(
        poller: &mut Poller,
        source: Source,
        listener: UnixListener,
        path: PathBuf,
    ) -> io::Result<Self> {
        let name = OwnPath::of(path)?;
        listener.set_nonblocking(true)?;
        let slot = poller.add(&listener, source, EpollFlags::EPOLLIN)?;
        Ok(Self { listener, slot, name, is_resting: false })
    }

    /// Accepts one client, or rests when this process has no descriptor or memory for one.
    pub(crate) fn accept(&mut self, poller: &Poller) -> Option<UnixStream> {
        match self.listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) => {
                self.rest(poller, !is_of_client(&error));
                None
            }
        }
    }

    /// Ignores clients for a while, or no longer.
    pub(crate) fn rest(&mut self, poller: &Poller, rest: bool) {
        self.is_resting = rest;
        let interest = if rest { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        poller.set(&mut self.slot, &self.listener, interest);
    }

    pub(crate) const fn is_resting(&self) -> bool {
        self.is_resting
    }

    /// Takes no more clients, and removes the socket's name.
    pub(crate) fn close(self, poller: &mut Poller) {
        poller.remove(&self.slot, &self.listener);
        self.name.remove();
    }
}

/// Whether a client could not be accepted because of the client itself. With any other error, such as EMFILE, it still
/// waits, and the listener would be readable without end.
pub(crate) fn is_of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock)
}
