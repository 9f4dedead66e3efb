//! Everything that reads bytes of the other side of a xenstore connection.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| xenstore::fuzz(data));
