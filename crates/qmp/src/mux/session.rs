use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Asked;
use super::{Action, ClientId, Inner, Mux, Token, text};
use crate::commands::Version;
use crate::decode::Decoder;
use crate::error::{ErrorClass, QmpError, harmless};
use crate::message::{Kind, Member, Message};
use crate::monitor::{Event, Request};
use crate::resync::Resync;

/// What of QEMU's descriptions of errors is handed on, in characters.
const DESCRIPTION: usize = 1000;
/// What the bytes that are read at once are charged for at most.
const LONGEST_WORK: Duration = Duration::from_millis(50);
/// A session that lived for so long was a good one: the next try comes at once.
const GOOD: Duration = Duration::from_secs(20);
/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The state of the connection to the device model.
#[derive(Debug)]
pub(super) enum Session {
    /// There is none until then.
    Waiting { until: Instant },
    /// The shell connects.
    Dialing,
    /// QEMU has to send its greeting.
    Greeting { until: Instant, decoder: Box<Decoder> },
    /// A console, without a greeting: QEMU has to answer a reset.
    Resyncing { until: Instant, resync: Box<Resync> },
    /// QEMU has to accept our capabilities, or on a console to report its version.
    Negotiating { until: Instant, decoder: Box<Decoder>, oob: bool },
    /// It works.
    Up { since: Instant, decoder: Box<Decoder>, oob: bool, heard: Instant, strikes: u32 },
    /// There will be none any more.
    Over { why: String },
}

impl Session {
    fn decoder(&mut self) -> Option<&mut Decoder> {
        match self {
            Self::Greeting { decoder, .. } | Self::Negotiating { decoder, .. } | Self::Up { decoder, .. } => {
                Some(decoder)
            }
            Self::Waiting { .. } | Self::Dialing | Self::Resyncing { .. } | Self::Over { .. } => None,
        }
    }
}

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Client(ClientId),
    Toolstack { token: Token, deadline: Instant },
}

/// A request that is with QEMU.
#[derive(Debug)]
pub(super) struct InFlight {
    /// None: the requester has disconnected or timed out.
    pub(super) owner: Option<Owner>,
    id: Option<Box<str>>,
    command: String,
    out_of_band: bool,
    sent: Instant,
}

impl InFlight {
    /// When the requester gives up.
    pub(super) fn due(&self, answer: Duration) -> Option<Instant> {
        match self.owner? {
            Owner::Toolstack { deadline, .. } => Some(deadline),
            Owner::Client(_) => Some(self.sent + answer),
        }
    }
}

#[derive(Deserialize)]
struct Greeting {
    version: Version,
    #[serde(default)]
    capabilities: Vec<Value>,
}

#[derive(Deserialize)]
struct ErrorBody {
    class: String,
    desc: String,
}

#[derive(Clone, Copy, Deserialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

/// The id of the negotiation; requests count from 1.
const NEGOTIATION: u64 = 0;

impl Mux {
    /// The shell has connected to the device model.
    pub fn connected(&mut self, now: Instant) {
        if matches!(self.session, Session::Dialing) {
            let decoder = Box::new(Decoder::new(self.config.qemu));
            self.session = Session::Greeting { until: now + self.config.handshake, decoder };
        }
    }

    /// The shell has connected to a console on which QEMU has its monitor. `nonce` is a text that no session before it had.
    pub fn connected_to_console(&mut self, nonce: &str, now: Instant) {
        if matches!(self.session, Session::Dialing) {
            let resync = Box::new(Resync::new(self.config.qemu, nonce));
            self.session = Session::Resyncing { until: now + self.config.handshake, resync };
            self.reset(now);
        }
    }

    /// Sends a reset if one is due.
    pub(super) fn reset(&mut self, now: Instant) {
        if let Session::Resyncing { resync, .. } = &mut self.session
            && let Some(bytes) = resync.poll_send(now)
        {
            self.to_session.extend_from_slice(&bytes);
        }
    }

    /// A console's bytes, until it is in step.
    fn resync_bytes(&mut self, bytes: &[u8]) {
        let Session::Resyncing { until, resync } = &mut self.session else { return };
        let until = *until;
        resync.push(bytes);
        let Some((decoder, leftovers)) = resync.session() else { return };
        self.leftovers = Some(leftovers);
        // A console never gets to execute out of band: whether an earlier session has asked for it is not known.
        self.oob = false;
        self.session = Session::Negotiating { until, decoder: Box::new(decoder), oob: false };
        self.to_session.extend_from_slice(Request::new("query-version").line(NEGOTIATION).as_bytes());
    }

    /// The connection is gone, or could not be made.
    pub fn disconnected(&mut self, why: &str, now: Instant) {
        if !matches!(self.session, Session::Waiting { .. }) {
            self.lose(why, now);
        }
    }

    /// The device model has ended, or is about to: its session is lost, and there will be no other.
    pub fn end(&mut self, why: &str, now: Instant) {
        self.lose(why, now);
        self.session = Session::Over { why: why.to_owned() };
        self.time_out(now);
    }

    /// How long to wait before the device model's bytes are read again; nothing: read on.
    pub fn session_pause(&mut self, now: Instant) -> Option<Duration> {
        self.bytes.wait(now).max(self.work.wait(now))
    }

    /// The device model's bytes have made so much work, which ended now: the shell measures it, from its wake-up on.
    pub fn session_worked(&mut self, took: Duration, now: Instant) {
        // What is longer was no work: this process was stopped meanwhile.
        self.work.spend(u32::try_from(took.min(LONGEST_WORK).as_micros()).unwrap_or(u32::MAX), now);
    }

    /// Bytes of the device model.
    pub fn session_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.bytes.spend(u32::try_from(bytes.len()).unwrap_or(u32::MAX), now);
        match self.session.decoder() {
            Some(decoder) => decoder.push(bytes),
            None => self.resync_bytes(bytes),
        }
        while let Some(decoder) = self.session.decoder() {
            match decoder.next_message() {
                Some(Ok(message)) => self.session_message(&message, now),
                Some(Err(error)) => {
                    return self.lose(&format!("it sent something that is not QMP: {error}"), now);
                }
                None => {
                    decoder.shrink();
                    break;
                }
            }
        }
        self.send_waiting(now);
    }

    /// Gives the session up and says why; a new one is tried after a pause.
    pub(super) fn lose(&mut self, why: &str, now: Instant) {
        let was_up = match &self.session {
            Session::Waiting { .. } | Session::Over { .. } => return,
            Session::Up { since, .. } => {
                if now.saturating_duration_since(*since) >= GOOD {
                    self.tries = 0;
                }
                true
            }
            _ => false,
        };
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.tries.saturating_sub(1).min(10));
        let pause = if self.tries == 0 { Duration::ZERO } else { doubled.min(self.config.pause) };
        self.session = Session::Waiting { until: now + pause };
        self.to_session.clear();
        self.leftovers = None;
        self.in_band = 0;
        self.actions.push_back(Action::Hangup);
        self.actions.push_back(Action::Note(format!("no session with the device model: {why}")));
        for (_, request) in std::mem::take(&mut self.flight) {
            self.fail(&request, why);
        }
        if was_up {
            self.actions.push_back(Action::Lost(why.to_owned()));
            self.tell_all("OUTRIGGER_SESSION_LOST", &json!({"reason": why}));
        }
    }

    fn fail(&mut self, request: &InFlight, why: &str) {
        match request.owner {
            Some(Owner::Client(id)) => {
                let text = format!(
                    "The session with QEMU was lost ({why}); it is not known whether {} was executed",
                    request.command
                );
                let text = text::error(&ErrorClass::Generic, &text, request.id.as_deref());
                self.answer_client(id, text, request.out_of_band);
            }
            Some(Owner::Toolstack { token, .. }) => {
                let error = QmpError::Lost { command: request.command.clone(), why: why.to_owned() };
                self.actions.push_back(Action::Answer(token, Err(error)));
            }
            None => {}
        }
    }

    fn answer_client(&mut self, id: ClientId, text: String, out_of_band: bool) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.answered(text, out_of_band);
            self.turns_for(id);
        }
    }

    pub(super) fn tell_all(&mut self, name: &str, data: &Value) {
        let text = text::own_event(name, data);
        for client in self.clients.values_mut() {
            client.put_event_anyway(&text, self.config.event_bytes);
        }
    }

    fn session_message(&mut self, message: &Message, now: Instant) {
        if self.leftovers.as_mut().is_some_and(|leftovers| leftovers.takes(message)) {
            return;
        }
        match &mut self.session {
            Session::Greeting { .. } => self.greeted(message, now),
            Session::Negotiating { .. } => self.negotiated(message, now),
            Session::Up { heard, .. } => match message.kind() {
                Kind::Return | Kind::Error => {
                    *heard = now;
                    self.session_answer(message, now);
                }
                Kind::Event => self.session_event(message, now),
                _ => self.strike("a message of an unknown kind", now),
            },
            Session::Waiting { .. } | Session::Dialing | Session::Resyncing { .. } | Session::Over { .. } => {
            }
        }
    }

    fn greeted(&mut self, message: &Message, now: Instant) {
        let Some(Greeting { version, capabilities }) = message.read(Member::Qmp) else {
            // Of an event that came before it nobody can know yet.
            return match message.kind() {
                Kind::Event => {}
                _ => self.lose("it sent no greeting", now),
            };
        };
        self.remember(version);
        let oob = capabilities.iter().any(|name| name == "oob");
        self.oob = oob;
        let enable = if oob { json!({"enable": ["oob"]}) } else { json!({}) };
        // Of two values that are known to be JSON.
        if let Ok(request) = Request::with("qmp_capabilities", &enable) {
            self.to_session.extend_from_slice(request.line(NEGOTIATION).as_bytes());
        }
        let waiting = Session::Waiting { until: now };
        if let Session::Greeting { until, decoder } = std::mem::replace(&mut self.session, waiting) {
            self.session = Session::Negotiating { until, decoder, oob };
        }
    }

    fn remember(&mut self, mut version: Version) {
        version.package = harmless(&version.package, 128);
        self.version = Some(version);
    }

    fn negotiated(&mut self, message: &Message, now: Instant) {
        let ours = message.read::<u64>(Member::Id) == Some(NEGOTIATION);
        match message.kind() {
            Kind::Return if ours && self.leftovers.is_some() => match message.read(Member::Return) {
                Some(version) => self.remember(version),
                None => return self.lose("it did not report its version", now),
            },
            Kind::Return if ours => {}
            Kind::Event => return,
            _ => return self.lose("it did not accept its own capabilities", now),
        }
        let waiting = Session::Waiting { until: now };
        if let Session::Negotiating { decoder, oob, .. } = std::mem::replace(&mut self.session, waiting) {
            self.session = Session::Up { since: now, decoder, oob, heard: now, strikes: 0 };
        }
        self.counts.sessions += 1;
        if let Some(version) = &self.version {
            let greeting = text::greeting(version, self.oob);
            self.clients.values_mut().for_each(|client| client.greet(&greeting));
        }
        if self.counts.sessions > 1 {
            self.tell_all("OUTRIGGER_SESSION_RESTORED", &json!({}));
        }
        self.actions.push_back(Action::Note("session with the device model".to_owned()));
    }

    /// A message that makes no sense: a few are borne, since a newer QEMU may know more than we do.
    fn strike(&mut self, what: &str, now: Instant) {
        self.counts.strikes += 1;
        if let Session::Up { strikes, .. } = &mut self.session {
            *strikes += 1;
            if *strikes > self.config.strikes {
                self.lose(&format!("it sent too many invalid messages; the last was {what}"), now);
            }
        }
    }

    fn session_answer(&mut self, message: &Message, now: Instant) {
        let request = message.read::<u64>(Member::Id).and_then(|id| self.flight.remove(&id));
        let Some(request) = request else {
            // Answered twice, or never asked.
            return self.strike("an answer without a request", now);
        };
        if !request.out_of_band {
            self.in_band = self.in_band.saturating_sub(1);
        }
        let outcome = match message.get(Member::Return) {
            Some(value) => Ok(value),
            None => match message.read::<ErrorBody>(Member::Error) {
                Some(body) => Err((ErrorClass::of(&body.class), harmless(&body.desc, DESCRIPTION))),
                None => {
                    self.fail(&request, "the answer is not valid");
                    return self.strike("an error without class and description", now);
                }
            },
        };
        match request.owner {
            Some(Owner::Client(id)) => self.pass_answer(id, &request, outcome),
            Some(Owner::Toolstack { token, .. }) => {
                let command = request.command;
                let outcome = match outcome {
                    Ok(_) => message
                        .raw(Member::Return)
                        .ok_or(QmpError::Lost { command, why: "the answer is not JSON".to_owned() }),
                    Err((class, description)) => Err(QmpError::Refused { command, class, description }),
                };
                self.actions.push_back(Action::Answer(token, outcome));
            }
            None => {}
        }
    }

    fn pass_answer(&mut self, id: ClientId, request: &InFlight, outcome: Result<&str, (ErrorClass, String)>) {
        let held: usize = self.clients.values().map(super::client::Client::answer_bytes).sum();
        let own_id = request.id.as_deref();
        let Some(client) = self.clients.get(&id) else { return };
        let text = match outcome {
            Ok(value) if held + value.len() > self.config.answer_bytes => {
                text::error(&ErrorClass::Generic, "the answer exceeds the limit for unread answers", own_id)
            }
            Ok(value) => match client.role.filter(&request.command, value) {
                Some(filtered) => text::answer(&filtered, own_id),
                None => text::answer(value, own_id),
            },
            Err((class, description)) => text::error(&class, &description, own_id),
        };
        self.answer_client(id, text, request.out_of_band);
    }

    fn session_event(&mut self, message: &Message, now: Instant) {
        self.counts.events += 1;
        if !self.event_budget.try_spend(1, now) {
            self.counts.dropped += 1;
            return;
        }
        let is_name = |name: &String| {
            name.len() <= 64
                && !name.starts_with("OUTRIGGER_")
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        };
        let name = message.string(Member::Event).filter(is_name);
        let data = message.get(Member::Data);
        let fits = message.text().len() <= self.config.event && data.is_none_or(|data| data.starts_with('{'));
        let (Some(name), Some(at), true) = (name, message.read::<Timestamp>(Member::Timestamp), fits) else {
            return self.strike("an invalid event", now);
        };
        let text = text::event(&name, data, (at.seconds, at.microseconds));
        for client in self.clients.values_mut() {
            client.put_event(&name, &text, self.config.event_bytes);
        }
        let data = message.read::<Value>(Member::Data).unwrap_or_default();
        self.actions.push_back(Action::Event(Event { name, data }));
    }

    /// Gives a client a turn if it has something to send.
    pub(super) fn turns_for(&mut self, id: ClientId) {
        if !self.turns.contains(&id) && self.clients.contains_key(&id) {
            self.turns.push_back(id);
        }
    }

    /// Sends what may be sent: first the toolstack's, then one request of each client in turn.
    pub(super) fn send_waiting(&mut self, now: Instant) {
        let oob = match self.session {
            Session::Up { oob, .. } => oob,
            Session::Over { .. } => return self.time_out(now),
            _ => return,
        };
        while self.in_band < self.config.window
            && let Some(Inner { token, request, deadline }) = self.inner.pop_front()
        {
            self.send(None, request, Owner::Toolstack { token, deadline }, now);
        }
        // Clients in a row that could send nothing now: after all of them the order is as it was.
        let mut idle = 0;
        while idle < self.turns.len() {
            let window = self.in_band < self.config.window;
            let oob_window = self.flight.len() - self.in_band < self.config.window;
            if !window && !oob_window {
                break;
            }
            let Some(id) = self.turns.pop_front() else { break };
            let Some(client) = self.clients.get_mut(&id) else { continue };
            match client.next_request(window, oob_window) {
                Some(Asked { id: own_id, mut request, .. }) => {
                    // A session that has no oob executes it in its turn: late is better than never.
                    request.out_of_band = request.out_of_band && oob;
                    self.send(own_id, request, Owner::Client(id), now);
                    self.turns.push_back(id);
                    idle = 0;
                }
                None if client.due().is_some() => {
                    self.turns.push_back(id);
                    idle += 1;
                }
                None => {}
            }
        }
    }

    fn send(&mut self, own_id: Option<Box<str>>, request: Request, owner: Owner, now: Instant) {
        let id = self.next_id;
        self.next_id += 1;
        self.to_session.extend_from_slice(request.line(id).as_bytes());
        self.counts.requests += 1;
        if !request.out_of_band {
            self.in_band += 1;
        }
        let Request { command, out_of_band, .. } = request;
        let entry = InFlight { owner: Some(owner), id: own_id, command, out_of_band, sent: now };
        self.flight.insert(id, entry);
    }

    /// Ends what has waited too long.
    pub(super) fn time_out(&mut self, now: Instant) {
        let end = match &self.session {
            Session::Over { why } => Some(why.clone()),
            _ => None,
        };
        let is_due = |inner: &Inner| inner.deadline <= now || end.is_some();
        let (due, rest): (VecDeque<Inner>, _) = std::mem::take(&mut self.inner).into_iter().partition(is_due);
        self.inner = rest;
        for Inner { token, request, .. } in due {
            let why = end.as_deref().unwrap_or("there is no session with the device model").to_owned();
            let error = QmpError::NoSession { command: request.command, why };
            self.actions.push_back(Action::Answer(token, Err(error)));
        }
        let late = |request: &mut InFlight| {
            let due = request.due(self.config.answer)?;
            let owner = if due <= now { request.owner.take() } else { None };
            Some((owner?, request.id.take(), request.command.clone(), request.out_of_band))
        };
        let late: Vec<_> = self.flight.values_mut().filter_map(late).collect();
        for (owner, own_id, command, out_of_band) in late {
            match owner {
                Owner::Toolstack { token, .. } => {
                    self.actions.push_back(Action::Answer(token, Err(QmpError::Timeout { command })));
                }
                Owner::Client(id) => {
                    let text = format!(
                        "QEMU did not answer {command} in time; it is not known whether it was executed"
                    );
                    let text = text::error(&ErrorClass::Generic, &text, own_id.as_deref());
                    self.answer_client(id, text, out_of_band);
                }
            }
        }
        for client in self.clients.values_mut() {
            client.time_out(now, end.as_deref());
        }
        if self.stuck_at().is_some_and(|at| at <= now) {
            self.lose("it has not answered for too long", now);
        }
    }

    /// When the session is given up: nothing was answered for as long as an answer may take, or one request for twice
    /// as long.
    pub(super) fn stuck_at(&self) -> Option<Instant> {
        let oldest = self.flight.values().map(|request| request.sent).min()?;
        let Session::Up { heard, .. } = &self.session else { return None };
        Some((oldest.max(*heard) + self.config.answer).min(oldest + 2 * self.config.answer))
    }
}
