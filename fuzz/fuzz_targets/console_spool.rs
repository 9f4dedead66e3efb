//! The journal that a killed console daemon has left, damaged in any way: what is read of it can be continued.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use console::spool::Spool;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// In memory, as the daemon's own folder.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a folder"));
const CAPACITY: usize = 4096;
/// Bytes of a journal in front of the console's.
const HEAD: usize = 8192;

fn path(name: &str) -> PathBuf {
    FOLDER.path().join(name)
}

fuzz_target!(|data: &[u8]| {
    let journal = path("1.0.journal");
    // As it is, or bytes that replace some of a good one's: three in front of each say where and how many.
    let Some((kind, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if kind % 2 == 0 {
        bytes = good();
        let mut rest = data;
        while let [high, low, count, behind @ ..] = rest {
            let (new, behind) = behind.split_at(behind.len().min(usize::from(*count) % 16));
            let at = (usize::from(*high) << 8 | usize::from(*low)) % bytes.len();
            bytes.iter_mut().skip(at).zip(new).for_each(|(byte, new)| *byte = *new);
            rest = behind;
        }
    }
    fs::write(&journal, &bytes).expect("there is room");
    for scratch in [0, 2048] {
        let Some(kept) = Spool::read_kept(&journal, scratch) else { continue };
        assert!(kept.bytes.len() as u64 <= kept.ring.end, "{kept:?}");
        let next = path("next.journal");
        let spool = Spool::create(next.clone(), CAPACITY, &kept).expect("there is room");
        let again = Spool::read_kept(&next, 0).expect("what was written can be read");
        assert_eq!((again.uuid, &again.ring), (kept.uuid, &kept.ring));
        // In front of them, it may have room for more.
        let common = kept.bytes.len().min(again.bytes.len());
        let end = |bytes: &[u8]| bytes[bytes.len() - common..].to_vec();
        assert_eq!(end(&kept.bytes), end(&again.bytes));
        drop(spool);
    }
});

/// A journal as a daemon leaves it.
fn good() -> Vec<u8> {
    static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut kept = console::spool::Kept { uuid: console::Uuid::from_u128(5), ..Default::default() };
        kept.ring.end = 300;
        kept.bytes = (0..200).collect();
        let spool = Spool::create(path("good"), CAPACITY, &kept).expect("there is room");
        spool.note_output(250);
        let log = PathBuf::from("/var/log/outrigger/console/hello.0.log");
        spool.note_paths(Some((&log, 4 << 20)), None);
        let mut bytes = fs::read(path("good")).expect("it was just written");
        bytes.truncate(HEAD + CAPACITY);
        bytes
    });
    GOOD.clone()
}
