//! A migrating guest's stream as another host sends it: frames that are damaged, and pieces that are packed in any way.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| toolstack::fuzz::stream(data));
