//! The device model's state through consoles 1 and 2 in frames, where the toolstack wants them.
//!
//! QEMU then has a pipe at each of its descriptors.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};

use nix::sys::epoll::{Epoll, EpollFlags};
use stubdom_abi::StubConsole;

use super::consoles::open_raw_polled;
use super::log::Log;
use crate::error::AgentError;
use crate::fd::{poll, set_nonblocking};
use crate::machines::state::{In, Out, StateError};

/// The streams that are relayed.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    outgoing: Option<Out<PipeReader, File>>,
    incoming: Option<In<File, PipeWriter>>,
}

impl Relay {
    /// Whether the kernel's command line asks for frames.
    pub(crate) fn is_wanted(cmdline: &str) -> bool {
        stubdom_abi::has_word(cmdline, stubdom_abi::STATE_FRAMES_WORD)
    }

    /// Takes over the console of the outgoing state; returns QEMU's end.
    pub(crate) fn open_out(&mut self) -> Result<PipeWriter, AgentError> {
        let (ours, theirs) = io::pipe().map_err(|e| AgentError::System("make a pipe", e))?;
        set_nonblocking(&ours)?;
        self.outgoing = Some(Out::new(ours, open_raw_polled(StubConsole::StateOut)?));
        Ok(theirs)
    }

    /// Takes over the console of the incoming state; returns QEMU's end.
    pub(crate) fn open_in(&mut self) -> Result<PipeReader, AgentError> {
        let (theirs, ours) = io::pipe().map_err(|e| AgentError::System("make a pipe", e))?;
        set_nonblocking(&ours)?;
        self.incoming = Some(In::new(open_raw_polled(StubConsole::StateIn)?, ours));
        Ok(theirs)
    }

    /// Whether any stream is relayed.
    pub(crate) fn is_used(&self) -> bool {
        self.outgoing.is_some() || self.incoming.is_some()
    }

    /// Adds all ends to an epoll, with one token: any event is a reason to move what can be moved.
    pub(crate) fn poll(&self, epoll: &Epoll, token: u64) -> Result<(), AgentError> {
        let (input, output) =
            (EpollFlags::EPOLLIN | EpollFlags::EPOLLET, EpollFlags::EPOLLOUT | EpollFlags::EPOLLET);
        if let Some(out) = &self.outgoing {
            poll(epoll, &out.source, token, input)?;
            poll(epoll, &out.console, token, output)?;
        }
        if let Some(incoming) = &self.incoming {
            poll(epoll, &incoming.console, token, input)?;
            if let Some(sink) = &incoming.sink {
                poll(epoll, sink, token, output)?;
            }
        }
        Ok(())
    }

    /// Ends the outgoing state with what QEMU has written: the toolstack reports that this is all.
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
                    ended.iter().for_each(|length| log.line(&format!("sent a state of {length} bytes")));
                }
                Err(error) => {
                    log.error(&StateError::from(error));
                    self.outgoing = None;
                }
            }
        }
        if let Some(incoming) = &mut self.incoming {
            match incoming.pump() {
                Ok(Some(length)) => log.line(&format!("received a state of {length} bytes")),
                Ok(None) => {}
                Err(error) => log.error(&error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::fd::OwnedFd;

    use nix::sys::epoll::{EpollCreateFlags, EpollEvent, EpollTimeout};
    use stubdom_abi::stream::Encoder;

    use super::*;

    /// A pipe whose ends do not wait.
    fn pipe() -> (PipeReader, PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        set_nonblocking(&reader).unwrap();
        set_nonblocking(&writer).unwrap();
        (reader, writer)
    }

    /// As with a QEMU that is held: what its pipe does not take waits in the console, and events alone move it then.
    #[test]
    fn a_state_that_comes_before_its_reader_arrives_whole() {
        let state: Vec<u8> = (0..=250_u8).cycle().take(400_000).collect();
        let (mut encoder, mut stream) = (Encoder::default(), Vec::new());
        state.chunks(16 * 1024).for_each(|chunk| encoder.data(chunk, &mut stream));
        encoder.end(&mut stream);
        let ((console, mut dom0), (mut qemu, sink)) = (pipe(), pipe());
        let console = File::from(OwnedFd::from(console));
        let mut relay = Relay { outgoing: None, incoming: Some(In::new(console, sink)) };
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        relay.poll(&epoll, 0).unwrap();
        let (mut log, mut sent) = (Log::default(), 0);
        // Returns how much of the stream the console has taken.
        let mut turn = || {
            while let Ok(count @ 1..) = dom0.write(&stream[sent..]) {
                sent += count;
            }
            if epoll.wait(&mut [EpollEvent::empty(); 4], EpollTimeout::ZERO).unwrap() > 0 {
                relay.pump(&mut log);
            }
            sent
        };
        let (mut before, mut taken) = (0, turn());
        while taken > before {
            (before, taken) = (taken, turn());
        }
        assert!((64 * 1024..stream.len()).contains(&taken), "{taken}");
        let (mut received, mut buffer, mut idle) = (Vec::new(), [0; 5000], 0);
        loop {
            match qemu.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    received.extend_from_slice(&buffer[..count]);
                    idle = 0;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    idle += 1;
                    assert!(idle < 3, "nothing comes after {} bytes", received.len());
                    turn();
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(received == state, "{} bytes", received.len());
    }

    #[test]
    fn a_word_of_the_command_line_asks_for_frames() {
        assert!(Relay::is_wanted("console=hvc0 outrigger.state=frames\n"));
        assert!(!Relay::is_wanted("console=hvc0 quiet\n"));
    }
}
