//! The ring under a weak memory model: every interleaving and every stale read that the orderings allow.

use console::ring::{BackendRing, Index, RingMemory};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use loom::thread;

const SIZE: usize = 2;

/// A page with queues of two bytes, so that a model with wrapping stays small.
struct Page {
    input: [AtomicU8; SIZE],
    output: [AtomicU8; SIZE],
    indices: [AtomicU32; 4],
}

impl Page {
    fn new() -> Self {
        let byte = || AtomicU8::new(0xee);
        let index = || AtomicU32::new(u32::MAX);
        Self {
            input: [byte(), byte()],
            output: [byte(), byte()],
            indices: [index(), index(), index(), index()],
        }
    }

    fn index(&self, index: Index) -> &AtomicU32 {
        &self.indices[match index {
            Index::InCons => 0,
            Index::InProd => 1,
            Index::OutCons => 2,
            Index::OutProd => 3,
        }]
    }
}

#[derive(Clone)]
struct Shared(Arc<Page>);

impl RingMemory for Shared {
    const IN_SIZE: usize = SIZE;
    const OUT_SIZE: usize = SIZE;

    fn load(&self, index: Index) -> u32 {
        self.0.index(index).load(Ordering::Acquire)
    }

    fn store(&self, index: Index, value: u32) {
        self.0.index(index).store(value, Ordering::Release);
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) {
        for (byte, shared) in to.iter_mut().zip(&self.0.output[offset..]) {
            *byte = shared.load(Ordering::Relaxed);
        }
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        for (byte, shared) in from.iter().zip(&self.0.input[offset..]) {
            shared.store(*byte, Ordering::Relaxed);
        }
    }
}

/// Writes 1, 2 and 3, as far as there is room at once; gives the first number that was not written.
fn write_output(page: &Page) -> u8 {
    let mut prod = page.index(Index::OutProd).load(Ordering::Relaxed);
    for value in 1..=3u8 {
        let cons = page.index(Index::OutCons).load(Ordering::Acquire);
        if prod.wrapping_sub(cons) as usize == SIZE {
            return value;
        }
        page.output[prod as usize % SIZE].store(value, Ordering::Relaxed);
        prod = prod.wrapping_add(1);
        page.index(Index::OutProd).store(prod, Ordering::Release);
    }
    4
}

#[test]
fn output_arrives_once_and_in_order() {
    loom::model(|| {
        let page = Shared(Arc::new(Page::new()));
        let guest = page.clone();
        let writer = thread::spawn(move || write_output(&guest.0));
        let mut ring = BackendRing::new(page);
        let mut seen = Vec::new();
        let mut buffer = [0; SIZE];
        for _ in 0..2 {
            let count = ring.take(&mut buffer).expect("an honest guest");
            seen.extend_from_slice(&buffer[..count]);
        }
        let first_unwritten = writer.join().unwrap();
        let count = ring.take(&mut buffer).expect("an honest guest");
        seen.extend_from_slice(&buffer[..count]);
        assert_eq!(seen, (1..first_unwritten).collect::<Vec<_>>());
    });
}

#[test]
fn input_arrives_once_and_in_order() {
    loom::model(|| {
        let page = Shared(Arc::new(Page::new()));
        let guest = page.clone();
        let reader = thread::spawn(move || read_input(&guest.0, 2));
        let mut ring = BackendRing::new(page.clone());
        let mut next = 1u8;
        for _ in 0..2 {
            let count = ring.put(&[next, next + 1]).expect("an honest guest");
            next += u8::try_from(count).unwrap();
        }
        let mut seen = reader.join().unwrap();
        seen.extend(read_input(&page.0, 1));
        assert_eq!(seen, (1..next).collect::<Vec<_>>());
    });
}

/// The server's way: copies are kept, their room is freed, and more is taken while the guest writes; the bytes are
/// handed on together afterwards, and whoever comes after a kill finds the same from the ring's index and the record.
#[test]
fn what_is_taken_in_several_goes_arrives_once_wherever_the_taker_is_killed() {
    for killed_after in 0..6 {
        loom::model(move || {
            let page = Shared(Arc::new(Page::new()));
            let guest = page.clone();
            let writer = thread::spawn(move || write_output(&guest.0));
            // Kept beyond the kill: bytes, and the ring's index before and after the last of them.
            let (mut kept, mut record) = (Vec::new(), None);
            let mut steps = 0;
            let mut alive = || {
                steps += 1;
                steps <= killed_after
            };
            let mut ring = BackendRing::new(page.clone());
            let mut buffer = [0; SIZE];
            for _ in 0..2 {
                let batch = ring.copy(&mut buffer).expect("an honest guest");
                if batch.count() == 0 || !alive() {
                    break;
                }
                kept.extend_from_slice(&buffer[..batch.count()]);
                record = Some((batch.start(), batch.count()));
                if !alive() {
                    break;
                }
                ring.release(batch);
            }
            let mut ring = BackendRing::new(page);
            let batch = ring.copy(&mut buffer).expect("an honest guest");
            if let Some((start, count)) = record
                && start == batch.start()
                && count <= batch.count()
            {
                ring.release(batch.truncated(count));
            }
            let first_unwritten = writer.join().unwrap();
            let count = ring.take(&mut buffer).expect("an honest guest");
            kept.extend_from_slice(&buffer[..count]);
            assert_eq!(kept, (1..first_unwritten).collect::<Vec<_>>());
        });
    }
}

fn read_input(page: &Page, times: usize) -> Vec<u8> {
    let mut seen = Vec::new();
    for _ in 0..times {
        let mut cons = page.index(Index::InCons).load(Ordering::Relaxed);
        let prod = page.index(Index::InProd).load(Ordering::Acquire);
        while cons != prod {
            seen.push(page.input[cons as usize % SIZE].load(Ordering::Relaxed));
            cons = cons.wrapping_add(1);
        }
        page.index(Index::InCons).store(cons, Ordering::Release);
    }
    seen
}
