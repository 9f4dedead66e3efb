//! The wire protocol: a 16-byte header and at most 4096 bytes of payload, in both directions.
//!
//! oxenstored breaks that rule on its socket: it answers the listing of a long directory in one message. The decoder of a
//! client takes such an answer ([`Decoder::for_client`]).
//!
//! Facts are from `xen/include/public/io/xs_wire.h` and `docs/misc/xenstore.txt`. Nothing here does I/O, and the
//! decoder never stores more than one message.

mod request;

use thiserror::Error;

pub use crate::codes::{ErrorCode, MessageType};
pub use request::Request;

/// Bytes of a message's header (`struct xsd_sockmsg`).
pub const HEADER_LEN: usize = 16;
/// The most bytes that follow a header (`XENSTORE_PAYLOAD_MAX`); xenstored ends a connection that sends more.
pub const PAYLOAD_MAX: usize = 4096;
/// The most bytes of a list of names that is stored.
pub const LIST_MAX: usize = 1 << 20;
/// The longest list in bytes that is skipped instead of stored. With its quota of nodes a domain cannot make one as long.
const SKIPPED_MAX: usize = 1 << 26;

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
    is_client: bool,
    header: Vec<u8>,
    /// The message whose payload is still coming, and how long that will be.
    body: Option<(Message, usize)>,
    /// Bytes of a list too long to be stored that are still coming.
    skipping: usize,
}

impl Decoder {
    /// A decoder at the start of a message.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder of what xenstored sends, at the start of a message.
    ///
    /// oxenstored's answer to [`MessageType::Directory`] may have up to [`LIST_MAX`] bytes of payload. A longer one is
    /// skipped, and an error [`ErrorCode::TooBig`] comes in its place, as xenstored itself would have answered.
    #[must_use]
    pub fn for_client() -> Self {
        Self { is_client: true, ..Self::default() }
    }

    /// Takes bytes off the front of `input` until a message is whole or `input` is empty.
    ///
    /// Call it again while it gives messages: `input` may hold several.
    ///
    /// # Errors
    /// When a header announces more than [`PAYLOAD_MAX`] bytes, or more than any list has. The stream has no further
    /// message boundary then: the connection has to be closed.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Message>, WireError> {
        if self.body.is_none() {
            take(input, &mut self.header, HEADER_LEN);
            let Ok(header) = <[u8; HEADER_LEN]>::try_from(self.header.as_slice()) else {
                return Ok(None);
            };
            self.begin(&header)?;
            self.header.clear();
        }
        let skipped = self.skipping.min(input.len());
        *input = input.get(skipped..).unwrap_or_default();
        self.skipping -= skipped;
        let Some((message, length)) = &mut self.body else { return Ok(None) };
        take(input, &mut message.payload, *length);
        if self.skipping > 0 || message.payload.len() < *length {
            return Ok(None);
        }
        Ok(self.body.take().map(|(message, _)| message))
    }

    fn begin(&mut self, header: &[u8; HEADER_LEN]) -> Result<(), WireError> {
        let (mut message, mut length) = parse_header(header);
        let is_list = self.is_client && message.kind == MessageType::Directory;
        match length {
            0..=PAYLOAD_MAX => message.payload.reserve(length),
            // Its memory is taken as it comes.
            0..=LIST_MAX if is_list => {}
            0..=SKIPPED_MAX if is_list => {
                self.skipping = length;
                message.kind = MessageType::Error;
                message.payload = [ErrorCode::TooBig.name().as_bytes(), b"\0"].concat();
                length = message.payload.len();
            }
            _ => return Err(WireError::TooLong { kind: message.kind, length }),
        }
        self.body = Some((message, length));
        Ok(())
    }

    /// How many bytes are missing before the decoder knows more: of the header, or of the payload.
    ///
    /// At least 1, as an empty payload is whole with its header.
    #[must_use]
    pub fn missing(&self) -> usize {
        match &self.body {
            None => HEADER_LEN - self.header.len(),
            Some(_) if self.skipping > 0 => self.skipping,
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

fn parse_header(header: &[u8; HEADER_LEN]) -> (Message, usize) {
    let field = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let length = usize::try_from(field(12)).unwrap_or(usize::MAX);
    let kind = MessageType::from_raw(field(0));
    (Message { kind, req_id: field(4), tx_id: field(8), payload: Vec::new() }, length)
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

#[cfg(test)]
mod tests;
