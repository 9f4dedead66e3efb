//! SIGKILL at any moment: between any two accesses to a ring or to Xen, a hundred times, under load.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use console::history::HISTORY;
use console::ring::{Index, OUT_SIZE};

use crate::sim::Host;

const KILLS: u32 = 100;

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// A stream that tells where it is, in lines that never fit the ring.
fn line(number: u32) -> Vec<u8> {
    let mut line = format!("{number:08x}").into_bytes();
    line.resize(13, b'-');
    line
}

/// Kills the server `KILLS` times while guests write and read, with a log, a file, or both.
#[track_caller]
fn check(seed: u64, with_log: bool, with_file: bool) {
    let mut host = Host::new();
    host.kill();
    if !with_log {
        host.adapt = |settings| settings.log_guests = false;
    }
    host.start();
    let file = host.folder.path().join("file");
    let output = if with_file { format!("file:{}", file.display()) } else { "null".to_owned() };
    let (id, page) = host.domain(1, &output);
    let mut random = Random(seed);
    let (mut wanted, mut next, mut pending) = (Vec::new(), 0, Vec::new());
    let mut kills = 0;
    host.xen.set_fuse(Some(1 + random.below(40)));
    while kills < KILLS {
        if pending.len() < OUT_SIZE {
            for _ in 0..random.below(300) {
                pending.extend(line(next));
                next += 1;
            }
        }
        let count = page.guest_write(&pending);
        wanted.extend(pending.drain(..count));
        host.xen.kick(id, 2);
        if host.survive(Host::turn) {
            kills += 1;
            loop {
                // The next one may be killed before it serves anything.
                host.xen.set_fuse(Some(1 + random.below(40)));
                if !host.survive(Host::start) {
                    break;
                }
                kills += 1;
            }
        }
    }
    host.xen.set_fuse(None);
    host.until("an empty ring", |_| {
        (page.guest_get(Index::OutProd) == page.guest_get(Index::OutCons)).then_some(())
    });
    // They are handed on in larger pieces than a ring, and written by a thread.
    host.until("the end of the files", |host| {
        let has_all = |path: &PathBuf| fs::metadata(path).unwrap().len() >= wanted.len() as u64;
        (!with_log || has_all(&host.log_path(1, 0))).then_some(()).filter(|()| !with_file || has_all(&file))
    });
    assert!(wanted.len() > 20 * OUT_SIZE, "only {} bytes under {kills} kills", wanted.len());
    let mut wrong = Vec::new();
    for (there, path) in [(with_log, host.log_path(1, 0)), (with_file, file)] {
        if there && fs::read(&path).unwrap() != wanted {
            let _ = writeln!(wrong, "{}", path.display());
        }
    }
    assert!(wrong.is_empty(), "not what the guest wrote: {}", String::from_utf8_lossy(&wrong));
}

#[test]
fn a_log_has_each_byte_once_after_a_hundred_kills() {
    check(1, true, false);
}

#[test]
fn a_file_has_each_byte_once_after_a_hundred_kills() {
    check(2, false, true);
}

#[test]
fn log_and_file_have_each_byte_once_after_a_hundred_kills() {
    check(3, true, true);
}

#[test]
fn a_pipe_and_a_viewer_get_each_byte_once_without_any_log() {
    let mut host = Host::new();
    host.kill();
    host.adapt = |settings| settings.log_guests = false;
    host.start();
    let pipe = host.folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut reader =
        fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe).unwrap();
    let (id, page) = host.domain(3, &format!("pipe:{}", pipe.display()));
    let mut random = Random(4);
    let (mut got, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    let wanted: Vec<u8> = (0..50_000).flat_map(line).collect();
    let (mut at, mut kills) = (0, 0);
    while kills < KILLS || at < wanted.len() {
        at += page.guest_write(&wanted[at..(at + 700).min(wanted.len())]);
        host.xen.kick(id, 2);
        host.xen.set_fuse((kills < KILLS).then(|| 1 + random.below(40)));
        while (host.server.is_none() && host.survive(Host::start)) || host.survive(Host::turn) {
            kills += 1;
            host.xen.set_fuse(Some(1 + random.below(40)));
        }
        // Now and then nobody reads, so that the domain has to wait.
        if random.below(8) == 0 {
            let count = reader.read(&mut buffer).unwrap_or(0);
            got.extend_from_slice(&buffer[..count]);
        }
    }
    host.xen.set_fuse(None);
    host.until("all bytes at the pipe", |_| {
        let count = reader.read(&mut buffer).unwrap_or(0);
        got.extend_from_slice(&buffer[..count]);
        (got.len() >= wanted.len()).then_some(())
    });
    assert!(got == wanted, "the pipe's bytes differ");
    // What was said before the last kill is replayed, though no log has it.
    host.kill();
    host.start();
    let viewer = host.view(id, 0);
    let kept = HISTORY - OUT_SIZE;
    assert!(host.read_viewer(&viewer, kept) == wanted[wanted.len() - kept..], "the replay differs");
}

#[test]
fn a_guest_that_waits_for_room_is_woken_by_the_next_server() {
    let mut host = Host::new();
    let (id, _page) = host.domain(9, "null");
    // A server that is killed between reading and waking leaves an empty ring and a guest that waits.
    for round in 1..4 {
        host.until("the guest is woken", |host| (host.xen.notified(id, 2) >= round).then_some(()));
        host.kill();
        host.start();
    }
}

#[test]
fn last_words_that_a_killed_server_had_not_written_are_written_by_the_next() {
    let mut rescued = 0;
    for fuse in 1..40 {
        let mut host = Host::new();
        let (id, page) = host.domain(9, "null");
        host.until("the console", |host| host.xen.is_bound(id, 2).then_some(()));
        let wanted: Vec<u8> = (0..1000).flat_map(line).collect();
        host.xen.set_fuse(Some(fuse));
        let mut at = 0;
        while !host.survive(Host::turn) && at < wanted.len() {
            at += page.guest_write(&wanted[at..]);
            host.xen.kick(id, 2);
        }
        host.xen.set_fuse(None);
        let taken = page.guest_get(Index::OutCons) as usize;
        rescued += u32::from(host.log(9, 0).len() < taken);
        host.kill();
        host.destroy(id);
        host.start();
        let log = host.log(9, 0);
        assert!(wanted.starts_with(&log) && log.len() >= taken, "{} of {taken} after {fuse}", log.len());
        let left = fs::read_dir(host.folder.path().join("run")).unwrap().flatten();
        assert_eq!(left.filter(|entry| entry.path().extension().is_some_and(|e| e == "journal")).count(), 0);
    }
    assert!(rescued > 0, "no kill was in time");
}
