//! What a stubdomain writes below its own directory, as the toolstack reads it.
#![no_main]

use stubdom_abi::{
    AgentExit, DmState, Features, Heartbeat, MAX_STUB_VALUE, StubDevid, StubReport, harmless,
};
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
    report(data);
});

/// A whole report: in front of each value, a byte that chooses the key, and one with the value's length in pieces of
/// eight bytes.
fn report(data: &[u8]) {
    let mut values = Vec::new();
    let mut rest = data;
    while let [key, pieces, behind @ ..] = rest {
        let (value, behind) = behind.split_at(behind.len().min(usize::from(*pieces) * 8));
        values.push((StubReport::KEYS[usize::from(*key) % StubReport::KEYS.len()], value));
        rest = behind;
    }
    let report = StubReport::of(values);
    assert!(report.texts().count() <= StubReport::KEYS.len());
    for (key, text) in report.texts() {
        assert!(text.len() <= MAX_STUB_VALUE, "{key:?} is {} bytes long", text.len());
        assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{text:?}");
    }
    let again = StubReport::of(report.texts());
    assert_eq!(again, report);
    assert_eq!(report.is_running(), report.state() == Some(DmState::Running));
    let _ = (report.features(), report.exit(), report.version(), report.step(), report.heartbeat());
}
