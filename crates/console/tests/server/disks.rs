//! Disks of logs that hang, for a while or for ever, or fail.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use console::history::{HISTORY, IN_MEMORY};
use console::logfile::{Disk, HostDisk};
use console::ring::{Index, OUT_SIZE};
use xen_types::DomId;

use crate::hostile::Count;
use crate::sim::{Host, PATIENCE, Page, domid};

/// The most bytes that a thread is given of one console at a time.
const PIECE: usize = 16 * 1024;

/// How long a disk may be silent: long enough for a thread on a busy machine.
const LATE: Duration = Duration::from_secs(1);

/// What a disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Works,
    Hangs,
    /// Operations fail, also those that were waited for.
    Fails,
}

/// The host's file system, on one folder of which every operation can hang.
#[derive(Debug)]
struct OddDisk {
    folder: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    /// The files of that folder, by inode.
    files: Mutex<HashSet<u64>>,
    /// Operations that wait.
    waiting: AtomicU64,
    largest_write: AtomicU64,
}

impl OddDisk {
    fn set(&self, state: State) {
        *self.state.lock().unwrap() = state;
        self.changed.notify_all();
    }

    fn pass(&self, is_here: bool) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while is_here && *state == State::Hangs {
            state = self.changed.wait(state).unwrap();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if is_here && *state == State::Fails { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn has(&self, file: &File) -> bool {
        self.files.lock().unwrap().contains(&file.metadata().unwrap().ino())
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }
}

impl Disk for OddDisk {
    fn open(&self, path: &Path) -> io::Result<File> {
        self.pass(path.starts_with(&self.folder))?;
        let file = HostDisk.open(path)?;
        if path.starts_with(&self.folder) {
            self.files.lock().unwrap().insert(file.metadata()?.ino());
        }
        Ok(file)
    }

    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<usize> {
        self.largest_write.fetch_max(bytes.len() as u64, Ordering::SeqCst);
        self.pass(self.has(file))?;
        HostDisk.write(file, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.pass(self.has(file))?;
        HostDisk.sync(file)
    }
}

/// A host with another disk that can hang, beside that of the usual logs.
fn host() -> (Host, Arc<OddDisk>) {
    let mut host = Host::new();
    host.kill();
    host.adapt = |settings| settings.log_timeout = LATE;
    let disk = new_disk(&mut host);
    host.start();
    (host, disk)
}

/// Gives the next server a disk that works, and that shares nothing with the one before.
fn new_disk(host: &mut Host) -> Arc<OddDisk> {
    let folder = host.folder.path().join("other disk");
    fs::create_dir_all(&folder).unwrap();
    let disk = Arc::new(OddDisk {
        folder,
        state: Mutex::new(State::Works),
        changed: Condvar::new(),
        files: Mutex::default(),
        waiting: AtomicU64::new(0),
        largest_write: AtomicU64::new(0),
    });
    host.disk = Some(Arc::clone(&disk) as Arc<dyn Disk>);
    disk
}

fn odd_log(host: &Host, number: u16) -> PathBuf {
    host.folder.path().join(format!("other disk/{number}.log"))
}

fn read_odd(host: &Host, number: u16) -> Vec<u8> {
    fs::read(odd_log(host, number)).unwrap_or_default()
}

/// A domain whose log is on the other disk.
fn domain(host: &Host, number: u16) -> (DomId, Page) {
    let log = format!("file:{}", odd_log(host, number).display());
    host.write(&format!("/local/domain/{number}/console/log"), &log);
    host.domain(number, "null")
}

/// Ends what a process was doing that is gone: it writes nothing more.
fn until_gone(disk: &OddDisk) {
    disk.set(State::Fails);
    let deadline = Instant::now() + PATIENCE;
    while disk.is_waited_for() {
        assert!(Instant::now() < deadline, "an operation still waits");
        std::thread::yield_now();
    }
}

fn is_empty(page: &Page) -> bool {
    page.guest_get(Index::OutProd) == page.guest_get(Index::OutCons)
}

/// Bytes of `letter` that a log has, and those that it says it lacks.
fn count(log: &[u8], letter: u8) -> (usize, usize) {
    let text = String::from_utf8(log.to_vec()).unwrap();
    let number = |line: &str| {
        line.strip_prefix("[outrigger-consoled: ")?
            .strip_suffix(" bytes left out here]")?
            .parse::<usize>()
            .ok()
    };
    (log.iter().filter(|byte| **byte == letter).count(), text.lines().filter_map(number).sum())
}

fn read_all(mut stream: &UnixStream, buffer: &mut [u8]) -> usize {
    let mut all = 0;
    while let Ok(count @ 1..) = stream.read(buffer) {
        all += count;
    }
    all
}

#[test]
fn a_disk_that_hangs_stops_neither_its_viewers_nor_other_consoles_and_their_logs() {
    let (mut host, disk) = host();
    let (id, page) = domain(&host, 1);
    let (other, other_page) = host.domain(2, "null");
    page.guest_write(b"x");
    host.until("the log", |host| (read_odd(host, 1) == b"x").then_some(()));
    let viewer = host.view(id, 0);
    let other_viewer = host.view(other, 0);
    disk.set(State::Hangs);
    let (mut said, mut seen, mut other_seen, mut buffer) = (1, 0, 0, vec![0; 1 << 17]);
    let mut others = Vec::new();
    // If anything waited for the disk, this would not end.
    while said < 4_000_000 {
        said += page.guest_write(&[b'x'; OUT_SIZE]);
        host.xen.kick(id, 2);
        let line = format!("line {said}\n");
        others.extend_from_slice(&line.as_bytes()[..other_page.guest_write(line.as_bytes())]);
        host.xen.kick(other, 2);
        host.turn();
        seen += read_all(&viewer, &mut buffer);
        other_seen += read_all(&other_viewer, &mut buffer);
    }
    host.until("the disk's hang", |_| disk.is_waited_for().then_some(()));
    host.until("the viewers' bytes", |_| {
        seen += read_all(&viewer, &mut buffer);
        other_seen += read_all(&other_viewer, &mut buffer);
        (seen == said && other_seen == others.len()).then_some(())
    });
    host.until_log(2, 0, &others);
    assert_eq!(read_odd(&host, 1), b"x");

    disk.set(State::Works);
    said += page.guest_write(b"xx");
    host.xen.kick(id, 2);
    host.until("the log", |host| {
        let (logged, left_out) = count(&read_odd(host, 1), b'x');
        (logged + left_out == said).then_some(())
    });
    let log = read_odd(&host, 1);
    assert_eq!(log.split(|byte| *byte == b'[').count(), 2, "it says more than once that bytes are left out");
    // Nothing but one piece and the history was kept for it.
    assert!(log.len() < PIECE + IN_MEMORY + 100, "{} bytes were kept", log.len());
    assert!(disk.largest_write.load(Ordering::SeqCst) <= PIECE as u64);
}

#[test]
fn a_disk_that_hangs_and_answers_has_a_line_for_each() {
    let lines = Arc::new(AtomicU64::new(0));
    tracing::subscriber::with_default(Count(Arc::clone(&lines)), || {
        let (mut host, disk) = host();
        let domains: Vec<_> = (1..=5).map(|number| domain(&host, number)).collect();
        for number in 1..=5 {
            host.until("the console", |host| host.xen.is_bound(domid(number), 2).then_some(()));
            host.until("the log", |host| odd_log(host, number).exists().then_some(()));
        }
        let before = lines.load(Ordering::Relaxed);
        disk.set(State::Hangs);
        for (id, page) in &domains {
            page.guest_write(b"x");
            host.xen.kick(*id, 2);
        }
        host.until("a line", |_| (lines.load(Ordering::Relaxed) > before).then_some(()));
        let until = Instant::now() + LATE + LATE / 2;
        while Instant::now() < until {
            host.turn();
        }
        assert_eq!(lines.load(Ordering::Relaxed) - before, 1);
        disk.set(State::Works);
        for number in 1..=5 {
            host.until("the log", |host| (read_odd(host, number) == b"x").then_some(()));
        }
        host.until("another line", |_| (lines.load(Ordering::Relaxed) - before == 2).then_some(()));
    });
}

#[test]
fn a_domain_that_starts_while_its_disk_hangs_is_served_and_logged_later() {
    let (mut host, disk) = host();
    disk.set(State::Hangs);
    let (id, page) = domain(&host, 1);
    page.guest_write(b"boot ");
    let viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, 5), b"boot ");
    let mut typed = &viewer;
    typed.write_all(b"typed").unwrap();
    host.until("the guest's input", |_| (page.guest_read() == b"typed").then_some(()));
    host.until("the disk's hang", |_| disk.is_waited_for().then_some(()));
    disk.set(State::Works);
    page.guest_write(b"done");
    host.xen.kick(id, 2);
    host.until("the log", |host| (read_odd(host, 1) == b"boot done").then_some(()));
}

#[test]
fn a_domain_whose_bytes_must_be_on_the_disk_waits_for_it_and_others_do_not() {
    let (mut host, disk) = host();
    let (id, _) = host.domain(1, "null");
    host.write("/local/domain/0/backend/console/1/1/output-sync", "always");
    let file = odd_log(&host, 1);
    host.secondary(id, 1, "xenconsoled", &format!("file:{}", file.display()));
    let page = host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    let (other, other_page) = host.domain(2, "null");
    disk.set(State::Hangs);
    let mut wanted: Vec<u8> = (0..OUT_SIZE).map(|at| u8::try_from(at % 251).unwrap()).collect();
    page.guest_write(&wanted);
    host.xen.kick(id, 5);
    host.until("the disk's hang", |_| disk.is_waited_for().then_some(()));
    other_page.guest_write(b"quick");
    host.xen.kick(other, 2);
    host.until_log(2, 0, b"quick");
    let until = Instant::now() + LATE + LATE / 2;
    while Instant::now() < until {
        host.xen.kick(id, 5);
        host.turn();
    }
    assert_eq!(page.guest_get(Index::OutCons), 0, "bytes left the ring before they were on the disk");
    disk.set(State::Works);
    host.until("room in the ring", |_| is_empty(&page).then_some(()));
    assert_eq!(fs::read(&file).unwrap(), wanted);
    page.guest_write(b"more");
    wanted.extend_from_slice(b"more");
    host.xen.kick(id, 5);
    host.until("all bytes", |_| (fs::read(&file).unwrap() == wanted).then_some(()));
}

#[test]
fn a_server_that_ends_while_a_disk_hangs_leaves_the_rest_to_the_next_one() {
    let (mut host, disk) = host();
    let (id, page) = domain(&host, 1);
    page.guest_write(b"first ");
    host.until("the log", |host| (read_odd(host, 1) == b"first ").then_some(()));
    disk.set(State::Hangs);
    page.guest_write(b"second ");
    host.xen.kick(id, 2);
    host.until("the disk's hang", |_| disk.is_waited_for().then_some(()));
    page.guest_write(b"third");
    host.xen.kick(id, 2);
    host.until("an empty ring", |_| is_empty(&page).then_some(()));
    let begin = Instant::now();
    host.server.take().unwrap().stop();
    assert!(begin.elapsed() < Duration::from_secs(10), "it took {:?} to end", begin.elapsed());
    until_gone(&disk);
    new_disk(&mut host);
    host.start();
    host.until("the log", |host| (read_odd(host, 1) == b"first second third").then_some(()));
}

#[test]
fn a_server_that_ends_writes_all_that_is_there() {
    let (mut host, _disk) = host();
    let (id, page) = domain(&host, 1);
    host.until("the console", |host| host.xen.is_bound(id, 2).then_some(()));
    let mut wanted = Vec::new();
    for at in 0..20 {
        let bytes = [b'a' + at; OUT_SIZE];
        wanted.extend_from_slice(&bytes[..page.guest_write(&bytes)]);
        host.xen.kick(id, 2);
        host.turn();
    }
    host.until("an empty ring", |_| is_empty(&page).then_some(()));
    host.server.take().unwrap().stop();
    assert!(read_odd(&host, 1) == wanted, "{} of {} bytes", read_odd(&host, 1).len(), wanted.len());
}

#[test]
fn a_server_that_is_killed_while_a_disk_hangs_loses_no_byte_that_the_next_one_does_not_count() {
    let (mut host, disk) = host();
    let (id, page) = domain(&host, 1);
    page.guest_write(b"x");
    host.until("the log", |host| (read_odd(host, 1) == b"x").then_some(()));
    disk.set(State::Hangs);
    let mut said = 1;
    // More than fits into the history, and so more than the next process can know.
    while said < 4 * HISTORY {
        said += page.guest_write(&[b'x'; OUT_SIZE]);
        host.xen.kick(id, 2);
        host.turn();
    }
    host.kill();
    until_gone(&disk);
    new_disk(&mut host);
    host.start();
    said += page.guest_write(b"x");
    host.xen.kick(id, 2);
    host.until("all bytes, logged or counted", |host| {
        let (logged, left_out) = count(&read_odd(host, 1), b'x');
        (logged + left_out == said).then_some(())
    });
}

#[test]
fn last_words_of_a_domain_that_ends_while_its_disk_hangs_are_logged_later() {
    let (mut host, disk) = host();
    let (id, page) = domain(&host, 1);
    page.guest_write(b"first ");
    host.until("the log", |host| (read_odd(host, 1) == b"first ").then_some(()));
    let viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, 6), b"first ");
    disk.set(State::Hangs);
    page.guest_write(b"last words");
    host.destroy(id);
    // The viewer gets them, and its end, though the log does not.
    assert_eq!(host.read_viewer(&viewer, usize::MAX), b"last words");
    host.xenstored.destroy_domain(id);
    // The next domain with this name continues the log.
    let (next, page) = domain(&host, 1);
    page.guest_write(b", next");
    host.until("the next domain's bytes", |host| {
        (host.xen.is_bound(next, 2) && is_empty(&page)).then_some(())
    });
    assert_eq!(read_odd(&host, 1), b"first ");
    disk.set(State::Works);
    host.until("the log", |host| (read_odd(host, 1) == b"first last words, next").then_some(()));
    host.destroy(next);
    host.until("the journal's end", |host| (host.run_names() == ["control"]).then_some(()));
}

#[test]
fn a_viewer_that_comes_while_the_disk_hangs_gets_what_is_in_memory() {
    let (mut host, disk) = host();
    let (id, page) = domain(&host, 1);
    let mut said = 0;
    while said < HISTORY + OUT_SIZE {
        said += page.guest_write(&[b'x'; OUT_SIZE]);
        host.xen.kick(id, 2);
        host.turn();
    }
    host.until("the log", |host| (read_odd(host, 1).len() == said).then_some(()));
    // With a disk that works, the older half comes from the log.
    let viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, HISTORY).len(), HISTORY);
    disk.set(State::Hangs);
    page.guest_write(b"!");
    host.xen.kick(id, 2);
    host.until("the disk's hang", |_| disk.is_waited_for().then_some(()));
    let until = Instant::now() + LATE + LATE / 2;
    while Instant::now() < until {
        host.turn();
    }
    let late = host.view(id, 0);
    late.shutdown(Shutdown::Write).unwrap();
    let got = String::from_utf8(host.read_viewer(&late, usize::MAX)).unwrap();
    assert!(got.starts_with("\r\n[outrigger-consoled: ") && got.ends_with("x!"), "{}", got.len());
    assert_eq!(got.bytes().filter(|byte| *byte == b'x').count(), IN_MEMORY - 1);
}

#[test]
fn a_disk_that_fails_has_one_line_and_the_log_continues_when_it_works() {
    let lines = Arc::new(AtomicU64::new(0));
    tracing::subscriber::with_default(Count(Arc::clone(&lines)), || {
        let (mut host, disk) = host();
        let (id, page) = domain(&host, 1);
        page.guest_write(b"one ");
        host.until("the log", |host| (read_odd(host, 1) == b"one ").then_some(()));
        let before = lines.load(Ordering::Relaxed);
        let viewer = host.view(id, 0);
        disk.set(State::Fails);
        for _ in 0..3 {
            page.guest_write(b"lost ");
            host.xen.kick(id, 2);
            host.until("an empty ring", |_| is_empty(&page).then_some(()));
            host.turn();
        }
        assert_eq!(host.read_viewer(&viewer, 19), b"one lost lost lost ");
        host.until("a line", |_| (lines.load(Ordering::Relaxed) > before).then_some(()));
        // What waits for the thread is written or lost before the disk works again.
        host.until("a quiet turn", |_| (!disk.is_waited_for()).then_some(()));
        disk.set(State::Works);
        host.until("the next bytes in the log", |host| {
            page.guest_write(b"two ");
            host.xen.kick(id, 2);
            read_odd(host, 1).ends_with(b"two ").then_some(())
        });
        assert!(read_odd(&host, 1).starts_with(b"one "));
        assert_eq!(lines.load(Ordering::Relaxed) - before, 1, "lines of a disk that fails");
    });
}
