//! The wire protocol: a 16-byte header and at most 4096 bytes of payload, in both directions.
//!
//! Facts are from `xen/include/public/io/xs_wire.h` and `docs/misc/xenstore.txt`. Nothing here does I/O, and the
//! decoder never stores more than one message.

use core::fmt;

use thiserror::Error;
use xen_types::{DomId, EventPort, Gfn};

use crate::error::Operation;
use crate::path::{NodePath, WatchPath, shown};
use crate::permissions::Permissions;

/// Bytes of a message's header (`struct xsd_sockmsg`).
pub const HEADER_LEN: usize = 16;
/// The most bytes that follow a header (`XENSTORE_PAYLOAD_MAX`); xenstored ends a connection that sends more.
pub const PAYLOAD_MAX: usize = 4096;

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $raw:literal,)*) => {
        /// What a message asks for or tells (`enum xsd_sockmsg_type`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum MessageType {
            $($(#[$doc])* $name,)*
            /// A number that has no meaning in the version of the protocol known here.
            Other(u32),
        }

        impl MessageType {
            /// The number on the wire.
            #[must_use]
            pub const fn to_raw(self) -> u32 {
                match self {
                    $(Self::$name => $raw,)*
                    Self::Other(raw) => raw,
                }
            }

            /// The meaning of a number on the wire; every number has one.
            #[must_use]
            pub const fn from_raw(raw: u32) -> Self {
                match raw {
                    $($raw => Self::$name,)*
                    other => Self::Other(other),
                }
            }
        }
    };
}

message_types! {
    /// A command for xenstored itself.
    Control = 0,
    /// Lists a node's children.
    Directory = 1,
    /// Reads a node's value.
    Read = 2,
    /// Reads a node's permissions.
    GetPerms = 3,
    /// Sets a watch.
    Watch = 4,
    /// Removes a watch.
    Unwatch = 5,
    /// Starts a transaction.
    TransactionStart = 6,
    /// Commits or drops a transaction.
    TransactionEnd = 7,
    /// Connects a domain to xenstored.
    Introduce = 8,
    /// Disconnects a domain from xenstored.
    Release = 9,
    /// Asks for a domain's directory.
    GetDomainPath = 10,
    /// Writes a node's value.
    Write = 11,
    /// Makes a node.
    Mkdir = 12,
    /// Removes a node and all below it.
    Rm = 13,
    /// Sets a node's permissions.
    SetPerms = 14,
    /// Tells that something watched has changed; only xenstored sends it, unasked.
    WatchEvent = 15,
    /// The answer to a request that failed.
    Error = 16,
    /// Asks whether a domain is connected to xenstored.
    IsDomainIntroduced = 17,
    /// Lets `@releaseDomain` fire again for a domain that was resumed.
    Resume = 18,
    /// Gives a domain the rights of another.
    SetTarget = 19,
    /// Removes all watches and transactions of the caller.
    ResetWatches = 21,
    /// Lists a part of a node's children.
    DirectoryPart = 22,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why xenstored refused a request: the names of `xsd_errors` in `xs_wire.h`.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A name that is not in the header's list, cut when it is long.
            Other(String),
        }

        impl ErrorCode {
            /// The name on the wire.
            #[must_use]
            pub fn name(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other(name) => name,
                }
            }

            /// The meaning of a name on the wire.
            #[must_use]
            pub fn from_name(name: &str) -> Self {
                match name {
                    $($text => Self::$name,)*
                    other => Self::Other(shown(other)),
                }
            }
        }
    };
}

error_codes! {
    /// The request is malformed or makes no sense.
    Invalid = "EINVAL",
    /// The caller may not do this with the node.
    Access = "EACCES",
    /// It is there already.
    Exists = "EEXIST",
    /// It is a directory.
    IsDirectory = "EISDIR",
    /// There is no such node, transaction or domain.
    NoEntry = "ENOENT",
    /// xenstored, or the caller's share of it, is out of memory.
    NoMemory = "ENOMEM",
    /// A quota of the caller is used up.
    NoSpace = "ENOSPC",
    /// xenstored could not read or write its store.
    Io = "EIO",
    /// The directory is not empty.
    NotEmpty = "ENOTEMPTY",
    /// xenstored does not know this request.
    NotImplemented = "ENOSYS",
    /// The store cannot be written.
    ReadOnly = "EROFS",
    /// xenstored is busy with another request of this kind.
    Busy = "EBUSY",
    /// A transaction met a change that someone else made; it can be tried again.
    Again = "EAGAIN",
    /// The domain is connected already.
    IsConnected = "EISCONN",
    /// The answer is longer than a message, or a quota of watches is used up.
    TooBig = "E2BIG",
    /// The caller may not do this at all.
    Permission = "EPERM",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One message, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it asks for or tells.
    pub kind: MessageType,
    /// The number that ties an answer to its request. Linux's `/dev/xen/xenbus` leaves it undefined in events.
    pub req_id: u32,
    /// The transaction that it belongs to, 0 for none.
    pub tx_id: u32,
    /// What follows the header, at most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

impl Message {
    /// The bytes of header and payload.
    ///
    /// # Errors
    /// When the payload is longer than [`PAYLOAD_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        encode(self.kind, self.req_id, self.tx_id, &self.payload)
    }
}

/// The bytes of a message with these fields.
///
/// # Errors
/// When the payload is longer than [`PAYLOAD_MAX`].
pub fn encode(kind: MessageType, req_id: u32, tx_id: u32, payload: &[u8]) -> Result<Vec<u8>, WireError> {
    let length = match u32::try_from(payload.len()) {
        Ok(length) if payload.len() <= PAYLOAD_MAX => length,
        _ => return Err(WireError::TooLong { kind, length: payload.len() }),
    };
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    for field in [kind.to_raw(), req_id, tx_id, length] {
        // The header is in the byte order of the machine: both ends are on the same one.
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    header: Vec<u8>,
    /// The message whose payload is still coming, and how long that will be.
    body: Option<(Message, usize)>,
}

impl Decoder {
    /// A decoder at the start of a message.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off the front of `input` until a message is whole or `input` is empty.
    ///
    /// Call it again while it gives messages: `input` may hold several.
    ///
    /// # Errors
    /// When a header announces more than [`PAYLOAD_MAX`] bytes. The stream has no further message boundary then:
    /// the connection has to be closed.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Message>, WireError> {
        if self.body.is_none() {
            take(input, &mut self.header, HEADER_LEN);
            let Ok(header) = <&[u8; HEADER_LEN]>::try_from(self.header.as_slice()) else {
                return Ok(None);
            };
            self.body = Some(parse_header(header)?);
            self.header.clear();
        }
        let Some((message, length)) = &mut self.body else { return Ok(None) };
        take(input, &mut message.payload, *length);
        if message.payload.len() < *length {
            return Ok(None);
        }
        Ok(self.body.take().map(|(message, _)| message))
    }

    /// How many bytes are missing before the decoder knows more: of the header, or of the payload.
    ///
    /// At least 1, as an empty payload is whole with its header.
    #[must_use]
    pub fn missing(&self) -> usize {
        match &self.body {
            None => HEADER_LEN - self.header.len(),
            Some((message, length)) => length - message.payload.len(),
        }
    }

    /// Whether a message has begun and is not whole.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.body.is_some() || !self.header.is_empty()
    }
}

/// Moves bytes from `input` until `into` has `want` of them.
fn take(input: &mut &[u8], into: &mut Vec<u8>, want: usize) {
    let missing = want.saturating_sub(into.len()).min(input.len());
    let (taken, rest) = input.split_at(missing);
    into.extend_from_slice(taken);
    *input = rest;
}

fn parse_header(header: &[u8; HEADER_LEN]) -> Result<(Message, usize), WireError> {
    let field = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let kind = MessageType::from_raw(field(0));
    let length = usize::try_from(field(12)).unwrap_or(usize::MAX);
    if length > PAYLOAD_MAX {
        return Err(WireError::TooLong { kind, length });
    }
    let message = Message { kind, req_id: field(4), tx_id: field(8), payload: Vec::with_capacity(length) };
    Ok((message, length))
}

/// The strings of a payload that ends each of them with a NUL byte; a last one without it counts too.
///
/// # Errors
/// When a string is not UTF-8 (xenstored's names are ASCII).
pub fn strings(payload: &[u8]) -> Result<Vec<&str>, WireError> {
    let body = payload.strip_suffix(b"\0").unwrap_or(payload);
    if payload.is_empty() {
        return Ok(Vec::new());
    }
    body.split(|b| *b == 0).map(|s| core::str::from_utf8(s).map_err(|_| WireError::NotText)).collect()
}

/// Why bytes are not a message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// The payload is longer than the protocol allows.
    #[error("Xenstore message {kind:?} with {length} bytes of payload; at most {PAYLOAD_MAX} are allowed")]
    TooLong {
        /// What the message asks for or tells.
        kind: MessageType,
        /// Its length in bytes.
        length: usize,
    },
    /// A name is not text.
    #[error("Xenstore message with a name that is not UTF-8")]
    NotText,
}

/// One request, ready to be sent with any request number and in any transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    kind: MessageType,
    subject: String,
    payload: Vec<u8>,
}

impl Request {
    fn new(kind: MessageType, subject: &str, parts: &[&[u8]]) -> Self {
        Self { kind, subject: subject.to_owned(), payload: parts.concat() }
    }

    fn on_path(kind: MessageType, path: &str) -> Self {
        Self::new(kind, path, &[path.as_bytes(), b"\0"])
    }

    fn on_domain(kind: MessageType, domid: DomId) -> Self {
        let number = domid.to_string();
        Self::new(kind, &format!("domain {number}"), &[number.as_bytes(), b"\0"])
    }

    /// Reads a node's value.
    #[must_use]
    pub fn read(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::Read, path.wire())
    }

    /// Writes a node's value, and makes the node and what is missing above it.
    #[must_use]
    pub fn write(path: &dyn NodePath, value: &[u8]) -> Self {
        Self::new(MessageType::Write, path.wire(), &[path.wire().as_bytes(), b"\0", value])
    }

    /// Makes a node with an empty value unless it is there.
    #[must_use]
    pub fn mkdir(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::Mkdir, path.wire())
    }

    /// Removes a node and all below it.
    #[must_use]
    pub fn rm(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::Rm, path.wire())
    }

    /// Lists a node's children.
    #[must_use]
    pub fn directory(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::Directory, path.wire())
    }

    /// Lists a node's children from a byte of the whole list on.
    #[must_use]
    pub fn directory_part(path: &dyn NodePath, offset: usize) -> Self {
        let offset = offset.to_string();
        Self::new(
            MessageType::DirectoryPart,
            path.wire(),
            &[path.wire().as_bytes(), b"\0", offset.as_bytes(), b"\0"],
        )
    }

    /// Reads a node's permissions.
    #[must_use]
    pub fn get_perms(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::GetPerms, path.wire())
    }

    /// Sets the permissions of a node, or (domain 0 only) who may watch a special event.
    #[must_use]
    pub fn set_perms(path: &dyn WatchPath, permissions: &Permissions) -> Self {
        let mut request = Self::on_path(MessageType::SetPerms, path.watch_wire());
        for text in permissions.to_strings() {
            request.payload.extend_from_slice(text.as_bytes());
            request.payload.push(0);
        }
        request
    }

    /// Sets a watch that names its events with `token`.
    #[must_use]
    pub fn watch(path: &dyn WatchPath, token: &str) -> Self {
        let path = path.watch_wire();
        Self::new(MessageType::Watch, path, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"])
    }

    /// Removes a watch; path and token as when it was set.
    #[must_use]
    pub fn unwatch(path: &dyn WatchPath, token: &str) -> Self {
        let path = path.watch_wire();
        Self::new(MessageType::Unwatch, path, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"])
    }

    /// Removes all watches and transactions of the caller.
    #[must_use]
    pub fn reset_watches() -> Self {
        Self::new(MessageType::ResetWatches, "", &[b"\0"])
    }

    /// Starts a transaction.
    #[must_use]
    pub fn transaction_start() -> Self {
        Self::new(MessageType::TransactionStart, "", &[b"\0"])
    }

    /// Commits or drops the transaction that it is sent in.
    #[must_use]
    pub fn transaction_end(commit: bool) -> Self {
        Self::new(MessageType::TransactionEnd, "", &[if commit { b"T\0" } else { b"F\0" }])
    }

    /// Connects a domain to xenstored over the page `gfn` and the domain's unbound event channel `port`.
    #[must_use]
    pub fn introduce(domid: DomId, gfn: Gfn, port: EventPort) -> Self {
        let mut request = Self::on_domain(MessageType::Introduce, domid);
        request.payload.extend_from_slice(format!("{gfn}\0{port}\0").as_bytes());
        request
    }

    /// Disconnects a domain from xenstored.
    #[must_use]
    pub fn release(domid: DomId) -> Self {
        Self::on_domain(MessageType::Release, domid)
    }

    /// Lets `@releaseDomain` fire again for a domain that was resumed.
    #[must_use]
    pub fn resume(domid: DomId) -> Self {
        Self::on_domain(MessageType::Resume, domid)
    }

    /// Asks for a domain's directory.
    #[must_use]
    pub fn get_domain_path(domid: DomId) -> Self {
        Self::on_domain(MessageType::GetDomainPath, domid)
    }

    /// Asks whether a domain is connected to xenstored.
    #[must_use]
    pub fn is_domain_introduced(domid: DomId) -> Self {
        Self::on_domain(MessageType::IsDomainIntroduced, domid)
    }

    /// Gives `domid` all rights that `target` has.
    #[must_use]
    pub fn set_target(domid: DomId, target: DomId) -> Self {
        let mut request = Self::on_domain(MessageType::SetTarget, domid);
        request.payload.extend_from_slice(format!("{target}\0").as_bytes());
        request
    }

    /// What the request asks for.
    #[must_use]
    pub const fn kind(&self) -> MessageType {
        self.kind
    }

    /// What follows the header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The request in words, for messages to people.
    #[must_use]
    pub fn operation(&self) -> Operation {
        Operation::new(self.kind, &self.subject)
    }

    /// The bytes of the request with this number in this transaction (0 for none).
    ///
    /// # Errors
    /// When path and value together are longer than [`PAYLOAD_MAX`].
    pub fn encode(&self, req_id: u32, tx_id: u32) -> Result<Vec<u8>, WireError> {
        encode(self.kind, req_id, tx_id, &self.payload)
    }
}

/// Feeds bytes to everything here that reads bytes of a peer; for fuzzers. Never panics, whatever the bytes are.
pub fn fuzz(data: &[u8]) {
    let mut decoder = Decoder::new();
    // The first byte says how the rest is cut into reads.
    let step = usize::from(data.first().copied().unwrap_or(0)) + 1;
    for chunk in data.chunks(step) {
        let mut input = chunk;
        loop {
            match decoder.push(&mut input) {
                Ok(Some(message)) => fuzz_message(&message),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn fuzz_message(message: &Message) {
    let again = message.encode().map(|bytes| Decoder::new().push(&mut bytes.as_slice()));
    assert!(again.is_ok_and(|decoded| decoded.as_ref().is_ok_and(|m| m.as_ref() == Some(message))));
    let _ = crate::event::WatchEvent::parse(&message.payload);
    if let Ok(strings) = strings(&message.payload) {
        let _ = Permissions::from_strings(strings.iter().copied());
        for text in strings {
            let _ = (crate::XsPath::new(text), crate::RelPath::new(text), ErrorCode::from_name(text));
        }
    }
}

#[cfg(test)]
mod tests;
