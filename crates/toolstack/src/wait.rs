//! Waiting for something in xenstore or Xen to become true, woken by watches, never longer than a deadline.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use xenstore::{StoreError, WatchGuard, WatchPath, Xenstore};

use crate::error::Cause;

/// How long no event may come before a condition is looked at nevertheless: not everything that is waited for
/// fires a watch (the end of a domain's destruction, for example).
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Several watches that wake one wait.
pub(crate) struct Watcher {
    sender: Sender<Result<(), StoreError>>,
    events: Receiver<Result<(), StoreError>>,
    guards: Vec<WatchGuard>,
    again: Duration,
}

impl Watcher {
    pub(crate) fn new() -> Self {
        let (sender, events) = channel();
        Self { sender, events, guards: Vec::new(), again: LOOK_AGAIN }
    }

    /// For something that fires no watch and is urgent.
    pub(crate) fn looking_every(mut self, again: Duration) -> Self {
        self.again = again;
        self
    }

    pub(crate) fn watch(&mut self, xenstore: &Xenstore, path: &dyn WatchPath) -> Result<(), Cause> {
        let sender = self.sender.clone();
        let guard = xenstore.watch(path)?.into_callback(move |event| {
            // The receiver lives as long as the guard.
            let _ = sender.send(event.map(drop));
        });
        self.guards.push(guard);
        Ok(())
    }

    /// Waits until `check` finds something, at most until `deadline`, when it gives nothing.
    pub(crate) fn until<T>(
        &self,
        deadline: Instant,
        mut check: impl FnMut() -> Result<Option<T>, Cause>,
    ) -> Result<Option<T>, Cause> {
        loop {
            if let Some(found) = check()? {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            match self.events.recv_timeout(left.min(self.again)) {
                Ok(event) => event?,
                Err(RecvTimeoutError::Timeout) => {}
                // Impossible while `self.sender` lives.
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
            // Everything that has come meanwhile is one reason to look.
            for event in self.events.try_iter() {
                event?;
            }
        }
    }
}
