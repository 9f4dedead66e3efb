//! What a console said last and what became of it, in a mapped file: what is stored there outlives this process.
//!
//! The file is in memory (tmpfs). Storing into it costs no system call, and SIGKILL takes nothing of it back, so that a
//! byte is safe as soon as it is stored. Beside the bytes stand a few records of how far everyone is. A record is
//! written into the place that is not in use, and then one word says which place counts: a process that is killed
//! meanwhile leaves the record before it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{OFlag, posix_fallocate};
use uuid::Uuid;
use xen::SharedPages;

use crate::logfile::Position;
use crate::own_path::OwnPath;

/// Says that a file is one of these, and in which layout.
const MAGIC: u32 = 0x5350_4c02;
/// The 16 bytes of the UUID of the console's domain.
const UUID: usize = 8;
/// The sizes at which the log and the output's file are rotated.
const LIMITS: usize = 24;
/// Where the bytes begin, on the same page as the records.
const DATA: usize = 1024;
/// The most bytes that a file is read with.
const CAPACITY_MAX: usize = 1 << 20;
const PAGE: usize = 4096;
/// Numbers in a record.
const NUMBERS: usize = 8;
const RECORD: usize = 8 * NUMBERS;
/// A record's places: the word that says which one counts, and both.
const AREA: usize = 64 + 2 * RECORD;
const FIRST_AREA: usize = 64;
/// The files' paths: first how long they are, in one word.
const PATHS: usize = FIRST_AREA + 3 * AREA;

/// Which record.
#[derive(Clone, Copy, Debug)]
enum Area {
    Ring = 0,
    Files = 1,
    Output = 2,
}

/// How far the console's ring was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingRecord {
    /// How many bytes have come so far.
    pub end: u64,
    /// The ring's consumer index before the last of them were taken.
    pub from: u32,
    /// The same afterwards. If the ring still says `from`, room of bytes that are safe here was not freed yet.
    pub to: u32,
}

/// What is about to be appended to the console's files. Their sizes tell the next process how far that came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilesRecord {
    /// Positions of the bytes in the console's stream.
    pub from: u64,
    /// Behind the last of them.
    pub to: u64,
    /// The log lacks something.
    pub torn: bool,
    /// What the log gets.
    pub log: Option<Noted>,
    /// What the output's file gets.
    pub file: Option<Noted>,
}

/// One file's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Where the file ends afterwards.
    pub after: Position,
    /// Bytes that are appended, which may be more than came from the ring.
    pub count: u32,
    /// Whether they begin a line.
    pub at_line_start: bool,
}

/// A file of a console, for a process that finds the console gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFile {
    /// Its path.
    pub path: PathBuf,
    /// The size at which it is rotated.
    pub limit: u64,
}

/// What a process that is gone has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The UUID of the console's domain.
    pub uuid: Uuid,
    /// How far the ring was read.
    pub ring: RingRecord,
    /// What the files got.
    pub files: FilesRecord,
    /// Up to where the output was given everything.
    pub output: Option<u64>,
    /// The last bytes before `ring.end`.
    pub bytes: Vec<u8>,
    /// The log.
    pub log: Option<KeptFile>,
    /// The output's file.
    pub file: Option<KeptFile>,
}

/// The mapped file.
#[derive(Debug)]
pub struct Spool {
    pages: Arc<SharedPages>,
    file: File,
    name: OwnPath,
    /// Bytes of the file that have memory behind them.
    allocated: usize,
    capacity: usize,
}

impl Spool {
    /// Reads what an earlier process has left at `path`, without the `scratch` oldest bytes: those may have been
    /// overwritten without a record of it. `None` if the file is missing or not valid; this includes files without a
    /// UUID, as earlier versions wrote them.
    #[must_use]
    pub fn read_kept(path: &Path, scratch: usize) -> Option<Kept> {
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(flags()).open(path).ok()?;
        if file.metadata().ok()?.len() > (DATA + CAPACITY_MAX + PAGE) as u64 {
            return None;
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut &file, &mut bytes).ok()?;
        parse(&bytes, scratch)
    }

    /// Makes one with room for the last `capacity` bytes, which holds what was kept, in the place of what is at `path`.
    ///
    /// # Errors
    /// When there is no memory left, or the file cannot be made.
    pub fn create(path: PathBuf, capacity: usize, kept: &Kept) -> io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        // Of a process that was killed while it made one.
        let _ = fs::remove_file(&new);
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create_new(true).mode(0o600).custom_flags(flags()).open(&new)?;
        let size = (DATA + capacity).next_multiple_of(PAGE);
        file.set_len(size as u64)?;
        posix_fallocate(&file, 0, PAGE as i64)?;
        let pages = Arc::new(SharedPages::of_file(&file, size / PAGE)?);
        let name = OwnPath::known(path, &file.metadata()?);
        let mut spool = Self { pages, file, name, allocated: PAGE, capacity };
        let bytes = &kept.bytes[kept.bytes.len().saturating_sub(capacity)..];
        let mut at = kept.ring.end - bytes.len() as u64;
        for piece in bytes.chunks(PAGE) {
            spool.store(at, piece)?;
            at += piece.len() as u64;
        }
        spool.note_ring(&kept.ring);
        spool.files_note().note_files(&kept.files);
        if let Some(at) = kept.output {
            spool.note_output(at);
        }
        spool.pages.write(UUID, kept.uuid.as_bytes());
        spool.pages.store_u32(4, u32::try_from(capacity).map_err(io::Error::other)?, Ordering::Release);
        spool.pages.store_u32(0, MAGIC, Ordering::Release);
        fs::rename(&new, spool.name.path())?;
        Ok(spool)
    }

    /// How many bytes it holds.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Stores bytes whose first stands at a position of the stream, at most as many as it has room for.
    ///
    /// # Errors
    /// When there is no memory for them; some may be stored.
    pub fn store(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let slot = self.slot(position);
        let (head, tail) = bytes.split_at(bytes.len().min(self.capacity - slot));
        self.reserve(slot + head.len())?;
        self.pages.write(DATA + slot, head);
        if !tail.is_empty() {
            self.pages.write(DATA, tail);
        }
        Ok(())
    }

    /// Copies bytes that were stored and not overwritten.
    pub fn load(&self, position: u64, into: &mut [u8]) {
        let slot = self.slot(position);
        let (head, tail) = into.split_at_mut(into.len().min(self.capacity - slot));
        self.pages.read(DATA + slot, head);
        self.pages.read(DATA, tail);
    }

    fn slot(&self, position: u64) -> usize {
        usize::try_from(position % self.capacity as u64).expect("a remainder of a usize fits")
    }

    /// Sees to it that there is memory: without it, storing would be the end of this process.
    fn reserve(&mut self, end: usize) -> io::Result<()> {
        let wanted = (DATA + end).next_multiple_of(PAGE);
        if wanted > self.allocated {
            // Doubled, but never beyond what will be used.
            let wanted = wanted.max(2 * self.allocated).min((DATA + self.capacity).next_multiple_of(PAGE));
            let length = i64::try_from(wanted - self.allocated).map_err(io::Error::other)?;
            posix_fallocate(&self.file, i64::try_from(self.allocated).map_err(io::Error::other)?, length)?;
            self.allocated = wanted;
        }
        Ok(())
    }

    /// Notes how far the ring was read.
    pub fn note_ring(&self, record: &RingRecord) {
        let indices = u64::from(record.from) << 32 | u64::from(record.to);
        note(&self.pages, Area::Ring, [record.end, indices, 0, 0, 0, 0, 0, 0]);
    }

    /// Returns the record of the files, for the thread that writes them.
    #[must_use]
    pub fn files_note(&self) -> FilesNote {
        FilesNote { pages: Arc::clone(&self.pages) }
    }

    /// Notes up to where the output was given everything.
    pub fn note_output(&self, at: u64) {
        note(&self.pages, Area::Output, [at, 1, 0, 0, 0, 0, 0, 0]);
    }

    /// Records the paths of the files and their size limits, for a process that finds the console gone. Paths that are
    /// too long are left out.
    pub fn note_paths(&self, log: Option<(&Path, u64)>, file: Option<(&Path, u64)>) {
        for (place, noted) in [log, file].into_iter().enumerate() {
            let limit = noted.map_or(0, |(_, limit)| limit);
            self.pages.write(LIMITS + 8 * place, &limit.to_le_bytes());
        }
        let mut room = DATA - PATHS - 4;
        let mut at = PATHS + 4;
        let mut lengths = 0_u32;
        for noted in [log, file] {
            let bytes =
                noted.map(|(path, _)| path.as_os_str().as_bytes()).filter(|bytes| bytes.len() <= room);
            let bytes = bytes.unwrap_or_default();
            self.pages.write(at, bytes);
            (room, at) = (room - bytes.len(), at + bytes.len());
            lengths = lengths << 16 | u32::try_from(bytes.len()).unwrap_or_default();
        }
        self.pages.store_u32(PATHS, lengths, Ordering::Release);
    }

    /// Removes the file: no process will come back to it.
    pub fn remove(&self) {
        self.name.remove();
    }

    /// The file's name, for a thread that removes it later.
    pub(crate) fn name(&self) -> OwnPath {
        self.name.clone()
    }
}

/// The record of what is about to be appended to a console's files. One thread at a time may use it.
#[derive(Clone, Debug)]
pub struct FilesNote {
    pages: Arc<SharedPages>,
}

impl FilesNote {
    /// Notes what is about to be appended to the files.
    pub fn note_files(&self, record: &FilesRecord) {
        let noted =
            |noted: Option<Noted>| noted.map_or((0, 0), |noted| (noted.after.inode, noted.after.size));
        let (log, file) = (noted(record.log), noted(record.file));
        let count = |noted: Option<Noted>| noted.map_or(0, |noted| u64::from(noted.count));
        let starts = |noted: Option<Noted>| u64::from(noted.is_some_and(|noted| noted.at_line_start));
        let flags = u64::from(record.torn) | starts(record.log) << 1 | starts(record.file) << 2;
        let counts = count(record.log) << 32 | count(record.file);
        note(&self.pages, Area::Files, [record.from, record.to, flags, log.0, log.1, file.0, file.1, counts]);
    }
}

fn note(pages: &SharedPages, area: Area, numbers: [u64; NUMBERS]) {
    let start = FIRST_AREA + area as usize * AREA;
    let free = 1 - (pages.load_u32(start, Ordering::Relaxed) & 1);
    let mut bytes = [0; RECORD];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    pages.write(start + 64 + free as usize * RECORD, &bytes);
    pages.store_u32(start, free, Ordering::Release);
}

fn flags() -> i32 {
    (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits()
}

fn parse(file: &[u8], scratch: usize) -> Option<Kept> {
    let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
    let capacity = usize::try_from(word(4)?).ok()?;
    if word(0)? != MAGIC || capacity == 0 || capacity > CAPACITY_MAX {
        return None;
    }
    let record = |area: Area| {
        let start = FIRST_AREA + area as usize * AREA;
        let place = start + 64 + (word(start)? & 1) as usize * RECORD;
        let mut numbers = [0_u64; NUMBERS];
        for (number, bytes) in numbers.iter_mut().zip(file.get(place..place + RECORD)?.chunks_exact(8)) {
            *number = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(numbers)
    };
    let [end, indices, ..] = record(Area::Ring)?;
    let [from, to, flags, log_inode, log_size, file_inode, file_size, counts] = record(Area::Files)?;
    let [output, has_output, ..] = record(Area::Output)?;
    let noted = |inode, size, count: u64, bit: u64| {
        // No file has the inode 0.
        let after = Position { inode, size };
        let at_line_start = flags & bit != 0;
        (inode != 0).then(|| Noted { after, count: low32(count), at_line_start })
    };
    let count = usize::try_from(end).unwrap_or(usize::MAX).min(capacity.saturating_sub(scratch));
    let first = end - count as u64;
    let data = file.get(DATA..)?;
    let lengths = word(PATHS)?;
    let (log, file_path) = ((lengths >> 16) as usize, (lengths & 0xffff) as usize);
    let noted_file = |place: usize, at: usize, length: usize| {
        let bytes = file.get(..DATA)?.get(PATHS + 4 + at..PATHS + 4 + at + length)?;
        let limit = file.get(LIMITS + 8 * place..LIMITS + 8 * (place + 1))?;
        let limit = u64::from_le_bytes(limit.try_into().ok()?);
        (length > 0).then(|| KeptFile { path: PathBuf::from(OsStr::from_bytes(bytes)), limit })
    };
    let byte = |position: u64| data.get(usize::try_from(position % capacity as u64).ok()?).copied();
    Some(Kept {
        uuid: Uuid::from_slice(file.get(UUID..UUID + 16)?).ok()?,
        ring: RingRecord { end, from: low32(indices >> 32), to: low32(indices) },
        files: FilesRecord {
            from,
            to,
            torn: flags & 1 != 0,
            log: noted(log_inode, log_size, counts >> 32, 2),
            file: noted(file_inode, file_size, counts, 4),
        },
        output: (has_output != 0).then_some(output.min(end)),
        bytes: (first..end).map(byte).collect::<Option<_>>()?,
        log: noted_file(0, 0, log),
        file: noted_file(1, log, file_path),
    })
}

fn low32(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).expect("the rest is masked off")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn files() -> FilesRecord {
        let noted = |inode, at_line_start| Noted {
            after: Position { inode, size: 1 << 33 },
            count: 9,
            at_line_start,
        };
        FilesRecord {
            from: 3,
            to: 12,
            torn: true,
            log: Some(noted(1 << 40, true)),
            file: Some(noted(7, false)),
        }
    }

    #[test]
    fn what_was_stored_is_read_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.0.journal");
        assert_eq!(Spool::read_kept(&path, 0), None);
        let uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1122_3344_5566_7788);
        let nothing = Kept { uuid, ..Kept::default() };
        let mut spool = Spool::create(path.clone(), 5000, &nothing).unwrap();
        assert_eq!(Spool::read_kept(&path, 0), Some(nothing));
        let said: Vec<u8> = (0..7000_u32).map(|at| (at % 251) as u8).collect();
        spool.store(0, &said[..4000]).unwrap();
        spool.store(4000, &said[4000..]).unwrap();
        let ring = RingRecord { end: 7000, from: u32::MAX, to: 2999 };
        spool.note_ring(&ring);
        spool.files_note().note_files(&files());
        spool.note_output(6900);
        spool.note_paths(Some((Path::new("/log"), 1 << 40)), Some((Path::new("/a file"), 4096)));
        let [log, file] = [("/log", 1 << 40), ("/a file", 4096)]
            .map(|(path, limit)| Some(KeptFile { path: path.into(), limit }));
        let bytes = said[2000..].to_vec();
        let kept = Kept { uuid, ring, files: files(), output: Some(6900), bytes, log, file };
        assert!(Spool::read_kept(&path, 0) == Some(kept.clone()));
        // Another size of memory.
        let next = Spool::create(path.clone(), 3000, &kept).unwrap();
        let mut end = [0; 3000];
        next.load(4000, &mut end);
        assert!(end == said[4000..]);
        next.note_paths(None, Some((Path::new(&"x".repeat(381)), 1)));
        let kept = Kept { bytes: said[4100..].to_vec(), log: None, file: None, ..kept };
        assert!(Spool::read_kept(&path, 100) == Some(kept));
        next.remove();
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    }

    #[test]
    fn a_file_without_a_uuid_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.0.journal");
        let mut spool = Spool::create(path.clone(), 5000, &Kept::default()).unwrap();
        spool.store(0, b"said").unwrap();
        spool.note_ring(&RingRecord { end: 4, from: 0, to: 4 });
        assert!(Spool::read_kept(&path, 0).is_some());
        spool.pages.store_u32(0, 0x5350_4c01, Ordering::Release);
        assert_eq!(Spool::read_kept(&path, 0), None);
    }

    #[test]
    fn memory_is_taken_as_it_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        let mut spool = Spool::create(path, 32 * 1024, &Kept::default()).unwrap();
        spool.store(0, &[b'x'; 3000]).unwrap();
        assert_eq!(spool.allocated, PAGE);
        for at in (3000..100_000).step_by(1000) {
            spool.store(at, &[b'x'; 1000]).unwrap();
        }
        assert_eq!(spool.allocated, 9 * PAGE);
        assert_eq!(spool.file.metadata().unwrap().len(), 9 * PAGE as u64);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_record_that_was_cut_leaves_the_one_before(cut in 0..RECORD, third in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("spool");
            let spool = Spool::create(path.clone(), 4096, &Kept::default()).unwrap();
            let record = RingRecord { end: 0, from: 5, to: 6 };
            spool.note_ring(&RingRecord { end: 0, from: 9, to: 9 });
            if third {
                spool.note_ring(&RingRecord::default());
            }
            spool.note_ring(&record);
            // The next one is cut: the first bytes of the place that is not in use.
            let start = FIRST_AREA + Area::Ring as usize * AREA;
            let free = 1 - spool.pages.load_u32(start, Ordering::Relaxed) as usize;
            spool.pages.write(start + 64 + free * RECORD, &[0xff; RECORD][..cut]);
            prop_assert_eq!(Spool::read_kept(&path, 0).unwrap().ring, record);
        }

        #[test]
        fn any_file_is_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..3000), real in any::<bool>()) {
            if real && bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[6..8].fill(0);
            }
            if let Some(kept) = parse(&bytes, 100) {
                prop_assert!(kept.bytes.len() <= bytes.len());
            }
        }
    }
}
