//! A disk whose operations fail at any time: the limit holds, and the count equals the file's length.

use std::fs;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;

const LIMIT: u64 = 100;

/// The next fault of the disk.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// No fault.
    None,
    /// A write takes this many bytes and returns no error.
    Short(usize),
    /// A write takes this many bytes, and the next one fails.
    Full(usize),
    Open,
    Sync,
    Empty,
    Rename,
    /// A file can be neither renamed nor emptied.
    Stuck,
    /// Everything fails, including writes to the open file.
    Dead,
}

#[derive(Clone, Debug)]
struct FaultyDisk(Arc<Mutex<Fault>>);

impl FaultyDisk {
    fn refuse(&self, refused: impl Fn(Fault) -> bool) -> io::Result<()> {
        let fault = *self.0.lock().unwrap();
        if refused(fault) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<File> {
        self.refuse(|fault| matches!(fault, Fault::Open | Fault::Dead))?;
        HostDisk.open(path)
    }

    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<usize> {
        let mut fault = self.0.lock().unwrap();
        let most = match *fault {
            Fault::Short(most) => most.max(1),
            Fault::Full(most) => {
                *fault = Fault::Full(0);
                if most == 0 {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                most
            }
            Fault::Dead => return Err(io::ErrorKind::Other.into()),
            _ => bytes.len(),
        };
        HostDisk.write(file, &bytes[..bytes.len().min(most)])
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.refuse(|fault| matches!(fault, Fault::Sync | Fault::Dead))?;
        HostDisk.sync(file)
    }

    fn empty(&self, file: &File) -> io::Result<()> {
        self.refuse(|fault| matches!(fault, Fault::Empty | Fault::Stuck | Fault::Dead))?;
        HostDisk.empty(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.refuse(|fault| matches!(fault, Fault::Rename | Fault::Stuck | Fault::Dead))?;
        HostDisk.rename(from, to)
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::None),
        1 => (0..30_usize).prop_map(Fault::Short),
        3 => (0..120_usize).prop_map(Fault::Full),
        1 => Just(Fault::Open),
        1 => Just(Fault::Sync),
        1 => Just(Fault::Empty),
        1 => Just(Fault::Rename),
        1 => Just(Fault::Stuck),
        1 => Just(Fault::Dead),
    ]
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |about| about.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_limit_holds_whatever_the_disk_refuses(
        story in proptest::collection::vec((fault(), 0..250_usize), 1..40),
        sync in prop_oneof![Just(Sync::Never), Just(Sync::Rotation), Just(Sync::Always)],
        timestamps in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let disk = FaultyDisk(Arc::new(Mutex::new(Fault::None)));
        let style = LogStyle { limit: LIMIT, sync, timestamps, ..LogStyle::default() };
        let mut log = LogFile::open_on(Arc::new(disk.clone()), path.clone(), style).unwrap();
        for (fault, count) in story {
            *disk.0.lock().unwrap() = fault;
            let _ = log.append(&vec![b'x'; count]);
            prop_assert!(length(&path) <= LIMIT, "{fault:?}: {} bytes", length(&path));
            prop_assert!(length(&rotated(&path)) <= LIMIT, "{fault:?}: {} bytes in .1", length(&rotated(&path)));
            prop_assert_eq!(log.position().size, log.file.metadata().unwrap().len(), "{:?}", fault);
        }
        // Once the disk works again, so does the log.
        *disk.0.lock().unwrap() = Fault::None;
        let _ = log.append(b"\n");
        log.append(b"the end").unwrap();
        prop_assert!(fs::read(&path).unwrap().ends_with(b"the end"));
    }
}

fn full_log(fault: Fault) -> (tempfile::TempDir, FaultyDisk, LogFile) {
    let folder = tempfile::tempdir().unwrap();
    let disk = FaultyDisk(Arc::new(Mutex::new(Fault::None)));
    let style = LogStyle { limit: LIMIT, ..LogStyle::default() };
    let mut log = LogFile::open_on(Arc::new(disk.clone()), folder.path().join("log"), style).unwrap();
    log.append(&[b'a'; 100]).unwrap();
    *disk.0.lock().unwrap() = fault;
    (folder, disk, log)
}

#[test]
fn a_rotation_that_fails_half_way_loses_neither_file() {
    let (folder, disk, mut log) = full_log(Fault::Open);
    // Renamed, and no new file can be opened.
    assert!(matches!(log.append(b"lost"), Err(LogError::Open { .. })));
    assert!(matches!(log.append(b"lost"), Err(LogError::Open { .. })));
    *disk.0.lock().unwrap() = Fault::None;
    log.append(b"next").unwrap();
    assert_eq!(fs::read(folder.path().join("log")).unwrap(), b"next");
    assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), [b'a'; 100]);
}

#[test]
fn a_rotated_log_is_not_emptied_when_the_next_one_cannot_be_opened() {
    let (folder, disk, mut log) = full_log(Fault::Open);
    log.append(b"lost").unwrap_err();
    *disk.0.lock().unwrap() = Fault::Rename;
    log.append(b"next").unwrap();
    assert_eq!(fs::read(folder.path().join("log")).unwrap(), b"next");
    assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), [b'a'; 100]);
}

#[test]
fn a_full_log_that_cannot_be_renamed_is_emptied_and_continues() {
    let (folder, _disk, mut log) = full_log(Fault::Rename);
    assert!(matches!(log.append(b"next"), Err(LogError::Rotate { .. })));
    assert_eq!(fs::read(folder.path().join("log")).unwrap(), b"next");
}

#[test]
fn nothing_is_written_to_a_full_log_that_cannot_be_rotated() {
    let (folder, _disk, mut log) = full_log(Fault::Stuck);
    for _ in 0..3 {
        assert!(matches!(log.append(b"more"), Err(LogError::Rotate { .. })));
    }
    assert_eq!(fs::read(folder.path().join("log")).unwrap(), [b'a'; 100]);
}
