//! What the console daemon reads from xenstore: outputs, and the states that a frontend writes.
#![no_main]

use console::output::Output;
use libfuzzer_sys::fuzz_target;
use xenbus::XenbusState;

fuzz_target!(|data: &[u8]| {
    if let Some(state) = XenbusState::parse(data) {
        assert_eq!(XenbusState::parse(state.value()), Some(state));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(Output::File(path) | Output::Pipe(path)) = Output::parse(text) {
        assert!(path.is_absolute());
    }
});
