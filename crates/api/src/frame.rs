//! Varlink frames: JSON objects, each ended by a NUL byte; bounded, without I/O.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

/// The longest frame that either side takes, in bytes. A configuration file is at most 1 MiB, and JSON's escapes can
/// double it.
pub const MAX_FRAME: usize = 4 << 20;

/// A call: `method` is the full name, such as `io.outrigger.List`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Full name of the method.
    pub method: String,
    /// The method's parameters, an object; left unread until the method is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Box<RawValue>>,
    /// Whether the caller takes several replies.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub more: bool,
    /// Whether the caller wants no reply.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub oneway: bool,
}

/// A reply: an error when `error` is there.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    /// Full name of the error, such as `io.outrigger.NoSuchGuest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The reply's or the error's parameters, an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Box<RawValue>>,
    /// Whether more replies to the same call follow.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub continues: bool,
}

/// Why bytes are not a frame.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The other side sent more than [`MAX_FRAME`] bytes without an end.
    #[error("The message is longer than {MAX_FRAME} bytes")]
    TooLong,
    /// The frame is not the JSON object that was expected.
    #[error("The message is not valid here in the varlink protocol")]
    Malformed(#[source] serde_json::Error),
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Splitter {
    bytes: Vec<u8>,
    /// Bytes at the start of `bytes` that are known to have no NUL.
    scanned: usize,
}

impl Splitter {
    /// Takes bytes as they came.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] when an unfinished frame has grown beyond [`MAX_FRAME`]; the connection is then useless.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > MAX_FRAME && !self.bytes[self.scanned..].contains(&0) {
            return Err(FrameError::TooLong);
        }
        Ok(())
    }

    /// Returns the next whole frame without its NUL, if there is one.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        let Some(end) = self.bytes[self.scanned..].iter().position(|&b| b == 0).map(|at| at + self.scanned)
        else {
            self.scanned = self.bytes.len();
            return None;
        };
        let mut frame: Vec<u8> = self.bytes.drain(..=end).collect();
        frame.pop();
        self.scanned = 0;
        Some(frame)
    }
}

/// Encodes a call or a reply with its NUL.
///
/// # Errors
/// [`FrameError::Malformed`] when the value cannot be JSON, [`FrameError::TooLong`] beyond [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = serde_json::to_vec(message).map_err(FrameError::Malformed)?;
    if bytes.len() >= MAX_FRAME {
        return Err(FrameError::TooLong);
    }
    bytes.push(0);
    Ok(bytes)
}

/// Decodes a frame that [`Splitter`] cut.
///
/// # Errors
/// [`FrameError::Malformed`] when it is not JSON of the type.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(frame).map_err(FrameError::Malformed)
}

/// Turns typed parameters into the raw object of a [`Request`] or [`Reply`].
///
/// # Errors
/// [`FrameError::Malformed`] when the value cannot be JSON.
pub fn parameters<T: Serialize>(value: &T) -> Result<Box<RawValue>, FrameError> {
    serde_json::value::to_raw_value(value).map_err(FrameError::Malformed)
}

/// Reads typed parameters; absent ones are an empty object.
///
/// # Errors
/// [`FrameError::Malformed`] when a field is missing or of another type.
pub fn read_parameters<T: DeserializeOwned>(raw: Option<&RawValue>) -> Result<T, FrameError> {
    serde_json::from_str(raw.map_or("{}", RawValue::get)).map_err(FrameError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn endless_frame_is_refused() {
        let mut splitter = Splitter::default();
        let chunk = vec![b'x'; 1 << 20];
        let mut result = Ok(());
        for _ in 0..5 {
            result = splitter.push(&chunk);
        }
        assert!(matches!(result, Err(FrameError::TooLong)));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(frames in prop::collection::vec("[a-z\"{}]{0,40}", 0..6), step in 1usize..9) {
            let stream: Vec<u8> = frames.iter().flat_map(|f| f.bytes().chain([0])).collect();
            let mut splitter = Splitter::default();
            let mut seen = Vec::new();
            for chunk in stream.chunks(step) {
                splitter.push(chunk).unwrap();
                while let Some(frame) = splitter.next_frame() {
                    seen.push(String::from_utf8(frame).unwrap());
                }
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Reply>(&bytes);
        }
    }
}
