//! What a hostile QEMU writes as a picture of the screen.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(png) = toolstack::fuzz::picture(data) else { return };
    // What is passed on is a PNG of the size in the header, and has no more pixels than the file has bytes for.
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    let number = |at: usize| u64::from(u32::from_be_bytes([png[at], png[at + 1], png[at + 2], png[at + 3]]));
    let (width, height) = (number(16), number(20));
    assert!(width > 0 && height > 0 && width * height * 3 <= data.len() as u64);
});
