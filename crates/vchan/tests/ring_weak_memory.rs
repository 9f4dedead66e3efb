//! The rings and their wake-ups under a weak memory model: every interleaving and every stale read that the orderings
//! allow. Both ends are this crate's; libxenvchan's do the same steps with barriers at least as strong.

use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use vchan::ring::{Index, Ring, RingMemory, Side, Stream, Wish};

const SIZE: usize = 2;
const SOUND: &str = "nothing panics under the lock";

/// Rings of two bytes, so that a model with wrapping stays small.
struct Page {
    bytes: [AtomicU8; SIZE],
    indices: [AtomicU32; 2],
    notify: [AtomicU8; 2],
}

#[derive(Clone)]
struct Shared(Arc<Page>);

impl Shared {
    fn new() -> Self {
        Self(Arc::new(Page {
            bytes: [AtomicU8::new(0xee), AtomicU8::new(0xee)],
            indices: [AtomicU32::new(u32::MAX), AtomicU32::new(u32::MAX)],
            notify: [AtomicU8::new(0), AtomicU8::new(0)],
        }))
    }

    /// Only the stream from the server to the client is there.
    fn index(&self, index: Index) -> Option<&AtomicU32> {
        match index {
            Index::Consumer(Stream::Right) => Some(&self.0.indices[0]),
            Index::Producer(Stream::Right) => Some(&self.0.indices[1]),
            _ => None,
        }
    }

    fn notify(&self, side: Side) -> &AtomicU8 {
        &self.0.notify[usize::from(side == Side::Server)]
    }
}

impl RingMemory for Shared {
    fn size(&self, _: Stream) -> usize {
        SIZE
    }

    fn load(&self, index: Index) -> u32 {
        self.index(index).map_or(0, |index| index.load(Ordering::Acquire))
    }

    fn store(&self, index: Index, value: u32) {
        self.index(index).expect("the stream is there").store(value, Ordering::Release);
    }

    fn ask(&self, side: Side, wish: Wish) {
        self.notify(side).fetch_or(wish.bit(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn take_ask(&self, side: Side, wish: Wish) -> bool {
        fence(Ordering::SeqCst);
        self.notify(side).fetch_and(!wish.bit(), Ordering::SeqCst) & wish.bit() != 0
    }

    fn copy_out(&self, _: Stream, offset: usize, to: &mut [u8]) {
        for (byte, shared) in to.iter_mut().zip(&self.0.bytes[offset..]) {
            *byte = shared.load(Ordering::Relaxed);
        }
    }

    fn copy_in(&self, _: Stream, offset: usize, from: &[u8]) {
        for (byte, shared) in from.iter().zip(&self.0.bytes[offset..]) {
            shared.store(*byte, Ordering::Relaxed);
        }
    }
}

/// An event channel's one direction: a kick stays until it is taken.
#[derive(Clone)]
struct Kicks(Arc<(Mutex<bool>, Condvar)>);

impl Kicks {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(false), Condvar::new())))
    }

    fn kick(&self) {
        *self.0.0.lock().expect(SOUND) = true;
        self.0.1.notify_one();
    }

    /// A wake-up that is lost is a deadlock, which the model reports.
    fn wait(&self) {
        let mut pending = self.0.0.lock().expect(SOUND);
        while !*pending {
            pending = self.0.1.wait(pending).expect(SOUND);
        }
        *pending = false;
    }
}

fn write_all(mut ring: Ring<Shared>, bytes: &[u8], mine: &Kicks, theirs: &Kicks) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let moved = ring.write(rest).expect("an honest reader");
        if moved.kick {
            theirs.kick();
        }
        if moved.count == 0 {
            mine.wait();
        }
        rest = &rest[moved.count..];
    }
}

fn read_all(mut ring: Ring<Shared>, count: usize, mine: &Kicks, theirs: &Kicks) -> Vec<u8> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let mut buffer = [0; SIZE];
        let moved = ring.read(&mut buffer).expect("an honest writer");
        if moved.kick {
            theirs.kick();
        }
        if moved.count == 0 {
            mine.wait();
        }
        seen.extend_from_slice(&buffer[..moved.count]);
    }
    seen
}

#[test]
fn no_byte_and_no_wakeup_is_lost() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(|| {
        let memory = Shared::new();
        let (to_writer, to_reader) = (Kicks::new(), Kicks::new());
        let writer = {
            let ring = Ring::new(memory.clone(), Side::Server);
            let (mine, theirs) = (to_writer.clone(), to_reader.clone());
            thread::spawn(move || write_all(ring, &[1, 2, 3], &mine, &theirs))
        };
        let seen = read_all(Ring::new(memory, Side::Client), 3, &to_reader, &to_writer);
        writer.join().unwrap();
        assert_eq!(seen, [1, 2, 3]);
    });
}

/// The model must be able to find a lost wake-up: it does so for a reader that does not look again after it asked.
#[test]
#[should_panic(expected = "asleep for ever")]
fn a_reader_that_does_not_look_again_is_found() {
    loom::model(|| {
        let memory = Shared::new();
        let (to_writer, to_reader) = (Kicks::new(), Kicks::new());
        let writer = {
            let ring = Ring::new(memory.clone(), Side::Server);
            let (mine, theirs) = (to_writer.clone(), to_reader.clone());
            thread::spawn(move || write_all(ring, &[1], &mine, &theirs))
        };
        let ring = Ring::new(memory.clone(), Side::Client);
        let sleeps = ring.ready() == Ok(0);
        memory.ask(Side::Server, Wish::Written);
        writer.join().unwrap();
        let kicked = *to_reader.0.0.lock().unwrap();
        assert!(!sleeps || kicked, "asleep for ever");
    });
}

/// The last bytes of a server that closes: who sees it closed and then looks sees all of them.
#[test]
fn what_was_written_before_the_end_is_read() {
    loom::model(|| {
        let memory = Shared::new();
        let live = Arc::new(AtomicBool::new(true));
        let server = {
            let (mut ring, live) = (Ring::new(memory.clone(), Side::Server), live.clone());
            thread::spawn(move || {
                assert_eq!(ring.write(&[7]).expect("an honest reader").count, 1);
                live.store(false, Ordering::SeqCst);
            })
        };
        let mut ring = Ring::new(memory, Side::Client);
        let is_open = live.load(Ordering::SeqCst);
        let mut buffer = [0; SIZE];
        let moved = ring.read(&mut buffer).expect("an honest writer");
        assert!(is_open || moved.count == 1, "the end was taken for the end of the bytes");
        server.join().unwrap();
    });
}
