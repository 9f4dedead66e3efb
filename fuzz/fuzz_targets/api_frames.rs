//! Bytes of a client of the daemon, cut anywhere: frames, calls, replies, parameters.
#![no_main]

use api::call::Incoming;
use api::frame::{MAX_FRAME, Reply, Request, Splitter, decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((cut, bytes)) = data.split_first() else { return };
    let mut splitter = Splitter::default();
    for chunk in bytes.chunks(usize::from(*cut) + 1) {
        if splitter.push(chunk).is_err() {
            return;
        }
        while let Some(frame) = splitter.next_frame() {
            // The bound is looked at once a chunk.
            assert!(frame.len() <= MAX_FRAME + usize::from(u8::MAX) + 1 && !frame.contains(&0));
            look(&frame);
        }
    }
});

fn look(frame: &[u8]) {
    let _ = decode::<Reply>(frame);
    let Ok(call) = decode::<Request>(frame) else { return };
    let _ = Incoming::read(&call);
    // What was understood can be said again, and means the same.
    if let Ok(mut bytes) = encode(&call) {
        bytes.pop();
        let again: Request = decode(&bytes).expect("what was encoded can be decoded");
        assert_eq!(again.method, call.method);
    }
}
