use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// The owner of a descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Event channels.
    Events,
    /// xenstore.
    Store,
    /// The thread that asks xenstored again.
    StoreAgain,
    /// Answers of the threads that write logs.
    Writers,
    /// The caller's own descriptor.
    Caller,
    /// The control socket.
    Control,
    /// A client of the control socket that has not sent its request yet.
    Client(u64),
    /// A part of the console with this key.
    Console(u64, Part),
}

/// Which descriptor of a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The socket on which viewers come.
    Listener,
    /// The viewer with this number.
    Viewer(u64),
    /// The main output.
    Output,
    /// The socket that is the main output.
    OutputListener,
}

/// A descriptor's place in the poller.
#[derive(Debug)]
pub(crate) struct Slot {
    token: u64,
    interest: EpollFlags,
}

/// The descriptors that are waited for. Tokens are never used twice, so that an event of a descriptor that was closed
/// in the same turn finds nobody.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: Epoll,
    sources: HashMap<u64, Source>,
    next_token: u64,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, sources: HashMap::new(), next_token: 0 })
    }

    pub(crate) fn add(&mut self, fd: impl AsFd, source: Source, interest: EpollFlags) -> io::Result<Slot> {
        let token = self.next_token;
        self.next_token += 1;
        self.epoll.add(fd, EpollEvent::new(interest, token))?;
        self.sources.insert(token, source);
        Ok(Slot { token, interest })
    }

    pub(crate) fn set(&self, slot: &mut Slot, fd: impl AsFd, interest: EpollFlags) {
        if slot.interest != interest
            && self.epoll.modify(fd, &mut EpollEvent::new(interest, slot.token)).is_ok()
        {
            slot.interest = interest;
        }
    }

    /// Forgets a descriptor that is about to be closed.
    pub(crate) fn remove(&mut self, slot: &Slot, fd: impl AsFd) {
        self.sources.remove(&slot.token);
        // It is closed right after, which removes it too.
        let _ = self.epoll.delete(fd);
    }

    /// Waits for something to do.
    pub(crate) fn wait(&self, timeout: EpollTimeout) -> io::Result<Vec<(Source, EpollFlags)>> {
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let known = |event: &EpollEvent| Some((*self.sources.get(&event.data())?, event.events()));
        Ok(events[..count].iter().filter_map(known).collect())
    }
}
