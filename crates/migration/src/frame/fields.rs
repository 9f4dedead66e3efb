//! Fields of bodies: numbers, identities and short texts.

use uuid::Uuid;

use super::error::FrameError;
use crate::record::Decision;

/// The length of the longest text in bytes.
pub(super) const MAX_TEXT: usize = 255;

/// Takes fields from the beginning of a body.
pub(super) struct Reader<'a> {
    pub(super) kind: u16,
    pub(super) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn error(&self, field: &'static str) -> FrameError {
        FrameError::Field { kind: self.kind, field }
    }

    pub(super) fn bytes<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FrameError> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.error(field))?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub(super) fn byte(&mut self, field: &'static str) -> Result<u8, FrameError> {
        self.bytes::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn short(&mut self, field: &'static str) -> Result<u16, FrameError> {
        self.bytes(field).map(u16::from_le_bytes)
    }

    pub(super) fn long(&mut self, field: &'static str) -> Result<u64, FrameError> {
        self.bytes(field).map(u64::from_le_bytes)
    }

    pub(super) fn uuid(&mut self, field: &'static str) -> Result<Uuid, FrameError> {
        self.bytes(field).map(Uuid::from_bytes)
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<String, FrameError> {
        let length = usize::from(self.byte(field)?);
        let (text, rest): (&'a [u8], _) =
            self.rest.split_at_checked(length).ok_or_else(|| self.error(field))?;
        self.rest = rest;
        let text = str::from_utf8(text).map_err(|_| self.error(field))?;
        // Shown to people, and written into logs.
        if text.chars().any(char::is_control) {
            return Err(self.error(field));
        }
        Ok(text.to_owned())
    }

    pub(super) fn decision(&mut self) -> Result<Decision, FrameError> {
        let time = self.long("time")?;
        Ok(Decision { operator: self.text("operator")?, time })
    }
}

/// Appends a text, cut to what fits.
pub(super) fn put_text(body: &mut Vec<u8>, text: &str) {
    let end =
        (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    let text = text.get(..end).unwrap_or_default();
    body.push(u8::try_from(text.len()).unwrap_or_default());
    body.extend_from_slice(text.as_bytes());
}

/// Appends who decided, and when.
pub(super) fn put_decision(body: &mut Vec<u8>, decision: &Decision) {
    body.extend_from_slice(&decision.time.to_le_bytes());
    put_text(body, &decision.operator);
}
