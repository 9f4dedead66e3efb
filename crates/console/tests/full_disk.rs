//! A log on a full disk on which space is freed now and then. The disk is a real tmpfs, in the mount namespace of the
//! test's own thread, so that it is gone with the thread.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use console::logfile::{LogFile, LogStyle, Sync};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const DISK: u64 = 512 * 1024;
const LIMIT: u64 = 64 * 1024;

/// Runs `test` in a folder on a tmpfs of [`DISK`] bytes; prints that it is skipped if no tmpfs can be mounted.
fn on_small_disk(test: impl FnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let folder = tempfile::tempdir().unwrap();
        let none = None::<&str>;
        let mounted = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| {
                let size = format!("size={DISK}");
                mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            });
        match mounted {
            Ok(()) => test(folder.path()),
            Err(errno) => println!("skipped: no tmpfs can be mounted here ({errno})"),
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |about| about.len())
}

/// Fills the disk with an unrelated file, which is returned with its length.
fn fill(folder: &Path) -> (File, u64) {
    let mut filler = File::create(folder.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    let size = filler.metadata().unwrap().len();
    (filler, size)
}

fn check(sync: Sync) {
    on_small_disk(move |folder| {
        let path = folder.join("a.log");
        let mut log =
            LogFile::open(path.clone(), LogStyle { limit: LIMIT, sync, ..LogStyle::default() }).unwrap();
        let (filler, mut size) = fill(folder);
        let (mut failed, mut longest) = (0, 0);
        // A page is freed now and then, while the guest keeps writing.
        while size >= 4096 {
            size -= 4096;
            filler.set_len(size).unwrap();
            for _ in 0..4 {
                failed += u32::from(log.append(&[b'x'; 16 * 1024]).is_err());
                longest = longest.max(length(&path));
                assert_eq!(log.position().size, length(&path), "the count differs from what was written");
            }
        }
        assert!(failed > 0, "the disk was never full");
        assert!(longest <= LIMIT, "the log had {longest} bytes, its limit is {LIMIT}");
        assert!(length(&folder.join("a.log.1")) <= LIMIT);
        // With room again, nothing is missing.
        log.append(b"the end").unwrap();
        assert!(fs::read(&path).unwrap().ends_with(b"the end"));
    });
}

#[test]
fn limit_holds_on_a_full_disk() {
    check(Sync::Never);
}

#[test]
fn limit_holds_on_a_full_disk_that_is_synced() {
    check(Sync::Always);
}
