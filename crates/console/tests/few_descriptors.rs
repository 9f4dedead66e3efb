//! No descriptor is left for a client. In a process of its own, since the limit is the process's.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(dead_code, reason = "other tests need more of the simulated host")]

#[path = "server/sim/mod.rs"]
mod sim;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sim::Host;

#[test]
fn clients_that_cannot_be_accepted_do_not_keep_the_daemon_busy() {
    let mut host = Host::new();
    let (id, page) = host.domain(1, "null");
    page.guest_write(b"x");
    host.until_log(1, 0, b"x");
    // Their connections wait to be accepted; then there is no descriptor for them.
    let viewer = UnixStream::connect(host.socket_path(id, 0)).unwrap();
    viewer.set_nonblocking(true).unwrap();
    let client = host.ask("list\n");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    let (mut turns, until) = (0, Instant::now() + Duration::from_millis(500));
    while Instant::now() < until {
        host.turn();
        turns += 1;
    }
    // Each of them may rest for 5 ms.
    assert!(turns < 150, "{turns} turns in half a second");
    drop(taken);
    assert_eq!(host.read_viewer(&viewer, 1), b"x");
    assert!(host.read_viewer(&client, usize::MAX).starts_with(b"ok\n1.0 connected"));
}
