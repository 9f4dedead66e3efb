//! QMP over a plain console: a stream without connections, so without a greeting for whoever comes next.
//!
//! The next one finds QEMU in the middle of a request that the last one has half sent, and its own first bytes in the
//! middle of an answer. [`Resync`] puts both right, in the stream itself:
//!
//! 1. It sends [`RESET`]: the byte 0xff, which no UTF-8 has and so no JSON, and a line break. QEMU's lexer drops what it
//!    has of a token and a message at a byte that cannot be (`qobject/json-lexer.c`; the guest agent is synchronized so
//!    as well, `docs/interop/qmp-spec.rst`) and answers with an error that has no id.
//! 2. It sends `qmp_capabilities` with an id that nobody has used. The answer with that id, an error too (QEMU does not
//!    negotiate twice), proves that QEMU's parser is in step.
//! 3. It drops everything that comes before the line with that answer: half an answer, answers to requests of others,
//!    events, the error of step 1. What comes behind it is the session.
//!
//! A reset that is lost on the way (the console had no reader) is sent again after a while.

use std::time::{Duration, Instant};

use crate::decode::Decoder;
use crate::limits::Limits;
use crate::message::{Kind, Member, Message};

/// Ends whatever half message QEMU has.
pub const RESET: &[u8] = b"\xff\n";
/// How long an answer to the reset may take before another is sent.
const AGAIN: Duration = Duration::from_secs(2);

/// Brings a stream in step.
#[derive(Debug)]
pub struct Resync {
    limits: Limits,
    nonce: String,
    tries: u32,
    sent: Option<Instant>,
    /// The line that is being read, while not in step.
    line: Vec<u8>,
    /// The line is longer than an answer of ours can be.
    overlong: bool,
    decoder: Option<Decoder>,
}

impl Resync {
    /// A stream that is not in step. `nonce`: a text that no earlier session has used, such as 16 random bytes in
    /// hexadecimal.
    #[must_use]
    pub fn new(limits: Limits, nonce: &str) -> Self {
        Self {
            limits,
            nonce: nonce.chars().filter(char::is_ascii_alphanumeric).take(64).collect(),
            tries: 0,
            sent: None,
            line: Vec::new(),
            overlong: false,
            decoder: None,
        }
    }

    /// What has to be sent now; nothing while in step or while an answer may still come.
    pub fn poll_send(&mut self, now: Instant) -> Option<Vec<u8>> {
        let due = self.sent.is_none_or(|sent| now.saturating_duration_since(sent) >= AGAIN);
        if self.is_in_step() || !due {
            return None;
        }
        self.sent = Some(now);
        self.tries += 1;
        let mut bytes = RESET.to_vec();
        let id = self.id();
        bytes.extend_from_slice(format!("{{\"execute\":\"qmp_capabilities\",\"id\":\"{id}\"}}\n").as_bytes());
        Some(bytes)
    }

    fn id(&self) -> String {
        // Not the try's number: the answer to any of them proves that QEMU is in step behind it.
        format!("resync-{}", self.nonce)
    }

    /// Whether what comes is the session.
    #[must_use]
    pub const fn is_in_step(&self) -> bool {
        self.decoder.is_some()
    }

    /// How many resets were sent.
    #[must_use]
    pub const fn tries(&self) -> u32 {
        self.tries
    }

    /// Takes bytes as they came; gives the messages of the session, none before it is in step.
    ///
    /// What answers a reset that was sent twice is left out. Bytes that are no message put the stream out of step:
    /// a reset is due then.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut rest = bytes;
        while self.decoder.is_none() && !rest.is_empty() {
            rest = self.search(rest);
        }
        let Some(decoder) = &mut self.decoder else { return messages };
        decoder.push(rest);
        loop {
            let message = self.decoder.as_mut().and_then(Decoder::next_message);
            match message {
                Some(Ok(message)) if self.is_ours(&message) || is_stray(&message) => {}
                Some(Ok(message)) => messages.push(message),
                Some(Err(_)) => {
                    (self.decoder, self.sent) = (None, None);
                    return messages;
                }
                None => return messages,
            }
        }
    }

    fn is_ours(&self, message: &Message) -> bool {
        message.string(Member::Id).is_some_and(|id| id == self.id())
    }

    /// Looks for the line with our answer; gives what is behind what it has looked at.
    fn search<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        /// Far longer than the answer, an error with its description.
        const LINE: usize = 1024;
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let (part, rest) = match end {
            Some(end) => (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default()),
            None => (bytes, &[][..]),
        };
        self.overlong = self.overlong || self.line.len() + part.len() > LINE;
        if self.overlong {
            self.line.clear();
        } else {
            self.line.extend_from_slice(part);
        }
        if end.is_some() {
            let line = std::mem::take(&mut self.line);
            if !std::mem::take(&mut self.overlong) && self.answers(&line) {
                self.decoder = Some(Decoder::new(self.limits));
            }
        }
        rest
    }

    /// Whether a line ends with our answer. What stands before it in the line is the tail of half an answer whose
    /// line break was lost.
    fn answers(&self, line: &[u8]) -> bool {
        let starts = line.iter().enumerate().filter(|(_, byte)| **byte == b'{').map(|(at, _)| at);
        starts.take(8).any(|at| {
            let mut decoder = Decoder::new(self.limits);
            decoder.push(line.get(at..).unwrap_or_default());
            match decoder.next_message() {
                Some(Ok(message)) => {
                    let is_answer = matches!(message.kind(), Kind::Return | Kind::Error);
                    is_answer && self.is_ours(&message) && !decoder.is_inside()
                }
                _ => false,
            }
        })
    }
}

/// An error without an id: QEMU's answer to the byte that resets it.
fn is_stray(message: &Message) -> bool {
    message.kind() == Kind::Error && message.get(Member::Id).is_none()
}

#[cfg(test)]
mod tests;
