//! What outlives this process: keeping it, and going on with what an earlier one has left.

use std::path::PathBuf;
use std::time::Instant;

use super::{Console, Wire};
use crate::history::{HISTORY, History, IN_MEMORY};
use crate::ring::{Batch, OUT_SIZE, RingMemory};
use crate::server::ends::{Role, Stream, Viewer};
use crate::spool::{Kept, RingRecord, Spool};

impl<M: RingMemory> Console<M> {
    /// Continues the journal that an earlier process left at `path`, and keeps there what the next one needs. The
    /// journal of another domain is discarded. The log is set already; what it has need not all be in memory.
    pub(crate) fn take_up_history(&mut self, path: PathBuf) {
        let kept = Spool::read_kept(&path, OUT_SIZE).filter(|kept| kept.uuid == self.uuid);
        let kept = kept.unwrap_or_else(|| Kept { uuid: self.uuid, ..Kept::default() });
        let capacity = if self.sinks.has_history() { IN_MEMORY } else { HISTORY };
        // Both files of an output are needed before what was begun can be completed.
        match Spool::create(path, capacity, &kept) {
            Ok(spool) => self.history = History::taken_up(spool, &kept),
            Err(error) => {
                self.complain(&format_args!("cannot create the journal: {error}"));
                self.history = History::taken_up_here(&kept);
            }
        }
        self.resume = kept.output;
        self.kept = Some(kept);
    }

    /// Completes what an earlier process had begun to write, now that all files are set.
    pub(crate) fn take_up_files(&mut self) {
        let Some(kept) = &self.kept else { return };
        if let Some(begin) = self.sinks.take_up(&kept.files, &self.history) {
            self.history.begin_at(begin);
        }
        if let Some(spool) = self.history.spool() {
            self.sinks.note_paths(spool);
        }
    }

    /// Continues a ring: releases the bytes that a killed predecessor had read and not yet released.
    pub(crate) fn take_up(&mut self, mut wire: Wire<M>) {
        let ring = self.kept.take().map(|kept| kept.ring).unwrap_or_default();
        let count = usize::try_from(ring.to.wrapping_sub(ring.from)).unwrap_or(usize::MAX);
        let mut buffer = [0; OUT_SIZE];
        // A corrupted ring is found when it is first served.
        if let Ok(batch) = wire.ring.copy(&mut buffer)
            && batch.start() == ring.from
            && count <= batch.count()
        {
            // Another ring may begin at the same index.
            let mut own = [0; OUT_SIZE];
            let own = self.history.copy(self.history.end().saturating_sub(count as u64), &mut own);
            if own == &buffer[..count] {
                wire.ring.release(batch.truncated(count));
            }
        }
        self.wire = Some(wire);
        // What a predecessor took and did not hand on.
        self.waiting = 1;
    }

    /// Keeps bytes that were copied out of the ring, and frees their room: they are safe from then on.
    pub(super) fn take(&mut self, batch: Batch, bytes: &[u8], now: Instant) {
        self.history.mark(now);
        if let Err(error) = self.history.push(bytes) {
            self.complain(&format_args!("cannot write the journal any more: {error}"));
        }
        self.note_ring(batch.start(), batch.end());
        self.waiting += bytes.len();
        if self.sinks.come_first() {
            self.flush();
        }
        if let Some(wire) = &mut self.wire {
            wire.ring.release(batch);
        }
    }

    pub(super) fn note_ring(&self, from: u32, to: u32) {
        if let Some(spool) = self.history.spool() {
            spool.note_ring(&RingRecord { end: self.history.end(), from, to });
        }
    }

    /// Notes how far the main output is, for the next process.
    pub(super) fn note_output(&mut self) {
        let at_socket = || {
            let mut at_output = self.viewers.values().filter(|viewer| matches!(viewer.role, Role::Output(_)));
            at_output.next().map(Viewer::reached)
        };
        let reached = self.stream.as_ref().and_then(Stream::reached).or_else(at_socket);
        if let (Some(at), Some(spool)) = (reached, self.history.spool())
            && self.noted_output != reached
        {
            spool.note_output(at);
            self.noted_output = reached;
        }
    }
}
