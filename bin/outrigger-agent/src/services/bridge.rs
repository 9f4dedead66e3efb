//! Sockets inside the stubdomain that dom0 reaches through vchans.
//!
//! One connection to the vchan is one connection to the socket:
//!
//! ```text
//!          Arrived: connect                Left: what it wrote still goes in, then no more
//! awaited ─────────────────▶ connected ─────────────────────────────────────────▶ ending
//!    ▲                           │ the socket ended, and all is in the ring          │ the socket ended
//!    └───────────── renew ───────┴───────────────────── renew ───────────────────────┘
//! ```
//! The next client is accepted only after the socket's owner has closed the last connection, so that QEMU, whose
//! monitor takes one at a time, never has two in its queue. Every event moves all that can be moved in both directions,
//! so the descriptors are polled for edges, and nothing spins while an end waits for the other.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use stubdom_abi::{DmKey, Feature, ImageConfig};
use vchan::{Change, RingSizes, Server, VchanError};
use xen_types::DomId;
use xenstore::Connection;

use super::log::Log;
use super::pipe::{End, Moved, Pipe, Stopped};
use crate::error::AgentError;
use crate::fd::poll;

/// A socket that is offered at a vchan.
#[derive(Debug)]
pub(crate) struct Service {
    /// The vchan's directory.
    key: DmKey,
    /// What announces it to the toolstack.
    pub(crate) feature: Feature,
    /// The socket.
    socket: &'static str,
    /// Bytes in the rings from dom0 and to it.
    rings: (usize, usize),
}

/// What is offered, unless the kernel's command line has QEMU's monitor on a console.
pub(crate) fn services(cmdline: &str) -> &'static [Service] {
    if stubdom_abi::has_word(cmdline, stubdom_abi::QMP_CONSOLE_WORD) { &[] } else { &SERVICES }
}

const SERVICES: [Service; 1] = [Service {
    key: DmKey::QmpVchan,
    feature: Feature::QmpVchan,
    socket: ImageConfig::QMP_SOCKET,
    // Commands are short; the answer to query-qmp-schema has 200 KiB.
    rings: (8 << 10, 64 << 10),
}];

/// A service and its present client.
pub(crate) struct Bridge {
    service: &'static Service,
    vchan: Server,
    phase: Phase,
    /// What the events of the present client's socket carry.
    socket_token: u64,
    /// Whether there may be more to move although no event will come.
    is_unfinished: bool,
    /// Whether this turn has asked xenstore, or may have.
    asked_store: bool,
}

enum Phase {
    Awaited,
    Connected(Session),
    /// The client is gone, and the socket is shut down for writing; its owner still has to close it.
    Ending(UnixStream),
}

struct Session {
    socket: UnixStream,
    inward: Pipe,
    outward: Pipe,
    /// Whether the socket is polled for room: only while something waits for it, or each read of its owner's would wake
    /// us for nothing.
    waits_for_room: bool,
}

impl Bridge {
    /// Offers the service to dom0. The events of the vchan and of the socket carry one of the `tokens` each.
    pub(crate) fn open(
        service: &'static Service,
        store: &Connection,
        target: DomId,
        epoll: &Epoll,
        tokens: (u64, u64),
    ) -> Result<Self, AgentError> {
        let failed = AgentError::vchan(service.key.name());
        let (to_server, to_client) = service.rings;
        let vchan = RingSizes::at_least(to_server, to_client)
            .map_err(VchanError::from)
            .and_then(|sizes| Server::open(store, DomId::DOM0, service.key.own_path(target), sizes))
            .map_err(failed)?;
        let (vchan_token, socket_token) = tokens;
        poll(
            epoll,
            vchan.as_fd(),
            vchan_token,
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
        )?;
        let phase = Phase::Awaited;
        Ok(Self { service, vchan, phase, socket_token, is_unfinished: false, asked_store: false })
    }

    /// Whether [`turn`](Self::turn) is due without an event.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.is_unfinished
    }

    /// Does all that can be done, and returns whether xenstore may have been asked for it. `woken`: the vchan has an
    /// event. A failure ends the present client's session; when that fails too, it is tried again at the next event.
    pub(crate) fn turn(&mut self, woken: bool, store: &Connection, epoll: &Epoll, log: &mut Log) -> bool {
        self.is_unfinished = false;
        self.asked_store = !matches!(self.phase, Phase::Connected(_));
        if let Err(error) = self.try_turn(woken, store, epoll, log) {
            log.error(&error);
            if let Err(error) = self.renew(store) {
                log.error(&error);
            }
        }
        self.asked_store
    }

    fn try_turn(
        &mut self,
        woken: bool,
        store: &Connection,
        epoll: &Epoll,
        log: &mut Log,
    ) -> Result<(), AgentError> {
        let failed = || AgentError::vchan(self.service.key.name());
        if woken {
            self.vchan.take_wakeup().map_err(failed())?;
        }
        // Each pass ends a session or finds nothing to do; a client that keeps coming and going has to wake us.
        for _ in 0..4 {
            match self.vchan.change(store).map_err(failed())? {
                Some(Change::Arrived) => self.connect(epoll)?,
                Some(Change::Left) => self.client_left(),
                None => {}
            }
            if !self.pump(log) {
                return self.poll_for_room(epoll);
            }
            self.renew(store)?;
        }
        self.is_unfinished = true;
        Ok(())
    }

    fn connect(&mut self, epoll: &Epoll) -> Result<(), AgentError> {
        let path = self.service.socket;
        let failed = |errno: nix::errno::Errno| AgentError::Socket(path, errno);
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address).map_err(failed)?;
        let socket = UnixStream::from(socket);
        poll(epoll, &socket, self.socket_token, EpollFlags::EPOLLIN | EpollFlags::EPOLLET)?;
        let (inward, outward) = (Pipe::new(), Pipe::new());
        self.phase = Phase::Connected(Session { socket, inward, outward, waits_for_room: false });
        Ok(())
    }

    /// Polls the socket for room while something waits for it.
    fn poll_for_room(&mut self, epoll: &Epoll) -> Result<(), AgentError> {
        let Phase::Connected(session) = &mut self.phase else { return Ok(()) };
        let wanted = session.inward.holds_some();
        if wanted != session.waits_for_room {
            let room = if wanted { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET | room;
            // Room that has come in the meantime causes an event at once.
            epoll
                .modify(&session.socket, &mut EpollEvent::new(flags, self.socket_token))
                .map_err(AgentError::system("poll a descriptor"))?;
            session.waits_for_room = wanted;
        }
        Ok(())
    }

    /// The client is gone: what it wrote goes in as far as it can, and nothing more.
    fn client_left(&mut self) {
        let Phase::Connected(mut session) = core::mem::replace(&mut self.phase, Phase::Awaited) else {
            return;
        };
        // One turn is more than a ring holds.
        let _ = session.inward.pump(&mut self.vchan, &mut session.socket);
        // Fails only when the other side is gone already.
        let _ = session.socket.shutdown(Shutdown::Write);
        self.phase = Phase::Ending(session.socket);
    }

    /// Moves what can be moved; returns whether the session is over.
    fn pump(&mut self, log: &mut Log) -> bool {
        match &mut self.phase {
            Phase::Awaited => false,
            Phase::Ending(socket) => {
                let mut waste = [0; 4096];
                loop {
                    match End::take(socket, &mut waste) {
                        Moved::Some(_) => {}
                        Moved::Later => return false,
                        Moved::Gone => return true,
                    }
                }
            }
            Phase::Connected(session) => {
                let outward = session.outward.pump(&mut session.socket, &mut self.vchan);
                let inward = session.inward.pump(&mut self.vchan, &mut session.socket);
                self.is_unfinished |= outward == Stopped::Turn || inward == Stopped::Turn;
                // A client that disconnects causes an event; if it is still connected, its ring is corrupted.
                let corrupted =
                    self.vchan.is_open() && (outward == Stopped::SinkGone || inward == Stopped::SourceGone);
                if corrupted || outward == Stopped::SourceGone {
                    let who = if corrupted { "a corrupted ring" } else { self.service.socket };
                    log.line(&format!("{who} has ended a session of {}", self.service.key.name()));
                    return true;
                }
                false
            }
        }
    }

    fn renew(&mut self, store: &Connection) -> Result<(), AgentError> {
        self.asked_store = true;
        // The socket leaves the epoll by closing.
        self.phase = Phase::Awaited;
        self.vchan.renew(store).map_err(AgentError::vchan(self.service.key.name()))
    }
}

impl End for Server {
    fn take(&mut self, into: &mut [u8]) -> Moved {
        moved(&self.read(into))
    }

    fn give(&mut self, from: &[u8]) -> Moved {
        moved(&self.write(from))
    }
}

fn moved(result: &Result<usize, VchanError>) -> Moved {
    match result {
        Ok(0) => Moved::Later,
        Ok(count) => Moved::Some(*count),
        Err(_) => Moved::Gone,
    }
}

impl End for UnixStream {
    fn take(&mut self, into: &mut [u8]) -> Moved {
        loop {
            match self.read(into) {
                Ok(0) => return Moved::Gone,
                Ok(count) => return Moved::Some(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Moved::Later,
                Err(_) => return Moved::Gone,
            }
        }
    }

    fn give(&mut self, from: &[u8]) -> Moved {
        loop {
            match self.write(from) {
                Ok(count @ 1..) => return Moved::Some(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Moved::Later,
                Ok(0) | Err(_) => return Moved::Gone,
            }
        }
    }
}
