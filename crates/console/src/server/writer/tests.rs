use std::fs::File;
use std::sync::Mutex;

use super::*;
use crate::logfile::HostDisk;

/// A disk on which files are opened when the other end of a channel says so, or is gone.
#[derive(Debug)]
struct SlowDisk {
    begun: Sender<()>,
    go: Mutex<Receiver<()>>,
}

impl Disk for SlowDisk {
    fn open(&self, path: &Path) -> io::Result<File> {
        let _ = self.begun.send(());
        let _ = self.go.lock().unwrap().recv();
        HostDisk.open(path)
    }
}

/// Threads on such a disk, the channel that lets it go on, and one that says when it was reached.
fn slow() -> (Sender<()>, Receiver<()>, Writers) {
    let ((go, wait), (begun, reached)) = (channel(), channel());
    let disk = SlowDisk { begun, go: Mutex::new(wait) };
    (go, reached, Writers::new(Arc::new(disk)).unwrap())
}

#[test]
fn each_folder_has_a_thread_until_there_are_many() {
    let mut writers = Writers::new(Arc::new(HostDisk)).unwrap();
    let first = writers.writer(&[Path::new("/a/1")]).unwrap();
    assert!(Rc::ptr_eq(&first, &writers.writer(&[Path::new("/a/2"), Path::new("/a/3")]).unwrap()));
    let both = writers.writer(&[Path::new("/b/1"), Path::new("/a/1")]).unwrap();
    assert!(!Rc::ptr_eq(&first, &both));
    assert!(Rc::ptr_eq(&both, &writers.writer(&[Path::new("/a/1"), Path::new("/b/1")]).unwrap()));
    let mut all = vec![first, both];
    for number in 0..100 {
        let writer = writers.writer(&[&PathBuf::from(format!("/{number}/log"))]).unwrap();
        if !all.iter().any(|other| Rc::ptr_eq(other, &writer)) {
            all.push(writer);
        }
    }
    assert_eq!(all.len(), THREADS_MAX);
    // Those that nobody uses end.
    all.clear();
    writers.writer(&[Path::new("/x/1")]).unwrap();
    assert_eq!(writers.threads.len(), 1);
}

#[test]
fn jobs_of_one_folder_are_done_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (go, _, mut writers) = slow();
    let writer = writers.writer(&[&path]).unwrap();
    let open =
        || Job::Open(Box::new(FilesToOpen::new(Some((path.clone(), LogStyle::default())), None, None)));
    let piece = |bytes: &[u8]| Piece { from: 0, bytes: bytes.to_vec() };
    // A console that is gone, and the next one with the same log.
    writer.send(Owner::Console(1), open());
    writer.send_last(Owner::Console(1), Some(piece(b"one ")), None).unwrap();
    writer.send(Owner::Console(2), open());
    writer.send(Owner::Console(2), Job::Write(piece(b"two")));
    writers.send_all();
    assert!(writers.next_answer().is_none());
    drop(go);
    let until = Instant::now() + Duration::from_secs(20);
    for owner in [1, 1, 2, 2] {
        assert_eq!(writers.wait_answer(until).expect("an answer").owner, Owner::Console(owner));
    }
    assert_eq!(writers.owed(), 0);
    assert_eq!(std::fs::read(&path).unwrap(), b"one two");
}

#[test]
fn a_thread_that_nobody_uses_ends_only_when_its_jobs_are_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (go, _, mut writers) = slow();
    let writer = writers.writer(&[&path]).unwrap();
    let wanted = FilesToOpen::new(Some((path.clone(), LogStyle::default())), None, None);
    writer.send(Owner::Console(1), Job::Open(Box::new(wanted)));
    let first = Rc::as_ptr(&writer);
    drop(writer);
    for _ in 0..3 {
        writers.send_all();
    }
    // The next console with this log has the same thread.
    assert_eq!(Rc::as_ptr(&writers.writer(&[&path]).unwrap()), first);
    drop(go);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !writers.threads.is_empty() {
        assert!(Instant::now() < deadline, "the thread does not end");
        writers.wait_answer(Instant::now());
        writers.send_all();
    }
}

#[test]
fn consoles_that_are_gone_wait_for_a_disk_in_bounded_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    std::fs::write(&path, b"").unwrap();
    let (go, _, mut writers) = slow();
    let writer = writers.writer(&[&path]).unwrap();
    let wanted = FilesToOpen::new(Some((path.clone(), LogStyle::default())), None, None);
    writer.send(Owner::Hypervisor, Job::Open(Box::new(wanted)));
    let send = |number: u64| {
        let journal = OwnPath::of(path.clone()).unwrap();
        let last = Piece { from: 0, bytes: vec![0; 64 * 1024] };
        writer.send_last(Owner::Console(number), Some(last), Some(journal))
    };
    let mut sent = 0;
    while send(sent).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, QUEUE_MAX / (128 * 1024));
    drop(go);
    let until = Instant::now() + Duration::from_secs(20);
    while writers.owed() > 0 {
        writers.wait_answer(until).expect("an answer");
    }
    std::fs::write(&path, b"").unwrap();
    assert!(send(sent).is_ok());
}

#[test]
fn jobs_that_were_not_begun_are_left_when_the_server_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (go, reached, mut writers) = slow();
    let writer = writers.writer(&[&path]).unwrap();
    let wanted = FilesToOpen::new(Some((path.clone(), LogStyle::default())), None, None);
    writer.send(Owner::Console(1), Job::Open(Box::new(wanted)));
    writer.send(Owner::Console(1), Job::Write(Piece { from: 0, bytes: b"x".to_vec() }));
    writers.send_all();
    drop(writer);
    reached.recv_timeout(Duration::from_secs(20)).expect("the file is being opened");
    let begin = Instant::now();
    drop(writers);
    assert!(begin.elapsed() >= DROP_WAIT, "the job that was begun was not waited for");
    drop(go);
    assert!(!path.exists() || std::fs::read(&path).unwrap().is_empty());
}
