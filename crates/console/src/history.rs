//! The last bytes of a console, kept once for all its readers.
//!
//! Every reader is a position in one unbounded stream of which only the end is kept. A new viewer starts at
//! the oldest byte that is still there (the replay), a slow one falls off the old end and learns how many bytes
//! it missed. So a console's memory is bounded by the history alone, whatever its readers do.
//!
//! The older part need not be in memory where a log has the same bytes: who reads it is told where it stands
//! ([`History::beyond_memory`]). What is in memory can be in memory that outlives this process ([`Spool`]).

use std::io;
use std::time::{Duration, Instant};

use crate::spool::{Kept, Spool};

/// Bytes of a console that are kept for replay and for slow readers.
pub const HISTORY: usize = 64 * 1024;
/// Those of them that are in memory when the log has all.
pub const IN_MEMORY: usize = 32 * 1024;

/// Times that are kept: when there are more, every second one is forgotten.
const MARKS_MAX: usize = 64;
/// How far apart times are at least.
const MARK_DISTANCE: Duration = Duration::from_secs(1);
/// The least that is allocated, in bytes.
const ROOM_MIN: usize = 1024;

/// The end of a byte stream, at most [`HISTORY`] bytes of it.
#[derive(Debug)]
pub struct History {
    room: Room,
    in_memory: usize,
    /// Before this position nothing is known any more.
    begin: u64,
    /// Before this position nothing was ever in this memory.
    memory_begin: u64,
    /// Position in the stream just after the newest byte.
    end: u64,
    /// When which position was reached, for readers that want what came since.
    marks: Vec<(Instant, u64)>,
}

/// Where the bytes are.
#[derive(Debug)]
enum Room {
    /// In this process. Grows up to `in_memory`, then is written round.
    Heap(Vec<u8>),
    Kept(Spool),
}

/// A reader's position in the stream of one console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    at: u64,
    /// Bytes that fell off before this reader took them and that it was not told of yet.
    lost: u64,
}

impl Default for History {
    fn default() -> Self {
        Self::in_memory(HISTORY)
    }
}

impl History {
    /// A history of which so many bytes are in memory, at most [`HISTORY`].
    #[must_use]
    pub const fn in_memory(count: usize) -> Self {
        Self {
            room: Room::Heap(Vec::new()),
            in_memory: count,
            begin: 0,
            memory_begin: 0,
            end: 0,
            marks: Vec::new(),
        }
    }

    /// Continues, in a spool, with what an earlier process has left.
    #[must_use]
    pub fn taken_up(spool: Spool, kept: &Kept) -> Self {
        let end = kept.ring.end;
        let in_memory = spool.capacity();
        let memory_begin = end - kept.bytes.len().min(in_memory) as u64;
        let begin = memory_begin;
        Self { room: Room::Kept(spool), in_memory, begin, memory_begin, end, marks: Vec::new() }
    }

    /// Says from where on the log has the older part.
    pub fn begin_at(&mut self, begin: u64) {
        self.begin = begin.min(self.memory_begin);
    }

    /// The same in this process's memory, for want of a spool.
    #[must_use]
    pub fn taken_up_here(kept: &Kept) -> Self {
        let start = kept.ring.end - kept.bytes.len() as u64;
        let mut own = Self { begin: start, memory_begin: start, end: start, ..Self::default() };
        // This memory does not refuse.
        let _ = own.push(&kept.bytes);
        own
    }

    /// The memory that outlives this process.
    #[must_use]
    pub const fn spool(&self) -> Option<&Spool> {
        match &self.room {
            Room::Kept(spool) => Some(spool),
            Room::Heap(_) => None,
        }
    }

    /// Bytes that are in memory at most.
    pub(crate) const fn in_memory_max(&self) -> u64 {
        self.in_memory as u64
    }

    /// Position in the stream just after the newest byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Appends bytes; the oldest ones give way.
    ///
    /// # Errors
    /// When a spool gets no more memory: from now on, bytes do not outlive this process. They are appended all the same.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let kept = &bytes[bytes.len().saturating_sub(self.in_memory)..];
        self.end += (bytes.len() - kept.len()) as u64;
        let mut done = Ok(());
        if let Room::Kept(spool) = &mut self.room {
            done = spool.store(self.end, kept);
            if done.is_ok() {
                self.end += kept.len() as u64;
                return done;
            }
            self.leave_spool();
        }
        let mut rest = kept;
        while !rest.is_empty() {
            rest = &rest[self.push_some(rest)..];
        }
        done
    }

    /// Moves the bytes into this process.
    fn leave_spool(&mut self) {
        let start = self.memory_start();
        let mut bytes = vec![0; usize::try_from(self.end - start).unwrap_or(self.in_memory)];
        if let Room::Kept(spool) = &self.room {
            spool.load(start, &mut bytes);
            spool.remove();
        }
        self.room = Room::Heap(Vec::new());
        self.end = start;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            rest = &rest[self.push_some(rest)..];
        }
    }

    /// Remembers that what is pushed next came at this time.
    pub fn mark(&mut self, now: Instant) {
        if self.marks.last().is_some_and(|(last, _)| now.saturating_duration_since(*last) < MARK_DISTANCE) {
            return;
        }
        let start = self.start();
        // The last one before the start says when the oldest byte came.
        let gone = self.marks.iter().take_while(|(_, at)| *at < start).count().saturating_sub(1);
        self.marks.drain(..gone);
        if self.marks.len() >= MARKS_MAX {
            let mut odd = false;
            self.marks.retain(|_| {
                odd = !odd;
                odd
            });
        }
        self.marks.push((now, self.end));
    }

    /// A reader that begins with what came at `time` or later, as exactly as times are kept: rather too early.
    #[must_use]
    pub fn since(&self, time: Instant) -> Cursor {
        let before = self.marks.iter().take_while(|(at, _)| *at <= time).count();
        let at = match before.checked_sub(1).and_then(|last| self.marks.get(last)) {
            // All that this mark stands for may be older than the time, but that is not known.
            Some((_, at)) if before < self.marks.len() || self.is_recent(time) => *at,
            Some(_) => self.end,
            None => self.start(),
        };
        Cursor { at: at.max(self.start()), lost: 0 }
    }

    /// Whether bytes of the last mark may have come at this time or later.
    fn is_recent(&self, time: Instant) -> bool {
        self.marks.last().is_some_and(|(at, _)| time.saturating_duration_since(*at) < MARK_DISTANCE)
    }

    fn push_some(&mut self, bytes: &[u8]) -> usize {
        let slot = self.slot(self.end);
        let count = bytes.len().min(self.in_memory - slot);
        let Room::Heap(room) = &mut self.room else { return bytes.len() };
        if room.len() < slot + count {
            if room.capacity() < slot + count {
                // Doubled, but never beyond what will be used.
                let wanted = (slot + count).next_power_of_two().clamp(ROOM_MIN, self.in_memory);
                room.reserve_exact(wanted.max(slot + count) - room.len());
            }
            room.resize(slot + count, 0);
        }
        room[slot..slot + count].copy_from_slice(&bytes[..count]);
        self.end += count as u64;
        count
    }

    fn slot(&self, position: u64) -> usize {
        usize::try_from(position % self.in_memory as u64).expect("a remainder of a usize fits")
    }

    /// Where what is kept begins, in memory or in the log.
    fn start(&self) -> u64 {
        self.end.saturating_sub(HISTORY as u64).max(self.begin)
    }

    /// Where what is in memory begins.
    pub(crate) fn memory_start(&self) -> u64 {
        self.end.saturating_sub(self.in_memory as u64).max(self.memory_begin)
    }

    /// Moves a reader that fell off the old end to the oldest byte kept, and says where its next bytes stand if they
    /// are not in memory: their position in the stream, and how many there are.
    pub fn beyond_memory(&self, cursor: &mut Cursor) -> Option<(u64, u64)> {
        cursor.fall_to(self.start());
        let missing = self.memory_start().saturating_sub(cursor.at);
        (missing > 0).then_some((cursor.at, missing))
    }

    /// A reader that begins with a position, or with what is left after it.
    #[must_use]
    pub fn from(&self, position: u64) -> Cursor {
        Cursor { at: position.clamp(self.memory_start(), self.end), lost: 0 }
    }

    /// Copies bytes in memory from a position on, as many as there are and fit.
    pub fn copy<'b>(&self, position: u64, buffer: &'b mut [u8]) -> &'b [u8] {
        let position = position.max(self.memory_start());
        let waiting = usize::try_from(self.end.saturating_sub(position)).unwrap_or(usize::MAX);
        let count = waiting.min(buffer.len());
        let slot = self.slot(position);
        let into = &mut buffer[..count];
        match &self.room {
            Room::Kept(spool) => spool.load(position, into),
            Room::Heap(room) => {
                let (head, tail) = into.split_at_mut(count.min(self.in_memory - slot));
                head.copy_from_slice(&room[slot..slot + head.len()]);
                tail.copy_from_slice(&room[..tail.len()]);
            }
        }
        into
    }

    /// A reader that begins with everything that is still kept.
    #[must_use]
    pub fn oldest(&self) -> Cursor {
        Cursor { at: self.start(), lost: 0 }
    }

    /// A reader that sees only what comes from now on.
    #[must_use]
    pub const fn newest(&self) -> Cursor {
        Cursor { at: self.end, lost: 0 }
    }

    /// Moves a reader that is more than `most` bytes behind, as if what it misses were not kept any more.
    pub const fn limit(&self, cursor: &mut Cursor, most: u64) {
        let behind = self.end - cursor.at;
        if behind > most {
            cursor.lost += behind - most;
            cursor.at = self.end - most;
        }
    }

    /// Says how many bytes wait for this reader, in the history or lost.
    #[must_use]
    pub const fn behind(&self, cursor: &Cursor) -> u64 {
        self.end - cursor.at
    }

    /// Moves a reader to the oldest byte in memory; what it misses is lost for it.
    pub fn fall_to_memory(&self, cursor: &mut Cursor) {
        cursor.fall_to(self.memory_start());
    }

    /// Gives the next bytes for a reader, as many as fit; nothing when it has everything.
    ///
    /// Moves a reader that fell off the old end to the oldest byte in memory; [`Cursor::take_lost`] then says how many
    /// bytes it missed.
    pub fn next<'b>(&self, cursor: &mut Cursor, buffer: &'b mut [u8]) -> &'b [u8] {
        cursor.fall_to(self.memory_start());
        self.copy(cursor.at, buffer)
    }
}

impl Cursor {
    const fn fall_to(&mut self, start: u64) {
        if self.at < start {
            self.lost += start - self.at;
            self.at = start;
        }
    }

    /// The position.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Moves on by bytes that the reader took.
    pub const fn advance(&mut self, count: usize) {
        self.at += count as u64;
    }

    /// Says how many bytes this reader missed since the last call.
    pub const fn take_lost(&mut self) -> u64 {
        let lost = self.lost;
        self.lost = 0;
        lost
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spool::RingRecord;

    fn read_all(history: &History, cursor: &mut Cursor) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 7000];
        loop {
            let part = history.next(cursor, &mut buffer);
            if part.is_empty() {
                return all;
            }
            all.extend_from_slice(part);
            let count = part.len();
            cursor.advance(count);
        }
    }

    #[test]
    fn a_late_reader_gets_the_end_and_a_slow_one_learns_what_it_missed() {
        let mut history = History::default();
        let mut slow = history.oldest();
        history.push(b"boot ").unwrap();
        history.push(&vec![b'x'; HISTORY - 1]).unwrap();
        assert_eq!(read_all(&history, &mut history.oldest()).len(), HISTORY);
        assert_eq!(read_all(&history, &mut slow).len(), HISTORY);
        assert_eq!(slow.take_lost(), 4);
        assert_eq!(slow.take_lost(), 0);
        assert!(history.next(&mut slow, &mut [0; 9]).is_empty());
    }

    #[test]
    fn a_reader_can_begin_with_what_came_since_a_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut history = History::default();
        for second in 0..10u8 {
            history.mark(at(u64::from(second)));
            history.push(&[b'0' + second]).unwrap();
        }
        let since = |history: &History, seconds| read_all(history, &mut history.since(at(seconds)));
        assert_eq!(since(&history, 7), b"789");
        assert_eq!(since(&history, 100), b"");
        assert_eq!(since(&history, 0).len(), 10);
        for second in 10..1000 {
            history.mark(at(second));
            history.push(&[b'x'; 100]).unwrap();
        }
        assert!(history.marks.len() <= MARKS_MAX);
        assert_eq!(since(&history, 0).len(), HISTORY);
        let some = since(&history, 900).len();
        assert!((10_000..30_000).contains(&some), "{some}");
    }

    #[test]
    fn a_reader_s_share_can_be_smaller_than_what_is_kept() {
        let mut history = History::default();
        let mut cursor = history.oldest();
        history.push(b"0123456789").unwrap();
        history.limit(&mut cursor, 4);
        assert_eq!((read_all(&history, &mut cursor), cursor.take_lost()), (b"6789".to_vec(), 6));
    }

    #[test]
    fn what_is_not_in_memory_is_told_by_its_place() {
        let mut history = History::in_memory(IN_MEMORY);
        history.push(&[b'x'; HISTORY + 5]).unwrap();
        let mut cursor = Cursor { at: 0, lost: 0 };
        let place = (5, (HISTORY - IN_MEMORY) as u64);
        assert_eq!(history.beyond_memory(&mut cursor), Some(place));
        assert_eq!(cursor.take_lost(), 5);
        cursor.advance(HISTORY - IN_MEMORY);
        assert_eq!(history.beyond_memory(&mut cursor), None);
        assert_eq!(read_all(&history, &mut cursor).len(), IN_MEMORY);
        assert_eq!(cursor.take_lost(), 0);
        assert!(matches!(&history.room, Room::Heap(room) if room.capacity() == IN_MEMORY));
        let mut unlucky = history.oldest();
        assert_eq!(read_all(&history, &mut unlucky).len(), IN_MEMORY);
        assert_eq!(unlucky.take_lost(), place.1);
    }

    #[test]
    fn the_next_process_goes_on_where_the_last_one_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        let spool = Spool::create(path.clone(), 4096, &Kept::default()).unwrap();
        let mut history = History::taken_up(spool, &Kept::default());
        history.push(&[b'x'; 5000]).unwrap();
        history.push(b"yz").unwrap();
        let ring = RingRecord { end: history.end(), from: 0, to: 0 };
        history.spool().unwrap().note_ring(&ring);
        let kept = Spool::read_kept(&path, 96).unwrap();
        for mut history in [
            History::taken_up(Spool::create(path.clone(), 4096, &kept).unwrap(), &kept),
            History::taken_up_here(&kept),
        ] {
            assert_eq!(history.end(), 5002);
            let mut cursor = history.from(0);
            assert_eq!(cursor.at(), 1002);
            assert_eq!(&read_all(&history, &mut cursor)[3998..], b"yz");
            history.begin_at(900);
            assert_eq!(history.oldest().at(), 900);
        }
    }

    #[test]
    fn a_spool_without_memory_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        let spool = Spool::create(path.clone(), 20_000, &Kept::default()).unwrap();
        let mut history = History::taken_up(spool, &Kept::default());
        history.push(&[b'x'; 3000]).unwrap();
        history.leave_spool();
        assert!(!path.exists());
        history.push(b"more").unwrap();
        assert_eq!(read_all(&history, &mut history.oldest()).len(), 3004);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_end_of_the_stream_is_kept(
            sizes in proptest::collection::vec(0..50_000usize, 1..12),
            spooled in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut history = History::default();
            if spooled {
                let spool = Spool::create(folder.path().join("spool"), HISTORY, &Kept::default()).unwrap();
                history = History::taken_up(spool, &Kept::default());
            }
            let mut stream = Vec::new();
            for (nth, size) in sizes.into_iter().enumerate() {
                let piece: Vec<u8> = (0..size).map(|at| u8::try_from((at * 7 + nth) % 251).unwrap()).collect();
                history.push(&piece).unwrap();
                stream.extend_from_slice(&piece);
                let kept = &stream[stream.len().saturating_sub(HISTORY)..];
                prop_assert_eq!(read_all(&history, &mut history.oldest()), kept);
            }
        }
    }
}
