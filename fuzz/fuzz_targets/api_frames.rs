//! Bytes of a client of the daemon, cut anywhere: frames, calls, replies, parameters.
#![no_main]

use api::frame::{Call, MAX_FRAME, Reply, Splitter, decode, encode, read_parameters};
use api::types::{CreateParameters, GuestParameter};
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
    let Ok(call) = decode::<Call>(frame) else { return };
    let _ = read_parameters::<GuestParameter>(call.parameters.as_deref());
    let _ = read_parameters::<CreateParameters>(call.parameters.as_deref());
    // What was understood can be said again, and means the same.
    if let Ok(mut bytes) = encode(&call) {
        bytes.pop();
        let again: Call = decode(&bytes).expect("what was encoded can be decoded");
        assert_eq!(again.method, call.method);
    }
}
