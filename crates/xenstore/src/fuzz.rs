//! The entry of fuzzers.

use crate::codes::ErrorCode;
use crate::event::WatchEvent;
use crate::path::{RelPath, XsPath};
use crate::permissions::Permissions;
use crate::wire::{Decoder, Message, PAYLOAD_MAX, strings};

/// Feeds bytes to everything here that reads bytes of a peer; for fuzzers. Never panics, whatever the bytes are.
pub fn fuzz(data: &[u8]) {
    fuzz_decoder(Decoder::new(), data);
    fuzz_decoder(Decoder::for_client(), data);
}

fn fuzz_decoder(mut decoder: Decoder, data: &[u8]) {
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
    if message.payload.len() <= PAYLOAD_MAX {
        let again = message.encode().map(|bytes| Decoder::new().push(&mut bytes.as_slice()));
        assert!(again.is_ok_and(|decoded| decoded.as_ref().is_ok_and(|m| m.as_ref() == Some(message))));
    }
    let _ = WatchEvent::parse(&message.payload);
    if let Ok(strings) = strings(&message.payload) {
        let _ = Permissions::from_strings(strings.iter().copied());
        for text in strings {
            let _ = (XsPath::new(text), RelPath::new(text), ErrorCode::from_name(text));
        }
    }
}
