//! QMP over a plain console: a stream without connections, and so without a greeting for the next client.
//!
//! The next client finds QEMU in the middle of a request that the previous client had partly sent, and itself in the
//! middle of an answer. [`Resync`] solves both problems within the stream:
//!
//! 1. It sends [`RESET`]: the byte 0xff, which no UTF-8 has and so no JSON, and a line break. QEMU's lexer drops what it
//!    has of a token and a message at a byte that cannot be (`qobject/json-lexer.c`; the guest agent is synchronized so
//!    as well, `docs/interop/qmp-spec.rst`) and answers with an error that has no id.
//! 2. It sends `qmp_capabilities` with an id that nobody has used. The answer with that id, an error too (QEMU does not
//!    negotiate twice), proves that QEMU's parser is in step.
//! 3. It drops everything that comes before the line with that answer: half an answer, answers to requests of others,
//!    events, the error of step 1. What comes behind it is the session.
//!
//! A reset that is lost on the way (the console had no reader) is sent again after a while. What answers the resets that
//! were not needed comes within the session: [`Leftovers`] knows it.

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

/// The answers to resets that may still come when the stream is in step.
#[derive(Debug)]
pub struct Leftovers {
    id: String,
    /// Of those that have the id.
    answers: u32,
    /// Of errors without an id.
    strays: u32,
}

impl Leftovers {
    /// Whether a message is one of them: nobody else waits for it. No more are believed to be than resets were sent.
    pub fn takes(&mut self, message: &Message) -> bool {
        let left = if message.string(Member::Id).is_some_and(|id| id == self.id) {
            &mut self.answers
        } else if message.kind() == Kind::Error && message.get(Member::Id).is_none() {
            &mut self.strays
        } else {
            return false;
        };
        let takes = *left > 0;
        *left = left.saturating_sub(1);
        takes
    }
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

    /// When [`Self::poll_send`] has something to send; nothing: now.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.sent.map(|sent| sent + AGAIN)
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while self.decoder.is_none() && !rest.is_empty() {
            rest = self.search(rest);
        }
        if let Some(decoder) = &mut self.decoder {
            decoder.push(rest);
        }
    }

    /// The session, when the stream is in step: all that came behind the answer, and what has to be passed over in it.
    pub fn session(&mut self) -> Option<(Decoder, Leftovers)> {
        let decoder = self.decoder.take()?;
        let unneeded = self.tries.saturating_sub(1);
        Some((decoder, Leftovers { id: self.id(), answers: unneeded, strays: unneeded }))
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

#[cfg(test)]
mod tests;
