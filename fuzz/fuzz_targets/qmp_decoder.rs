//! What a device model or a local client sends, cut anywhere: messages, QMP on a console.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use qmp::{Decoder, Limits, Member, Resync};
use serde_json::Value;

const LIMITS: Limits = Limits {
    message: 8192,
    depth: 8,
    values: 128,
    keys: 64,
    object_keys: 16,
    string: 512,
    number: 32,
    nonsense: 2,
    events: 4,
};

fuzz_target!(|data: &[u8]| {
    let Some((cut, bytes)) = data.split_first() else { return };
    for limits in [LIMITS, Limits::QEMU] {
        let mut decoder = Decoder::new(limits);
        let step = usize::from(*cut) + 1;
        for chunk in bytes.chunks(step) {
            decoder.push(chunk);
            while let Some(message) = decoder.next_message() {
                match message {
                    Ok(message) => look(&message, limits),
                    Err(_) => decoder.skip_line(),
                }
            }
            assert!(decoder.held() <= limits.message + step);
        }
    }
    let mut resync = Resync::new(Limits::QEMU, "7f");
    let sent = resync.poll_send(Instant::now());
    assert!(sent.is_some());
    for chunk in bytes.chunks(usize::from(*cut) + 1) {
        resync.push(chunk);
    }
    resync.push(b"\n{\"return\":{},\"id\":\"resync-7f\"}\n");
    let (mut decoder, mut leftovers) = resync.session().expect("it is in step by now");
    while let Some(Ok(message)) = decoder.next_message() {
        // One reset was sent: nothing is left over.
        assert!(!leftovers.takes(&message));
    }
});

fn look(message: &qmp::Message, limits: Limits) {
    assert!(message.text().len() <= limits.message);
    // What we take, serde takes; and it finds the same members.
    let value: Value = serde_json::from_str(message.text()).expect("what was checked is JSON");
    for (member, name) in [(Member::Id, "id"), (Member::Return, "return"), (Member::Event, "event")] {
        let found = message.get(member).map(|text| serde_json::from_str::<Value>(text).expect("a value"));
        assert_eq!(found.as_ref(), value.get(name));
    }
}
