use core::time::Duration;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Xenstore;
use crate::error::StoreError;
use crate::event::{EventPath, EventQueue, WatchEvent};
use crate::operation::Operation;
use crate::path::{WatchPath, WatchedPath};
use crate::store::Store;
use crate::wire::{MessageType, Request};

/// Where the reading thread puts the events of one watch.
pub(super) trait Sink: Send + Sync {
    fn event(&self, event: WatchEvent);
    fn lost(&self);
}

/// A watch: gives the events of a node and all below it. Dropping it ends the watch.
///
/// At most 1024 different events wait to be taken; one more folds all of them into one for the watched path itself,
/// so nothing is lost for a reader who looks at everything again then.
pub struct Watch {
    guard: WatchGuard,
    queue: Arc<Queue>,
}

/// Keeps a watch whose events go to a callback. Dropping it ends the watch.
pub struct WatchGuard {
    store: Xenstore,
    source: WatchedPath,
    token: String,
}

impl Watch {
    pub(super) fn set(store: &Xenstore, path: &dyn WatchPath) -> Result<Self, StoreError> {
        let source = WatchedPath::of(path);
        let queue =
            Arc::new(Queue { source: source.clone(), state: Mutex::default(), changed: Condvar::new() });
        let token = store.link.new_token();
        // Before the request, as the first event may come with its answer.
        store.link.shared.lock().sinks.insert(token.clone(), Arc::clone(&queue) as Arc<dyn Sink>);
        match store.request(&Request::watch(path, &token)) {
            Ok(_) => Ok(Self { guard: WatchGuard { store: store.clone(), source, token }, queue }),
            Err(error) => {
                store.link.shared.lock().sinks.remove(&token);
                Err(error)
            }
        }
    }

    /// The next event; nothing when none has come by `deadline`.
    ///
    /// # Errors
    /// [`StoreError::ConnectionLost`] when the connection is gone and no event is left.
    pub fn recv_deadline(&self, deadline: Instant) -> Result<Option<WatchEvent>, StoreError> {
        let mut state = self.queue.lock();
        loop {
            if let Some(event) = state.events.pop() {
                return Ok(Some(event));
            }
            if state.lost {
                let operation = Operation::new(MessageType::WatchEvent, self.guard.source.watch_wire());
                return Err(StoreError::ConnectionLost { operation });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let waited = self.queue.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The next event; nothing when none has come within `timeout`.
    ///
    /// # Errors
    /// As [`Self::recv_deadline`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<WatchEvent>, StoreError> {
        self.recv_deadline(Instant::now() + timeout)
    }

    /// The next event that is there already.
    ///
    /// # Errors
    /// As [`Self::recv_deadline`].
    pub fn try_recv(&self) -> Result<Option<WatchEvent>, StoreError> {
        self.recv_deadline(Instant::now())
    }

    /// Gives the events to `callback` from now on, those that wait first; an error once, last, when the connection is
    /// lost.
    ///
    /// The callback runs on the thread that reads the connection (those that wait: on this one), so it must only hand
    /// the event on, for example into a channel: a call to xenstore from it gives [`StoreError::InCallback`].
    pub fn into_callback(
        self,
        callback: impl Fn(Result<WatchEvent, StoreError>) + Send + Sync + 'static,
    ) -> WatchGuard {
        let Self { guard, queue } = self;
        let operation = Operation::new(MessageType::WatchEvent, guard.source.watch_wire());
        queue.forward(Callback { operation, call: Box::new(callback) });
        guard
    }
}

impl WatchGuard {
    /// Ends the watch, and says whether that worked; dropping does the same without saying.
    ///
    /// # Errors
    /// As for [`Store`].
    pub fn end(mut self) -> Result<(), StoreError> {
        self.unwatch()
    }

    fn unwatch(&mut self) -> Result<(), StoreError> {
        let token = core::mem::take(&mut self.token);
        if self.store.link.shared.lock().sinks.remove(&token).is_none() {
            // The connection is lost and the watch gone with it.
            return Ok(());
        }
        self.store.request(&Request::unwatch(&self.source, &token)).map(drop)
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        if !self.token.is_empty() {
            // Nothing is left to be done when it fails: events without a sink are thrown away.
            let _ = self.unwatch();
        }
    }
}

struct Callback {
    operation: Operation,
    call: Box<dyn Fn(Result<WatchEvent, StoreError>) + Send + Sync>,
}

/// The events of one watch that wait to be taken, or where they go instead.
struct Queue {
    source: WatchedPath,
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    events: EventQueue,
    callback: Option<Arc<Callback>>,
    lost: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forward(&self, callback: Callback) {
        let callback = Arc::new(callback);
        loop {
            let event = {
                let mut state = self.lock();
                match state.events.pop() {
                    Some(event) => event,
                    None if state.lost => break,
                    None => {
                        state.callback = Some(callback);
                        return;
                    }
                }
            };
            (callback.call)(Ok(event));
        }
        (callback.call)(Err(StoreError::ConnectionLost { operation: callback.operation.clone() }));
    }
}

impl Sink for Queue {
    fn event(&self, event: WatchEvent) {
        let callback = {
            let mut state = self.lock();
            match &state.callback {
                Some(callback) => Arc::clone(callback),
                None => {
                    let token = event.token.clone();
                    if state.events.push(event).is_err() {
                        state.events.replace_with([WatchEvent {
                            path: EventPath::new(self.source.watch_wire()),
                            token,
                        }]);
                    }
                    self.changed.notify_all();
                    return;
                }
            }
        };
        (callback.call)(Ok(event));
    }

    fn lost(&self) {
        let callback = {
            let mut state = self.lock();
            state.lost = true;
            self.changed.notify_all();
            state.callback.take()
        };
        if let Some(callback) = callback {
            (callback.call)(Err(StoreError::ConnectionLost { operation: callback.operation.clone() }));
        }
    }
}
