//! What a domain can cause in dom0, and how much of it.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use console::ring::{Index, OUT_SIZE};
use console::server::LogPace;

use crate::sim::Host;

/// Counts the lines of the daemon's own log.
pub(crate) struct Count(pub(crate) Arc<AtomicU64>);

impl tracing::Subscriber for Count {
    fn enabled(&self, about: &tracing::Metadata<'_>) -> bool {
        *about.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_frontend_that_comes_and_goes_does_not_fill_the_daemons_log() {
    let lines = Arc::new(AtomicU64::new(0));
    tracing::subscriber::with_default(Count(Arc::clone(&lines)), || {
        let mut host = Host::new();
        host.rest = Duration::from_millis(1);
        let (id, _) = host.domain(17, "null");
        for number in 1..=9 {
            host.secondary(id, number, "xenconsoled", "null");
        }
        host.turn();
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            for number in 1..=9 {
                host.frontend(id, number, 8 + number, 5 + number);
            }
            host.turn();
            for number in 1..=9 {
                host.front_state(id, number, "1");
            }
            host.turn();
        }
    });
    let lines = lines.load(Ordering::Relaxed);
    // One of them says that others are left out.
    assert_eq!(lines, 65, "lines of one domain with nine consoles");
}

#[test]
fn a_flood_is_left_out_of_the_log_and_viewers_and_last_words_are_not() {
    let mut host = Host::new();
    host.kill();
    host.adapt = |settings| settings.log_pace = LogPace { burst: 100_000, per_second: 50_000 };
    host.start();
    let (id, page) = host.domain(18, "null");
    let viewer = host.view(id, 0);
    let (mut said, mut seen, mut buffer) = (0, 0, vec![0; 100_000]);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until || said < 2_000_000 {
        said += page.guest_write(&[b'x'; OUT_SIZE]);
        host.xen.kick(id, 2);
        host.turn();
        while let Ok(count) = (&viewer).read(&mut buffer) {
            seen += count;
        }
    }
    host.until("the viewer's bytes", |_| {
        while let Ok(count) = (&viewer).read(&mut buffer) {
            seen += count;
        }
        (seen >= said).then_some(())
    });
    // Silence: what was said last is logged soon.
    said += page.guest_write(b"the end");
    host.xen.kick(id, 2);
    host.until("the last words", |host| host.log(18, 0).ends_with(b"the end").then_some(()));
    let log = String::from_utf8(host.log(18, 0)).unwrap();
    let gaps = log.lines().filter(|line| line.ends_with("bytes left out here]")).count();
    assert!((1..=6).contains(&gaps), "{gaps} gaps in three seconds");
    assert!(log.len() < 500_000, "{} of {said} bytes were logged", log.len());
    let (logged, left_out) = count(log.as_bytes());
    assert_eq!(logged + b"the end".len() + left_out, said, "bytes are neither logged nor counted");
    // At the end nothing waits for its time.
    page.guest_write(&[b'y'; OUT_SIZE]);
    host.destroy(id);
    host.until("the end of the log", |host| host.log(18, 0).ends_with(b"yyy").then_some(()));
}

/// How many bytes a log has of those that the guest wrote, and how many it reports as left out.
fn count(log: &[u8]) -> (usize, usize) {
    let text = String::from_utf8(log.to_vec()).unwrap();
    let number =
        |line: &str| line.strip_prefix("[outrigger-consoled: ")?.split(' ').next()?.parse::<usize>().ok();
    (log.iter().filter(|byte| **byte == b'x').count(), text.lines().filter_map(number).sum())
}

#[test]
fn a_server_that_is_killed_in_a_flood_leaves_the_end_to_the_next_one() {
    let mut host = Host::new();
    host.kill();
    host.adapt = |settings| settings.log_pace = LogPace { burst: 50_000, per_second: 1000 };
    host.start();
    let (id, page) = host.domain(20, "null");
    let mut said = 0;
    while said < 500_000 {
        said += page.guest_write(&[b'x'; OUT_SIZE]);
        host.xen.kick(id, 2);
        host.turn();
    }
    host.kill();
    host.start();
    said += page.guest_write(b"x");
    host.xen.kick(id, 2);
    host.until("all bytes, logged or counted", |host| {
        let (logged, left_out) = count(&host.log(20, 0));
        (left_out > 0 && logged + left_out == said).then_some(())
    });
}

#[test]
fn all_consoles_of_a_domain_share_its_turns() {
    let mut host = Host::new();
    host.rest = Duration::ZERO;
    let (id, _) = host.domain(21, "null");
    let mut pages = Vec::new();
    for number in 1..=9 {
        host.secondary(id, number, "xenconsoled", "null");
        pages.push(host.frontend(id, number, 8 + number, 5 + number));
        host.until_state(id, number, "4");
    }
    let (mut said, begin) = (0, Instant::now());
    while begin.elapsed() < Duration::from_secs(1) {
        for (page, port) in pages.iter().zip(6..) {
            // A byte is enough to cost a turn.
            if page.guest_get(Index::OutProd) == page.guest_get(Index::OutCons) {
                said += page.guest_write(b".");
                host.xen.kick(id, port);
            }
        }
        host.turn();
    }
    // What is there at once, what comes in a second or somewhat more, and a byte in each ring.
    assert!(said < 60_000, "{said} turns in a second");
}

#[test]
fn a_guest_whose_bytes_must_be_on_the_disk_waits_and_nothing_is_left_out() {
    let mut host = Host::new();
    host.kill();
    host.adapt = |settings| settings.log_pace = LogPace { burst: 10_000, per_second: 20_000 };
    host.start();
    let (id, _) = host.domain(19, "null");
    host.write("/local/domain/0/backend/console/19/1/output-sync", "always");
    let file = host.folder.path().join("file");
    host.secondary(id, 1, "xenconsoled", &format!("file:{}", file.display()));
    let page = host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    let wanted: Vec<u8> = (0..50_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let (mut at, mut waits) = (0, 0);
    host.until("all bytes", |host| {
        let count = page.guest_write(&wanted[at..]);
        at += count;
        waits += u32::from(count == 0 && at < wanted.len());
        host.xen.kick(id, 5);
        (std::fs::read(&file).unwrap_or_default() == wanted).then_some(())
    });
    assert!(waits > 0, "the guest never waited");
}
