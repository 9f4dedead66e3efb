//! What the descriptors of one console are ready for: new clients, their input, room for their output.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use tracing::debug;

use super::Console;
use crate::output::Overflow;
use crate::ring::RingMemory;
use crate::server::ends::Role;
use crate::server::poller::{Part, Poller};
use crate::server::ring_link::INPUT_MAX;

impl<M: RingMemory> Console<M> {
    /// Does what a descriptor of this console is ready for. The caller gives the console a turn afterwards.
    pub(crate) fn handle(&mut self, poller: &mut Poller, part: Part, flags: EpollFlags) {
        let ended = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let readable = flags.intersects(EpollFlags::EPOLLIN | ended);
        let writable = flags.intersects(EpollFlags::EPOLLOUT | ended);
        match part {
            Part::Listener | Part::OutputListener => self.accept(poller, part),
            Part::Viewer(number) => {
                let is_gone = flags.intersects(ended);
                self.handle_viewer(poller, number, (readable, writable, is_gone));
                if is_gone {
                    self.viewers.remove_ended_stream(poller, number);
                }
            }
            Part::Output => {
                let mut buffer = [0; INPUT_MAX];
                let room = self.ring.input_room();
                match self.outputs.handle(poller, (readable, writable), &mut buffer[..room]) {
                    Ok(count) => self.ring.add_input(&buffer[..count]),
                    Err(error) if is_passing(&error) => {}
                    Err(error) => debug!(console = %self.id, %error, "cannot read the output's input"),
                }
                self.pump(poller);
            }
        }
    }

    fn handle_viewer(
        &mut self,
        poller: &mut Poller,
        number: u64,
        (readable, writable, is_gone): (bool, bool, bool),
    ) {
        let writer = self.viewers.output_writer();
        let Some(viewer) = self.viewers.get_mut(number) else { return };
        let is_at_output = matches!(viewer.role(), Role::Output(_));
        if readable && !viewer.input_ended() {
            let mut buffer = [0; INPUT_MAX];
            // One that is gone would be reported until all that it has sent is read, which is no more than a socket holds.
            let room = if is_gone { INPUT_MAX } else { self.ring.input_room().max(1) };
            match viewer.read(&mut buffer[..room], &self.history) {
                // Others at the output's socket may only look.
                Ok(_) if is_at_output && writer != Some(number) => {}
                Ok(count) => self.ring.add_input(&buffer[..count]),
                Err(error) if is_passing(&error) => {}
                Err(_) => return self.viewers.remove(poller, number),
            }
            // Someone at the output's socket has no way of asking for what there is: no more input is its end.
            if viewer.input_ended() && is_at_output {
                return self.viewers.remove(poller, number);
            }
        }
        if writable {
            viewer.unblock();
        }
        self.pump_viewer(poller, number);
    }

    fn accept(&mut self, poller: &mut Poller, part: Part) {
        let (stream, role) = match (part, self.outputs.socket_mut()) {
            (Part::OutputListener, Some((listener, overflow))) => {
                (listener.accept(poller), Role::Output(overflow))
            }
            _ => {
                let listener = self.viewers.listener_mut();
                (listener.and_then(|listener| listener.accept(poller)), Role::Viewer)
            }
        };
        if let Some(stream) = stream
            && let Err(error) = self.admit(poller, stream, role, None)
        {
            debug!(console = %self.id, %error, "refused a viewer");
        }
    }

    /// Takes a client in. A viewer gets what is kept, or what came since a time; a stream what comes from now on.
    pub(crate) fn admit(
        &mut self,
        poller: &mut Poller,
        stream: UnixStream,
        role: Role,
        since: Option<Instant>,
    ) -> io::Result<()> {
        if let Some(why) = self.viewers.refuses(role) {
            return Err(io::Error::other(why));
        }
        let cursor = match (role, since) {
            (Role::Stream, _) => self.history.newest(),
            (Role::Output(Overflow::Block), _) => {
                let reached = self.viewers.take_reached().or_else(|| self.outputs.take_resume());
                reached.map_or_else(|| self.history.newest(), |at| self.history.from(at))
            }
            (_, Some(time)) => self.history.since(time),
            (_, None) => self.history.oldest(),
        };
        let number = self.viewers.add(poller, stream, role, cursor)?;
        self.pump_viewer(poller, number);
        Ok(())
    }

    /// Accepts viewers again.
    pub(crate) fn accept_again(&mut self, poller: &Poller) {
        let at_output = self.outputs.socket_mut().map(|(listener, _)| listener);
        for listener in [self.viewers.listener_mut(), at_output].into_iter().flatten() {
            listener.rest(poller, false);
        }
    }

    /// Whether a listener is ignored, since there was no descriptor or memory for a client.
    pub(crate) fn is_resting(&mut self) -> bool {
        let at_output = self.outputs.socket_mut().map(|(listener, _)| listener);
        let listeners = [self.viewers.listener_mut(), at_output];
        listeners.into_iter().flatten().any(|listener| listener.is_resting())
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
