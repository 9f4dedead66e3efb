//! The client that many threads share.

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_types::{DomId, EventPort, Gfn};

use crate::connection::not_reached;
use crate::error::StoreError;
use crate::event::WatchEvent;
use crate::path::{NodePath, WatchPath, XsPath};
use crate::store::{RequestIo, Store, Transaction, answer_of, path_of, run_transaction, truth};
use crate::transport::{DEFAULT_TIMEOUT, Stopped, Transport};
use crate::wire::{Decoder, Message, MessageType, Request};

mod watch;

use watch::Sink;
pub use watch::{Watch, WatchGuard};

/// How many requests of a batch are on their way at once: xenstored lets an unprivileged domain have 20.
const BATCH: usize = 16;

/// A client that many threads share: a cheap handle on one connection, whose thread sorts answers and watch events.
///
/// The connection ends with the last handle and [`Watch`]. When xenstored goes away, every call gives
/// [`StoreError::ConnectionLost`] at once; the handle does not connect again, because watches and transactions would
/// silently be gone.
#[derive(Clone)]
pub struct Xenstore {
    link: Arc<Link>,
    timeout: Duration,
}

impl fmt::Debug for Xenstore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xenstore").field("timeout", &self.timeout).field("lost", &self.is_lost()).finish()
    }
}

impl Xenstore {
    /// Connects to xenstored: to what `XENSTORED_PATH` names, or its socket, or the kernel's `/dev/xen/xenbus`.
    ///
    /// # Errors
    /// [`StoreError::Connect`] when none of them is there and answers.
    pub fn open() -> Result<Self, StoreError> {
        let transport = Transport::open()?;
        Self::new(transport).map_err(|source| StoreError::Connect { path: "xenstored".into(), source })
    }

    /// Connects to the socket, or opens the device, at `path`.
    ///
    /// # Errors
    /// [`StoreError::Connect`].
    pub fn open_path(path: &Path) -> Result<Self, StoreError> {
        let transport = Transport::open_path(path)?;
        Self::new(transport).map_err(|source| StoreError::Connect { path: path.to_owned(), source })
    }

    /// Talks to the xenstored at the other end of a socket.
    ///
    /// # Errors
    /// When the socket cannot be set to non-blocking mode, or no thread can be started.
    pub fn from_stream(stream: UnixStream) -> io::Result<Self> {
        Self::new(Transport::from_stream(stream)?)
    }

    fn new(transport: Transport) -> io::Result<Self> {
        Ok(Self { link: Link::start(transport)?, timeout: DEFAULT_TIMEOUT })
    }

    /// A handle on the same connection with another time limit for each call.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { link: Arc::clone(&self.link), timeout }
    }

    /// Whether the connection is gone, so that every call fails.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.link.shared.lock().lost
    }

    /// Whether it goes through the kernel's device, not xenstored's socket.
    #[cfg(feature = "server")]
    pub(crate) fn is_device(&self) -> bool {
        self.link.shared.transport.is_device()
    }

    /// The most bytes of path and value together that one request may have.
    #[must_use]
    pub fn payload_max(&self) -> usize {
        self.link.shared.transport.payload_max()
    }

    /// Runs `body` in a transaction and commits it, again from the start when others changed the same nodes.
    ///
    /// # Errors
    /// What `body` gives, [`StoreError::Conflict`] when it met changes of others too often, else as for [`Store`].
    pub fn transaction<T>(
        &self,
        mut body: impl FnMut(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        run_transaction(self, &mut body)
    }

    /// The same for a `body` with an error type of its own.
    ///
    /// # Errors
    /// What `body` gives, [`StoreError::Conflict`] when it met changes of others too often, else as for [`Store`].
    pub fn try_transaction<T, E: From<StoreError>>(
        &self,
        mut body: impl FnMut(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        run_transaction(self, &mut body)
    }

    /// Connects a domain to xenstored over the page `gfn` and the domain's unbound event channel `port`.
    ///
    /// Fires `@introduceDomain`. Domain 0 only.
    ///
    /// # Errors
    /// As for [`Store`]; `EINVAL` or the like when Xen does not know the page or the port.
    pub fn introduce(&self, domid: DomId, gfn: Gfn, port: EventPort) -> Result<(), StoreError> {
        self.request(&Request::introduce(domid, gfn, port)).map(drop)
    }

    /// Disconnects a domain from xenstored, which fires `@releaseDomain`. Domain 0 only.
    ///
    /// # Errors
    /// As for [`Store`]; `ENOENT` or `EINVAL` when the domain is not connected. [`StoreError::Destructive`] for domain 0,
    /// which xenstored refuses, and with which oxenstored removes all nodes that domain 0 owns.
    pub fn release(&self, domid: DomId) -> Result<(), StoreError> {
        let request = Request::release(domid);
        if domid == DomId::DOM0 {
            return Err(StoreError::Destructive { operation: request.operation() });
        }
        self.request(&request).map(drop)
    }

    /// Lets `@releaseDomain` fire again for a domain that was suspended and resumed. Domain 0 only.
    ///
    /// # Errors
    /// As for [`Store`].
    pub fn resume(&self, domid: DomId) -> Result<(), StoreError> {
        self.request(&Request::resume(domid)).map(drop)
    }

    /// Gives `domid` all rights that `target` has; both have to be connected. Domain 0 only.
    ///
    /// # Errors
    /// As for [`Store`]; `ENOENT` when one of them is not connected.
    pub fn set_target(&self, domid: DomId, target: DomId) -> Result<(), StoreError> {
        self.request(&Request::set_target(domid, target)).map(drop)
    }

    /// Whether a domain is connected to xenstored. Domain 0 only.
    ///
    /// # Errors
    /// As for [`Store`].
    pub fn is_introduced(&self, domid: DomId) -> Result<bool, StoreError> {
        let request = Request::is_domain_introduced(domid);
        truth(&request, &self.request(&request)?)
    }

    /// A domain's directory.
    ///
    /// # Errors
    /// As for [`Store`].
    pub fn get_domain_path(&self, domid: DomId) -> Result<XsPath, StoreError> {
        let request = Request::get_domain_path(domid);
        path_of(&request, &self.request(&request)?)
    }

    /// Watches a node and everything below it, or a special event; the first event comes at once.
    ///
    /// # Errors
    /// As for [`Store`].
    pub fn watch(&self, path: &dyn WatchPath) -> Result<Watch, StoreError> {
        Watch::set(self, path)
    }

    /// Waits until `condition` finds what it looks for in a node's value (nothing when there is no node).
    ///
    /// # Errors
    /// [`StoreError::NotReached`] with the last value when `deadline` passes; else as for [`Store`].
    pub fn wait_for<P: NodePath + WatchPath, T>(
        &self,
        path: &P,
        deadline: Instant,
        mut condition: impl FnMut(Option<&[u8]>) -> Option<T>,
    ) -> Result<T, StoreError> {
        let begin = Instant::now();
        let watch = self.watch(path)?;
        loop {
            let value = self.read(path)?;
            if let Some(found) = condition(value.as_deref()) {
                return Ok(found);
            }
            if watch.recv_deadline(deadline)?.is_none() {
                return Err(not_reached(path, begin, deadline, value.as_deref()));
            }
        }
    }
}

impl RequestIo for Xenstore {
    fn call(&self, request: &Request, tx_id: u32) -> Result<Vec<u8>, StoreError> {
        let deadline = Instant::now() + self.timeout;
        let (sender, receiver) = mpsc::channel();
        let pending = self.link.send(request, tx_id, &sender, deadline, self.timeout)?;
        drop(sender);
        pending.answer(request, &receiver, deadline, self.timeout)
    }

    fn call_all(&self, requests: &[Request], tx_id: u32) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        let batch = if self.link.shared.transport.is_device() { 1 } else { BATCH };
        for chunk in requests.chunks(batch) {
            let deadline = Instant::now() + self.timeout;
            let mut sent = Vec::with_capacity(chunk.len());
            for request in chunk {
                let (sender, receiver) = mpsc::channel();
                sent.push((
                    request,
                    self.link.send(request, tx_id, &sender, deadline, self.timeout)?,
                    receiver,
                ));
            }
            for (request, pending, receiver) in sent {
                match pending.answer(request, &receiver, deadline, self.timeout) {
                    Ok(_) => {}
                    Err(error @ StoreError::Refused { .. }) => outcome = outcome.and(Err(error)),
                    Err(error) => return Err(error),
                }
            }
        }
        outcome
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl Store for Xenstore {
    fn request(&self, request: &Request) -> Result<Vec<u8>, StoreError> {
        self.call(request, 0)
    }

    fn request_all(&self, requests: &[Request]) -> Result<(), StoreError> {
        self.call_all(requests, 0)
    }
}

/// What the handles share; dropping it ends the reading thread.
struct Link {
    shared: Arc<Shared>,
    /// Held while one message is written, so that messages do not mix.
    write: Mutex<()>,
    /// Held until the answer is there where only one request may be on its way.
    turn: Mutex<()>,
    /// A byte into it wakes the reading thread for its end.
    wake: UnixStream,
    reader: Option<JoinHandle<()>>,
    reader_id: ThreadId,
    last_token: AtomicU64,
}

/// What the handles and the reading thread share.
struct Shared {
    transport: Transport,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Who waits for the answer to which request.
    pending: HashMap<u32, mpsc::Sender<Message>>,
    /// Who gets the events with which token.
    sinks: HashMap<String, Arc<dyn Sink>>,
    last_id: u32,
    lost: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock, and the state is sound between any two statements of it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all waiting: the answers will not come any more.
    fn lose(&self) {
        let sinks = {
            let mut state = self.lock();
            state.lost = true;
            state.pending.clear();
            core::mem::take(&mut state.sinks)
        };
        for sink in sinks.values() {
            sink.lost();
        }
    }

    fn dispatch(&self, message: Message) {
        if message.kind != MessageType::WatchEvent {
            let waiting = self.lock().pending.remove(&message.req_id);
            if let Some(waiting) = waiting {
                // The waiter may have timed out meanwhile.
                let _ = waiting.send(message);
            }
            return;
        }
        // xenstored is trusted, and an event that is none can only be skipped.
        let Ok(event) = WatchEvent::parse(&message.payload) else { return };
        // A callback runs without the lock.
        let sink = self.lock().sinks.get(&event.token).cloned();
        if let Some(sink) = sink {
            sink.event(event);
        }
    }

    /// Reads until the connection ends or the last handle is dropped.
    fn read_loop(&self, wake: &UnixStream) {
        let mut decoder = Decoder::for_client();
        let mut buffer = [0; 8192];
        loop {
            let mut fds = [
                PollFd::new(self.transport.as_fd(), PollFlags::POLLIN),
                PollFd::new(wake.as_fd(), PollFlags::POLLIN),
            ];
            // The last handle ends this wait, so it needs no deadline.
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            if fds[1].revents().is_some_and(|revents| !revents.is_empty()) {
                return;
            }
            let Ok(count) = self.transport.read_now(&mut buffer) else { return };
            let mut input = &buffer[..count];
            loop {
                match decoder.push(&mut input) {
                    Ok(Some(message)) => self.dispatch(message),
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
    }
}

impl Link {
    fn start(transport: Transport) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared { transport, state: Mutex::default() });
        let (wake, woken) = UnixStream::pair()?;
        let reader = thread::Builder::new().name("xenstore".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                shared.read_loop(&woken);
                shared.lose();
            }
        })?;
        Ok(Arc::new(Self {
            shared,
            write: Mutex::new(()),
            turn: Mutex::new(()),
            wake,
            reader_id: reader.thread().id(),
            reader: Some(reader),
            last_token: AtomicU64::new(0),
        }))
    }

    fn new_token(&self) -> String {
        format!("outrigger-{}", self.last_token.fetch_add(1, Ordering::Relaxed))
    }

    fn send(
        &self,
        request: &Request,
        tx_id: u32,
        sender: &mpsc::Sender<Message>,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Pending<'_>, StoreError> {
        if thread::current().id() == self.reader_id {
            return Err(StoreError::InCallback { operation: request.operation() });
        }
        let lost = || StoreError::ConnectionLost { operation: request.operation() };
        // Each holder has a deadline, and marks the connection as lost when it passes.
        let is_device = self.shared.transport.is_device();
        let turn = is_device.then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        let _writing = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        let (pending, bytes) = {
            let mut state = self.shared.lock();
            if state.lost {
                return Err(lost());
            }
            state.last_id = state.last_id.wrapping_add(1);
            let id = state.last_id;
            let bytes = self.shared.transport.encode(request, id, tx_id)?;
            state.pending.insert(id, sender.clone());
            (Pending { shared: &self.shared, id, _turn: turn }, bytes)
        };
        match self.shared.transport.write_message(&bytes, deadline) {
            Ok(()) => Ok(pending),
            Err(Stopped::Closed) => {
                self.shared.lose();
                Err(lost())
            }
            Err(Stopped::Late) => {
                // Part of the message may be written: nothing can follow it.
                self.shared.lose();
                Err(StoreError::Timeout { operation: request.operation(), after: timeout })
            }
            Err(Stopped::Refused(code)) => Err(StoreError::Refused { operation: request.operation(), code }),
            Err(Stopped::Failed(source)) => Err(StoreError::Io { operation: request.operation(), source }),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // If the byte does not fit, there already is one.
        let _ = self.wake.write(&[0]);
        if let Some(reader) = self.reader.take()
            // A callback may have held the last handle.
            && thread::current().id() != self.reader_id
        {
            let _ = reader.join();
        }
    }
}

/// A request whose answer is awaited; forgotten when dropped.
struct Pending<'a> {
    shared: &'a Shared,
    id: u32,
    _turn: Option<MutexGuard<'a, ()>>,
}

impl Pending<'_> {
    fn answer(
        &self,
        request: &Request,
        receiver: &mpsc::Receiver<Message>,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Vec<u8>, StoreError> {
        let operation = request.operation();
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(message) => answer_of(request, message.kind, message.payload),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if self.shared.transport.is_device() {
                    // The next request would overwrite this one.
                    self.shared.lose();
                }
                Err(StoreError::Timeout { operation, after: timeout })
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(StoreError::ConnectionLost { operation }),
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.shared.lock().pending.remove(&self.id);
    }
}
