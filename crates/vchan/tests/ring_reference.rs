//! Both ends against a reference, and one end against a hostile other.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use vchan::ring::{Index, Ring, RingMemory, Side, Stream, Wish};
use vchan::{RingPages, RingSizes};
use xen::SharedPages;

/// A vchan's memory that two ends share, with all indices standing shortly before they run over.
fn memory(left: u16, right: u16, start: u32) -> Option<Arc<RingPages>> {
    let sizes = RingSizes::of_orders(left, right).ok()?;
    let pages = |bytes: usize| SharedPages::anonymous(bytes / 4096).expect("a few pages can be mapped");
    let own = |order: u16, bytes| (order >= 12).then(|| pages(bytes));
    let memory =
        RingPages::new(pages(4096), own(left, sizes.to_server()), own(right, sizes.to_client()), sizes);
    for stream in [Stream::Left, Stream::Right] {
        memory.store(Index::Producer(stream), start);
        memory.store(Index::Consumer(stream), start);
    }
    Some(Arc::new(memory))
}

#[derive(Clone, Debug)]
enum Step {
    Write(Side, usize),
    Read(Side, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let side = prop_oneof![Just(Side::Client), Just(Side::Server)];
    let length = prop_oneof![0..20_usize, 0..3000_usize, Just(4096)];
    (side, length, any::<bool>()).prop_map(|(side, length, write)| {
        if write { Step::Write(side, length) } else { Step::Read(side, length) }
    })
}

/// One end as the reference has it: what is on its way to it, and whether it has asked for a wake-up.
#[derive(Default)]
struct End {
    incoming: VecDeque<u8>,
    asked_written: bool,
    asked_read: bool,
}

fn at(side: Side) -> usize {
    usize::from(side == Side::Server)
}

proptest! {
    #[test]
    fn both_ends_do_what_the_reference_does(
        left in 10..=13_u16,
        right in 10..=13_u16,
        start in prop_oneof![Just(0), Just(u32::MAX - 1000), any::<u32>()],
        steps in vec(step(), 1..200),
    ) {
        let Some(memory) = memory(left, right, start) else { return Ok(()) };
        let mut rings = [Ring::new(Arc::clone(&memory), Side::Client), Ring::new(Arc::clone(&memory), Side::Server)];
        let mut ends = [End::default(), End::default()];
        let mut next = 0_u8;
        for step in steps {
            match step {
                Step::Write(side, length) => {
                    let bytes: Vec<u8> = (0..length).map(|_| { next = next.wrapping_add(1); next }).collect();
                    let size = memory.size(side.writes());
                    let room = size - ends[at(side.other())].incoming.len();
                    let moved = rings[at(side)].write(&bytes).unwrap();
                    prop_assert_eq!(moved.count, room.min(length));
                    ends[at(side)].asked_read |= length > 0 && room == 0;
                    let other = &mut ends[at(side.other())];
                    other.incoming.extend(&bytes[..moved.count]);
                    prop_assert_eq!(moved.kick, moved.count > 0 && other.asked_written);
                    other.asked_written &= moved.count == 0;
                }
                Step::Read(side, length) => {
                    let mut buffer = vec![0; length];
                    let moved = rings[at(side)].read(&mut buffer).unwrap();
                    let end = &mut ends[at(side)];
                    prop_assert_eq!(moved.count, end.incoming.len().min(length));
                    end.asked_written |= length > 0 && moved.count == 0;
                    let expected: Vec<u8> = end.incoming.drain(..moved.count).collect();
                    prop_assert_eq!(&buffer[..moved.count], &expected[..]);
                    let other = &mut ends[at(side.other())];
                    prop_assert_eq!(moved.kick, moved.count > 0 && other.asked_read);
                    other.asked_read &= moved.count == 0;
                }
            }
        }
    }

    #[test]
    fn a_hostile_other_end_changes_nothing_but_bytes(
        orders in prop_oneof![Just((10, 11)), Just((11, 10)), Just((12, 12)), Just((11, 13))],
        side in prop_oneof![Just(Side::Client), Just(Side::Server)],
        steps in vec((0..6_u8, any::<u32>()), 1..100),
    ) {
        let memory = memory(orders.0, orders.1, 0).unwrap();
        let mut ring = Ring::new(Arc::clone(&memory), side);
        let mut buffer = vec![0; 10_000];
        for (operation, number) in steps {
            let length = number as usize % buffer.len();
            match operation {
                0 => memory.store(Index::Producer(Stream::Left), number),
                1 => memory.store(Index::Consumer(Stream::Left), number),
                2 => memory.store(Index::Producer(Stream::Right), number),
                3 => memory.store(Index::Consumer(Stream::Right), number),
                4 => if let Ok(moved) = ring.read(&mut buffer[..length]) {
                    prop_assert!(moved.count <= length.min(memory.size(side.reads())));
                },
                _ => if let Ok(moved) = ring.write(&buffer[..length]) {
                    prop_assert!(moved.count <= length.min(memory.size(side.writes())));
                },
            }
            memory.ask(side, Wish::Read);
        }
    }
}

#[test]
fn an_index_beyond_the_ring_is_a_lie_and_moves_nothing() {
    let memory = memory(10, 11, 0).unwrap();
    let mut server = Ring::new(Arc::clone(&memory), Side::Server);
    memory.store(Index::Producer(Stream::Left), 1025);
    let lie = server.read(&mut [0; 16]).unwrap_err();
    assert_eq!((lie.stream, lie.claimed, lie.size), (Stream::Left, 1025, 1024));
    memory.store(Index::Consumer(Stream::Right), 1);
    assert!(server.write(b"x").is_err(), "a client cannot have read what was not written");
    // What is there after all can be read again.
    memory.store(Index::Producer(Stream::Left), 1024);
    assert_eq!(server.read(&mut [0; 2000]).unwrap().count, 1024);
}

#[test]
fn own_indices_are_not_taken_from_the_page() {
    let memory = memory(10, 11, 0).unwrap();
    let mut server = Ring::new(Arc::clone(&memory), Side::Server);
    assert_eq!(server.write(b"abc").unwrap().count, 3);
    memory.store(Index::Producer(Stream::Right), 77);
    assert_eq!(server.write(b"def").unwrap().count, 3);
    assert_eq!(memory.load(Index::Producer(Stream::Right)), 6);
    let mut client = Ring::new(memory, Side::Client);
    let mut buffer = [0; 16];
    assert_eq!(client.read(&mut buffer).unwrap().count, 6);
    assert_eq!(&buffer[..6], b"abcdef");
}

#[test]
fn what_is_discarded_is_gone_and_its_room_is_free() {
    let memory = memory(10, 11, u32::MAX - 5).unwrap();
    let mut server = Ring::new(Arc::clone(&memory), Side::Server);
    let mut client = Ring::new(memory, Side::Client);
    assert_eq!(client.write(&[1; 2000]).unwrap().count, 1024);
    assert_eq!((client.space(), client.unread()), (Ok(0), Ok(1024)));
    server.discard();
    assert_eq!(server.ready(), Ok(0));
    assert_eq!((client.space(), client.unread()), (Ok(1024), Ok(0)));
}
