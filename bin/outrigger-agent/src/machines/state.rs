//! The device model's state in frames, between any two streams: a console has no end, and QEMU never closes its stream.
//!
//! Nothing waits here: what a stream does not take stays in the other one, and its writer waits.

use std::io::{self, ErrorKind, Read, Write};

use stubdom_abi::stream::{Decoder, Encoder, FrameError, Piece};
use thiserror::Error;

/// Bytes that are read at once, and the most in a frame.
const CHUNK: usize = 16 * 1024;

/// Why a state did not arrive.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    #[error("The incoming state is damaged")]
    Frame(#[from] FrameError),
    #[error("Cannot move the state")]
    Move(#[from] io::Error),
}

/// From QEMU to the console. There may be one state after another.
#[derive(Debug)]
pub(crate) struct Out<S, C> {
    /// QEMU's end.
    pub(crate) source: S,
    /// The toolstack's end.
    pub(crate) console: C,
    encoder: Encoder,
    frames: Vec<u8>,
    sent: usize,
    /// Whether the state ends with what the source has now.
    pub(crate) ends: bool,
}

impl<S: Read, C: Write> Out<S, C> {
    /// Nothing is moved yet.
    pub(crate) fn new(source: S, console: C) -> Self {
        Self { source, console, encoder: Encoder::default(), frames: Vec::new(), sent: 0, ends: false }
    }

    /// Moves what can be moved; returns the lengths of the states whose end was sent.
    pub(crate) fn pump(&mut self) -> io::Result<Vec<u64>> {
        let mut ended = Vec::new();
        loop {
            while self.sent < self.frames.len() {
                match attempt(|| self.console.write(self.frames.get(self.sent..).unwrap_or_default()))? {
                    Some(count) => self.sent += count,
                    None => return Ok(ended),
                }
            }
            self.frames.clear();
            self.sent = 0;
            let mut buffer = [0; CHUNK];
            match attempt(|| self.source.read(&mut buffer))? {
                // QEMU is gone.
                Some(0) => return Ok(ended),
                Some(count) => self.encoder.data(buffer.get(..count).unwrap_or_default(), &mut self.frames),
                // Before the toolstack ends the state, QEMU has written everything.
                None if self.ends => {
                    self.ends = false;
                    let mut encoder = std::mem::take(&mut self.encoder);
                    encoder.end(&mut self.frames);
                    ended.push(encoder.length());
                }
                None => return Ok(ended),
            }
        }
    }
}

/// From the console to QEMU, once.
#[derive(Debug)]
pub(crate) struct In<C, S> {
    /// The toolstack's end.
    pub(crate) console: C,
    /// QEMU's end. Closed at the end, for QEMU to see one.
    pub(crate) sink: Option<S>,
    decoder: Decoder,
    /// What was read, of which `decoded` bytes are decoded.
    chunk: Vec<u8>,
    decoded: usize,
    /// What is for QEMU, of which `given` bytes are written.
    data: Vec<u8>,
    given: usize,
}

impl<C: Read, S: Write> In<C, S> {
    /// Nothing is moved yet.
    pub(crate) fn new(console: C, sink: S) -> Self {
        Self {
            console,
            sink: Some(sink),
            decoder: Decoder::default(),
            chunk: Vec::new(),
            decoded: 0,
            data: Vec::new(),
            given: 0,
        }
    }

    /// Moves what can be moved; returns the state's length when its end has come.
    pub(crate) fn pump(&mut self) -> Result<Option<u64>, StateError> {
        let result = self.try_pump();
        if !matches!(result, Ok(None)) {
            // Whatever the reason: QEMU gets no more, and fails if it wants more.
            self.sink = None;
        }
        result
    }

    fn try_pump(&mut self) -> Result<Option<u64>, StateError> {
        let Some(sink) = &mut self.sink else { return Ok(None) };
        loop {
            while self.given < self.data.len() {
                match attempt(|| sink.write(self.data.get(self.given..).unwrap_or_default()))? {
                    Some(count) => self.given += count,
                    None => return Ok(None),
                }
            }
            if self.decoded == self.chunk.len() {
                self.chunk.resize(CHUNK, 0);
                let read = attempt(|| self.console.read(&mut self.chunk));
                self.chunk.truncate(read.as_ref().ok().copied().flatten().unwrap_or(0));
                self.decoded = 0;
                if read?.is_none_or(|count| count == 0) {
                    return Ok(None);
                }
            }
            let (used, piece) = self.decoder.take(self.chunk.get(self.decoded..).unwrap_or_default())?;
            self.decoded += used;
            match piece {
                Piece::Data(bytes) => (self.data, self.given) = (bytes, 0),
                Piece::End { length } => return Ok(Some(length)),
                Piece::More => {}
            }
        }
    }
}

/// Reads or writes without waiting; returns nothing when that would be needed.
fn attempt(mut what: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match what() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A pipe or a console that moves as many bytes as it is allowed to, and then has to be waited for.
    #[derive(Clone, Debug, Default)]
    struct Fake(Rc<RefCell<(VecDeque<u8>, usize)>>);

    impl Fake {
        fn holds(bytes: &[u8]) -> Self {
            let fake = Self::default();
            fake.0.borrow_mut().0.extend(bytes);
            fake
        }

        fn allow(&self, count: usize) {
            self.0.borrow_mut().1 = count;
        }

        fn all(&self) -> Vec<u8> {
            self.0.borrow().0.iter().copied().collect()
        }

        fn moved(&self, wanted: usize, available: usize) -> io::Result<usize> {
            let mut inner = self.0.borrow_mut();
            let count = wanted.min(available).min(inner.1);
            inner.1 -= count;
            if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
        }
    }

    impl Read for Fake {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let available = self.0.borrow().0.len();
            let count = self.moved(buffer.len(), available)?;
            buffer.iter_mut().zip(self.0.borrow_mut().0.drain(..count)).for_each(|(to, from)| *to = from);
            Ok(count)
        }
    }

    impl Write for Fake {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            let count = self.moved(buffer.len(), usize::MAX)?;
            self.0.borrow_mut().0.extend(&buffer[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Sends states one after another through a console, whose bytes it returns.
    fn sent(states: &[Vec<u8>], steps: &[usize]) -> Vec<u8> {
        let (source, console) = (Fake::default(), Fake::default());
        let mut out = Out::new(source.clone(), console.clone());
        for state in states {
            source.0.borrow_mut().0.extend(state);
            for step in steps {
                source.allow(*step);
                console.allow(step / 2);
                assert!(out.pump().unwrap().is_empty(), "an end that was not asked for");
            }
            source.allow(usize::MAX);
            out.ends = true;
            console.allow(usize::MAX);
            assert_eq!(out.pump().unwrap(), [state.len() as u64]);
        }
        console.all()
    }

    fn received(stream: &[u8], steps: &[usize]) -> (Vec<u8>, Result<Option<u64>, StateError>) {
        let (console, sink) = (Fake::holds(stream), Fake::default());
        let mut incoming = In::new(console.clone(), sink.clone());
        for step in steps.iter().chain(&[usize::MAX]) {
            console.allow(*step);
            sink.allow(step.div_ceil(2));
            match incoming.pump() {
                Ok(None) => {}
                done => {
                    assert!(incoming.sink.is_none(), "QEMU sees no end");
                    return (sink.all(), done);
                }
            }
        }
        (sink.all(), Ok(None))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn states_go_out_and_come_in_whole(
            states in vec(vec(any::<u8>(), 0..60_000), 1..3),
            steps in vec(0..20_000_usize, 0..12),
        ) {
            let mut stream = sent(&states, &steps);
            for state in &states {
                let (got, end) = received(&stream, &steps);
                prop_assert_eq!(end.unwrap(), Some(state.len() as u64));
                prop_assert!(got == *state);
                stream = next_stream(&stream);
            }
            prop_assert!(stream.is_empty());
        }

        #[test]
        fn a_damaged_state_is_reported_and_a_cut_one_waits(
            state in vec(any::<u8>(), 1..30_000),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let stream = sent(std::slice::from_ref(&state), &[]);
            let mut damaged = stream.clone();
            damaged[at.index(stream.len())] ^= 1 << bit;
            let (_, end) = received(&damaged, &[100]);
            prop_assert!(!matches!(end, Ok(Some(_))));
            let (got, end) = received(&stream[..at.index(stream.len())], &[]);
            prop_assert!(matches!(end, Ok(None)));
            prop_assert!(state.starts_with(&got));
        }
    }

    /// What follows a stream's end.
    fn next_stream(bytes: &[u8]) -> Vec<u8> {
        let mut decoder = Decoder::default();
        let mut at = 0;
        while !decoder.is_complete() {
            at += decoder.take(&bytes[at..]).unwrap().0;
        }
        bytes[at..].to_vec()
    }

    #[test]
    fn a_qemu_that_is_gone_ends_nothing() {
        struct Gone;
        impl Read for Gone {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Ok(0)
            }
        }
        let console = Fake::default();
        console.allow(usize::MAX);
        let mut out = Out::new(Gone, console.clone());
        out.ends = true;
        assert!(out.pump().unwrap().is_empty());
        assert!(console.all().is_empty());
    }
}
