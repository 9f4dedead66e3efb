//! The wire protocol: a 16-byte header and at most 4096 bytes of payload, in both directions.
//!
//! Facts are from `xen/include/public/io/xs_wire.h` and `docs/misc/xenstore.txt`. Nothing here does I/O, and the
//! decoder never stores more than one message.

use thiserror::Error;
use xen_types::{DomId, EventPort, Gfn};

use crate::operation::Operation;
use crate::path::{NodePath, WatchPath};
use crate::permissions::Permissions;

pub use crate::codes::{ErrorCode, MessageType};

/// Bytes of a message's header (`struct xsd_sockmsg`).
pub const HEADER_LEN: usize = 16;
/// The most bytes that follow a header (`XENSTORE_PAYLOAD_MAX`); xenstored ends a connection that sends more.
pub const PAYLOAD_MAX: usize = 4096;

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

#[cfg(test)]
mod tests;
