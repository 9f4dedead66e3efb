//! One console: what it has in memory of its bytes, and how these get from its ring to its outputs and viewers.

mod clients;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use uuid::Uuid;
use xen_types::EventPort;

use super::ends::StreamEnd;
use super::id::ConsoleId;
use super::outputs::Outputs;
use super::poller::Poller;
use super::reader::PIECE;
use super::ring_link::RingLink;
use super::share::Share;
use super::viewers::Viewers;
use super::writer::{Done, FilesToOpen, Writer, can_replay};
use crate::history::{HISTORY, History, IN_MEMORY};
use crate::logfile::LogStyle;
use crate::ring::{BackendRing, Batch, CorruptRing, OUT_SIZE, RingMemory};
use crate::spool::{Kept, RingRecord, Spool};

/// Bytes of one turn that are more than a person reads.
const FLOOD: usize = 512;
/// The amount, in rings, that is drained without waiting for the output when a ring is released.
const FINAL_ROUNDS: usize = 2;

/// What one turn of service moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Bytes from the guest.
    pub(crate) output: usize,
    /// Bytes to the guest.
    pub(crate) input: usize,
    /// Whether it was too much output for a person to read.
    pub(crate) is_flood: bool,
    /// An output takes no more; there may be more in the ring.
    pub(crate) held_up: bool,
    /// There may be more already.
    pub(crate) is_more: bool,
}

#[derive(Debug)]
pub(crate) struct Console<M> {
    id: ConsoleId,
    /// The UUID of the domain that it belongs to, even if another domain has the domid now.
    uuid: Uuid,
    /// What it shares with the domain's other consoles.
    share: Rc<Share>,
    ring: RingLink<M>,
    history: History,
    outputs: Outputs,
    viewers: Viewers,
    /// Bytes that came out of the ring and were not handed on yet.
    waiting: usize,
    /// Whether its last turn moved too much for a person to read. Another turn follows.
    floods: bool,
    /// Whether its last turn left bytes in the ring because something has to take those before them.
    held_up: bool,
    /// What an earlier process has left, until the ring is taken up.
    kept: Option<Kept>,
    /// Its ring is gone for good; it stays for readers that have not got everything.
    leaving: bool,
}

impl<M: RingMemory> Console<M> {
    /// A console without ring, outputs and viewers. A log's disk may be silent for `patience`.
    pub(crate) fn new(id: ConsoleId, uuid: Uuid, key: u64, share: Rc<Share>, patience: Duration) -> Self {
        Self {
            id,
            uuid,
            share,
            ring: RingLink::new(),
            history: History::default(),
            outputs: Outputs::new(key, patience),
            viewers: Viewers::new(key),
            waiting: 0,
            floods: false,
            held_up: false,
            kept: None,
            leaving: false,
        }
    }

    pub(crate) const fn id(&self) -> ConsoleId {
        self.id
    }

    pub(crate) const fn uuid(&self) -> Uuid {
        self.uuid
    }

    pub(crate) const fn ring(&self) -> &RingLink<M> {
        &self.ring
    }

    pub(crate) const fn ring_mut(&mut self) -> &mut RingLink<M> {
        &mut self.ring
    }

    pub(crate) const fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    pub(crate) const fn outputs_mut(&mut self) -> &mut Outputs {
        &mut self.outputs
    }

    pub(crate) const fn viewers(&self) -> &Viewers {
        &self.viewers
    }

    /// Whether its last turn left bytes in the ring because something has to take those before them.
    pub(crate) const fn is_held_up(&self) -> bool {
        self.held_up
    }

    /// Bytes that came out of the ring.
    pub(crate) const fn total(&self) -> u64 {
        self.history.end()
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

    /// Continues the journal that an earlier process left at `path`, and keeps there what the next one needs. The
    /// journal of another domain is discarded. `log` says how the log will be written.
    pub(crate) fn take_up_history(&mut self, path: PathBuf, log: Option<LogStyle>) {
        let kept = Spool::read_kept(&path, OUT_SIZE).filter(|kept| kept.uuid == self.uuid);
        let kept = kept.unwrap_or_else(|| Kept { uuid: self.uuid, ..Kept::default() });
        let capacity = if log.is_some_and(can_replay) { IN_MEMORY } else { HISTORY };
        match Spool::create(path, capacity, &kept) {
            Ok(spool) => self.history = History::taken_up(spool, &kept),
            Err(error) => {
                self.complain(&format_args!("cannot create the journal: {error}"));
                self.history = History::taken_up_here(&kept);
            }
        }
        self.outputs.resume_at(kept.output);
        self.kept = Some(kept);
    }

    /// Has the log and the output's file opened, and what an earlier process had begun to write completed.
    pub(crate) fn open_files(
        &mut self,
        writer: Rc<Writer>,
        log: Option<(PathBuf, LogStyle)>,
        file: Option<(PathBuf, LogStyle)>,
    ) {
        let note = self.history.spool().map(|spool| {
            let [log, file] =
                [&log, &file].map(|file| file.as_ref().map(|(path, style)| (path.as_path(), style.limit)));
            spool.note_paths(log, file);
            spool.files_note()
        });
        let record = self.kept.as_ref().map(|kept| kept.files).unwrap_or_default();
        let wanted = FilesToOpen::new(log, file, note).continued(&record, &self.history);
        self.outputs.files_mut().open(writer, wanted, &self.history, Instant::now());
    }

    /// Takes viewers at a socket.
    pub(crate) fn listen(
        &mut self,
        poller: &mut Poller,
        listener: UnixListener,
        path: PathBuf,
    ) -> io::Result<()> {
        self.viewers.listen(poller, listener, path)
    }

    /// Makes a pseudo-terminal or pipe the main output.
    pub(crate) fn set_stream(&mut self, poller: &mut Poller, end: StreamEnd) -> io::Result<()> {
        self.outputs.set_stream(poller, end, &self.history)
    }

    /// Continues a ring whose port is bound: releases the bytes that a killed predecessor had read and not yet released.
    pub(crate) fn attach(&mut self, ring: BackendRing<M>, port: EventPort) {
        let record = self.kept.take().map(|kept| kept.ring).unwrap_or_default();
        let history = &self.history;
        self.ring.attach(ring, port);
        self.ring.release_earlier(&record, |bytes| {
            let mut own = [0; OUT_SIZE];
            history.copy(history.end().saturating_sub(bytes.len() as u64), &mut own) == bytes
        });
        // What a predecessor took and did not hand on.
        self.waiting = 1;
    }

    /// Empties the ring for the last time, unmaps it, and returns its port to unbind. A ring that is `corrupt` is not
    /// read again.
    pub(crate) fn detach(&mut self, poller: &mut Poller, corrupt: bool) -> Option<EventPort> {
        if !self.ring.is_connected() {
            return None;
        }
        let mut buffer = [0; OUT_SIZE];
        for _ in 0..if corrupt { 0 } else { FINAL_ROUNDS } {
            // The ring cannot wait for a disk any more; its bytes are in the history.
            self.ring.release_held(|_| true);
            match self.ring.copy(&mut buffer) {
                Ok(Some(batch)) => {
                    let count = batch.count();
                    self.take(batch, &buffer[..count], Instant::now());
                }
                Ok(None) => break,
                Err(error) => {
                    self.complain(&error);
                    break;
                }
            }
        }
        self.ring.release_held(|_| !corrupt);
        let port = self.ring.detach();
        // Another ring has nothing to do with this one's indices.
        self.note_ring(0, 0);
        self.floods = false;
        self.hand_on(poller, Instant::now());
        port
    }

    /// Whether bytes must stay in the ring until someone has taken those before them.
    fn has_to_wait(&mut self, now: Instant) -> bool {
        // Where bytes must be on the disk before they leave the ring, none can be left out.
        let rests = self.share.log_rests_until(now).filter(|_| self.outputs.files().come_first());
        if let Some(at) = rests {
            self.outputs.files_mut().resume_at(at);
        }
        let unattended = self.outputs.socket_blocks() && self.viewers.output_writer().is_none();
        rests.is_some()
            || unattended
            || self.outputs.hold_up(&self.history)
            || self.viewers.hold_up(&self.history)
    }

    /// Moves at most one ring of output, and the input that there is.
    ///
    /// The guest is told by `notify` as soon as its ring has changed, so that it goes on while readers are served.
    pub(crate) fn serve(
        &mut self,
        poller: &mut Poller,
        now: Instant,
        notify: impl FnOnce(EventPort),
    ) -> Result<Moved, CorruptRing> {
        let Some(port) = self.ring.port() else { return Ok(Moved::default()) };
        let held_up = self.has_to_wait(now);
        let mut buffer = [0; OUT_SIZE];
        let batch = self.ring.copy(&mut buffer[..if held_up { 0 } else { OUT_SIZE }])?;
        let input = self.ring.put_input()?;
        let guest_took_all = self.ring.guest_took_all()?;
        let output = batch.as_ref().map_or(0, Batch::count);
        if let Some(batch) = batch {
            self.take(batch, &buffer[..output], now);
        } else if input > 0 {
            self.arm(poller);
        }
        let holds = self.ring.holds();
        if input > 0 || (output > 0 && !holds) {
            notify(port);
        }
        let is_flood = output >= FLOOD;
        self.floods = is_flood;
        // Large pieces cost less; who says little does not wait.
        let handed_on = self.waiting > 0 && (!is_flood || self.waiting >= PIECE);
        if handed_on {
            self.hand_on(poller, now);
        }
        if guest_took_all {
            self.viewers.end_streams(poller);
        }
        self.held_up = held_up || holds;
        // To hand bytes on takes long enough for more to come, but what waits for a disk waits for its answer.
        let waits = holds || self.outputs.files().holds_up(&self.history);
        let is_more = output > 0 || (handed_on && !waits);
        Ok(Moved { output, input, is_flood, held_up: self.held_up, is_more })
    }

    /// Keeps bytes that were copied out of the ring, and frees their room: they are safe from then on.
    fn take(&mut self, batch: Batch, bytes: &[u8], now: Instant) {
        self.history.mark(now);
        if let Err(error) = self.history.push(bytes) {
            self.complain(&format_args!("cannot write the journal any more: {error}"));
        }
        self.note_ring(batch.start(), batch.end());
        self.waiting += bytes.len();
        if self.outputs.files().come_first() {
            self.ring.hold(batch, self.history.end());
            self.flush(now);
        } else {
            self.ring.release(batch);
        }
    }

    fn note_ring(&self, from: u32, to: u32) {
        if let Some(spool) = self.history.spool() {
            spool.note_ring(&RingRecord { end: self.history.end(), from, to });
        }
    }

    /// Gives what has come to the files and to all readers.
    fn hand_on(&mut self, poller: &mut Poller, now: Instant) {
        self.waiting = 0;
        self.flush(now);
        self.pump(poller);
    }

    fn flush(&mut self, now: Instant) {
        let share = &self.share;
        self.outputs.files_mut().flush(&self.history, now, |count| share.take_log(now, count));
    }

    /// When something is due for the files, if the server was not told yet.
    pub(crate) fn unscheduled_files(&mut self) -> Option<Instant> {
        self.outputs.files_mut().unscheduled()
    }

    /// Whether the server has to look at the files at the time that it was told.
    pub(crate) fn files_need_a_look(&mut self) -> bool {
        self.outputs.files_mut().needs_a_look()
    }

    /// Does what is due for the files at this time.
    pub(crate) fn look_at_files(&mut self, poller: &mut Poller, now: Instant) {
        if self.outputs.files_mut().look(now) {
            self.pump(poller);
        }
        self.flush(now);
    }

    /// Takes an answer of the thread that writes the files. Returns the port to notify if room in the ring is freed.
    pub(crate) fn files_answered(
        &mut self,
        poller: &mut Poller,
        what: Done,
        now: Instant,
    ) -> Option<EventPort> {
        let concerns_readers = self.leaving || !matches!(what, Done::Written { .. });
        for error in self.outputs.files_mut().answered(what, &mut self.history) {
            self.complain(&with_cause(&error));
        }
        let rest = self.outputs.files().not_given(&self.history);
        if self.floods && rest < PIECE {
            // To wake the thread for each ring costs more than to write it.
            self.waiting = self.waiting.max(rest);
        } else {
            self.flush(now);
        }
        if concerns_readers {
            self.pump(poller);
        }
        let files = self.outputs.files();
        self.ring.release_held(|end| files.has(end))
    }

    /// Opens its files again.
    pub(crate) fn reopen_files(&mut self) {
        self.outputs.files_mut().reopen();
    }

    /// Brings every reader up to date, as far as it takes bytes.
    fn pump(&mut self, poller: &mut Poller) {
        if !self.outputs.pump(poller, &self.history) {
            self.complain(&"its output failed; bytes go only to the log and the socket");
        }
        let end = self.is_at_end();
        self.viewers.pump_all(poller, &self.history, self.outputs.files(), end);
        self.after_pump(poller);
    }

    fn pump_viewer(&mut self, poller: &mut Poller, number: u64) {
        let end = self.is_at_end();
        self.viewers.pump(number, poller, &self.history, self.outputs.files(), end);
        self.after_pump(poller);
    }

    fn after_pump(&mut self, poller: &Poller) {
        self.outputs.files_mut().read();
        self.outputs.note(self.viewers.output_reached(), self.history.spool());
        self.arm(poller);
    }

    /// Whether readers that have everything are closed: not before the log has everything too, unless its disk hangs.
    const fn is_at_end(&self) -> bool {
        self.leaving && self.outputs.files().is_settled()
    }

    /// Waits for what can happen: input only while there is room for it.
    fn arm(&mut self, poller: &Poller) {
        let takes_input = self.ring.input_room() > 0 && !self.leaving;
        self.outputs.arm(poller, takes_input);
        self.viewers.arm(poller, takes_input);
    }

    /// Takes no more viewers and no input; those that are here get the rest. Removes the sockets' names. What a
    /// next process needs to go on stays unless the console is gone for good.
    pub(crate) fn leave(&mut self, poller: &mut Poller, for_good: bool) {
        self.leaving = true;
        self.viewers.stop_listening(poller);
        self.outputs.leave(poller);
        let journal = self.history.spool().filter(|_| for_good).map(Spool::name);
        // All that is in memory is written: a guest's last output explains its end.
        if let Err(lost) = self.outputs.files_mut().finish(&self.history, journal, Instant::now()) {
            self.complain(&format_args!(
                "its last {lost} bytes are not in its log, whose disk does not answer"
            ));
        }
        self.waiting = 0;
        self.pump(poller);
    }

    /// Whether nothing waits for bytes of a console that is being removed.
    pub(crate) fn has_left(&self) -> bool {
        let output_done = !self.outputs.stream_is_waited_for(&self.history);
        self.is_at_end() && output_done && self.viewers.count() == 0
    }

    /// Closes every descriptor that is waited for.
    pub(crate) fn close(self, poller: &mut Poller) {
        self.viewers.close(poller);
        self.outputs.close(poller);
    }
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
