//! Bytes from one end to another through one bounded buffer, without knowing what the ends are.

/// How much is moved at once.
const CHUNK: usize = 8192;
/// After so many chunks in a row, others get their turn.
const TURN: usize = 16;

/// What came of an attempt to move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// So many, at least one.
    Some(usize),
    /// None yet; an event will come.
    Later,
    /// None ever again.
    Gone,
}

/// Something that is read and written and never waits.
pub(crate) trait End {
    fn take(&mut self, into: &mut [u8]) -> Moved;
    fn give(&mut self, from: &[u8]) -> Moved;
}

/// Why nothing more is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Until an end has an event.
    Blocked,
    /// Only for the sake of others: there may be more.
    Turn,
    /// The giving end is gone, and all that it gave was taken.
    SourceGone,
    /// The taking end is gone.
    SinkGone,
}

/// One direction.
pub(crate) struct Pipe {
    buffer: Box<[u8; CHUNK]>,
    start: usize,
    end: usize,
}

impl Pipe {
    pub(crate) fn new() -> Self {
        Self { buffer: Box::new([0; CHUNK]), start: 0, end: 0 }
    }

    /// Whether something that was taken waits to be given.
    pub(crate) fn holds_some(&self) -> bool {
        self.start < self.end
    }

    /// Moves what can be moved.
    pub(crate) fn pump(&mut self, source: &mut impl End, sink: &mut impl End) -> Stopped {
        for _ in 0..TURN {
            while self.start < self.end {
                match sink.give(self.buffer.get(self.start..self.end).unwrap_or_default()) {
                    Moved::Some(count) => self.start += count,
                    Moved::Later => return Stopped::Blocked,
                    Moved::Gone => return Stopped::SinkGone,
                }
            }
            match source.take(&mut self.buffer[..]) {
                Moved::Some(count) => (self.start, self.end) = (0, count.min(CHUNK)),
                Moved::Later => return Stopped::Blocked,
                Moved::Gone => return Stopped::SourceGone,
            }
        }
        Stopped::Turn
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// An end that returns what is in it, and takes as many bytes as it has room for.
    #[derive(Default)]
    struct Fake {
        holds: VecDeque<u8>,
        ended: bool,
        taken: Vec<u8>,
        room: usize,
    }

    impl End for Fake {
        fn take(&mut self, into: &mut [u8]) -> Moved {
            let count = self.holds.len().min(into.len());
            if count == 0 {
                return if self.ended { Moved::Gone } else { Moved::Later };
            }
            for (byte, held) in into.iter_mut().zip(self.holds.drain(..count)) {
                *byte = held;
            }
            Moved::Some(count)
        }

        fn give(&mut self, from: &[u8]) -> Moved {
            let count = self.room.min(from.len());
            if count == 0 {
                return if self.ended { Moved::Gone } else { Moved::Later };
            }
            self.room -= count;
            self.taken.extend_from_slice(&from[..count]);
            Moved::Some(count)
        }
    }

    proptest! {
        #[test]
        fn every_byte_arrives_once_and_in_order(
            bytes in vec(any::<u8>(), 0..40_000),
            rooms in vec(0..9000_usize, 0..20),
        ) {
            let mut source = Fake { holds: bytes.iter().copied().collect(), ended: true, ..Fake::default() };
            let mut sink = Fake::default();
            let mut pipe = Pipe::new();
            for room in rooms {
                sink.room = room;
                pipe.pump(&mut source, &mut sink);
                prop_assert_eq!(&bytes[..sink.taken.len()], &sink.taken[..]);
            }
            sink.room = usize::MAX;
            while pipe.pump(&mut source, &mut sink) == Stopped::Turn {}
            prop_assert_eq!(bytes, sink.taken);
        }
    }

    #[test]
    fn what_cannot_be_given_is_not_taken_either() {
        let mut source = Fake { holds: vec![1; 100_000].into(), ..Fake::default() };
        let mut sink = Fake::default();
        let mut pipe = Pipe::new();
        for _ in 0..10 {
            assert_eq!(pipe.pump(&mut source, &mut sink), Stopped::Blocked);
        }
        assert_eq!(source.holds.len(), 100_000 - CHUNK, "at most one buffer is held");
    }

    #[test]
    fn an_endless_source_leaves_a_turn_to_others() {
        let mut source = Fake { holds: vec![1; 2 * CHUNK * TURN].into(), ..Fake::default() };
        let mut sink = Fake { room: usize::MAX, ..Fake::default() };
        assert_eq!(Pipe::new().pump(&mut source, &mut sink), Stopped::Turn);
    }

    #[test]
    fn the_ends_are_distinguished() {
        let (mut open, mut gone) = (Fake::default(), Fake { ended: true, ..Fake::default() });
        assert_eq!(Pipe::new().pump(&mut gone, &mut open), Stopped::SourceGone);
        open.holds.push_back(1);
        assert_eq!(Pipe::new().pump(&mut open, &mut gone), Stopped::SinkGone);
    }
}
