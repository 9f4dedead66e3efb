//! One console: its ring, what is kept of its bytes, and everyone who reads and writes it.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use tracing::{debug, warn};
use xen_types::EventPort;

use super::bucket::Bucket;
use super::ends::{Main, Stream, StreamFd, Viewer};
use super::id::ConsoleId;
use super::journal::{Entry, Journal};
use super::poller::{Part, Poller, Slot, Source};
use super::reader::{Pumped, Reader};
use crate::history::History;
use crate::logfile::LogFile;
use crate::ring::{BackendRing, Batch, OUT_SIZE, RingLie, RingMemory};
use crate::xenbus;

/// Input that waits for the guest; its sources are not read beyond it.
const INPUT_MAX: usize = 4096;
/// Viewers of one console at a time.
const VIEWERS_MAX: usize = 64;
/// Warnings about one console, so that its guest cannot fill the journal.
const COMPLAINTS_MAX: u32 = 16;
/// Rings that are emptied without asking whether the output can follow, when a ring is let go of.
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
}

#[derive(Debug)]
pub(crate) struct Console<M> {
    pub(crate) id: ConsoleId,
    key: u64,
    pub(crate) wire: Option<Wire<M>>,
    /// The handshake (secondary) or what was mapped (primary).
    pub(crate) link: xenbus::Link,
    /// Whether it waits for its turn.
    pub(crate) queued: bool,
    /// Whether its port has fired and waits to be unmasked.
    pub(crate) fired: bool,
    pub(crate) turns: Bucket,
    pub(crate) looks: Bucket,
    /// Whether a look at its nodes was put off.
    pub(crate) look_is_due: bool,
    /// The path of its pseudo-terminal.
    pub(crate) tty: Option<String>,
    complaints: u32,
    history: History,
    log: Option<LogFile>,
    journal: Option<Journal>,
    log_broken: bool,
    main: Main,
    listener: Option<(UnixListener, Slot, PathBuf)>,
    viewers: BTreeMap<u64, Viewer>,
    next_viewer: u64,
    input: VecDeque<u8>,
    /// Its ring is gone for good; it stays for readers that have not got everything.
    leaving: bool,
}

impl<M: RingMemory> Console<M> {
    pub(crate) fn new(id: ConsoleId, key: u64, now: Instant) -> Self {
        Self {
            id,
            key,
            wire: None,
            link: xenbus::Link::None,
            queued: false,
            fired: false,
            // About a fifth of a processor when each turn moves but one byte, 80 MB/s when each moves a full ring.
            turns: Bucket::new(4096, 40_960, now),
            looks: Bucket::new(16, 50, now),
            look_is_due: false,
            tty: None,
            complaints: 0,
            history: History::default(),
            log: None,
            journal: None,
            log_broken: false,
            main: Main::Null,
            listener: None,
            viewers: BTreeMap::new(),
            next_viewer: 0,
            input: VecDeque::new(),
            leaving: false,
        }
    }

    pub(crate) fn set_log(&mut self, log: LogFile, journal: Option<Journal>) {
        self.log = Some(log);
        self.journal = journal;
    }

    pub(crate) fn set_file(&mut self, file: LogFile) {
        self.main = Main::File(file);
    }

    /// Makes a pseudo-terminal or pipe the main output. `takes` says whether it is given the console's bytes, `gives`
    /// whether bytes come from it.
    pub(crate) fn set_stream(
        &mut self,
        poller: &mut Poller,
        fd: StreamFd,
        takes: bool,
        gives: bool,
    ) -> io::Result<()> {
        let slot = poller.add(&fd, Source::Console(self.key, Part::Output), EpollFlags::empty())?;
        let reader = takes.then(|| Reader::new(self.history.oldest()));
        let mut stream = Stream::new(fd, slot, reader, gives);
        stream.arm(poller, true);
        self.main = Main::Stream(stream);
        Ok(())
    }

    pub(crate) fn set_listener(
        &mut self,
        poller: &mut Poller,
        listener: UnixListener,
        path: PathBuf,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let slot = poller.add(&listener, Source::Console(self.key, Part::Listener), EpollFlags::EPOLLIN)?;
        self.listener = Some((listener, slot, path));
        Ok(())
    }

    /// Warns about this console, a bounded number of times.
    pub(crate) fn complain(&mut self, what: &dyn core::fmt::Display) {
        if self.complaints < COMPLAINTS_MAX {
            self.complaints += 1;
            warn!(console = %self.id, "{what}");
            if self.complaints == COMPLAINTS_MAX {
                warn!(console = %self.id, "further warnings about this console are not logged");
            }
        }
    }

    /// Moves at most one ring of output, and the input that there is.
    pub(crate) fn serve(&mut self, poller: &mut Poller) -> Result<Moved, RingLie> {
        let held_up = matches!(&self.main, Main::Stream(stream) if stream.holds_up(&self.history));
        let Some(wire) = &mut self.wire else { return Ok(Moved::default()) };
        let mut buffer = [0; OUT_SIZE];
        let batch = wire.ring.copy(&mut buffer[..if held_up { 0 } else { OUT_SIZE }])?;
        let input = wire.ring.put(self.input.as_slices().0)?;
        if input > 0 {
            self.input.drain(..input);
        }
        let output = batch.count();
        if output > 0 {
            // The ring is the safe place until the log has the bytes.
            self.note_batch(&batch);
            self.record(&buffer[..output]);
            if let Some(wire) = &mut self.wire {
                wire.ring.release(batch);
            }
            self.history.push(&buffer[..output]);
            self.pump(poller);
        } else if input > 0 {
            self.arm(poller);
        }
        Ok(Moved { output, input, held_up })
    }

    fn note_batch(&self, batch: &Batch) {
        let (Some(journal), Some(log)) = (&self.journal, &self.log) else { return };
        // Nothing has the greatest size: an entry with it says that nothing is known.
        let log_size = log.size_after(batch.count()).unwrap_or(u64::MAX);
        journal.note(&Entry { from: batch.start(), to: batch.end(), log_inode: log.position().0, log_size });
    }

    /// Takes up a ring: frees the bytes that a killed predecessor had logged and not yet freed.
    pub(crate) fn take_up(&mut self, mut wire: Wire<M>) {
        let mut buffer = [0; OUT_SIZE];
        if let (Some(entry), Some(log)) = (self.journal.as_ref().and_then(Journal::last), &self.log)
            && log.position() == (entry.log_inode, entry.log_size)
            // A lie will be found by the first service.
            && let Ok(batch) = wire.ring.copy(&mut buffer)
            && batch.start() == entry.from
        {
            let logged = usize::try_from(entry.to.wrapping_sub(entry.from)).unwrap_or(usize::MAX);
            if logged <= batch.count() {
                self.history.push(&buffer[..logged]);
                wire.ring.release(batch.truncated(logged));
            }
        }
        self.wire = Some(wire);
    }

    /// Empties the ring for the last time and gives it up, for its port to be unbound and its page unmapped.
    pub(crate) fn take_wire(&mut self, poller: &mut Poller) -> Option<Wire<M>> {
        let mut wire = self.wire.take()?;
        let mut buffer = [0; OUT_SIZE];
        for _ in 0..FINAL_ROUNDS {
            match wire.ring.take(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.record(&buffer[..count]);
                    self.history.push(&buffer[..count]);
                }
                Err(lie) => {
                    self.complain(&lie);
                    break;
                }
            }
        }
        self.pump(poller);
        self.fired = false;
        Some(wire)
    }

    /// Writes bytes to the files.
    fn record(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            let done = log.append(bytes);
            self.note_log(done);
        }
        if let Main::File(file) = &mut self.main {
            let done = file.append(bytes);
            self.note_log(done);
        }
    }

    /// Warns once for a run of failures.
    fn note_log(&mut self, done: Result<(), crate::logfile::LogError>) {
        match done {
            Ok(()) => self.log_broken = false,
            Err(error) => {
                if !self.log_broken {
                    self.complain(&with_cause(&error));
                }
                self.log_broken = true;
            }
        }
    }

    /// Brings every reader up to date, as far as it takes bytes.
    fn pump(&mut self, poller: &mut Poller) {
        if let Main::Stream(stream) = &mut self.main
            && stream.pump(&self.history) == Pumped::Gone
        {
            self.complain(&"its output is broken; bytes go to the log and the socket only");
            if let Main::Stream(stream) = core::mem::replace(&mut self.main, Main::Null) {
                stream.close(poller);
            }
        }
        let numbers: Vec<u64> = self.viewers.keys().copied().collect();
        for number in numbers {
            self.pump_viewer(poller, number);
        }
        self.arm(poller);
    }

    fn pump_viewer(&mut self, poller: &mut Poller, number: u64) {
        let Some(viewer) = self.viewers.get_mut(&number) else { return };
        let pumped = viewer.pump(&self.history);
        let done = pumped == Pumped::Gone || (pumped == Pumped::UpToDate && self.leaving);
        if done {
            self.drop_viewer(poller, number);
        }
    }

    fn drop_viewer(&mut self, poller: &mut Poller, number: u64) {
        if let Some(viewer) = self.viewers.remove(&number) {
            viewer.close(poller);
        }
    }

    /// Waits for what can happen: input only while there is room for it.
    fn arm(&mut self, poller: &Poller) {
        let takes_input = self.input.len() < INPUT_MAX && !self.leaving;
        if let Main::Stream(stream) = &mut self.main {
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
            Part::Listener => self.accept(poller),
            Part::Viewer(number) => self.handle_viewer(poller, number, readable, writable),
            Part::Output => self.handle_output(poller, readable, writable),
        }
    }

    fn handle_viewer(&mut self, poller: &mut Poller, number: u64, readable: bool, writable: bool) {
        let Some(viewer) = self.viewers.get_mut(&number) else { return };
        if readable {
            let mut buffer = [0; INPUT_MAX];
            let room = INPUT_MAX.saturating_sub(self.input.len());
            // With no room, only an end is what this can be about; it shows when the next byte is written.
            match viewer.read(&mut buffer[..room.max(1)], &self.history) {
                Ok(count) => self.input.extend(&buffer[..count]),
                Err(error) if is_passing(&error) => {}
                Err(_) => return self.drop_viewer(poller, number),
            }
        }
        if writable {
            viewer.unblock();
        }
        self.pump_viewer(poller, number);
        self.arm(poller);
    }

    fn handle_output(&mut self, poller: &mut Poller, readable: bool, writable: bool) {
        let Main::Stream(stream) = &mut self.main else { return };
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
            if let Main::Stream(stream) = core::mem::replace(&mut self.main, Main::Null) {
                stream.close(poller);
            }
        }
        self.pump(poller);
    }

    fn accept(&mut self, poller: &mut Poller) {
        let Some((listener, ..)) = &self.listener else { return };
        let Ok((stream, _)) = listener.accept() else { return };
        if self.viewers.len() >= VIEWERS_MAX {
            debug!(console = %self.id, "a viewer too many was turned away");
            return;
        }
        let number = self.next_viewer;
        self.next_viewer += 1;
        let added = stream.set_nonblocking(true).and_then(|()| {
            poller.add(&stream, Source::Console(self.key, Part::Viewer(number)), EpollFlags::empty())
        });
        match added {
            Ok(slot) => {
                let reader = Reader::new(self.history.oldest());
                self.viewers.insert(number, Viewer::new(stream, slot, reader));
                self.pump_viewer(poller, number);
                self.arm(poller);
            }
            Err(error) => debug!(console = %self.id, %error, "a viewer could not be taken"),
        }
    }

    /// Opens its files again.
    pub(crate) fn reopen_files(&mut self) {
        let done = self.log.as_mut().map_or(Ok(()), LogFile::reopen);
        self.note_log(done);
        if let Main::File(file) = &mut self.main {
            let done = file.reopen();
            self.note_log(done);
        }
    }

    /// Takes no more viewers and no input; those that are here get the rest. Removes the socket's name.
    pub(crate) fn leave(&mut self, poller: &mut Poller) {
        self.leaving = true;
        if let Some((listener, slot, path)) = self.listener.take() {
            poller.remove(&slot, &listener);
            // It may be gone with the whole folder.
            let _ = fs::remove_file(path);
        }
        if let Some(journal) = self.journal.take() {
            journal.remove();
        }
        self.pump(poller);
    }

    /// Whether nobody waits for bytes of a console that leaves.
    pub(crate) fn has_left(&self) -> bool {
        let output_done = match &self.main {
            Main::Stream(stream) => !stream.holds_up(&self.history),
            Main::Null | Main::File(_) => true,
        };
        self.leaving && output_done && self.viewers.is_empty()
    }

    /// Closes every descriptor that is waited for.
    pub(crate) fn close(mut self, poller: &mut Poller) {
        let numbers: Vec<u64> = self.viewers.keys().copied().collect();
        for number in numbers {
            self.drop_viewer(poller, number);
        }
        if let Main::Stream(stream) = self.main {
            stream.close(poller);
        }
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
