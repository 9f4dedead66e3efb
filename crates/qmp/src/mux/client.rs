use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::json;

use super::{Action, ClientId, Mux, own, text};
use crate::decode::{DecodeError, Decoder};
use crate::error::ErrorClass;
use crate::message::{Kind, Member, Message};
use crate::monitor::Request;
use crate::policy::{Peer, Role};

/// A local client.
#[derive(Debug)]
pub(super) struct Client {
    decoder: Decoder,
    pub(super) role: Arc<Role>,
    pub(super) peer: Peer,
    greeted: bool,
    negotiated: bool,
    oob: bool,
    /// Names of events that it wants; nothing: all.
    pub(super) wanted: Option<Vec<String>>,
    waiting: VecDeque<Waiting>,
    /// Requests in band that are with QEMU.
    pub(super) in_band: usize,
    /// Requests out of band that are with QEMU.
    pub(super) out_of_band: usize,
    output: VecDeque<Output>,
    answer_bytes: usize,
    event_bytes: usize,
    /// Events that it was not given since the last that it was.
    missed: u64,
}

/// Bytes for a client.
#[derive(Debug)]
struct Output {
    text: Arc<str>,
    event: bool,
}

/// What stands in a client's queue.
#[derive(Debug)]
enum Waiting {
    /// A request that was not sent yet.
    Request(Box<Asked>),
    /// An answer that waits for those before it.
    Answer(String),
}

/// A request of a client.
#[derive(Debug)]
pub(super) struct Asked {
    /// The client's own id, as it is written.
    pub(super) id: Option<Box<str>>,
    pub(super) request: Request,
    pub(super) deadline: Instant,
}

impl Asked {
    fn len(&self) -> usize {
        self.request.command.len() + self.request.arguments.as_ref().map_or(0, |raw| raw.get().len())
    }
}

impl Client {
    pub(super) fn new(decoder: Decoder, role: Arc<Role>, peer: Peer) -> Self {
        Self {
            decoder,
            role,
            peer,
            greeted: false,
            negotiated: false,
            oob: false,
            wanted: None,
            waiting: VecDeque::new(),
            in_band: 0,
            out_of_band: 0,
            output: VecDeque::new(),
            answer_bytes: 0,
            event_bytes: 0,
            missed: 0,
        }
    }

    pub(super) fn greet(&mut self, greeting: &str) {
        if !self.greeted {
            self.greeted = true;
            self.put(greeting.into(), false);
        }
    }

    fn put(&mut self, text: Arc<str>, event: bool) {
        *(if event { &mut self.event_bytes } else { &mut self.answer_bytes }) += text.len();
        self.output.push_back(Output { text, event });
    }

    pub(super) fn put_answer(&mut self, text: String) {
        self.put(text.into(), false);
    }

    /// Gives it an event if it wants it and has room.
    pub(super) fn put_event(&mut self, name: &str, text: &Arc<str>, limit: usize) {
        let wants = |wanted: &Vec<String>| wanted.iter().any(|wanted| wanted == name || wanted == "*");
        if !self.negotiated || !self.role.allows_event(name) || !self.wanted.as_ref().is_none_or(wants) {
            return;
        }
        self.put_event_anyway(text, limit);
    }

    /// The same for our own events, which no role hides.
    pub(super) fn put_event_anyway(&mut self, text: &Arc<str>, limit: usize) {
        if !self.negotiated {
            return;
        }
        if self.event_bytes + text.len() > limit {
            self.missed += 1;
            return;
        }
        if self.missed > 0 {
            let missed = std::mem::take(&mut self.missed);
            self.put(text::own_event("OUTRIGGER_EVENTS_MISSED", &json!({"count": missed})), true);
        }
        self.put(Arc::clone(text), true);
    }

    pub(super) fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// When its oldest waiting request times out.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting
            .iter()
            .filter_map(|waiting| match waiting {
                Waiting::Request(asked) => Some(asked.deadline),
                Waiting::Answer(_) => None,
            })
            .min()
    }

    /// Answers its waiting requests whose time is over, or all of them, since there will be no session: why.
    pub(super) fn time_out(&mut self, now: Instant, over: Option<&str>) {
        for waiting in &mut self.waiting {
            if let Waiting::Request(asked) = waiting
                && (asked.deadline <= now || over.is_some())
            {
                let why = over.unwrap_or("there was no session in time");
                let text = format!("{} was not sent to QEMU: {why}", asked.request.command);
                *waiting = Waiting::Answer(text::error(&ErrorClass::Generic, &text, asked.id.as_deref()));
            }
        }
        self.release();
    }

    /// Gives out answers whose turn has come.
    fn release(&mut self) {
        while self.in_band == 0
            && let Some(Waiting::Answer(_)) = self.waiting.front()
        {
            if let Some(Waiting::Answer(text)) = self.waiting.pop_front() {
                self.put_answer(text);
            }
        }
    }

    /// A request in band was answered.
    pub(super) fn answered(&mut self, text: String, out_of_band: bool) {
        let count = if out_of_band { &mut self.out_of_band } else { &mut self.in_band };
        *count = count.saturating_sub(1);
        self.put_answer(text);
        self.release();
    }

    /// An answer of ours, in its turn.
    fn reply(&mut self, text: String, out_of_band: bool) {
        if out_of_band || (self.in_band == 0 && self.waiting.is_empty()) {
            self.put_answer(text);
        } else {
            self.waiting.push_back(Waiting::Answer(text));
        }
    }

    /// The next request that may be sent.
    pub(super) fn next_request(&mut self, window: bool, oob_window: bool) -> Option<Asked> {
        let at = self.waiting.iter().position(|waiting| match waiting {
            Waiting::Request(asked) if asked.request.out_of_band => oob_window,
            _ => false,
        });
        let at = match (at, self.waiting.front()) {
            (Some(at), _) => at,
            (None, Some(Waiting::Request(asked))) if window && !asked.request.out_of_band => 0,
            _ => return None,
        };
        match self.waiting.remove(at) {
            Some(Waiting::Request(asked)) => {
                let count = if asked.request.out_of_band { &mut self.out_of_band } else { &mut self.in_band };
                *count += 1;
                Some(*asked)
            }
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Capabilities {
    #[serde(default)]
    enable: Vec<String>,
}

impl Mux {
    /// Whether a client's bytes should be read now; otherwise when some of its answers are written or have come.
    #[must_use]
    pub fn wants_client_bytes(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_some_and(|client| {
            client.waiting.len() + client.in_band + client.out_of_band < self.config.requests
                && client.answer_bytes < self.config.event_bytes
        })
    }

    /// Whether there are bytes for a client.
    #[must_use]
    pub fn has_client_output(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_some_and(|client| !client.output.is_empty())
    }

    /// Takes the next bytes for a client.
    pub fn take_client_output(&mut self, id: ClientId) -> Option<Arc<str>> {
        let client = self.clients.get_mut(&id)?;
        let Output { text, event } = client.output.pop_front()?;
        let bytes = if event { &mut client.event_bytes } else { &mut client.answer_bytes };
        *bytes = bytes.saturating_sub(text.len());
        Some(text)
    }

    /// A client's bytes.
    pub fn client_bytes(&mut self, id: ClientId, bytes: &[u8], now: Instant) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.decoder.push(bytes);
        }
        self.read_client(id, now);
    }

    /// Reads on in what a client has sent, as far as it may have requests.
    pub fn read_client(&mut self, id: ClientId, now: Instant) {
        while self.wants_client_bytes(id) {
            let Some(client) = self.clients.get_mut(&id) else { return };
            match client.decoder.next_message() {
                Some(Ok(message)) => self.client_message(id, &message, now),
                Some(Err(DecodeError::Limit { what, limit })) => {
                    let text = format!("the request has more than {limit} {what}");
                    return self.turn_out(id, &text);
                }
                Some(Err(error)) => {
                    client.reply(text::error(&ErrorClass::Generic, &error.to_string(), None), false);
                    client.decoder.skip_line();
                }
                None => break,
            }
        }
        self.turns_for(id);
        self.send_waiting(now);
    }

    /// Closes a client with a last message.
    fn turn_out(&mut self, id: ClientId, why: &str) {
        let mut last = Vec::new();
        while let Some(text) = self.take_client_output(id) {
            last.extend_from_slice(text.as_bytes());
        }
        last.extend_from_slice(text::error(&ErrorClass::Generic, why, None).as_bytes());
        self.close_client(id);
        self.actions.push_back(Action::Close(id, last));
    }

    fn client_message(&mut self, id: ClientId, message: &Message, now: Instant) {
        let waiting: usize = self.clients.values().map(Client::waiting_bytes).sum();
        let offered = self.oob;
        let deadline = now + self.config.answer;
        let Some(client) = self.clients.get_mut(&id) else { return };
        let own_id = message.get(Member::Id).map(Box::<str>::from);
        let out_of_band = message.get(Member::ExecOob).is_some();
        let refuse = |client: &mut Client, class: &ErrorClass, text: &str| {
            client.reply(text::error(class, text, message.get(Member::Id)), out_of_band && client.oob);
        };
        let name = message.string(if out_of_band { Member::ExecOob } else { Member::Execute });
        let (Kind::Request, Some(command), false) = (message.kind(), name, message.has_others()) else {
            return refuse(
                client,
                &ErrorClass::Generic,
                "a request has execute or exec-oob, arguments and id",
            );
        };
        let arguments = message.get(Member::Arguments);
        if arguments.is_some_and(|arguments| !arguments.starts_with('{')) {
            return refuse(client, &ErrorClass::Generic, "arguments must be an object");
        }
        if command == "qmp_capabilities" {
            return match client.negotiate(arguments, offered) {
                Ok(()) => client.reply(text::answer("{}", own_id.as_deref()), false),
                Err((class, text)) => refuse(client, &class, &text),
            };
        }
        if !client.negotiated {
            let text = "Expecting capabilities negotiation with 'qmp_capabilities'";
            return refuse(client, &ErrorClass::CommandNotFound, text);
        }
        if out_of_band && !client.oob {
            return refuse(
                client,
                &ErrorClass::Generic,
                "exec-oob needs the capability oob, which was not enabled",
            );
        }
        if command.starts_with(own::PREFIX) {
            return self.own_command(id, &command, message, out_of_band);
        }
        if let Err(denied) = client.role.check(&command, arguments) {
            return refuse(client, &ErrorClass::Generic, &denied.to_string());
        }
        let request = Request { command, arguments: message.raw(Member::Arguments), out_of_band };
        let asked = Asked { id: own_id, request, deadline };
        if waiting + asked.len() > self.config.request_bytes {
            return refuse(client, &ErrorClass::Generic, "too many requests are already waiting");
        }
        client.waiting.push_back(Waiting::Request(Box::new(asked)));
    }

    /// An answer of ours to a client, in its turn.
    pub(super) fn reply(&mut self, id: ClientId, text: String, out_of_band: bool) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.reply(text, out_of_band);
        }
    }
}

impl Client {
    fn waiting_bytes(&self) -> usize {
        self.waiting
            .iter()
            .map(|waiting| match waiting {
                Waiting::Request(asked) => asked.len(),
                Waiting::Answer(text) => text.len(),
            })
            .sum()
    }

    fn negotiate(&mut self, arguments: Option<&str>, oob: bool) -> Result<(), (ErrorClass, String)> {
        if self.negotiated {
            let text = "Capabilities negotiation is already complete, command ignored".to_owned();
            return Err((ErrorClass::CommandNotFound, text));
        }
        let Capabilities { enable } = serde_json::from_str(arguments.unwrap_or("{}"))
            .map_err(|error| (ErrorClass::Generic, error.to_string()))?;
        if let Some(unknown) = enable.iter().find(|name| *name != "oob") {
            let shown = crate::error::harmless(unknown, 64);
            return Err((ErrorClass::Generic, format!("the capability {shown} is not offered")));
        }
        if !enable.is_empty() && !oob {
            return Err((ErrorClass::Generic, "this QEMU does not support oob".to_owned()));
        }
        self.oob = !enable.is_empty();
        self.negotiated = true;
        Ok(())
    }
}
