use core::fmt;
use std::collections::VecDeque;

use crate::path::{RelPath, SpecialWatch, XsPath, shown};
use crate::wire::{WireError, strings};

/// The most events that wait to be taken; when one more comes, all make place for one that says "look again".
pub(crate) const QUEUE_MAX: usize = 1024;

/// Tells that a node, or something below it, may have changed.
///
/// Events say "look again", not what happened: xenstored sends one when a watch is set, may send more than
/// necessary and may fold several into one (`docs/misc/xenstore.txt`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What changed: the watched path or one below it.
    pub path: EventPath,
    /// The token that the watch was set with.
    pub token: String,
}

impl WatchEvent {
    /// Reads the payload of a watch event.
    ///
    /// # Errors
    /// When it does not begin with two strings.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        match strings(payload)?.as_slice() {
            [path, token, ..] => Ok(Self { path: EventPath::new(path), token: (*token).to_owned() }),
            _ => Err(WireError::NotText),
        }
    }
}

/// What a watch event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventPath {
    /// A node; the watch was set on an absolute path.
    Node(XsPath),
    /// A node; the watch was set on a relative path.
    Relative(RelPath),
    /// A domain came or went.
    Special(SpecialWatch),
    /// Something that has no meaning here, cut when it is long.
    Other(String),
}

impl EventPath {
    pub(crate) fn new(text: &str) -> Self {
        for special in [SpecialWatch::IntroduceDomain, SpecialWatch::ReleaseDomain] {
            if text == special.as_str() {
                return Self::Special(special);
            }
        }
        if let Ok(path) = XsPath::new(text) {
            Self::Node(path)
        } else if let Ok(path) = RelPath::new(text) {
            Self::Relative(path)
        } else {
            Self::Other(shown(text))
        }
    }

    /// The absolute path, when the event is about a node and the watch was set on an absolute path.
    #[must_use]
    pub fn node(&self) -> Option<&XsPath> {
        if let Self::Node(path) = self { Some(path) } else { None }
    }

    /// The text of the path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Node(path) => path.as_str(),
            Self::Relative(path) => path.as_str(),
            Self::Special(special) => special.as_str(),
            Self::Other(text) => text,
        }
    }
}

impl fmt::Display for EventPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Events that wait to be taken: bounded, each only once.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    events: VecDeque<WatchEvent>,
}

impl EventQueue {
    /// Adds an event unless the same one waits already; gives whether the queue was full and is untouched.
    pub(crate) fn push(&mut self, event: WatchEvent) -> Result<(), QueueFull> {
        if self.events.contains(&event) {
            return Ok(());
        }
        if self.events.len() >= QUEUE_MAX {
            return Err(QueueFull);
        }
        self.events.push_back(event);
        Ok(())
    }

    pub(crate) fn pop(&mut self) -> Option<WatchEvent> {
        self.events.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn take_matching(&mut self, token: &str) -> Option<WatchEvent> {
        let at = self.events.iter().position(|event| event.token == token)?;
        self.events.remove(at)
    }

    pub(crate) fn replace_with(&mut self, events: impl IntoIterator<Item = WatchEvent>) {
        self.events.clear();
        self.events.extend(events);
    }

    pub(crate) fn drop_token(&mut self, token: &str) {
        self.events.retain(|event| event.token != token);
    }
}

pub(crate) struct QueueFull;
