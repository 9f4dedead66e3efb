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
    use super::*;

    #[test]
    fn a_word_of_the_command_line_asks_for_frames() {
        assert!(Relay::is_wanted("console=hvc0 outrigger.state=frames\n"));
        assert!(!Relay::is_wanted("console=hvc0 quiet\n"));
    }
}
