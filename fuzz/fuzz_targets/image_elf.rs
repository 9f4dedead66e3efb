//! Programs and libraries of packages, as the image builder reads them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = image::closure::inspect_bytes("fuzz", data);
});
