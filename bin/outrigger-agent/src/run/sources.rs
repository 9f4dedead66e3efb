//! What the loop polls.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::error::AgentError;
use crate::fd::poll;

/// What can wake the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A signal.
    Signal,
    /// QEMU's output.
    Output,
    /// The agent's QMP session.
    Qmp,
    /// xenstore.
    Store,
    /// Network interfaces.
    Links,
    /// PV disks.
    Disks,
    /// Room on console 0.
    Console,
    /// The streams of the device model's state.
    Relay,
    /// The vchan of the bridge with this index.
    Vchan(usize),
    /// The socket of the bridge with this index.
    Socket(usize),
}

/// An epoll and its sources: an event carries the index of its source.
#[derive(Debug)]
pub(super) struct Sources {
    epoll: Epoll,
    known: Vec<Source>,
}

impl Sources {
    /// Polls nothing yet.
    pub(super) fn new() -> Result<Self, AgentError> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(AgentError::system("make an epoll"))?;
        Ok(Self { epoll, known: Vec::new() })
    }

    /// The epoll, for those that poll descriptors of their own with a [`token`](Self::token).
    pub(super) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// What the events of this source carry.
    pub(super) fn token(&mut self, source: Source) -> u64 {
        let place = self.known.iter().position(|known| *known == source).unwrap_or_else(|| {
            self.known.push(source);
            self.known.len() - 1
        });
        place as u64
    }

    /// Polls a source.
    pub(super) fn add(&mut self, source: Source, fd: impl AsFd, flags: EpollFlags) -> Result<(), AgentError> {
        let token = self.token(source);
        poll(&self.epoll, fd, token, flags)
    }

    /// Polls a source no more.
    pub(super) fn remove(&self, fd: impl AsFd) -> Result<(), AgentError> {
        self.epoll.delete(fd).map_err(AgentError::system("poll a descriptor"))
    }

    /// Waits for events; returns whose they are, or nothing when the time is over or a signal came.
    pub(super) fn wait(&self, timeout: EpollTimeout) -> Result<Vec<Source>, AgentError> {
        let mut events = [EpollEvent::empty(); 8];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(AgentError::system("wait for events")(errno)),
        };
        let source = |event: &EpollEvent| self.known.get(usize::try_from(event.data()).ok()?).copied();
        Ok(events.iter().take(count).filter_map(source).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_event_names_its_source() {
        let mut sources = Sources::new().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        sources.add(Source::Console, &writer, EpollFlags::empty()).unwrap();
        let vchan = sources.token(Source::Vchan(0));
        assert_eq!(sources.token(Source::Vchan(0)), vchan);
        assert_ne!(sources.token(Source::Socket(0)), vchan);
        poll(sources.epoll(), &reader, vchan, EpollFlags::EPOLLIN).unwrap();
        assert_eq!(sources.wait(EpollTimeout::ZERO).unwrap(), []);
        writer.write_all(b"x").unwrap();
        assert_eq!(sources.wait(EpollTimeout::NONE).unwrap(), [Source::Vchan(0)]);
        sources.remove(&reader).unwrap();
        assert_eq!(sources.wait(EpollTimeout::ZERO).unwrap(), []);
    }
}
