//! One console: its ring, what is kept of its bytes, and everyone who reads and writes it.

mod keep;
mod viewers;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use tracing::{debug, info, warn};
use uuid::Uuid;
use xen_types::EventPort;

use super::bucket::Bucket;
use super::ends::{Role, Stream, StreamEnd, Viewer};
use super::id::ConsoleId;
use super::poller::{Part, Poller, Slot, Source};
use super::reader::{PIECE, Pumped, Reader};
use super::share::Share;
use super::sinks::Sinks;
use crate::history::History;
use crate::logfile::LogFile;
use crate::output::Overflow;
use crate::own_path::OwnPath;
use crate::ring::{BackendRing, OUT_SIZE, RingLie, RingMemory};
use crate::spool::Kept;
use crate::xenbus;

/// Input that waits for the guest; its sources are not read beyond it.
const INPUT_MAX: usize = 4096;
/// Bytes of one turn that are more than a person reads.
const FLOOD: usize = 512;
/// The amount, in rings, that is drained without waiting for the output when a ring is released.
const FINAL_ROUNDS: usize = 2;

/// A ring in use.
#[derive(Debug)]
pub(crate) struct Wire<M> {
    pub(crate) ring: BackendRing<M>,
    /// This side's port.
    pub(crate) port: EventPort,
}

/// What one turn of service moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) output: usize,
    pub(crate) input: usize,
    /// The main output takes no more; there may be more in the ring.
    pub(crate) held_up: bool,
    /// Bytes were handed on, which takes long enough for more to come.
    pub(crate) handed_on: bool,
}

/// A socket on which people and programs come.
#[derive(Debug)]
struct Door {
    listener: UnixListener,
    slot: Slot,
    name: OwnPath,
}

#[derive(Debug)]
pub(crate) struct Console<M> {
    pub(crate) id: ConsoleId,
    /// The UUID of the domain that it belongs to, even if another domain has the domid now.
    pub(crate) uuid: Uuid,
    key: u64,
    pub(crate) wire: Option<Wire<M>>,
    /// The handshake (secondary) or what was mapped (primary).
    pub(crate) link: xenbus::Link,
    /// Whether it waits for its turn.
    pub(crate) queued: bool,
    /// Whether it said much in its last turn: consoles that did not come before it.
    pub(crate) floods: bool,
    /// Whether its port has fired and waits to be unmasked.
    pub(crate) fired: bool,
    /// What it shares with the domain's other consoles.
    pub(crate) share: Rc<Share>,
    /// When the files may have more of what has come.
    files_are_due: Option<Instant>,
    /// Whether that time is in the server's list.
    files_are_scheduled: bool,
    pub(crate) looks: Bucket,
    /// Whether a look at its nodes was put off.
    pub(crate) look_is_due: bool,
    /// The path of its pseudo-terminal.
    pub(crate) tty: Option<String>,
    /// Whether that path was written to xenstore.
    pub(crate) tty_is_told: bool,
    /// The name of its channel, and the link with that name to its socket.
    pub(crate) name: Option<(String, Option<OwnPath>)>,
    /// Bytes that came out of the ring and were not handed on yet.
    waiting: usize,
    history: History,
    pub(crate) sinks: Sinks,
    /// The main output, when it is a pseudo-terminal or a pipe.
    stream: Option<Stream>,
    /// The main output, when it is a socket.
    output_door: Option<(Door, Overflow)>,
    door: Option<Door>,
    doors_rest: bool,
    viewers: BTreeMap<u64, Viewer>,
    next_viewer: u64,
    /// Up to where an output that is not there has got everything.
    resume: Option<u64>,
    noted_output: Option<u64>,
    /// What an earlier process has left, until the ring is taken up.
    kept: Option<Kept>,
    input: VecDeque<u8>,
    /// Its ring is gone for good; it stays for readers that have not got everything.
    leaving: bool,
}

impl<M: RingMemory> Console<M> {
    pub(crate) fn new(id: ConsoleId, uuid: Uuid, key: u64, share: Rc<Share>, now: Instant) -> Self {
        Self {
            id,
            uuid,
            key,
            wire: None,
            link: xenbus::Link::None,
            queued: false,
            floods: false,
            fired: false,
            share,
            files_are_due: None,
            files_are_scheduled: false,
            looks: Bucket::new(16, 50, now),
            look_is_due: false,
            tty: None,
            tty_is_told: false,
            name: None,
            waiting: 0,
            history: History::default(),
            sinks: Sinks::default(),
            stream: None,
            output_door: None,
            door: None,
            doors_rest: false,
            viewers: BTreeMap::new(),
            next_viewer: 0,
            resume: None,
            noted_output: None,
            kept: None,
            input: VecDeque::new(),
            leaving: false,
        }
    }

    /// Gives the console its log; nothing has been said yet.
    pub(crate) fn set_log(&mut self, log: LogFile) {
        self.sinks.set_log(log);
    }

    /// Bytes that came out of the ring.
    pub(crate) const fn total(&self) -> u64 {
        self.history.end()
    }

    /// Makes a pseudo-terminal or pipe the main output, `limit` bytes of which may wait for who reads it.
    pub(crate) fn set_stream(&mut self, poller: &mut Poller, end: StreamEnd) -> io::Result<()> {
        let slot = poller.add(&end.fd, Source::Console(self.key, Part::Output), EpollFlags::empty())?;
        let cursor = self.resume.take().map_or_else(|| self.history.oldest(), |at| self.history.from(at));
        // Where nothing is to be lost, the domain waits instead.
        let limit = if end.overflow == Overflow::Block { u64::MAX } else { end.limit };
        let reader = end.takes.then(|| Reader::new(cursor).limited(limit));
        let mut stream = Stream::new(end.fd, slot, reader, end.gives, end.overflow);
        stream.arm(poller, true);
        self.stream = Some(stream);
        Ok(())
    }

    /// Takes viewers at a socket.
    pub(crate) fn set_listener(
        &mut self,
        poller: &mut Poller,
        listener: UnixListener,
        path: PathBuf,
    ) -> io::Result<()> {
        self.door = Some(self.open_door(poller, Part::Listener, listener, path)?);
        Ok(())
    }

    /// Makes a socket the main output.
    pub(crate) fn set_output_socket(
        &mut self,
        poller: &mut Poller,
        listener: UnixListener,
        path: PathBuf,
        overflow: Overflow,
    ) -> io::Result<()> {
        let door = self.open_door(poller, Part::OutputListener, listener, path)?;
        self.output_door = Some((door, overflow));
        Ok(())
    }

    fn open_door(
        &self,
        poller: &mut Poller,
        part: Part,
        listener: UnixListener,
        path: PathBuf,
    ) -> io::Result<Door> {
        let name = OwnPath::of(path)?;
        listener.set_nonblocking(true)?;
        let slot = poller.add(&listener, Source::Console(self.key, part), EpollFlags::EPOLLIN)?;
        Ok(Door { listener, slot, name })
    }

    /// Warns about this console, as often as its domain has lines left.
    pub(crate) fn complain(&self, what: &dyn core::fmt::Display) {
        if self.share.may_log(Instant::now()) {
            warn!(console = %self.id, "{what}");
        }
    }

    /// Logs a change of this console, as often as its domain has lines left.
    pub(crate) fn report(&self, what: &str) {
        if self.share.may_log(Instant::now()) {
            info!(console = %self.id, "{what}");
        }
    }

    /// Whether bytes must stay in the ring until someone has taken those before them.
    fn is_held_up(&mut self, now: Instant) -> bool {
        // Where bytes must be on the disk before they leave the ring, none can be left out.
        let rests = self.share.log_rests_until(now).filter(|_| self.sinks.come_first());
        self.files_are_due = rests.or(self.files_are_due);
        let unattended = matches!(self.output_door, Some((_, Overflow::Block)))
            && !self.viewers.values().any(|viewer| matches!(viewer.role, Role::Output(_)));
        rests.is_some()
            || unattended
            || self.stream.as_ref().is_some_and(|stream| stream.holds_up(&self.history))
            || self.viewers.values().any(|viewer| viewer.holds_up(&self.history))
    }

    /// Moves at most one ring of output, and the input that there is.
    ///
    /// The guest is told by `notify` as soon as its ring has changed, so that it goes on while readers are served.
    pub(crate) fn serve(
        &mut self,
        poller: &mut Poller,
        now: Instant,
        notify: impl FnOnce(EventPort),
    ) -> Result<Moved, RingLie> {
        let held_up = self.is_held_up(now);
        let Some(wire) = &mut self.wire else { return Ok(Moved::default()) };
        let mut buffer = [0; OUT_SIZE];
        let batch = wire.ring.copy(&mut buffer[..if held_up { 0 } else { OUT_SIZE }])?;
        let input = wire.ring.put(self.input.as_slices().0)?;
        if input > 0 {
            self.input.drain(..input);
        }
        let guest_took_all = self.input.is_empty() && wire.ring.room()? == M::IN_SIZE;
        let output = batch.count();
        if output > 0 {
            self.take(batch, &buffer[..output], now);
            if let Some(wire) = &self.wire {
                notify(wire.port);
            }
        } else if input > 0 {
            notify(wire.port);
            self.arm(poller);
        }
        self.floods = output >= FLOOD;
        // Large pieces cost less; who says little does not wait.
        let handed_on = self.waiting > 0 && (output < FLOOD || self.waiting >= PIECE);
        if handed_on {
            self.hand_on(poller);
        }
        if guest_took_all {
            self.end_streams(poller);
        }
        Ok(Moved { output, input, held_up, handed_on })
    }

    fn flush(&mut self) {
        // At the end, everything in memory is written: a guest's last output explains its end.
        let now = Instant::now();
        let is_end = self.leaving;
        let take = |count| if is_end { Ok(()) } else { self.share.take_log(now, count) };
        let (done, due) = self.sinks.flush(&self.history, take);
        self.files_are_due = due;
        if let Err(error) = done {
            self.complain(&with_cause(&error));
        }
    }

    /// When the files are to be given more, if nobody was told yet.
    pub(crate) fn unscheduled_files(&mut self) -> Option<Instant> {
        let due = self.files_are_due.filter(|_| !self.files_are_scheduled);
        self.files_are_scheduled |= due.is_some();
        due
    }

    /// Gives the files what waited for its time.
    pub(crate) fn flush_late(&mut self) {
        self.files_are_scheduled = false;
        self.files_are_due = None;
        self.flush();
    }

    /// Gives what has come to the files and to all readers.
    fn hand_on(&mut self, poller: &mut Poller) {
        self.waiting = 0;
        self.flush();
        self.pump(poller);
    }

    /// Empties the ring for the last time and gives it up, for its port to be unbound and its page unmapped. A ring
    /// that `lies` (is corrupted) is not read again.
    pub(crate) fn take_wire(&mut self, poller: &mut Poller, lies: bool) -> Option<Wire<M>> {
        let mut buffer = [0; OUT_SIZE];
        for _ in 0..if lies { 0 } else { FINAL_ROUNDS } {
            match self.wire.as_ref()?.ring.copy(&mut buffer) {
                Ok(batch) if batch.count() > 0 => {
                    let count = batch.count();
                    self.take(batch, &buffer[..count], Instant::now());
                }
                Ok(_) => break,
                Err(lie) => {
                    self.complain(&lie);
                    break;
                }
            }
        }
        let wire = self.wire.take()?;
        // Another ring has nothing to do with this one's indices.
        self.note_ring(0, 0);
        self.hand_on(poller);
        self.fired = false;
        Some(wire)
    }

    /// Brings every reader up to date, as far as it takes bytes.
    fn pump(&mut self, poller: &mut Poller) {
        self.pump_readers(poller);
        self.note_output();
        self.arm(poller);
    }

    fn pump_readers(&mut self, poller: &mut Poller) {
        if let Some(stream) = &mut self.stream
            && stream.pump(&self.history, &self.sinks) == Pumped::Gone
        {
            self.complain(&"its output failed; bytes go only to the log and the socket");
            self.drop_stream(poller);
        }
        let numbers: Vec<u64> = self.viewers.keys().copied().collect();
        for number in numbers {
            self.pump_viewer(poller, number);
        }
    }

    fn drop_stream(&mut self, poller: &mut Poller) {
        if let Some(stream) = self.stream.take() {
            stream.close(poller);
        }
    }

    /// Waits for what can happen: input only while there is room for it.
    fn arm(&mut self, poller: &Poller) {
        let takes_input = self.input.len() < INPUT_MAX && !self.leaving;
        if let Some(stream) = &mut self.stream {
            stream.arm(poller, takes_input);
        }
        for viewer in self.viewers.values_mut() {
            viewer.arm(poller, takes_input);
        }
    }

    /// Does what a descriptor of this console is ready for. The caller gives the console a turn afterwards.
    pub(crate) fn handle(&mut self, poller: &mut Poller, part: Part, flags: EpollFlags) {
        let ended = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let readable = flags.intersects(EpollFlags::EPOLLIN | ended);
        let writable = flags.intersects(EpollFlags::EPOLLOUT | ended);
        match part {
            Part::Listener => self.accept(poller, Role::Viewer),
            Part::OutputListener => {
                let overflow = self.output_door.as_ref().map_or(Overflow::Drop, |(_, overflow)| *overflow);
                self.accept(poller, Role::Output(overflow));
            }
            Part::Viewer(number) => {
                let is_gone = flags.intersects(ended);
                self.handle_viewer(poller, number, (readable, writable, is_gone));
                if is_gone {
                    self.drop_ended_stream(poller, number);
                }
            }
            Part::Output => self.handle_output(poller, readable, writable),
        }
    }

    fn handle_output(&mut self, poller: &mut Poller, readable: bool, writable: bool) {
        let Some(stream) = &mut self.stream else { return };
        let room = INPUT_MAX.saturating_sub(self.input.len());
        if readable && stream.is_readable() && room > 0 {
            let mut buffer = [0; INPUT_MAX];
            match stream.read(&mut buffer[..room]) {
                Ok(count) => self.input.extend(&buffer[..count]),
                Err(error) if is_passing(&error) => {}
                Err(error) => debug!(console = %self.id, %error, "cannot read the output's input"),
            }
        }
        if writable {
            stream.unblock();
        }
        if stream.is_finished() {
            // Its end would be reported for as long as it is waited for.
            self.drop_stream(poller);
        }
        self.pump(poller);
    }

    /// Opens its files again.
    pub(crate) fn reopen_files(&mut self) {
        if let Err(error) = self.sinks.reopen() {
            self.complain(&with_cause(&error));
        }
    }

    /// Takes no more viewers and no input; those that are here get the rest. Removes the sockets' names. What a
    /// next process needs to go on stays unless the console is gone for good.
    pub(crate) fn leave(&mut self, poller: &mut Poller, for_good: bool) {
        self.leaving = true;
        let doors = [self.door.take(), self.output_door.take().map(|(door, _)| door)];
        for Door { listener, slot, name } in doors.into_iter().flatten() {
            poller.remove(&slot, &listener);
            name.remove();
        }
        if let Some((_, Some(link))) = self.name.take() {
            link.remove();
        }
        self.hand_on(poller);
        if let (true, Some(spool)) = (for_good, self.history.spool()) {
            spool.remove();
        }
    }

    /// Whether nothing waits for bytes of a console that is being removed.
    pub(crate) fn has_left(&self) -> bool {
        let output_done = self.stream.as_ref().is_none_or(|stream| !stream.is_waited_for(&self.history));
        self.leaving && output_done && self.viewers.is_empty()
    }

    /// Closes every descriptor that is waited for.
    pub(crate) fn close(mut self, poller: &mut Poller) {
        let numbers: Vec<u64> = self.viewers.keys().copied().collect();
        for number in numbers {
            self.drop_viewer(poller, number);
        }
        self.drop_stream(poller);
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// An error and its cause in one line.
pub(crate) fn with_cause(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
