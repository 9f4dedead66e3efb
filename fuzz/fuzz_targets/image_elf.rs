//! Programs, libraries and kernels of packages, and packed images, as the image builder reads them.
#![no_main]

use image::{closure, kernel, listing};
use libfuzzer_sys::fuzz_target;

/// More than this is not unpacked: it is time that the fuzzer could spend on the readers.
const LARGEST: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    if let Ok(dynamic) = closure::inspect_bytes("fuzz", data) {
        assert!(dynamic.needed.len() <= data.len() && dynamic.run_path.len() <= data.len());
        assert_eq!(closure::inspect_bytes("again", data).expect("it was read"), dynamic);
    }
    if let Ok(elf) = kernel::extract_elf("fuzz", data) {
        // What is small already stays as it is.
        let again = kernel::extract_elf("again", &elf).expect("a kernel that was written can be read");
        assert_eq!(again, elf);
    }
    if data.len() <= LARGEST {
        let _ = listing::list(data);
    }
});
