//! The clients of a console: viewers, streams, and readers of an output's socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use tracing::debug;

use super::{Console, Door, INPUT_MAX, is_passing};
use crate::output::Overflow;
use crate::ring::RingMemory;
use crate::server::control::is_of_client;
use crate::server::ends::{Role, Viewer};
use crate::server::poller::{Part, Poller, Source};
use crate::server::reader::{Pumped, Reader};

/// Viewers of one console at a time.
const VIEWERS_MAX: usize = 64;

impl<M: RingMemory> Console<M> {
    pub(super) fn accept(&mut self, poller: &mut Poller, role: Role) {
        let door = match role {
            Role::Output(_) => self.output_door.as_ref().map(|(door, _)| door),
            Role::Viewer | Role::Stream => self.door.as_ref(),
        };
        let Some(accepted) = door.map(|door| door.listener.accept()) else { return };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                self.rest_doors(poller, !is_of_client(&error));
                return;
            }
        };
        if let Err(error) = self.admit(poller, stream, role, None) {
            debug!(console = %self.id, %error, "refused a viewer");
        }
    }

    /// Ignores its listeners for a while, or no longer.
    pub(crate) fn rest_doors(&mut self, poller: &Poller, rest: bool) {
        self.doors_rest = rest;
        let interest = if rest { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        let output_door = self.output_door.as_mut().map(|(door, _)| door);
        for Door { listener, slot, .. } in [self.door.as_mut(), output_door].into_iter().flatten() {
            poller.set(slot, &*listener, interest);
        }
    }

    /// Whether its listeners are ignored.
    pub(crate) const fn doors_rest(&self) -> bool {
        self.doors_rest
    }

    /// Says why someone cannot be taken in.
    pub(crate) fn refuses(&self, role: Role) -> Option<&'static str> {
        if self.viewers.len() >= VIEWERS_MAX {
            return Some("this console has reached its limit of viewers");
        }
        let taken = role == Role::Stream && self.viewers.values().any(|viewer| viewer.role == Role::Stream);
        taken.then_some("this console's stream is already in use")
    }

    /// Takes someone in. A viewer gets what is kept, or what came since a time; a stream what comes from now on.
    pub(crate) fn admit(
        &mut self,
        poller: &mut Poller,
        stream: UnixStream,
        role: Role,
        since: Option<Instant>,
    ) -> io::Result<()> {
        if let Some(why) = self.refuses(role) {
            return Err(io::Error::other(why));
        }
        let number = self.next_viewer;
        self.next_viewer += 1;
        stream.set_nonblocking(true)?;
        let slot =
            poller.add(&stream, Source::Console(self.key, Part::Viewer(number)), EpollFlags::empty())?;
        let cursor = match (role, since) {
            (Role::Stream, _) => self.history.newest(),
            (Role::Output(Overflow::Block), _) => {
                self.resume.take().map_or_else(|| self.history.newest(), |at| self.history.from(at))
            }
            (_, Some(time)) => self.history.since(time),
            (_, None) => self.history.oldest(),
        };
        self.viewers.insert(number, Viewer::new(stream, slot, Reader::new(cursor), role));
        self.pump_viewer(poller, number);
        self.arm(poller);
        Ok(())
    }

    /// How many have connected.
    pub(crate) fn viewers(&self) -> usize {
        self.viewers.len()
    }

    pub(super) fn handle_viewer(
        &mut self,
        poller: &mut Poller,
        number: u64,
        (readable, writable, is_gone): (bool, bool, bool),
    ) {
        let writer = self.output_writer();
        let Some(viewer) = self.viewers.get_mut(&number) else { return };
        if readable && !viewer.input_ended {
            let mut buffer = [0; INPUT_MAX];
            // One that is gone would be reported until all that it has sent is read, which is no more than a socket holds.
            let room = if is_gone { INPUT_MAX } else { INPUT_MAX.saturating_sub(self.input.len()).max(1) };
            match viewer.read(&mut buffer[..room], &self.history) {
                // Others at the output's socket may only look.
                Ok(_) if matches!(viewer.role, Role::Output(_)) && writer != Some(number) => {}
                Ok(count) => self.input.extend(&buffer[..count]),
                Err(error) if is_passing(&error) => {}
                Err(_) => return self.drop_viewer(poller, number),
            }
            // Someone at the output's socket has no way of asking for what there is: no more input is its end.
            if viewer.input_ended && matches!(viewer.role, Role::Output(_)) {
                return self.drop_viewer(poller, number);
            }
        }
        if writable {
            viewer.unblock();
        }
        self.pump_viewer(poller, number);
        self.note_output();
        self.arm(poller);
    }

    /// Whose other end is gone waits for no word that the guest has taken everything: the next one can have the stream.
    pub(super) fn drop_ended_stream(&mut self, poller: &mut Poller, number: u64) {
        let is_over = |viewer: &Viewer| viewer.role == Role::Stream && viewer.input_ended;
        if self.viewers.get(&number).is_some_and(is_over) {
            self.drop_viewer(poller, number);
        }
    }

    /// The viewer at the output's socket that may write: the one connected longest.
    fn output_writer(&self) -> Option<u64> {
        let mut at_output = self.viewers.iter().filter(|(_, viewer)| matches!(viewer.role, Role::Output(_)));
        at_output.next().map(|(number, _)| *number)
    }

    pub(super) fn pump_viewer(&mut self, poller: &mut Poller, number: u64) {
        let Some(viewer) = self.viewers.get_mut(&number) else { return };
        let pumped = viewer.pump(&self.history, &self.sinks);
        let done = pumped == Pumped::Gone || (pumped == Pumped::UpToDate && self.leaving);
        if done {
            self.drop_viewer(poller, number);
        }
    }

    pub(super) fn drop_viewer(&mut self, poller: &mut Poller, number: u64) {
        if let Some(viewer) = self.viewers.remove(&number) {
            if viewer.role == Role::Output(Overflow::Block) {
                self.resume = Some(viewer.reached());
            }
            viewer.close(poller);
        }
    }

    /// Closes the streams whose sender has sent the end: the guest has read everything.
    pub(super) fn end_streams(&mut self, poller: &mut Poller) {
        let ended = |viewer: &Viewer| viewer.role == Role::Stream && viewer.input_ended;
        let numbers: Vec<u64> =
            self.viewers.iter().filter(|(_, viewer)| ended(viewer)).map(|(number, _)| *number).collect();
        for number in numbers {
            self.drop_viewer(poller, number);
        }
    }
}
