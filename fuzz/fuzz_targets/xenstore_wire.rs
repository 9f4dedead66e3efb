//! Everything that reads bytes of the other side of a xenstore connection: messages, however they are cut, paths,
//! permissions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xen_types::DomId;
use xenstore::wire::{Decoder, Message};
use xenstore::{ABS_PATH_MAX, REL_PATH_MAX, RelPath, XsPath};

fuzz_target!(|data: &[u8]| {
    xenstore::fuzz(data);
    let Some((cut, bytes)) = data.split_first() else { return };
    // The same bytes give the same messages, in one piece and in many, up to the first error.
    assert_eq!(decode(bytes, bytes.len().max(1)), decode(bytes, usize::from(*cut) + 1));
    if let Ok(text) = std::str::from_utf8(bytes) {
        paths(text);
    }
});

fn decode(bytes: &[u8], step: usize) -> (Vec<Message>, bool) {
    let (mut decoder, mut messages) = (Decoder::new(), Vec::new());
    for chunk in bytes.chunks(step) {
        let mut input = chunk;
        loop {
            match decoder.push(&mut input) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return (messages, false),
            }
        }
    }
    (messages, true)
}

fn paths(text: &str) {
    if let Ok(path) = XsPath::new(text) {
        assert!(path.as_str() == text && text.starts_with('/') && text.len() <= ABS_PATH_MAX);
        assert!(!text.contains("//") && !text.contains('\0'));
        if let Ok(child) = path.join("child") {
            assert!(child.as_str().starts_with(text) && child.file_name() == Some("child"));
        }
    }
    if let Ok(path) = RelPath::new(text) {
        assert!(path.as_str() == text && !text.starts_with('/') && text.len() <= REL_PATH_MAX);
        if let Ok(whole) = path.of_domain(DomId::DOM0) {
            assert_eq!(whole.as_str(), format!("/local/domain/0/{text}"));
        }
    }
}
