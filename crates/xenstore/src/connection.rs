use core::cell::RefCell;
use core::time::Duration;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use crate::error::StoreError;
use crate::event::{EventQueue, WatchEvent};
use crate::operation::Operation;
use crate::path::{NodePath, WatchPath};
use crate::store::{RequestIo, Store, Transaction, absent_is_none, answer_of, printable, run_transaction};
use crate::transport::{DEFAULT_TIMEOUT, Stopped, Transport};
use crate::wire::{Decoder, Message, MessageType, Request};

/// How many requests of a batch are on their way at once: xenstored lets an unprivileged domain have 20.
const BATCH: usize = 16;

/// A client for one thread: no thread of its own, and a file descriptor to poll.
///
/// Watch events that come while an answer is awaited wait in a bounded queue. A loop that polls [`Self::as_fd`] calls
/// [`Self::next_event`] with a deadline of now until it gives nothing, both after the descriptor became readable and
/// after other calls, which may have queued events.
///
/// On Linux's `/dev/xen/xenbus` setting and ending a watch waits inside of the kernel for xenstored, which no time
/// limit here can shorten; all else is bounded.
#[derive(Debug)]
pub struct Connection {
    transport: Transport,
    state: RefCell<State>,
    timeout: Duration,
    /// No call waits beyond this.
    deadline: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    decoder: Decoder,
    events: EventQueue,
    /// Path and token of the watches that are set.
    watches: Vec<(String, String)>,
    last_id: u32,
    lost: bool,
}

impl Connection {
    /// Connects to xenstored: to what `XENSTORED_PATH` names, or its socket, or the kernel's `/dev/xen/xenbus`.
    ///
    /// # Errors
    /// [`StoreError::Connect`] when none of them is there and answers.
    pub fn open() -> Result<Self, StoreError> {
        Transport::open().map(Self::new)
    }

    /// Connects to the socket, or opens the device, at `path`.
    ///
    /// # Errors
    /// [`StoreError::Connect`].
    pub fn open_path(path: &Path) -> Result<Self, StoreError> {
        Transport::open_path(path).map(Self::new)
    }

    /// Talks to the xenstored at the other end of a socket.
    ///
    /// # Errors
    /// When the socket cannot be set to non-blocking mode.
    pub fn from_stream(stream: UnixStream) -> io::Result<Self> {
        Transport::from_stream(stream).map(Self::new)
    }

    fn new(transport: Transport) -> Self {
        let state = State { decoder: Decoder::for_client(), ..State::default() };
        Self { transport, state: RefCell::new(state), timeout: DEFAULT_TIMEOUT, deadline: None }
    }

    /// The same with another time limit for each call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets a time beyond which no call waits, however long its own time limit is; `None` removes it.
    ///
    /// This bounds what many calls take together. A call that it cuts short fails with [`StoreError::Timeout`].
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Until when a call that begins now waits.
    fn call_deadline(&self) -> Instant {
        let own = Instant::now() + self.timeout;
        self.deadline.map_or(own, |deadline| deadline.min(own))
    }

    /// The descriptor that is readable when something has come.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }

    /// Sets a watch; its events carry `token`, which the caller chooses differently for each.
    ///
    /// The first event comes at once.
    ///
    /// # Errors
    /// As for [`Store`]; `EEXIST` when the same path is watched with the same token.
    pub fn watch(&self, path: &dyn WatchPath, token: &str) -> Result<(), StoreError> {
        let request = Request::watch(path, token);
        self.request(&request)?;
        self.state.borrow_mut().watches.push((path.watch_wire().to_owned(), token.to_owned()));
        Ok(())
    }

    /// Removes a watch, and forgets its events that wait in the queue.
    ///
    /// # Errors
    /// As for [`Store`]; `ENOENT` when it is not set.
    pub fn unwatch(&self, path: &dyn WatchPath, token: &str) -> Result<(), StoreError> {
        self.request(&Request::unwatch(path, token))?;
        let state = &mut *self.state.borrow_mut();
        state.watches.retain(|known| (known.0.as_str(), known.1.as_str()) != (path.watch_wire(), token));
        if !state.watches.iter().any(|known| known.1 == token) {
            state.events.drop_token(token);
        }
        Ok(())
    }

    /// The next watch event; nothing when none has come by `deadline`.
    ///
    /// # Errors
    /// [`StoreError::ConnectionLost`] when the connection is gone and no event is left.
    pub fn next_event(&self, deadline: Instant) -> Result<Option<WatchEvent>, StoreError> {
        let operation = || Operation::new(MessageType::WatchEvent, "any watch");
        let state = &mut *self.state.borrow_mut();
        loop {
            if let Some(event) = state.events.pop() {
                return Ok(Some(event));
            }
            match self.receive(state, deadline) {
                // An answer that came after its caller had given up.
                Ok(_) => {}
                Err(Stopped::Late) => return Ok(None),
                Err(stopped) => return Err(state.failure(operation(), stopped, self.timeout)),
            }
        }
    }

    /// Whether an event has come already, while a call waited for its answer. The descriptor does not show it.
    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.state.borrow().events.is_empty()
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
        const TOKEN: &str = "outrigger-wait-for";
        let begin = Instant::now();
        self.watch(path, TOKEN)?;
        let found = loop {
            let value = match self.read(path) {
                Ok(value) => value,
                Err(error) => break Err(error),
            };
            if let Some(found) = condition(value.as_deref()) {
                break Ok(found);
            }
            match self.event_with(TOKEN, deadline) {
                Ok(true) => {}
                Ok(false) => break Err(not_reached(path, begin, deadline, value.as_deref())),
                Err(error) => break Err(error),
            }
        };
        // What was found counts, also when xenstored is gone right after it.
        let _ = self.unwatch(path, TOKEN);
        found
    }

    fn event_with(&self, token: &str, deadline: Instant) -> Result<bool, StoreError> {
        let state = &mut *self.state.borrow_mut();
        loop {
            if state.events.take_matching(token).is_some() {
                return Ok(true);
            }
            match self.receive(state, deadline) {
                Ok(_) => {}
                Err(Stopped::Late) => return Ok(false),
                Err(stopped) => {
                    let operation = Operation::new(MessageType::WatchEvent, "");
                    return Err(state.failure(operation, stopped, self.timeout));
                }
            }
        }
    }

    /// Reads many nodes, with one request on its way in this connection and in each of `others`; nothing for a node
    /// that is absent.
    ///
    /// Linux's `/dev/xen/xenbus` takes one request at a time, but everyone who opens it has a turn of his own. So a
    /// few connections save most of the journeys to xenstored's domain and back. xenstored lets an unprivileged domain
    /// have 20 requests on their way.
    ///
    /// # Errors
    /// As for [`Store`].
    pub fn read_each(
        &self,
        others: &[Self],
        paths: &[impl NodePath],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut values = Vec::with_capacity(paths.len());
        for some in paths.chunks(1 + others.len()) {
            let mut sent = Vec::with_capacity(some.len());
            for (connection, path) in core::iter::once(self).chain(others).zip(some) {
                let request = Request::read(path);
                let deadline = connection.call_deadline();
                let id = connection.send(&mut connection.state.borrow_mut(), &request, 0, deadline)?;
                sent.push((connection, request, id, deadline));
            }
            for (connection, request, id, deadline) in sent {
                let answer = connection.answer(&mut connection.state.borrow_mut(), &request, id, deadline);
                values.push(absent_is_none(answer)?);
            }
        }
        Ok(values)
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

    /// Gives the next message that is not a watch event, and queues the events before it.
    ///
    /// Also gives `Ok(None)` after an event was queued, so that a caller who waits for one can look.
    fn receive(&self, state: &mut State, deadline: Instant) -> Result<Option<Message>, Stopped> {
        if state.lost {
            return Err(Stopped::Closed);
        }
        let mut buffer = [0; 512];
        loop {
            // Never more than what is missing of one message, so that nothing has to be kept beside the decoder.
            let want = state.decoder.missing().min(buffer.len());
            let count = self.transport.read(&mut buffer[..want], deadline)?;
            let message = match state.decoder.push(&mut &buffer[..count]) {
                Ok(None) => continue,
                Ok(Some(message)) => message,
                Err(error) => return Err(Stopped::Failed(io::Error::other(error))),
            };
            if message.kind != MessageType::WatchEvent {
                return Ok(Some(message));
            }
            state.queue(&message);
            return Ok(None);
        }
    }

    fn send(
        &self,
        state: &mut State,
        request: &Request,
        tx_id: u32,
        deadline: Instant,
    ) -> Result<u32, StoreError> {
        if state.lost {
            return Err(StoreError::ConnectionLost { operation: request.operation() });
        }
        state.last_id = state.last_id.wrapping_add(1);
        let bytes = self.transport.encode(request, state.last_id, tx_id)?;
        match self.transport.write_message(&bytes, deadline) {
            Ok(()) => Ok(state.last_id),
            Err(stopped) => Err(state.failure(request.operation(), stopped, self.timeout)),
        }
    }

    fn answer(
        &self,
        state: &mut State,
        request: &Request,
        req_id: u32,
        deadline: Instant,
    ) -> Result<Vec<u8>, StoreError> {
        loop {
            match self.receive(state, deadline) {
                Ok(Some(message)) if message.req_id == req_id => {
                    return answer_of(request, message.kind, message.payload);
                }
                // An event, or an answer that came after its caller had given up.
                Ok(_) => {}
                // The request may be carried out yet; its answer will be thrown away.
                Err(Stopped::Late) => {
                    // The next request would overwrite this one.
                    state.lost = self.transport.is_device();
                    return Err(StoreError::Timeout { operation: request.operation(), after: self.timeout });
                }
                Err(stopped) => return Err(state.failure(request.operation(), stopped, self.timeout)),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

impl RequestIo for Connection {
    fn call(&self, request: &Request, tx_id: u32) -> Result<Vec<u8>, StoreError> {
        let state = &mut *self.state.borrow_mut();
        let deadline = self.call_deadline();
        let req_id = self.send(state, request, tx_id, deadline)?;
        self.answer(state, request, req_id, deadline)
    }

    fn call_all(&self, requests: &[Request], tx_id: u32) -> Result<(), StoreError> {
        let state = &mut *self.state.borrow_mut();
        let mut outcome = Ok(());
        let batch = if self.transport.is_device() { 1 } else { BATCH };
        for chunk in requests.chunks(batch) {
            let deadline = self.call_deadline();
            let mut ids = Vec::with_capacity(chunk.len());
            for request in chunk {
                ids.push(self.send(state, request, tx_id, deadline)?);
            }
            for (request, id) in chunk.iter().zip(ids) {
                match self.answer(state, request, id, deadline) {
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

impl Store for Connection {
    fn request(&self, request: &Request) -> Result<Vec<u8>, StoreError> {
        self.call(request, 0)
    }

    fn request_all(&self, requests: &[Request]) -> Result<(), StoreError> {
        self.call_all(requests, 0)
    }
}

impl State {
    fn queue(&mut self, message: &Message) {
        // xenstored is trusted, and an event that is none can only be skipped.
        let Ok(event) = WatchEvent::parse(&message.payload) else { return };
        if self.events.push(event).is_err() {
            let again = self
                .watches
                .iter()
                .filter_map(|(path, token)| WatchEvent::parse(format!("{path}\0{token}\0").as_bytes()).ok());
            self.events.replace_with(again);
        }
    }

    fn failure(&mut self, operation: Operation, stopped: Stopped, after: Duration) -> StoreError {
        match stopped {
            Stopped::Closed => {
                self.lost = true;
                StoreError::ConnectionLost { operation }
            }
            // Part of a message may be written: nothing can follow it.
            Stopped::Late => {
                self.lost = true;
                StoreError::Timeout { operation, after }
            }
            Stopped::Refused(code) => StoreError::Refused { operation, code },
            Stopped::Failed(source) => StoreError::Io { operation, source },
        }
    }
}

pub(crate) fn not_reached(
    path: &dyn NodePath,
    begin: Instant,
    deadline: Instant,
    last: Option<&[u8]>,
) -> StoreError {
    StoreError::NotReached {
        path: path.wire().to_owned(),
        after: deadline.saturating_duration_since(begin),
        last: last.map_or_else(|| "absent".to_owned(), printable),
    }
}
