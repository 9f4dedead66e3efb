//! Outputs, logs and names: what the toolstack says in xenstore, and what the daemon was told.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use console::history::HISTORY;
use console::logfile::LogStyle;
use console::output::Overflow;
use console::ring::{Index, OUT_SIZE, XenconsInterface};
use console::server::LogNames;

use crate::sim::{Host, PATIENCE, domid};

fn is_empty(page: &XenconsInterface) -> bool {
    page.guest_get(Index::OutProd) == page.guest_get(Index::OutCons)
}

/// A secondary console 1 whose frontend is connected, with more keys in its backend.
fn secondary(host: &mut Host, number: u16, output: &str, keys: &[(&str, &str)]) -> crate::sim::Page {
    let (id, _) = host.domain(number, "null");
    for (key, value) in keys {
        host.write(&format!("/local/domain/0/backend/console/{number}/1/{key}"), value);
    }
    host.secondary(id, 1, "xenconsoled", output);
    let page = host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    page
}

#[test]
fn a_socket_has_several_readers_and_one_writer() {
    let mut host = Host::new();
    let path = host.folder.path().join("out");
    let page = secondary(&mut host, 1, &format!("socket:{}", path.display()), &[]);
    let id = domid(1);
    let connect = |host: &mut Host| {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_nonblocking(true).unwrap();
        host.turn();
        stream
    };
    let (mut first, mut second) = (connect(&mut host), connect(&mut host));
    page.guest_write(b"to all");
    host.xen.kick(id, 5);
    for stream in [&first, &second] {
        assert_eq!(host.read_viewer(stream, 6), b"to all");
    }
    second.write_all(b"ignored").unwrap();
    first.write_all(b"heard").unwrap();
    host.until("the writer's input", |_| (page.guest_read() == b"heard").then_some(()));
    drop(first);
    let mut got = Vec::new();
    host.until("the next writer's input", |_| {
        // The first one's end may be seen late.
        let _ = second.write(b"!");
        got.extend(page.guest_read());
        (!got.is_empty()).then_some(())
    });
    assert!(got.iter().all(|byte| *byte == b'!'), "{got:?}");
    let third = connect(&mut host);
    assert_eq!(host.read_viewer(&third, 6), b"to all");
}

#[test]
fn a_socket_that_blocks_loses_nothing() {
    let mut host = Host::new();
    let path = host.folder.path().join("out");
    let keys = [("output-overflow", "block")];
    let page = secondary(&mut host, 1, &format!("socket:{}", path.display()), &keys);
    let id = domid(1);
    page.guest_write(b"waits ");
    host.xen.kick(id, 5);
    for _ in 0..3 {
        host.turn();
    }
    assert!(!is_empty(&page), "it was taken though nobody is there");
    let mut reader = UnixStream::connect(&path).unwrap();
    reader.set_nonblocking(true).unwrap();
    let mut wanted = b"waits ".to_vec();
    let mut got = Vec::new();
    let mut buffer = [0; 1000];
    for round in 0..400u32 {
        let piece = vec![u8::try_from(round % 251).unwrap(); OUT_SIZE];
        let count = page.guest_write(&piece);
        wanted.extend_from_slice(&piece[..count]);
        host.xen.kick(id, 5);
        host.turn();
        if round % 3 == 0 {
            let count = reader.read(&mut buffer).unwrap_or(0);
            got.extend_from_slice(&buffer[..count]);
        }
    }
    host.until("the rest", |_| {
        match reader.read(&mut buffer) {
            Ok(count) => got.extend_from_slice(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        (got.len() >= wanted.len()).then_some(())
    });
    assert!(got == wanted, "the stream differs");
}

#[test]
fn a_socket_s_path_that_someone_has_is_left_alone() {
    let mut host = Host::new();
    let path = host.folder.path().join("file");
    fs::write(&path, b"mine").unwrap();
    let page = secondary(&mut host, 1, &format!("socket:{}", path.display()), &[]);
    page.guest_write(b"x");
    host.xen.kick(domid(1), 5);
    host.until_log(1, 1, b"x");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

#[test]
fn a_file_has_its_own_limit_and_the_log_its_own_place() {
    let mut host = Host::new();
    let folder = host.folder.path().to_owned();
    let log = format!("file:{}", folder.join("own.log").display());
    let keys = [("output-limit", "4096"), ("output-sync", "rotation"), ("log", log.as_str())];
    let page = secondary(&mut host, 1, &format!("file:{}", folder.join("out").display()), &keys);
    for round in 1..=4 {
        page.guest_write(&[b'x'; OUT_SIZE]);
        host.xen.kick(domid(1), 5);
        // Each by itself, so that each is written by itself.
        host.until("a ring's bytes", |_| {
            let logged = fs::metadata(folder.join("own.log")).map_or(0, |about| about.len());
            (logged == round * OUT_SIZE as u64 && is_empty(&page)).then_some(())
        });
    }
    page.guest_write(b"end");
    host.xen.kick(domid(1), 5);
    // Between the rotation and the next write there is no such file.
    let holds = |text: &[u8]| fs::read(folder.join("out")).is_ok_and(|bytes| bytes == text);
    host.until("the file", |_| holds(b"end").then_some(()));
    assert_eq!(fs::metadata(folder.join("out.1")).unwrap().len(), 4096);
    assert_eq!(fs::metadata(folder.join("own.log")).unwrap().len(), 4 * 2048 + 3);
    assert!(!host.log_path(1, 1).exists());
}

#[test]
fn a_channel_is_found_by_its_name() {
    let mut host = Host::new();
    let path = host.folder.path().join("channel");
    let path = path.display().to_string();
    let keys = [("connection", "socket"), ("path", path.as_str()), ("name", "org.example/../agent")];
    let page = secondary(&mut host, 1, "chardev:libxl-channel0", &keys);
    let stream = host.ask("view 1.org.example%2F..%2Fagent\n");
    page.guest_write(b"by name");
    host.xen.kick(domid(1), 5);
    assert_eq!(host.read_viewer(&stream, 10), b"ok\nby name");
    let link = host.folder.path().join("run/1.org.example%2F..%2Fagent");
    assert_eq!(fs::read_link(&link).unwrap().to_str(), Some("1.1"));
    assert!(UnixStream::connect(&path).is_ok());
    host.destroy(domid(1));
    host.until("the link's end", |_| fs::symlink_metadata(&link).is_err().then_some(()));
}

#[test]
fn a_channel_with_the_name_of_a_journal_harms_no_journal() {
    let mut host = Host::new();
    let names = ["1.journal", "agent.journal"];
    let (id, _) = host.domain(1, "null");
    let pages: Vec<_> = (1..)
        .zip(names)
        .map(|(number, name)| {
            host.secondary(id, number, "xenconsoled", "null");
            host.write(&format!("/local/domain/0/backend/console/1/{number}/name"), name);
            let page = host.frontend(id, number, 8 + number, 5 + number);
            host.until_state(id, number, "4");
            page
        })
        .collect();
    let links = ["1.%31.journal", "1.agent.journal"];
    for (round, link) in (0..3).zip(links.iter().cycle()) {
        for (page, port) in pages.iter().zip(6..) {
            page.guest_write(b"x");
            host.xen.kick(id, port);
        }
        host.until("the links", |host| {
            let names = host.run_names();
            links.iter().all(|link| names.iter().any(|name| name == link)).then_some(())
        });
        let stream = host.ask(&format!("view 1.{}\n", names[round % 2]));
        assert_eq!(
            host.read_viewer(&stream, 4 + round),
            [b"ok\n".as_slice(), &vec![b'x'; round + 1]].concat(),
            "{link}"
        );
        host.kill();
        host.start();
    }
    // The next server removes the links of a domain that ended while there was none.
    host.kill();
    host.destroy(id);
    host.xenstored.destroy_domain(id);
    host.start();
    let left = host.run_names();
    assert!(links.iter().all(|link| !left.iter().any(|name| name == link)), "{left:?}");
}

#[test]
fn logs_are_called_as_xenconsoled_calls_them_and_xen_s_own_is_there() {
    let mut host = Host::new();
    host.kill();
    host.adapt = |settings| {
        settings.log_names = LogNames::Xenconsoled;
        settings.hypervisor_log = Some(LogStyle::default());
    };
    host.xen.say("(XEN) boot\n");
    host.start();
    let log = host.folder.path().join("log/hypervisor.log");
    assert_eq!(fs::read(&log).unwrap(), b"(XEN) boot\n");
    let page = secondary(&mut host, 1, "null", &[]);
    page.guest_write(b"second");
    host.xen.kick(domid(1), 5);
    host.xen.say("(XEN) later\n");
    host.until("the logs", |host| {
        let secondary = fs::read(host.folder.path().join("log/guest-guest1.1.log")).unwrap_or_default();
        let hypervisor = fs::read(&log).unwrap();
        (secondary == b"second" && hypervisor == b"(XEN) boot\n(XEN) later\n").then_some(())
    });
    assert!(host.folder.path().join("log/guest-guest1.log").exists());
    host.kill();
    host.start();
    host.xen.say("(XEN) after a restart\n");
    host.until("what Xen said", |_| {
        (fs::read(&log).unwrap() == b"(XEN) boot\n(XEN) later\n(XEN) after a restart\n").then_some(())
    });
}

#[test]
fn a_pty_that_nobody_reads_holds_up_its_domain_when_asked() {
    let mut host = Host::new();
    host.kill();
    host.adapt = |settings| settings.overflow = Overflow::Block;
    host.start();
    let page = secondary(&mut host, 1, "pty", &[]);
    let mut taken = 0;
    for _ in 0..100 {
        taken += page.guest_write(&[b'x'; OUT_SIZE]);
        host.xen.kick(domid(1), 5);
        host.turn();
    }
    assert!(taken < 32 * 1024, "{taken} bytes were taken though nobody reads");
    let tty = host.read("/local/domain/1/device/console/1/tty").unwrap();
    let tty = fs::OpenOptions::new().read(true).open(tty).unwrap();
    nix::fcntl::fcntl(&tty, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    let mut seen = 0;
    host.until("all bytes", |_| {
        seen += (&tty).read(&mut [0; 4096]).unwrap_or(0);
        (seen == taken).then_some(())
    });
    assert!(is_empty(&page));
}

#[test]
fn a_viewer_can_begin_with_what_came_since() {
    let mut host = Host::new();
    let (id, page) = host.domain(1, "null");
    page.guest_write(b"old");
    host.until_log(1, 0, b"old");
    let stream = host.ask("view 1.0 since=3600000\n");
    assert_eq!(host.read_viewer(&stream, 6), b"ok\nold");
    // Times are kept to a second: what is older than that is left out.
    let old = std::time::Instant::now() + std::time::Duration::from_millis(1100);
    host.until("a second", |_| (std::time::Instant::now() > old).then_some(()));
    let mut stream = host.ask("view 1.0 since=0\n");
    page.guest_write(b"new");
    host.xen.kick(id, 2);
    assert_eq!(host.read_viewer(&stream, 6), b"ok\nnew");
    stream.write_all(b"typed").unwrap();
    host.until("the guest's input", |_| (page.guest_read() == b"typed").then_some(()));
    let stream = host.ask("list\n");
    let report = String::from_utf8(host.read_viewer(&stream, usize::MAX)).unwrap();
    assert_eq!(report, format!("ok\n1.0 connected 6 2 - - {}\n", host.xen.uuid(id)));
    for (request, answer) in
        [("dance\n", "error A request is"), ("view 1.7\n", "error There is no console 1.7"), ("\n", "error")]
    {
        let stream = host.ask(request);
        let said = String::from_utf8(host.read_viewer(&stream, usize::MAX)).unwrap();
        assert!(said.starts_with(answer), "{said}");
    }
}

#[test]
fn a_restart_keeps_the_replay_for_viewers_and_not_for_the_output() {
    let mut host = Host::new();
    let (id, page) = host.domain(1, "pty");
    page.guest_write(b"boot messages");
    host.until_log(1, 0, b"boot messages");
    host.kill();
    page.guest_write(b", and more");
    host.start();
    let viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, 23), b"boot messages, and more");
    let tty = host.read("/local/domain/1/console/tty").unwrap();
    let mut tty = fs::File::open(tty).unwrap();
    let mut buffer = [0; 64];
    let count = tty.read(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b", and more");
}

#[test]
fn a_stream_whose_owner_is_gone_is_free_at_once_though_the_guest_takes_nothing() {
    let mut host = Host::new();
    let (id, page) = host.domain(1, "null");
    let mut stream = host.ask("stream 1.0\n");
    assert_eq!(host.read_viewer(&stream, 3), b"ok\n");
    stream.write_all(&[b'x'; 3000]).unwrap();
    drop(stream);
    let deadline = Instant::now() + PATIENCE;
    let next = loop {
        let next = host.ask("stream 1.0\n");
        if host.read_viewer(&next, 3) == b"ok\n" {
            break next;
        }
        assert!(Instant::now() < deadline, "the stream is never free");
    };
    // What the first has sent is not lost: it comes before what the next one sends.
    (&next).write_all(b"y").unwrap();
    let mut got = Vec::new();
    host.until("all input", |host| {
        got.extend(page.guest_read());
        host.xen.kick(id, 2);
        (got.len() == 3001).then_some(())
    });
    assert!(got.ends_with(b"xy"));
}

#[test]
fn a_stream_gets_every_byte_and_learns_that_the_guest_has_all() {
    let mut host = Host::new();
    let (id, page) = host.domain(1, "null");
    page.guest_write(b"before ");
    host.until_log(1, 0, b"before ");
    let mut stream = host.ask("stream 1.0\n");
    assert_eq!(host.read_viewer(&stream, 3), b"ok\n");
    let busy = host.ask("stream 1.0\n");
    assert_eq!(host.read_viewer(&busy, usize::MAX), b"error this console's stream is already in use\n");
    let mut wanted = Vec::new();
    for round in 0..2000u32 {
        let count = page.guest_write(&[u8::try_from(round % 256).unwrap(); 500]);
        wanted.extend(std::iter::repeat_n(u8::try_from(round % 256).unwrap(), count));
        host.xen.kick(id, 2);
        if round % 5 == 0 {
            host.turn();
        }
    }
    assert!(host.read_viewer(&stream, wanted.len()) == wanted, "the stream differs");

    let sent: Vec<u8> = (0..100_000u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let mut got = Vec::new();
    let mut at = 0;
    host.until("all bytes sent", |host| {
        at += stream.write(&sent[at..]).unwrap_or(0);
        got.extend(page.guest_read());
        host.xen.kick(id, 2);
        (at == sent.len()).then_some(())
    });
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    host.until("all bytes but one ring", |host| {
        let full = page.guest_get(Index::InProd).wrapping_sub(page.guest_get(Index::InCons)) >= 400;
        if got.len() + 1024 < sent.len() {
            got.extend(page.guest_read());
        }
        host.xen.kick(id, 2);
        (full && got.len() + 1024 >= sent.len()).then_some(())
    });
    assert!(stream.read(&mut [0; 1]).is_err(), "told the end though the guest has not got it");
    got.extend(page.guest_read());
    host.xen.kick(id, 2);
    host.until("the rest", |host| {
        got.extend(page.guest_read());
        host.xen.kick(id, 2);
        (got.len() == sent.len()).then_some(())
    });
    assert_eq!(host.read_viewer(&stream, usize::MAX), b"");
    assert!(got == sent, "what the guest got differs");
}

#[test]
fn a_viewer_gets_what_is_kept_though_the_older_half_is_in_the_log_only() {
    let mut host = Host::new();
    let (id, page) = host.domain(1, "null");
    let stream: Vec<u8> = (0..HISTORY + 5000).map(|at| b'a' + u8::try_from(at % 23).unwrap()).collect();
    let mut rest = &stream[..];
    while !rest.is_empty() {
        rest = &rest[page.guest_write(rest)..];
        host.xen.kick(id, 2);
        host.turn();
    }
    host.until("the last bytes", |_| is_empty(&page).then_some(()));
    let viewer = host.view(id, 0);
    assert!(host.read_viewer(&viewer, HISTORY) == stream[stream.len() - HISTORY..]);
}

#[test]
fn a_viewer_that_is_far_behind_when_the_domain_ends_gets_all_that_is_kept() {
    let mut host = Host::new();
    let (id, page) = host.domain(1, "null");
    let viewer = host.view(id, 0);
    let stream: Vec<u8> = (0..1_000_000).map(|at| b'a' + u8::try_from(at % 23).unwrap()).collect();
    let mut rest = &stream[..];
    while !rest.is_empty() {
        rest = &rest[page.guest_write(rest)..];
        host.xen.kick(id, 2);
        host.turn();
    }
    host.until("the last bytes", |_| is_empty(&page).then_some(()));
    host.destroy(id);
    let got = host.read_viewer(&viewer, usize::MAX);
    let mark = b"bytes dropped here]\r\n";
    let last = got.windows(mark.len()).rposition(|part| part == mark).expect("something was dropped");
    assert!(got[last + mark.len()..] == stream[stream.len() - HISTORY..], "{} bytes", got.len() - last);
}
