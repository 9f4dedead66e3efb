//! xenstored is slow, does not answer for a while, or drops the connection.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use xen_types::DomId;

use crate::hostile::Count;
use crate::sim::{Host, PATIENCE, Page};

/// A host whose server waits for one answer this long at most.
fn host() -> Host {
    let mut host = Host::new();
    host.kill();
    host.adapt = |settings| settings.store_timeout = Duration::from_millis(200);
    host.start();
    host
}

#[test]
fn known_consoles_are_served_while_xenstored_does_not_answer() {
    let mut host = host();
    let (id, page) = host.domain(1, "pty");
    host.secondary(id, 1, "xenconsoled", "null");
    host.until_state(id, 1, "2");
    page.guest_write(b"before ");
    host.until_log(1, 0, b"before ");
    let (dying, last) = host.domain(2, "null");
    host.until("the second console", |host| host.xen.is_bound(dying, 2).then_some(()));
    // A request is on its way when xenstored stops answering, and another domain dies.
    host.front_state(id, 1, "6");
    host.xenstored.stall(true);
    last.guest_write(b"last words");
    host.xen.kill(dying);
    let mut viewer = host.view(id, 0);
    let mut longest = Duration::ZERO;
    let mut wanted = b"before ".to_vec();
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        wanted.extend_from_slice(&b"word "[..page.guest_write(b"word ")]);
        host.xen.kick(id, 2);
        let begin = Instant::now();
        host.turn();
        longest = longest.max(begin.elapsed());
    }
    assert!(longest < Duration::from_secs(1), "consoles waited {longest:?} for xenstored");
    host.until_log(1, 0, &wanted);
    host.until_log(2, 0, b"last words");
    viewer.write_all(b"typed").unwrap();
    host.until("the guest's input", |_| (page.guest_read() == b"typed").then_some(()));

    host.xenstored.stall(false);
    host.until_state(id, 1, "6");
    // What came meanwhile, or comes now, is found.
    host.front_state(id, 1, "1");
    host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    let (new, page) = host.domain(3, "null");
    page.guest_write(b"new");
    host.until_log(3, 0, b"new");
    assert!(host.xen.is_bound(new, 2));
}

/// Plays a guest that writes without end, while the server is busy with xenstored.
struct Writer {
    id: DomId,
    page: Page,
    wanted: Vec<u8>,
    longest: Duration,
}

impl Writer {
    fn new(host: &mut Host) -> Self {
        let (id, page) = host.domain(1, "null");
        let mut writer = Self { id, page, wanted: Vec::new(), longest: Duration::ZERO };
        writer.turn(host);
        host.until_log(1, 0, &writer.wanted);
        writer.longest = Duration::ZERO;
        writer
    }

    fn turn(&mut self, host: &mut Host) {
        self.wanted.extend_from_slice(&b"word "[..self.page.guest_write(b"word ")]);
        host.xen.kick(self.id, 2);
        let begin = Instant::now();
        host.turn();
        self.longest = self.longest.max(begin.elapsed());
    }

    #[track_caller]
    fn write_until(&mut self, host: &mut Host, what: &str, done: impl Fn(&Host) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(host) {
            assert!(Instant::now() < deadline, "{what} has not come");
            self.turn(host);
        }
    }

    /// Fails unless all that was written has come, and no turn took long.
    #[track_caller]
    fn must_be_served(&self, host: &mut Host) {
        host.until_log(1, 0, &self.wanted);
        assert!(self.longest < Duration::from_secs(1), "consoles waited {:?} for xenstored", self.longest);
    }
}

#[test]
fn known_consoles_are_served_while_each_answer_comes_too_late() {
    let mut host = host();
    let mut writer = Writer::new(&mut host);
    let before = host.connections.load(Ordering::Relaxed);
    let (new, page) = host.domain(2, "null");
    host.xenstored.delay(Duration::from_millis(300));
    let connections = |host: &Host| host.connections.load(Ordering::Relaxed) - before;
    writer.write_until(&mut host, "the first attempt to connect again", |host| connections(host) >= 1);
    let first = Instant::now();
    writer.write_until(&mut host, "the second attempt", |host| connections(host) >= 2);
    // The first is after a second, and the second one later still.
    assert!(first.elapsed() > Duration::from_millis(1500), "asked again after {:?}", first.elapsed());
    assert!(!host.xen.is_bound(new, 2), "xenstored was not slow enough");
    writer.must_be_served(&mut host);

    host.xenstored.delay(Duration::ZERO);
    writer.write_until(&mut host, "the new console", |host| host.xen.is_bound(new, 2));
    page.guest_write(b"new");
    host.xen.kick(new, 2);
    host.until_log(2, 0, b"new");
    writer.must_be_served(&mut host);
}

/// What a new console needs takes several times as long as one answer may.
#[test]
fn new_consoles_come_however_long_all_answers_take_together() {
    let mut host = host();
    let mut writer = Writer::new(&mut host);
    let before = host.connections.load(Ordering::Relaxed);
    let (new, _) = host.domain(2, "pty");
    host.secondary(new, 1, "xenconsoled", "pty");
    let page = host.frontend(new, 1, 8, 5);
    // For some twenty requests of each console; a transaction has five.
    host.xenstored.delay(Duration::from_millis(15));
    writer.write_until(&mut host, "the new consoles", |host| {
        host.xen.is_bound(new, 2) && host.xen.is_bound(new, 5)
    });
    page.guest_write(b"new");
    host.xen.kick(new, 5);
    writer.write_until(&mut host, "the new console's bytes", |host| host.log(2, 1) == b"new");
    host.xenstored.delay(Duration::ZERO);
    for console in ["console", "device/console/1"] {
        let tty = format!("/local/domain/2/{console}/tty");
        writer.write_until(&mut host, "the path of the pseudo-terminal", |host| host.read(&tty).is_some());
    }
    host.until_state(new, 1, "4");
    writer.must_be_served(&mut host);
    assert_eq!(host.connections.load(Ordering::Relaxed), before, "the connection was given up");
}

/// Many domains are new when a client asks for a domid that another domain has now.
#[test]
fn known_consoles_do_not_wait_for_what_a_client_asks() {
    let mut host = host();
    let mut writer = Writer::new(&mut host);
    let (reused, _) = host.domain(2, "null");
    writer.write_until(&mut host, "the console", |host| host.xen.is_bound(reused, 2));
    for number in 3..20 {
        host.domain(number, "null");
    }
    host.give_away(2, "other");
    host.xenstored.delay(Duration::from_millis(100));
    let client = host.ask("view 2.0\n");
    writer.write_until(&mut host, "an answer", |_| (&client).read(&mut [0; 64]).is_ok());
    host.xenstored.delay(Duration::ZERO);
    writer.must_be_served(&mut host);
}

#[test]
fn new_consoles_of_a_slow_xenstored_take_turns_with_known_ones() {
    let mut host = Host::new();
    let mut writer = Writer::new(&mut host);
    let new: Vec<DomId> = (2..8).map(|number| host.domain(number, "null").0).collect();
    let before = host.connections.load(Ordering::Relaxed);
    host.xenstored.delay(Duration::from_millis(20));
    writer.write_until(&mut host, "all consoles", |host| new.iter().all(|id| host.xen.is_bound(*id, 2)));
    writer.must_be_served(&mut host);
    assert_eq!(host.connections.load(Ordering::Relaxed), before, "the connection was given up");
}

#[test]
fn a_connection_that_is_dropped_at_any_request_is_made_again() {
    let mut struck = 0;
    for request in (1..25).step_by(3) {
        let mut host = host();
        host.turn();
        // Those of the test are made before, so that the server's own are counted.
        let (id, page) = host.domain(1, "pty");
        host.secondary(id, 1, "xenconsoled", "pty");
        let second = host.frontend(id, 1, 8, 5);
        host.xenstored.drop_at_nth_request(request);
        // Until then the test asks for nothing.
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            host.turn();
        }
        struck += u32::from(host.xenstored.clear_faults() == 0);
        host.until("both consoles", |host| {
            (host.xen.is_bound(id, 2) && host.xen.is_bound(id, 5)).then_some(())
        });
        host.until("the state and both paths", |host| {
            let tty = |console: &str| host.read(&format!("/local/domain/1/{console}/tty"));
            let told = tty("console").is_some() && tty("device/console/1").is_some();
            (told && host.back_state(id, 1).as_deref() == Some("4")).then_some(())
        });
        page.guest_write(b"one");
        second.guest_write(b"two");
        host.xen.kick(id, 2);
        host.xen.kick(id, 5);
        host.until_log(1, 0, b"one");
        host.until_log(1, 1, b"two");
    }
    assert!(struck >= 4, "the connection was dropped only {struck} times");
}

#[test]
fn a_panic_of_the_thread_that_asks_again_is_survived() {
    let mut host = host();
    host.turn();
    let (id, page) = host.domain(1, "pty");
    host.bug_of_connect.store(true, Ordering::Relaxed);
    host.xenstored.drop_at_nth_request(1);
    host.until("the console", |host| host.xen.is_bound(id, 2).then_some(()));
    assert!(!host.bug_of_connect.load(Ordering::Relaxed), "the thread did not panic");
    page.guest_write(b"one");
    host.xen.kick(id, 2);
    host.until_log(1, 0, b"one");
}

#[test]
fn an_outage_has_a_line_at_its_beginning_and_one_at_its_end() {
    let lines = Arc::new(AtomicU64::new(0));
    tracing::subscriber::with_default(Count(Arc::clone(&lines)), || {
        let mut host = host();
        let (id, _) = host.domain(4, "null");
        host.xenstored.stall(true);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            host.turn();
        }
        assert_eq!(lines.load(Ordering::Relaxed), 1, "lines in an outage");
        host.xenstored.stall(false);
        host.until("the console", |host| host.xen.is_bound(id, 2).then_some(()));
    });
    // The console is connected.
    assert_eq!(lines.load(Ordering::Relaxed), 3, "lines after an outage");
}
