//! The monitor that the toolstack's steps ask, from threads of their own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use ::qmp::mux::Token;
use ::qmp::{Event, Events, Monitor, QmpError, Request};
use serde_json::value::RawValue;

use super::shared::{BACKLOG, Notification, Shared};

/// The multiplexer keeps deadlines; this is only for the case that the event loop is late.
const GRACE: Duration = Duration::from_secs(5);

/// A guest's monitor.
pub(super) struct SharedMonitor {
    shared: Arc<Shared>,
}

impl SharedMonitor {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Monitor for SharedMonitor {
    fn execute(&self, request: &Request, deadline: Instant) -> Result<Box<RawValue>, QmpError> {
        let (sender, answer) = sync_channel(1);
        let command = || request.command.clone();
        // Its end clears what waits, so nothing is added after that.
        let Some(token) = self.shared.waiters().wait_for_answer(sender) else {
            return Err(QmpError::NoSession { command: command(), why: "the guest has ended".to_owned() });
        };
        self.shared.ask(Token(token), request.clone(), deadline);
        let wait = deadline.saturating_duration_since(Instant::now()) + GRACE;
        let outcome = answer.recv_timeout(wait);
        self.shared.waiters().answers.remove(&token);
        match outcome {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(QmpError::Timeout { command: command() }),
            Err(RecvTimeoutError::Disconnected) => {
                Err(QmpError::Lost { command: command(), why: "the guest has ended".to_owned() })
            }
        }
    }

    fn events(&self, names: &[&str]) -> Result<Box<dyn Events>, QmpError> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let (sender, events) = sync_channel(BACKLOG);
        let what = names.join(" or ");
        let number = self.shared.waiters().listen(names, sender);
        Ok(Box::new(Subscription { shared: Arc::clone(&self.shared), number, events, what }))
    }
}

struct Subscription {
    shared: Arc<Shared>,
    /// Which listener it is.
    number: u64,
    events: Receiver<Notification>,
    /// What is waited for, for messages.
    what: String,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // Events of its names may never come.
        self.shared.waiters().listeners.retain(|listener| listener.number != self.number);
    }
}

impl Events for Subscription {
    fn next(&mut self, deadline: Instant) -> Result<Event, QmpError> {
        let lost = |why| QmpError::Lost { command: self.what.clone(), why };
        match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Notification::Event(event)) => Ok(event),
            Ok(Notification::Lost(why)) => Err(lost(why)),
            Err(RecvTimeoutError::Timeout) => Err(QmpError::NoEvent { event: self.what.clone() }),
            Err(RecvTimeoutError::Disconnected) => {
                Err(lost("the session or the guest has ended, or too many events were pending".to_owned()))
            }
        }
    }
}
