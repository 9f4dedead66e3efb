//! The console daemon's core with a guest that writes anything to its part of xenstore and into its rings, and a
//! toolstack that writes nonsense: on the simulated host of the crate's tests.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use console::logfile::{Disk, HostDisk};
use console::ring::{Index, OUT_SIZE};
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/console/tests/server/sim/mod.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod sim;

use sim::{Host, Page, domid, path};
use xen_types::DomId;
use xenstore::Store as _;

const HOSTILE: u16 = 1;
const HONEST: u16 = 2;
const INDICES: [Index; 4] = [Index::InCons, Index::InProd, Index::OutCons, Index::OutProd];
/// What a frontend may write, and what it may not.
const FRONT_KEYS: [&str; 6] = ["state", "ring-ref", "port", "type", "output", "tty"];
/// What the toolstack writes.
const BACK_KEYS: [&str; 9] =
    ["state", "online", "type", "output", "connection", "name", "output-overflow", "output-limit", "log"];

/// Bytes of a log, beside what a line about bytes that are left out takes.
const LIMIT: u64 = 4096;
const LINE: u64 = 128;

/// A disk with room for so many bytes; no number means enough.
#[derive(Debug)]
struct Full(AtomicU64);

impl Disk for Full {
    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<usize> {
        let room = self.0.load(Ordering::SeqCst);
        let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = HostDisk.write(file, &bytes[..count])?;
        if room != u64::MAX {
            self.0.fetch_sub(written as u64, Ordering::SeqCst);
        }
        Ok(written)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        if self.0.load(Ordering::SeqCst) == 0 { Err(io::ErrorKind::StorageFull.into()) } else { HostDisk.sync(file) }
    }
}

struct Scene {
    host: Host,
    disk: Arc<Full>,
    honest: Page,
    said: u32,
}

thread_local! {
    static SCENE: RefCell<Option<Scene>> = const { RefCell::new(None) };
}

fn scene() -> Scene {
    let mut host = Host::new();
    host.log_limit = LIMIT;
    let disk = Arc::new(Full(AtomicU64::new(u64::MAX)));
    host.disk = Some(Arc::clone(&disk) as Arc<dyn Disk>);
    // Whatever is waited for comes of what another thread does at once.
    host.rest = Duration::ZERO;
    host.kill();
    host.start();
    let (_, honest) = host.domain(HONEST, "null");
    Scene { host, disk, honest, said: 0 }
}

/// A value for a key: a short number or word, or the bytes as they are.
fn value(bytes: &[u8]) -> String {
    const WORDS: [&str; 10] =
        ["1", "2", "3", "4", "5", "6", "xenconsoled", "null", "pty", "socket:/nowhere/socket"];
    match bytes {
        [choice, ..] if usize::from(*choice) < WORDS.len() => WORDS[usize::from(*choice)].to_owned(),
        [1..=100, rest @ ..] => rest.iter().map(|byte| char::from(b'0' + byte % 10)).collect(),
        _ => String::from_utf8_lossy(bytes).replace('\0', "").chars().take(300).collect(),
    }
}

/// Removes a node with all below it, if it is there.
fn remove(host: &Host, at: &str) {
    let _ = host.store.rm(&path(at));
}

/// No log is larger than its limit, full disk or not.
fn check_logs(host: &Host) {
    for number in 0..4 {
        let log = host.log_path(HOSTILE, number);
        let older = log.with_extension("log.1");
        for path in [log, older] {
            let length = path.metadata().map_or(0, |about| about.len());
            assert!(length <= LIMIT + LINE, "{} has {length} bytes", path.display());
        }
    }
}

fn play(scene: &mut Scene, data: &[u8]) {
    let host = &mut scene.host;
    let id = domid(HOSTILE);
    let (_, primary) = host.domain(HOSTILE, "null");
    let mut pages = vec![primary];
    // Eight bytes an operation. Longer stories find nothing that shorter ones do not, and take longer.
    for operation in data.chunks_exact(8).take(64) {
        let number = 1 + u32::from(operation[1] % 3);
        let front = format!("/local/domain/{HOSTILE}/device/console/{number}");
        let back = format!("/local/domain/0/backend/console/{HOSTILE}/{number}");
        let text = value(&operation[3..]);
        let page = &pages[usize::from(operation[2]) % pages.len()];
        let word = u32::from_le_bytes([operation[3], operation[4], operation[5], operation[6]]);
        match operation[0] % 12 {
            0 => host.secondary(id, number, "xenconsoled", "null"),
            1 => pages.push(host.frontend(id, number, 8 + number, 5 + number)),
            2 => host.write(&format!("{front}/{}", FRONT_KEYS[usize::from(operation[2]) % FRONT_KEYS.len()]), &text),
            3 => host.write(&format!("{back}/{}", BACK_KEYS[usize::from(operation[2]) % BACK_KEYS.len()]), &text),
            4 => remove(host, if operation[2] % 2 == 0 { &front } else { &back }),
            5 => page.guest_set(INDICES[usize::from(operation[7]) % 4], word),
            6 => drop(page.guest_write(&vec![operation[3]; word as usize % (2 * OUT_SIZE)])),
            7 => host.xen.kick(id, 2 + u32::from(operation[2] % 8)),
            // As costly as all others together.
            8 if operation[7] % 4 == 0 => {
                host.kill();
                host.start();
            }
            // Another domain gets the domid before the server checks.
            8 if operation[7] % 4 == 1 => {
                host.destroy(id);
                host.xenstored.destroy_domain(id);
                pages = vec![host.domain(HOSTILE, "null").1];
            }
            // It is destroyed, and its domid comes again with a console of the same number in the same turn.
            10 => {
                host.destroy(id);
                host.xenstored.destroy_domain(id);
                remove(host, &format!("/local/domain/0/backend/console/{HOSTILE}"));
                pages = vec![host.domain(HOSTILE, "null").1];
                host.secondary(id, number, "xenconsoled", "null");
                pages.push(host.frontend(id, number, 8 + number, 5 + number));
                if operation[7] % 4 == 0 {
                    host.turn();
                }
            }
            // The disk is full, nearly, or has room again.
            11 => {
                let room = [0, u64::from(operation[3]), u64::MAX, u64::from(word % 8192)];
                scene.disk.0.store(room[usize::from(operation[7]) % room.len()], Ordering::SeqCst);
            }
            _ => host.turn(),
        }
        check_logs(host);
    }
    scene.disk.0.store(u64::MAX, Ordering::SeqCst);
    check_end(scene, id);
}

/// Whatever happened, another domain is served, and the hostile one can end.
fn check_end(scene: &mut Scene, id: DomId) {
    let host = &mut scene.host;
    let line = format!("{:08}\n", scene.said);
    scene.said += 1;
    let honest = &scene.honest;
    assert_eq!(honest.guest_write(line.as_bytes()), line.len());
    host.xen.kick(domid(HONEST), 2);
    host.until("the honest domain's line", |_| {
        (honest.guest_get(Index::OutCons) == honest.guest_get(Index::OutProd)).then_some(())
    });
    host.until("the line in its log", |host| host.log(HONEST, 0).ends_with(line.as_bytes()).then_some(()));
    host.destroy(id);
    remove(host, &format!("/local/domain/0/backend/console/{HOSTILE}"));
    host.until("the hostile domain's end", |host| {
        (host.server.as_ref().is_some_and(|server| server.consoles().count() == 1)).then_some(())
    });
    host.xenstored.destroy_domain(id);
}

fuzz_target!(|data: &[u8]| {
    SCENE.with_borrow_mut(|kept| play(kept.get_or_insert_with(scene), data));
});
