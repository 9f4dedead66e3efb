//! What the tasks of a session share: the multiplexer, and who waits for what outside it.

use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ::qmp::mux::{Action, ClientId, Mux, MuxConfig, Token};
use ::qmp::policy::Peer;
use ::qmp::{Event, QmpError, Request};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::access::Access;
use super::clock::Clock;

/// Events of the toolstack's listeners that may wait; a listener that is slower loses its subscription.
pub(super) const BACKLOG: usize = 256;

/// What the tasks of a session share, and the toolstack's threads.
pub(super) struct Shared {
    pub(super) name: String,
    mux: Mutex<Mux>,
    waiters: Mutex<Waiters>,
    /// The connection's task has something to do.
    pub(super) work: Notify,
    pub(super) clock: Clock,
}

/// Waiters, listeners and pending work waiters the multiplexer.
#[derive(Default)]
pub(super) struct Waiters {
    pub(super) clients: BTreeMap<ClientId, Arc<Notify>>,
    /// The last messages for clients that the multiplexer has closed.
    pub(super) closing: BTreeMap<ClientId, Vec<u8>>,
    pub(super) answers: BTreeMap<u64, SyncSender<Result<Box<RawValue>, QmpError>>>,
    pub(super) listeners: Vec<Listener>,
    next_number: u64,
    /// Until when the connection's task sleeps.
    pub(super) planned: Option<Instant>,
    /// The connection is to be dropped.
    pub(super) hangup: bool,
    ended: bool,
}

impl Waiters {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Waits for an answer; returns its token, or nothing when the guest has ended.
    pub(super) fn wait_for_answer(
        &mut self,
        answer: SyncSender<Result<Box<RawValue>, QmpError>>,
    ) -> Option<u64> {
        if self.ended {
            return None;
        }
        let token = self.number();
        self.answers.insert(token, answer);
        Some(token)
    }

    /// Adds a subscription, which ends at once when the guest has ended; returns its number.
    pub(super) fn listen(&mut self, names: Vec<String>, events: SyncSender<Notification>) -> u64 {
        let number = self.number();
        if !self.ended {
            self.listeners.push(Listener { number, names, events });
        }
        number
    }

    fn act(&mut self, action: Action, guest: &str) {
        match action {
            // The connection's task looks at the multiplexer.
            Action::Dial => {}
            Action::Hangup => self.hangup = true,
            Action::Close(id, last) => {
                self.closing.insert(id, last);
                if let Some(notify) = self.clients.get(&id) {
                    notify.notify_one();
                }
            }
            Action::Answer(Token(token), answer) => {
                if let Some(waits) = self.answers.remove(&token) {
                    // Its thread has given up otherwise.
                    let _ = waits.try_send(answer);
                }
            }
            Action::Event(event) => self.listeners.retain(|listener| {
                let wants = listener.names.is_empty() || listener.names.contains(&event.name);
                !wants || listener.events.try_send(Notification::Event(event.clone())).is_ok()
            }),
            Action::Lost(why) => {
                for listener in self.listeners.drain(..) {
                    let _ = listener.events.try_send(Notification::Lost(why.clone()));
                }
            }
            Action::Note(note) => tracing::info!(guest, "QMP: {note}"),
        }
    }
}

/// A subscription of the toolstack.
pub(super) struct Listener {
    pub(super) number: u64,
    pub(super) names: Vec<String>,
    pub(super) events: SyncSender<Notification>,
}

/// A notification for a listener.
pub(super) enum Notification {
    Event(Event),
    Lost(String),
}

impl Shared {
    pub(super) fn new(name: &str, config: MuxConfig, access: &Access) -> Self {
        Self {
            name: name.to_owned(),
            mux: Mutex::new(Mux::new(config, Arc::clone(&access.policy), Instant::now())),
            waiters: Mutex::default(),
            work: Notify::new(),
            clock: Clock::start(),
        }
    }

    pub(super) fn mux(&self) -> MutexGuard<'_, Mux> {
        // A panic inside would be a bug; the others still deserve their answers.
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open_client(&self, peer: Peer) -> Option<(ClientId, Arc<Notify>)> {
        let id = self.mux().open_client(peer)?;
        let notify = Arc::new(Notify::new());
        self.waiters().clients.insert(id, Arc::clone(&notify));
        Some((id, notify))
    }

    /// Runs an operation on the multiplexer and wakes the tasks that have work after it.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Mux) -> T) -> T {
        let mut mux = self.mux();
        let result = work(&mut mux);
        let mut waiters = self.settle(&mut mux);
        let sooner = match (mux.next_tick(), waiters.planned) {
            (Some(next), Some(planned)) => next < planned,
            (next, _) => next.is_some(),
        };
        if sooner || waiters.hangup || mux.has_session_output() || mux.wants_dial() {
            // Whatever it is, the connection's task looks at all of it.
            waiters.planned = mux.next_tick();
            self.work.notify_one();
        }
        result
    }

    /// Asks on behalf of the toolstack.
    pub(super) fn ask(&self, token: Token, request: Request, deadline: Instant) {
        self.with(|mux| mux.ask(token, request, deadline, Instant::now()));
    }

    /// Does what the multiplexer wants, and wakes the clients that have something to read.
    pub(super) fn settle(&self, mux: &mut Mux) -> MutexGuard<'_, Waiters> {
        let mut waiters = self.waiters();
        while let Some(action) = mux.next_action() {
            waiters.act(action, &self.name);
        }
        for (id, notify) in &waiters.clients {
            if mux.has_client_output(*id) {
                notify.notify_one();
            }
        }
        waiters
    }

    /// The guest has ended: nothing waits any longer.
    pub(super) fn end(&self) {
        let mut waiters = self.waiters();
        waiters.ended = true;
        waiters.answers.clear();
        waiters.listeners.clear();
        for notify in waiters.clients.values() {
            notify.notify_one();
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.waiters().ended
    }
}
