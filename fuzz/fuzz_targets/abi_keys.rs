//! What a stubdomain writes below its own directory, as the toolstack reads it.
#![no_main]

use stubdom_abi::{AgentExit, DmState, Features, Heartbeat, StubDevid, harmless};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = harmless(data);
    assert!(
        text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()),
        "{text:?} could steer a terminal"
    );
    let _ = DmState::decode(data);
    let features = Features::decode(data);
    assert_eq!(Features::decode(features.encode().as_bytes()), features);
    let exit = AgentExit::decode(data);
    assert_eq!(AgentExit::decode(exit.encode().as_bytes()).is_clean(), exit.is_clean());
    if let Some(heartbeat) = Heartbeat::decode(data) {
        assert_eq!(Heartbeat::decode(heartbeat.encode().as_bytes()), Some(heartbeat));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<StubDevid>();
    }
});
