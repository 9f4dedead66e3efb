//! The device's state in frames, between the consoles and QEMU: a console has no end, and QEMU never closes its way out.
//!
//! QEMU has a pipe at each of its descriptors then. Nobody waits here: what an end does not take stays in its pipe or in
//! its console, and the other side waits.

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use stubdom_abi::StubConsole;
use stubdom_abi::stream::{Decoder, Encoder, FrameError, Piece};
use thiserror::Error;

use crate::consoles::open_raw_polled;
use crate::error::{AgentError, chain};
use crate::log::Log;
use crate::qemu::set_nonblocking;

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
struct Out<S, C> {
    source: S,
    console: C,
    encoder: Encoder,
    frames: Vec<u8>,
    sent: usize,
    /// The state ends with what there is now.
    ends: bool,
}

impl<S: Read, C: Write> Out<S, C> {
    fn new(source: S, console: C) -> Self {
        Self { source, console, encoder: Encoder::default(), frames: Vec::new(), sent: 0, ends: false }
    }

    /// Moves what can be moved; gives the lengths of the states whose end was sent.
    fn pump(&mut self) -> io::Result<Vec<u64>> {
        let mut ended = Vec::new();
        loop {
            while self.sent < self.frames.len() {
                match attempt(|| self.console.write(&self.frames[self.sent..]))? {
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
                Some(count) => self.encoder.data(&buffer[..count], &mut self.frames),
                // Before the toolstack says that this is the end, QEMU has written everything.
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
struct In<C, S> {
    console: C,
    /// Closed at the end, for QEMU to see one.
    sink: Option<S>,
    decoder: Decoder,
    /// What was read and not decoded.
    chunk: Vec<u8>,
    decoded: usize,
    /// What is for QEMU.
    data: Vec<u8>,
    given: usize,
}

impl<C: Read, S: Write> In<C, S> {
    fn new(console: C, sink: S) -> Self {
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

    /// Moves what can be moved; gives the state's length when its end has come.
    fn pump(&mut self) -> Result<Option<u64>, StateError> {
        let result = self.try_pump();
        if !matches!(result, Ok(None)) {
            // Whatever the reason: QEMU gets no more, and says so if it wants more.
            self.sink = None;
        }
        result
    }

    fn try_pump(&mut self) -> Result<Option<u64>, StateError> {
        let Some(sink) = &mut self.sink else { return Ok(None) };
        loop {
            while self.given < self.data.len() {
                match attempt(|| sink.write(&self.data[self.given..]))? {
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
            let (used, piece) = self.decoder.take(&self.chunk[self.decoded..])?;
            self.decoded += used;
            match piece {
                Piece::Data(bytes) => (self.data, self.given) = (bytes, 0),
                Piece::End { length } => return Ok(Some(length)),
                Piece::More => {}
            }
        }
    }
}

/// Reads or writes without waiting; nothing when that would be needed.
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

/// The ways that are relayed.
#[derive(Debug, Default)]
pub(crate) struct States {
    outgoing: Option<Out<PipeReader, File>>,
    incoming: Option<In<File, PipeWriter>>,
}

impl States {
    /// Whether the kernel's command line asks for frames.
    pub(crate) fn are_wanted(cmdline: &str) -> bool {
        stubdom_abi::has_word(cmdline, stubdom_abi::STATE_FRAMES_WORD)
    }

    /// Takes over the console that is the way out; gives QEMU's end.
    pub(crate) fn relay_out(&mut self) -> Result<PipeWriter, AgentError> {
        let (ours, theirs) = io::pipe().map_err(|e| AgentError::System("make a pipe", e))?;
        set_nonblocking(&ours)?;
        self.outgoing = Some(Out::new(ours, open_raw_polled(StubConsole::StateOut)?));
        Ok(theirs)
    }

    /// Takes over the console that is the way in; gives QEMU's end.
    pub(crate) fn relay_in(&mut self) -> Result<PipeReader, AgentError> {
        let (theirs, ours) = io::pipe().map_err(|e| AgentError::System("make a pipe", e))?;
        set_nonblocking(&ours)?;
        self.incoming = Some(In::new(open_raw_polled(StubConsole::StateIn)?, ours));
        Ok(theirs)
    }

    /// Whether any way is relayed.
    pub(crate) fn are_relayed(&self) -> bool {
        self.outgoing.is_some() || self.incoming.is_some()
    }

    /// Adds all ends to an epoll, with one token: any event is a reason to move what can be moved.
    pub(crate) fn poll(&self, epoll: &Epoll, token: u64) -> Result<(), AgentError> {
        let add = |fd: &dyn AsFd, flags| {
            let event = EpollEvent::new(flags | EpollFlags::EPOLLET, token);
            epoll.add(fd.as_fd(), event).map_err(AgentError::system("poll a state's stream"))
        };
        if let Some(out) = &self.outgoing {
            add(&out.source, EpollFlags::EPOLLIN)?;
            add(&out.console, EpollFlags::EPOLLOUT)?;
        }
        if let Some(incoming) = &self.incoming {
            add(&incoming.console, EpollFlags::EPOLLIN)?;
            if let Some(sink) = &incoming.sink {
                add(sink, EpollFlags::EPOLLOUT)?;
            }
        }
        Ok(())
    }

    /// The toolstack says that the state that is on its way out ends with what QEMU has written.
    pub(crate) fn end(&mut self) {
        if let Some(out) = &mut self.outgoing {
            out.ends = true;
        }
    }

    /// Moves what can be moved.
    pub(crate) fn pump(&mut self, log: &mut Log) {
        if let Some(out) = &mut self.outgoing {
            match out.pump() {
                Ok(ended) => {
                    ended.iter().for_each(|length| log.say(&format!("sent a state of {length} bytes")));
                }
                Err(error) => {
                    log.say(&chain(&StateError::from(error)));
                    self.outgoing = None;
                }
            }
        }
        if let Some(incoming) = &mut self.incoming {
            match incoming.pump() {
                Ok(Some(length)) => log.say(&format!("received a state of {length} bytes")),
                Ok(None) => {}
                Err(error) => log.say(&chain(&error)),
            }
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

    /// A pipe or a console that takes and gives as much as it is told to, and then wants to be waited for.
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

    /// Sends states one after another through a console, whose bytes it gives.
    fn sent(states: &[Vec<u8>], steps: &[usize]) -> Vec<u8> {
        let (source, console) = (Fake::default(), Fake::default());
        let mut out = Out::new(source.clone(), console.clone());
        for state in states {
            source.0.borrow_mut().0.extend(state);
            for step in steps {
                source.allow(*step);
                console.allow(step / 2);
                assert!(out.pump().unwrap().is_empty(), "an end that nobody asked for");
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
        fn a_damaged_state_is_told_and_a_cut_one_waits(
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
    fn a_word_of_the_command_line_asks_for_frames() {
        assert!(States::are_wanted("console=hvc0 outrigger.state=frames\n"));
        assert!(!States::are_wanted("console=hvc0 quiet\n"));
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
