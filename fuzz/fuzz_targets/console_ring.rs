//! A guest that writes anything into its console ring between this side's operations.
#![no_main]

use console::ring::{BackendRing, IN_SIZE, Index, OUT_SIZE, XenconsInterface};
use libfuzzer_sys::fuzz_target;

const INDICES: [Index; 4] = [Index::InCons, Index::InProd, Index::OutCons, Index::OutProd];

fuzz_target!(|data: &[u8]| {
    let mut ring = BackendRing::new(XenconsInterface::default());
    let mut buffer = [0; 2 * OUT_SIZE];
    // Five bytes an operation: which one, and a number for it.
    for operation in data.chunks_exact(5) {
        let number = u32::from_le_bytes([operation[1], operation[2], operation[3], operation[4]]);
        let length = number as usize % buffer.len();
        match operation[0] % 6 {
            index @ 0..=3 => ring.memory().guest_set(INDICES[usize::from(index)], number),
            4 => {
                if let Ok(count) = ring.take(&mut buffer[..length]) {
                    assert!(count <= length.min(OUT_SIZE));
                }
            }
            _ => {
                let room = ring.room();
                if let Ok(count) = ring.put(&buffer[..length]) {
                    assert!(count <= length.min(IN_SIZE));
                    assert!(room.is_ok_and(|room| count <= room));
                }
            }
        }
    }
});
