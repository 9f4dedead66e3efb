//! Many clients on one session with QEMU; neither side is trusted.
//!
//! [`Mux`] is a state machine without I/O. A shell brings it bytes and the time, and does what it wants:
//!
//! ```text
//!            dial                 greeting            capabilities
//!  Waiting ───────▶ Dialing ──────────────▶ Greeting ─────────────▶ Negotiating ──▶ Up
//!     ▲                │ failed                │ none in time           ▲            │ closed, no QMP,
//!     ├────────────────┴───────────────────────┴───────────────────┬────│────────────┘ no answer in time
//!     │                 a console                                  │    │ asked for its version
//!     └─────── Dialing ──────────▶ Resyncing ── none in time ──────┘    │
//!                                      └──────────── in step ───────────┘
//! ```
//!
//! - A client has its own greeting, negotiation, ids and events. Its requests get ids of ours; an answer is matched
//!   by them alone. Answers in band come in the order of the requests.
//! - At most [`MuxConfig::window`] requests in band are with QEMU at a time, so that those out of band get through
//!   (QEMU stops reading at 8), and clients take turns for them.
//! - A client that does not read gets no more events (it is told how many it missed) and its requests wait.
//! - A session that is lost fails the requests that were with QEMU. Clients stay, are told by
//!   `OUTRIGGER_SESSION_LOST` and `OUTRIGGER_SESSION_RESTORED`, and what they ask meanwhile waits for a while. Of a guest
//!   that is saved or migrated they are told with `OUTRIGGER_GUEST_LEFT`.
//! - When the device model has ended ([`Mux::end`]), the same happens, and what is asked from then on is refused.
//! - What QEMU sends is paid for out of a `Budget`: bytes that are read, the time that it took to
//!   handle them, events that are passed on.

mod budget;
mod client;
mod own;
mod session;
mod text;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use crate::commands::Version;
use crate::decode::Decoder;
use crate::error::QmpError;
use crate::limits::Limits;
use crate::monitor::{Event, Request};
use crate::policy::{Peer, Policy};
use crate::resync::Leftovers;
use budget::Budget;
use client::Client;
use session::{InFlight, Session};

/// How much each part may take.
#[derive(Clone, Debug)]
pub struct MuxConfig {
    /// For what QEMU says.
    pub qemu: Limits,
    /// For what a client asks.
    pub client: Limits,
    /// Clients at a time.
    pub clients: usize,
    /// Requests in band that are with QEMU at a time.
    pub window: usize,
    /// Requests of one client that may wait or be with QEMU; its bytes are not read beyond.
    pub requests: usize,
    /// Bytes of requests of all clients that may wait.
    pub request_bytes: usize,
    /// Bytes of events that may wait for one client.
    pub event_bytes: usize,
    /// Bytes of answers that may wait for all clients.
    pub answer_bytes: usize,
    /// Bytes of one event.
    pub event: usize,
    /// Messages of QEMU that make no sense, in one session.
    pub strikes: u32,
    /// Bytes of QEMU that are read in a second, and at once after a pause.
    pub bytes: (u32, u32),
    /// Microseconds of work that QEMU's bytes may make in a second, and at once after a pause.
    pub work: (u32, u32),
    /// Events of QEMU that are passed on in a second, and at once after a pause.
    pub event_rate: (u32, u32),
    /// From the connection to the end of the negotiation.
    pub handshake: Duration,
    /// Until a client's request is answered with an error, and until a session without any answer is given up.
    pub answer: Duration,
    /// The longest pause between two tries to make a session.
    pub pause: Duration,
}

impl Default for MuxConfig {
    fn default() -> Self {
        Self {
            qemu: Limits::QEMU,
            client: Limits::CLIENT,
            clients: 128,
            window: 7,
            requests: 16,
            request_bytes: 8 << 20,
            event_bytes: 256 << 10,
            answer_bytes: 16 << 20,
            event: 64 << 10,
            strikes: 16,
            bytes: (2 << 20, 4 << 20),
            work: (250_000, 500_000),
            event_rate: (500, 2000),
            handshake: Duration::from_secs(10),
            answer: Duration::from_secs(60),
            pause: Duration::from_secs(10),
        }
    }
}

impl MuxConfig {
    /// The same with all deadlines times `scale`.
    #[must_use]
    pub fn scaled(mut self, scale: f64) -> Self {
        self.handshake = self.handshake.mul_f64(scale);
        self.answer = self.answer.mul_f64(scale);
        self
    }
}

/// Names a client for as long as the multiplexer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u64);

/// Names a request of the toolstack; chosen by the requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// An action for the shell.
#[derive(Debug)]
pub enum Action {
    /// Connect to the device model, however long that takes, then say [`Mux::connected`] or [`Mux::disconnected`].
    Dial,
    /// Drop the connection to the device model; it is gone for us already.
    Hangup,
    /// Close a client when all its bytes are written; it is gone for us already.
    Close(ClientId, Vec<u8>),
    /// The answer to a request of the toolstack.
    Answer(Token, Result<Box<RawValue>, QmpError>),
    /// An event, for those of the toolstack who listen.
    Event(Event),
    /// The session is lost, for those of the toolstack who listen: why.
    Lost(String),
    /// Something for the log.
    Note(String),
}

/// Statistics of a multiplexer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sessions that came to work.
    pub sessions: u64,
    /// Requests that were sent to QEMU.
    pub requests: u64,
    /// Events of QEMU.
    pub events: u64,
    /// Events that were not passed on, because there were too many.
    pub dropped: u64,
    /// Messages of QEMU that made no sense.
    pub strikes: u64,
}

/// The multiplexer of one guest.
#[derive(Debug)]
pub struct Mux {
    config: MuxConfig,
    policy: Arc<Policy>,
    session: Session,
    /// What may still come of bringing a console in step.
    leftovers: Option<Leftovers>,
    /// Tries since a session last lived for a while.
    tries: u32,
    /// The version that QEMU reported last.
    version: Option<Version>,
    /// Whether it offered to execute commands out of band.
    oob: bool,
    clients: BTreeMap<ClientId, Client>,
    next_client: u64,
    /// Requests that are with QEMU, by our id.
    flight: BTreeMap<u64, InFlight>,
    next_id: u64,
    in_band: usize,
    /// Clients with something to send, in turn.
    turns: VecDeque<ClientId>,
    /// Requests of the toolstack that wait.
    inner: VecDeque<Inner>,
    to_session: Vec<u8>,
    actions: VecDeque<Action>,
    bytes: Budget,
    work: Budget,
    event_budget: Budget,
    counts: Counts,
}

/// A request of the toolstack that waits.
#[derive(Debug)]
struct Inner {
    token: Token,
    request: Request,
    deadline: Instant,
}

impl Mux {
    /// A multiplexer without a session; it wants to dial at once.
    #[must_use]
    pub fn new(config: MuxConfig, policy: Arc<Policy>, now: Instant) -> Self {
        let bytes = Budget::new(config.bytes, now);
        let work = Budget::new(config.work, now);
        let event_budget = Budget::new(config.event_rate, now);
        Self {
            config,
            policy,
            session: Session::Waiting { until: now },
            leftovers: None,
            tries: 0,
            version: None,
            oob: false,
            clients: BTreeMap::new(),
            next_client: 0,
            flight: BTreeMap::new(),
            next_id: 1,
            in_band: 0,
            turns: VecDeque::new(),
            inner: VecDeque::new(),
            to_session: Vec::new(),
            actions: VecDeque::new(),
            bytes,
            work,
            event_budget,
            counts: Counts::default(),
        }
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Its statistics.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Clients at the moment.
    #[must_use]
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// Whether QEMU can be asked now.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self.session, Session::Up { .. })
    }

    /// Whether the shell should be connecting to the device model: for as long as it takes.
    #[must_use]
    pub const fn wants_dial(&self) -> bool {
        matches!(self.session, Session::Dialing)
    }

    /// The version that QEMU reported; `None` before the first session.
    #[must_use]
    pub const fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// Takes the bytes that are to be written to the device model.
    pub fn take_session_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.to_session)
    }

    /// Whether there are bytes for the device model.
    #[must_use]
    pub fn has_session_output(&self) -> bool {
        !self.to_session.is_empty()
    }

    /// Asks on behalf of the toolstack: no policy, before all clients. The answer is an [`Action::Answer`].
    pub fn ask(&mut self, token: Token, request: Request, deadline: Instant, now: Instant) {
        self.inner.push_back(Inner { token, request, deadline });
        self.send_waiting(now);
    }

    /// A client connects; nothing: there are too many, or it has no role.
    pub fn open_client(&mut self, peer: Peer) -> Option<ClientId> {
        if self.clients.len() >= self.config.clients {
            return None;
        }
        let role = self.policy.first_role(peer)?;
        let id = ClientId(self.next_client);
        self.next_client += 1;
        let mut client = Client::new(Decoder::new(self.config.client), role, peer);
        if let Some(version) = &self.version {
            client.greet(&text::greeting(version, self.oob));
        }
        self.clients.insert(id, client);
        Some(id)
    }

    /// A client is gone. Its requests that are with QEMU are still executed.
    pub fn close_client(&mut self, id: ClientId) {
        self.clients.remove(&id);
        for request in self.flight.values_mut() {
            if request.owner == Some(session::Owner::Client(id)) {
                request.owner = None;
            }
        }
    }

    /// When [`Self::tick`] is due next.
    #[must_use]
    pub fn next_tick(&self) -> Option<Instant> {
        let session = match &self.session {
            Session::Waiting { until } => Some(*until),
            Session::Greeting { until, .. } | Session::Negotiating { until, .. } => Some(*until),
            Session::Resyncing { until, resync } => Some(resync.due().map_or(*until, |due| due.min(*until))),
            Session::Dialing | Session::Up { .. } | Session::Over { .. } => None,
        };
        let flight = self.flight.values().filter_map(|request| request.due(self.config.answer)).min();
        let waiting = self.clients.values().filter_map(Client::due).min();
        let inner = self.inner.iter().map(|inner| inner.deadline).min();
        [session, flight, waiting, inner, self.stuck_at()].into_iter().flatten().min()
    }

    /// Does what is due by time.
    pub fn tick(&mut self, now: Instant) {
        match self.session {
            Session::Waiting { until } if until <= now => {
                self.tries += 1;
                self.session = Session::Dialing;
                self.actions.push_back(Action::Dial);
            }
            Session::Greeting { until, .. } | Session::Negotiating { until, .. } if until <= now => {
                self.lose("no greeting in time", now);
            }
            Session::Resyncing { until, .. } if until <= now => {
                self.lose("it cannot be synchronized: no answer to a reset in time", now);
            }
            Session::Resyncing { .. } => self.reset(now),
            _ => {}
        }
        self.time_out(now);
        self.send_waiting(now);
    }
}

#[cfg(test)]
mod tests;
