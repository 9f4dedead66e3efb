//! A message whose syntax has been checked, with its outermost members found.

use std::ops::Range;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// A member of a message that means something in QMP (QEMU's `docs/interop/qmp-spec.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// `QMP`, of a greeting.
    Qmp,
    /// `return`, of an answer.
    Return,
    /// `error`, of an answer.
    Error,
    /// `event`: its name.
    Event,
    /// `data`, of an event.
    Data,
    /// `timestamp`, of an event.
    Timestamp,
    /// `id`, of a request or an answer.
    Id,
    /// `execute`: the name of a command in its turn.
    Execute,
    /// `exec-oob`: the name of a command out of its turn.
    ExecOob,
    /// `arguments`, of a request.
    Arguments,
    /// Any other: ignored in what QEMU says, refused in what a client asks.
    Other,
}

const KNOWN: usize = 10;

impl Member {
    pub(crate) fn of(name: &[u8]) -> Self {
        match name {
            b"QMP" => Self::Qmp,
            b"return" => Self::Return,
            b"error" => Self::Error,
            b"event" => Self::Event,
            b"data" => Self::Data,
            b"timestamp" => Self::Timestamp,
            b"id" => Self::Id,
            b"execute" => Self::Execute,
            b"exec-oob" => Self::ExecOob,
            b"arguments" => Self::Arguments,
            _ => Self::Other,
        }
    }
}

/// Where the values of the outermost members are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    known: [Option<(u32, u32)>; KNOWN],
    other: bool,
}

impl Members {
    pub(crate) fn set(&mut self, member: Member, range: Range<usize>) {
        let range = (u32::try_from(range.start).ok(), u32::try_from(range.end).ok());
        match (self.known.get_mut(member as usize), range) {
            (Some(place), (Some(start), Some(end))) => *place = Some((start, end)),
            _ => self.other = true,
        }
    }

    fn get(&self, member: Member) -> Option<Range<usize>> {
        let (start, end) = (*self.known.get(member as usize)?)?;
        Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A greeting.
    Greeting,
    /// An answer that gives something back.
    Return,
    /// An answer with an error.
    Error,
    /// An event.
    Event,
    /// A request.
    Request,
    /// Nothing that QMP knows, or several of these at once.
    Other,
}

/// A JSON object that keeps every limit.
#[derive(Clone, Debug)]
pub struct Message {
    text: String,
    members: Members,
}

impl Message {
    pub(crate) const fn new(text: String, members: Members) -> Self {
        Self { text, members }
    }

    /// The whole message.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A member's value as it is written.
    #[must_use]
    pub fn get(&self, member: Member) -> Option<&str> {
        self.text.get(self.members.get(member)?)
    }

    /// Whether it has a member that QMP does not know.
    #[must_use]
    pub const fn has_others(&self) -> bool {
        self.members.other
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        let has = |member| self.members.get(member).is_some();
        let kinds = [
            (has(Member::Qmp), Kind::Greeting),
            (has(Member::Return), Kind::Return),
            (has(Member::Error), Kind::Error),
            (has(Member::Event), Kind::Event),
            (has(Member::Execute), Kind::Request),
            (has(Member::ExecOob), Kind::Request),
        ];
        let mut found = kinds.into_iter().filter(|(there, _)| *there);
        match (found.next(), found.next()) {
            (Some((_, kind)), None) => kind,
            _ => Kind::Other,
        }
    }

    /// A member as a string; nothing when it is absent or no string.
    #[must_use]
    pub fn string(&self, member: Member) -> Option<String> {
        self.read(member)
    }

    /// A member as a value of a type; nothing when it is absent or of another type.
    #[must_use]
    pub fn read<T: DeserializeOwned>(&self, member: Member) -> Option<T> {
        serde_json::from_str(self.get(member)?).ok()
    }

    /// A member's value for handing on unread.
    #[must_use]
    pub fn raw(&self, member: Member) -> Option<Box<RawValue>> {
        // It has been checked already, but only serde can make one without checking it again.
        RawValue::from_string(self.get(member)?.to_owned()).ok()
    }
}
