//! A guest's state file of any bytes: a record, or an error that says why not, and never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| toolstack::fuzz::state_file(data));
