//! A peer that writes anything into a vchan's shared page between this side's operations.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vchan::ring::{Index, Ring, RingMemory, Side, Stream, Wish};
use vchan::{RingPages, RingSizes};
use xen::SharedPages;

fn memory(left: u16, right: u16) -> Option<Arc<RingPages>> {
    let sizes = RingSizes::of_orders(left, right).ok()?;
    let own = |order: u16| match order {
        0..12 => Some(None),
        _ => SharedPages::anonymous(1 << (order - 12)).ok().map(Some),
    };
    let shared = SharedPages::anonymous(1).ok()?;
    Some(Arc::new(RingPages::new(shared, own(left)?, own(right)?, sizes)))
}

fuzz_target!(|data: &[u8]| {
    // Two orders (some absurd, some large ones left out for speed), the side, then five bytes an operation.
    let [left, right, side, operations @ ..] = data else { return };
    let Some(memory) = memory(u16::from(left % 16), u16::from(right % 16)) else { return };
    let side = if side % 2 == 0 { Side::Client } else { Side::Server };
    let mut ring = Ring::new(Arc::clone(&memory), side);
    let mut peer = Ring::new(Arc::clone(&memory), side.other());
    let mut is_honest = true;
    let mut buffer = vec![0; 10_000];
    let (mut written, mut received) = (0_u8, 0_u8);
    for operation in operations.chunks_exact(5) {
        let number = u32::from_le_bytes([operation[1], operation[2], operation[3], operation[4]]);
        let length = number as usize % buffer.len();
        let index = match operation[0] % 8 {
            0 => Index::Producer(Stream::Left),
            1 => Index::Producer(Stream::Right),
            2 => Index::Consumer(Stream::Left),
            3 => Index::Consumer(Stream::Right),
            4 => {
                let Ok(moved) = ring.read(&mut buffer[..length]) else {
                    assert!(!is_honest);
                    continue;
                };
                assert!(moved.count <= length.min(memory.size(side.reads())));
                continue;
            }
            5 => {
                let mut next = written;
                buffer[..length].fill_with(|| {
                    next = next.wrapping_add(1);
                    next
                });
                let Ok(moved) = ring.write(&buffer[..length]) else {
                    assert!(!is_honest);
                    continue;
                };
                assert!(moved.count <= length.min(memory.size(side.writes())));
                written = written.wrapping_add(moved.count as u8);
                continue;
            }
            6 => {
                if is_honest {
                    let moved = peer.read(&mut buffer[..length]).expect("this side is honest");
                    for byte in &buffer[..moved.count] {
                        received = received.wrapping_add(1);
                        assert_eq!(*byte, received);
                    }
                }
                continue;
            }
            _ => {
                memory.ask(side, Wish::Written);
                continue;
            }
        };
        is_honest = false;
        memory.store(index, number);
    }
});
