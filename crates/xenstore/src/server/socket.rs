use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_types::DomId;

use super::service::Core;
use crate::wire::Decoder;

/// What the server's thread and its handle share.
pub(super) struct Shared {
    core: Mutex<Core>,
    arrivals: Mutex<Arrivals>,
    /// How long each request waits.
    delay: Mutex<Duration>,
    wake: UnixStream,
    woken: UnixStream,
}

#[derive(Default)]
struct Arrivals {
    streams: BTreeMap<u64, UnixStream>,
    listeners: Vec<UnixListener>,
}

struct Peer {
    stream: UnixStream,
    decoder: Decoder,
    /// How much of the first message in the queue is sent.
    sent: usize,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok(Self {
            core: Mutex::new(Core::new()),
            arrivals: Mutex::default(),
            delay: Mutex::default(),
            wake,
            woken,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn delay(&self) -> MutexGuard<'_, Duration> {
        self.delay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the thread look at everything again.
    pub(super) fn wake(&self) {
        // A full socket means that it will look anyway.
        let _ = (&self.wake).write(&[0]);
    }

    pub(super) fn add(&self, stream: UnixStream, domid: DomId) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let id = {
            let mut core = self.lock();
            if !core.is_introduced(domid) {
                core.introduce(domid);
            }
            core.add_client(domid)
        };
        self.arrivals().streams.insert(id, stream);
        self.wake();
        Ok(())
    }

    pub(super) fn listen(&self, path: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        self.arrivals().listeners.push(listener);
        self.wake();
        Ok(())
    }

    /// Serves until the server is stopped.
    pub(super) fn serve(&self) {
        let mut peers: BTreeMap<u64, Peer> = BTreeMap::new();
        let mut listeners: Vec<Arc<UnixListener>> = Vec::new();
        loop {
            let arrivals = core::mem::take(&mut *self.arrivals());
            for (id, stream) in arrivals.streams {
                peers.insert(id, Peer { stream, decoder: Decoder::new(), sent: 0 });
            }
            listeners.extend(arrivals.listeners.into_iter().map(Arc::new));
            if self.lock().stopped {
                // Sockets and listeners close here.
                return;
            }
            if self.lock().stalled {
                std::thread::sleep(std::time::Duration::from_millis(5));
                continue;
            }
            let Ok(ready) = self.wait(&peers, &listeners) else { return };
            self.accept(&listeners);
            for id in ready {
                if let Some(peer) = peers.get_mut(&id)
                    && !self.read(id, peer)
                {
                    self.lock().clients.remove(&id);
                    peers.remove(&id);
                }
            }
            peers.retain(|id, peer| self.write(*id, peer));
        }
    }

    /// Waits until something can be done, and gives who has sent something.
    fn wait(&self, peers: &BTreeMap<u64, Peer>, listeners: &[Arc<UnixListener>]) -> io::Result<Vec<u64>> {
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        let first = fds.len();
        let core = self.lock();
        for (id, peer) in peers {
            let waiting = core.clients.get(id).is_some_and(|client| !client.out.is_empty());
            let flags = if waiting { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
            fds.push(PollFd::new(peer.stream.as_fd(), flags));
        }
        drop(core);
        // The handle wakes this wait when it is dropped, so it needs no deadline.
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut drain = [0; 64];
        while matches!((&self.woken).read(&mut drain), Ok(1..)) {}
        let ready = |fd: &PollFd<'_>| {
            fd.revents().is_some_and(|events| {
                events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)
            })
        };
        let peers = peers.keys().zip(&fds[first..]);
        Ok(peers.filter(|(_, fd)| ready(fd)).map(|(id, _)| *id).collect())
    }

    fn accept(&self, listeners: &[Arc<UnixListener>]) {
        for listener in listeners {
            while let Ok((stream, _)) = listener.accept() {
                // A client that is gone already.
                let _ = self.add(stream, DomId::DOM0);
            }
        }
    }

    /// Takes what a client sent; false when it is gone or has to go.
    fn read(&self, id: u64, peer: &mut Peer) -> bool {
        let mut buffer = [0; 8192];
        let count = match peer.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        let mut input = &buffer[..count];
        loop {
            match peer.decoder.push(&mut input) {
                Ok(Some(message)) => {
                    let delay = *self.delay();
                    std::thread::sleep(delay);
                    let mut core = self.lock();
                    core.handle(id, &message);
                    if core.clients.get(&id).is_none_or(|client| client.dropped) {
                        return false;
                    }
                }
                Ok(None) => return true,
                // xenstored too ends a connection with a message that is too long.
                Err(_) => return false,
            }
        }
    }

    /// Sends what waits for a client; false when it is gone.
    fn write(&self, id: u64, peer: &mut Peer) -> bool {
        let mut core = self.lock();
        let Some(client) = core.clients.get_mut(&id) else { return false };
        while let Some(message) = client.out.front() {
            match peer.stream.write(&message[peer.sent..]) {
                Ok(count) => peer.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    core.clients.remove(&id);
                    return false;
                }
            }
            if peer.sent >= message.len() {
                peer.sent = 0;
                client.out.pop_front();
            }
        }
        if client.dropped {
            core.clients.remove(&id);
            return false;
        }
        true
    }
}
