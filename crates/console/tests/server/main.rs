//! The console server on a simulated host: discovery, handshakes, hostile guests, restarts, slow readers.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod disks;
mod hostile;
mod kills;
mod outage;
mod outputs;
mod reuse;
mod sim;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use console::ring::{Index, OUT_SIZE};
use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use sim::{Host, domid, path};
use xen_types::DomId;
use xenstore::{Access, Store};

fn open_tty(host: &Host, at: &str) -> fs::File {
    let tty = host.read(at).expect("a tty is named");
    OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(tty).unwrap()
}

#[test]
fn a_primary_console_has_log_socket_and_tty() {
    let mut host = Host::new();
    let (id, page) = host.domain(1, "pty");
    page.guest_write(b"early\n");
    assert!(!page.guest_is_served());
    host.until_log(1, 0, b"early\n");
    assert!(page.guest_is_served());
    page.guest_write(b"late\n");
    host.xen.kick(id, 2);
    host.until_log(1, 0, b"early\nlate\n");

    let mut viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, 11), b"early\nlate\n");
    viewer.write_all(b"typed").unwrap();
    host.until("the guest's input", |_| (page.guest_read() == b"typed").then_some(()));

    let mut tty = open_tty(&host, "/local/domain/1/console/tty");
    let mut seen = 0;
    host.until("the bytes on the tty", |_| {
        seen += tty.read(&mut [0; 64]).unwrap_or(0);
        (seen == 11).then_some(())
    });
    tty.write_all(b"by tty").unwrap();
    host.until("the guest's input", |_| (page.guest_read() == b"by tty").then_some(()));
    let tty_perms = host.store.get_perms(&path("/local/domain/1/console/tty")).unwrap().unwrap();
    assert_eq!((tty_perms.owner(), tty_perms.access(id)), (DomId::DOM0, Access::Read));
}

#[test]
fn a_secondary_console_connects_closes_and_comes_back() {
    let mut host = Host::new();
    let (id, _) = host.domain(3, "pty");
    host.secondary(id, 1, "xenconsoled", "null");
    host.until_state(id, 1, "2");
    let page = host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    host.front_state(id, 1, "4");
    page.guest_write(b"one ");
    host.xen.kick(id, 5);
    host.until_log(3, 1, b"one ");

    page.guest_write(b"tail ");
    host.front_state(id, 1, "6");
    host.until_state(id, 1, "6");
    assert!(!host.xen.is_bound(id, 5));
    assert_eq!(Arc::strong_count(&page), 2, "the page is still mapped");
    host.until_log(3, 1, b"one tail ");

    host.front_state(id, 1, "1");
    host.until_state(id, 1, "2");
    let page = host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    page.guest_write(b"again");
    host.xen.kick(id, 5);
    host.until_log(3, 1, b"one tail again");
}

#[test]
fn the_toolstack_takes_a_console_away_in_order_and_by_force() {
    let mut host = Host::new();
    let (id, _) = host.domain(3, "pty");
    for number in [1, 2] {
        host.secondary(id, number, "xenconsoled", "null");
        host.frontend(id, number, 8 + number, 5 + number);
        host.until_state(id, number, "4");
        host.front_state(id, number, "4");
    }
    let back = "/local/domain/0/backend/console/3";
    host.write(&format!("{back}/1/online"), "0");
    host.write(&format!("{back}/1/state"), "5");
    host.front_state(id, 1, "6");
    host.until_state(id, 1, "6");
    host.store.rm(&path(&format!("{back}/2"))).unwrap();
    let socket = host.socket_path(id, 2);
    host.until("the socket's end", |_| (!socket.exists()).then_some(()));
    host.front_state(id, 2, "5");
    host.turn();
    assert_eq!(host.back_state(id, 2), None, "a removed backend was made anew");
}

#[test]
fn qemus_consoles_are_left_alone() {
    let mut host = Host::new();
    let (id, page) = host.domain(4, "pty");
    host.secondary(id, 1, "ioemu", "pty");
    host.frontend(id, 1, 8, 5);
    page.guest_write(b"x");
    host.xen.kick(id, 2);
    host.until_log(4, 0, b"x");
    assert_eq!(host.back_state(id, 1).as_deref(), Some("1"));
    assert!(!host.xen.is_bound(id, 5));
    assert!(!host.socket_path(id, 1).exists());
}

#[test]
fn the_guest_cannot_choose_a_file() {
    let mut host = Host::new();
    let (id, _) = host.domain(5, "null");
    let victim = host.folder.path().join("victim");
    host.secondary(id, 1, "xenconsoled", "null");
    host.write("/local/domain/5/device/console/1/output", &format!("file:{}", victim.display()));
    let page = host.frontend(id, 1, 8, 5);
    page.guest_write(b"evil");
    host.until_log(5, 1, b"evil");
    assert!(!victim.exists());
}

#[test]
fn a_corrupted_ring_is_closed_and_others_do_not_notice() {
    let mut host = Host::new();
    let (hostile, primary) = host.domain(6, "null");
    let (honest, page) = host.domain(7, "null");
    host.secondary(hostile, 1, "xenconsoled", "null");
    let corrupt = host.frontend(hostile, 1, 8, 5);
    host.until_state(hostile, 1, "4");
    host.front_state(hostile, 1, "4");
    corrupt.guest_set(Index::OutProd, 0x8000_0000);
    host.xen.kick(hostile, 5);
    host.until_state(hostile, 1, "6");
    primary.guest_set(Index::InCons, 9);
    host.xen.kick(hostile, 2);
    host.until("the primary console's end", |host| (!host.xen.is_bound(hostile, 2)).then_some(()));

    page.guest_write(b"fine");
    host.xen.kick(honest, 2);
    host.until_log(7, 0, b"fine");
    assert!(!host.xen.is_bound(hostile, 5), "the same corrupted ring was taken again");
    let page = host.frontend(hostile, 1, 9, 6);
    host.until_state(hostile, 1, "4");
    page.guest_write(b"reformed");
    host.xen.kick(hostile, 6);
    host.until_log(6, 1, b"reformed");
}

#[test]
fn nonsense_in_xenstore_harms_nobody() {
    let mut host = Host::new();
    let (id, page) = host.domain(8, "null");
    host.secondary(id, 1, "xenconsoled", "null");
    host.until_state(id, 1, "2");
    let front = "/local/domain/8/device/console/1";
    for (key, value) in [
        ("state", "999"),
        ("ring-ref", "-1"),
        ("port", "99999999999999999999"),
        ("state", "3"),
        ("ring-ref", "4294967296"),
        ("port", "\u{1}"),
        ("state", ""),
        ("ring-ref", "4000"),
        ("port", "4000"),
        ("state", "3"),
    ] {
        host.write(&format!("{front}/{key}"), value);
        host.turn();
    }
    // The last offer was well formed, and nothing is behind it.
    host.until_state(id, 1, "6");
    page.guest_write(b"still here");
    host.xen.kick(id, 2);
    host.until_log(8, 0, b"still here");
}

#[test]
fn a_killed_server_is_replaced_and_no_byte_is_lost_or_doubled() {
    let mut host = Host::new();
    let (id, primary) = host.domain(9, "pty");
    host.secondary(id, 1, "xenconsoled", "pty");
    let page = host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    host.front_state(id, 1, "4");
    let mut wanted = Vec::new();
    for round in 0..20u32 {
        let piece = format!("round {round:04} ").repeat(usize::try_from(round).unwrap() * 7 + 1);
        let count = page.guest_write(piece.as_bytes());
        wanted.extend_from_slice(&piece.as_bytes()[..count]);
        if round % 3 == 0 {
            host.xen.kick(id, 5);
        }
        for _ in 0..round % 4 {
            host.turn();
        }
        host.kill();
        assert!(host.socket_path(id, 1).exists(), "a killed process left no socket");
        // Written while there is no server.
        let count = page.guest_write(b"gap ");
        wanted.extend_from_slice(&b"gap "[..count]);
        host.xen.kick(id, 5);
        let old_tty = host.read("/local/domain/9/device/console/1/tty").unwrap();
        host.write("/local/domain/9/device/console/1/tty", "stale");
        host.start();
        assert_ne!(host.read("/local/domain/9/device/console/1/tty").unwrap(), "stale", "{old_tty}");
        host.until("an empty ring", |_| {
            (page.guest_get(Index::OutProd) == page.guest_get(Index::OutCons)).then_some(())
        });
    }
    host.until_log(9, 1, &wanted);
    primary.guest_write(b"alive");
    host.xen.kick(id, 2);
    let viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, 5), b"alive");
    assert_eq!(host.back_state(id, 1).as_deref(), Some("4"));
}

#[test]
fn bytes_that_were_logged_and_not_freed_are_not_logged_again() {
    let mut host = Host::new();
    let (id, page) = host.domain(16, "null");
    page.guest_write(b"once ");
    host.until_log(16, 0, b"once ");
    let before = page.guest_get(Index::OutCons);
    page.guest_write(b"only once ");
    host.xen.kick(id, 2);
    host.until("an empty ring", |_| {
        (page.guest_get(Index::OutProd) == page.guest_get(Index::OutCons)).then_some(())
    });
    host.kill();
    // As if it had been killed after the write to the log and before it freed the bytes.
    page.guest_set(Index::OutCons, before);
    page.guest_write(b"and more");
    host.start();
    host.until_log(16, 0, b"once only once and more");
    let viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, 23), b"once only once and more");

    host.kill();
    // As if it had been killed after the note and before the write.
    page.guest_set(Index::OutCons, before.wrapping_add(10));
    OpenOptions::new().write(true).open(host.log_path(16, 0)).unwrap().set_len(15).unwrap();
    host.start();
    host.until_log(16, 0, b"once only once and more");
}

#[test]
fn a_dying_domain_is_drained_and_let_go() {
    let mut host = Host::new();
    let (id, page) = host.domain(10, "pty");
    let viewer = host.view(id, 0);
    page.guest_write(b"last words");
    host.destroy(id);
    assert_eq!(host.read_viewer(&viewer, usize::MAX), b"last words");
    host.until_log(10, 0, b"last words");
    let socket = host.socket_path(id, 0);
    host.until("the socket's end", |_| (!socket.exists()).then_some(()));
    assert_eq!(Arc::strong_count(&page), 2, "the page is still mapped");
    assert_eq!(host.server.as_ref().unwrap().consoles().count(), 0);
}

#[test]
fn a_quiet_console_is_served_among_floods() {
    let mut host = Host::new();
    let floods: Vec<_> = (20..28).map(|number| host.domain(number, "null")).collect();
    let (quiet, page) = host.domain(30, "null");
    host.until("all consoles", |host| {
        let all = floods.iter().all(|(id, _)| host.xen.is_bound(*id, 2));
        (all && host.xen.is_bound(quiet, 2)).then_some(())
    });
    let noise = [b'#'; OUT_SIZE];
    let mut flooded = vec![0; floods.len()];
    let mut worst = 0;
    for word in 0..50u8 {
        page.guest_write(&[word]);
        host.xen.kick(quiet, 2);
        let mut turns = 0;
        while page.guest_get(Index::OutCons) != page.guest_get(Index::OutProd) {
            for ((id, page), count) in floods.iter().zip(&mut flooded) {
                *count += page.guest_write(&noise);
                host.xen.kick(*id, 2);
            }
            host.turn();
            turns += 1;
        }
        worst = worst.max(turns);
    }
    assert!(worst <= 2, "a quiet console waited {worst} turns");
    let (least, most) = (flooded.iter().min().unwrap(), flooded.iter().max().unwrap());
    assert!(most - least <= 2 * OUT_SIZE, "floods were served unequally: {flooded:?}");
}

#[test]
fn a_viewer_that_does_not_read_holds_up_nobody_and_learns_what_it_missed() {
    let mut host = Host::new();
    host.log_limit = 8192;
    host.kill();
    host.start();
    let (id, page) = host.domain(11, "null");
    let lazy = host.view(id, 0);
    let keen = host.view(id, 0);
    let total = 2_000_000;
    let mut sent = 0;
    let mut seen = 0;
    let mut buffer = vec![0; 100_000];
    while sent < total {
        sent += page.guest_write(&[b'a' + u8::try_from(sent / OUT_SIZE % 26).unwrap(); OUT_SIZE]);
        host.xen.kick(id, 2);
        host.turn();
        while let Ok(count) = (&keen).read(&mut buffer) {
            seen += count;
        }
    }
    if seen < sent {
        seen += host.read_viewer(&keen, sent - seen).len();
    }
    assert_eq!(seen, sent, "the keen viewer missed something");
    let mark = b"bytes dropped here]";
    let mut got = Vec::new();
    while !got.windows(mark.len()).any(|part| part == mark) {
        got.extend(host.read_viewer(&lazy, 1));
    }
    assert!(got.len() < total / 2);
    assert!(fs::metadata(host.log_path(11, 0)).unwrap().len() <= 8192);
}

#[test]
fn a_viewer_that_wants_only_the_replay_is_let_go() {
    let mut host = Host::new();
    let (id, page) = host.domain(12, "null");
    page.guest_write(b"what was");
    host.until_log(12, 0, b"what was");
    let viewer = host.view(id, 0);
    viewer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(host.read_viewer(&viewer, usize::MAX), b"what was");
}

#[test]
fn state_pipes_lose_nothing_in_either_direction() {
    let mut host = Host::new();
    let (id, _) = host.domain(13, "null");
    let (out, input) = (host.folder.path().join("out"), host.folder.path().join("in"));
    for fifo in [&out, &input] {
        nix::unistd::mkfifo(fifo, Mode::S_IRWXU).unwrap();
    }
    host.secondary(id, 1, "xenconsoled", &format!("pipe:{}", out.display()));
    host.secondary(id, 2, "xenconsoled", &format!("pipe:{}", input.display()));
    let saved = host.frontend(id, 1, 8, 5);
    let loaded = host.frontend(id, 2, 9, 6);
    host.until_state(id, 1, "4");
    host.until_state(id, 2, "4");

    let stream: Vec<u8> = (0..400_000u32).map(|at| u8::try_from(at * 31 % 253).unwrap()).collect();
    let mut reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&out).unwrap();
    let (mut sent, mut stalls, mut got) = (0, 0, Vec::new());
    while got.len() < 250_000 {
        let count = saved.guest_write(&stream[sent..]);
        sent += count;
        host.xen.kick(id, 5);
        host.turn();
        if count == 0 {
            // Only now is something read: the pipe and the history are full, and the guest waits.
            let mut buffer = vec![0; 50_000];
            match reader.read(&mut buffer) {
                Ok(count) => {
                    stalls += 1;
                    got.extend_from_slice(&buffer[..count]);
                }
                // It waits for its log, as it may for a moment.
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    }
    assert!(stalls > 2);
    let mut buffer = vec![0; 50_000];
    host.destroy(id);
    loop {
        host.turn();
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => got.extend_from_slice(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert_eq!(got.len(), sent, "the tail was lost");
    assert_eq!(got, &stream[..sent]);
    drop(loaded);
}

#[test]
fn a_state_pipe_feeds_the_guest_at_its_own_speed() {
    let mut host = Host::new();
    let (id, _) = host.domain(14, "null");
    let fifo = host.folder.path().join("in");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    host.secondary(id, 2, "xenconsoled", &format!("pipe:{}", fifo.display()));
    let page = host.frontend(id, 2, 9, 6);
    host.until_state(id, 2, "4");
    let stream: Vec<u8> = (0..200_000u32).map(|at| u8::try_from(at * 17 % 251).unwrap()).collect();
    let feed = stream.clone();
    let writer = std::thread::spawn(move || fs::write(fifo, feed).unwrap());
    let mut got = Vec::new();
    host.until("the stream", |host| {
        got.extend(page.guest_read());
        host.xen.kick(id, 6);
        (got.len() == stream.len()).then_some(())
    });
    writer.join().unwrap();
    assert_eq!(got, stream);
    // The pipe's end is no reason to stay awake.
    host.turn();
    let busy = (0..20).filter(|_| host.rests_less_than(Duration::from_millis(20))).count();
    assert!(busy <= 3, "{busy} of 20 turns had something to do");
}

#[test]
fn a_frontend_that_writes_all_the_time_is_looked_at_now_and_then() {
    let mut host = Host::new();
    let (id, page) = host.domain(17, "null");
    host.secondary(id, 1, "xenconsoled", "null");
    host.until_state(id, 1, "2");
    let before = host.xenstored.requests();
    let writes = 2000;
    for write in 0..writes {
        host.front_state(id, 1, if write % 2 == 0 { "1" } else { "6" });
        host.turn();
    }
    let own = host.xenstored.requests() - before - writes;
    assert!(own < writes * 2, "{own} requests for {writes} writes of a guest");
    host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    page.guest_write(b"ok");
    host.xen.kick(id, 2);
    host.until_log(17, 0, b"ok");
}

#[test]
fn a_primary_console_that_another_daemon_has_is_taken_later() {
    let mut host = Host::new();
    let (id, page) = host.domain(18, "null");
    host.until("the console", |host| host.xen.is_bound(id, 2).then_some(()));
    host.kill();
    let other = host.xen.take_port(id, 2);
    host.start();
    assert!(host.socket_path(id, 0).exists());
    drop(other);
    page.guest_write(b"mine again");
    host.until_log(18, 0, b"mine again");
}

#[test]
fn a_domain_that_comes_later_is_found_and_a_number_can_come_again() {
    let mut host = Host::new();
    host.turn();
    for round in 0..3u8 {
        let (id, page) = host.domain(15, "null");
        let viewer = host.view(id, 0);
        page.guest_write(&[b'0' + round]);
        host.xen.kick(id, 2);
        assert_eq!(host.read_viewer(&viewer, 1), &[b'0' + round]);
        host.destroy(id);
        host.until("the console's end", |host| {
            (host.server.as_ref().unwrap().consoles().count() == 0).then_some(())
        });
        host.xenstored.destroy_domain(domid(15));
    }
}
