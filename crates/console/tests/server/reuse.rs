//! A domid that is given to another domain: between two turns of the server, and while no server was running.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use console::ring::{Index, OUT_SIZE};
use xen_types::DomId;

use crate::sim::{Host, Page, domid};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A domain whose console and log have these bytes.
#[track_caller]
fn with_bytes(host: &mut Host, number: u16, bytes: &[u8]) -> (DomId, Page) {
    let (id, page) = host.domain(number, "null");
    page.guest_write(bytes);
    host.until_log(number, 0, bytes);
    (id, page)
}

/// Everything that a connection still receives until its end.
#[track_caller]
fn rest(host: &mut Host, mut stream: &UnixStream) -> String {
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    host.until("a connection's end", |_| match stream.read(&mut buffer) {
        Ok(0) => Some(()),
        Ok(count) => {
            got.extend_from_slice(&buffer[..count]);
            None
        }
        Err(error) => (error.kind() != std::io::ErrorKind::WouldBlock).then_some(()),
    });
    text(&got)
}

/// The domain with this domid writes, and its log and viewer get exactly that.
#[track_caller]
fn check_served(host: &mut Host, id: DomId, page: &Page, name: &str, says: &[u8]) {
    page.guest_write(says);
    host.xen.kick(id, 2);
    host.until("the new domain's log", |host| (host.named_log(name, 0) == says).then_some(()));
    let viewer = host.view(id, 0);
    assert_eq!(text(&host.read_viewer(&viewer, says.len())), text(says));
    let uuid = host.xen.uuid(id).to_string();
    assert!(host.list().lines().any(|line| line.starts_with(&format!("{id}.0 ")) && line.ends_with(&uuid)));
}

#[test]
fn journal_is_not_continued_by_another_domain_with_the_domid() {
    let mut host = Host::new();
    let (id, page) = host.domain(15, "null");
    page.guest_write(b"secret of the first\n");
    host.xen.kick(id, 2);
    host.until_log(15, 0, b"secret of the first\n");
    host.kill();
    host.destroy(id);
    host.xenstored.destroy_domain(id);
    let (id, page) = host.domain(15, "null");
    host.write("/local/domain/15/name", "other");
    host.start();
    let viewer = host.view(id, 0);
    page.guest_write(b"second");
    host.xen.kick(id, 2);
    let got = host.read_viewer(&viewer, 6);
    assert_eq!(text(&got), "second");
}

#[test]
fn domid_that_is_reused_between_two_turns_gets_a_new_console() {
    let mut host = Host::new();
    let (id, _) = with_bytes(&mut host, 16, b"old");
    // Both within one turn of the daemon, as while it waits for a disk or xenstored.
    host.destroy(id);
    host.xenstored.destroy_domain(id);
    let (id, page) = host.domain(16, "null");
    host.write("/local/domain/16/name", "other");
    check_served(&mut host, id, &page, "other", b"new");
    assert_eq!(text(&host.log(16, 0)), "old");
}

#[test]
fn last_bytes_of_the_old_domain_go_only_to_its_log_and_viewer() {
    let mut host = Host::new();
    let (id, old) = with_bytes(&mut host, 16, b"old ");
    let viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, 4), b"old ");
    old.guest_write(b"last");
    let (id, page) = host.give_away(16, "other");
    page.guest_write(b"new");
    assert_eq!(rest(&mut host, &viewer), "last");
    assert_eq!(text(&host.log(16, 0)), "old last");
    host.until("the new domain's log", |host| (host.named_log("other", 0) == b"new").then_some(()));
    let viewer = host.view(id, 0);
    assert_eq!(text(&host.read_viewer(&viewer, 3)), "new");
    assert_eq!(std::sync::Arc::strong_count(&old), 1, "the old ring is still mapped");
}

#[test]
fn what_was_typed_to_the_old_domain_does_not_reach_the_new_one() {
    let mut host = Host::new();
    let (id, page) = with_bytes(&mut host, 16, b"old");
    // More than fits into its ring.
    let mut viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, 3), b"old");
    viewer.write_all(&[b'x'; 3000]).unwrap();
    host.until("a full ring", |_| {
        let there = page.guest_get(Index::InProd).wrapping_sub(page.guest_get(Index::InCons));
        (there == 1024).then_some(())
    });
    let (id, page) = host.give_away(16, "other");
    check_served(&mut host, id, &page, "other", b"new");
    assert_eq!(text(&page.guest_read()), "");
}

#[test]
fn the_next_domain_with_name_and_domid_continues_the_log_with_an_empty_history() {
    let mut host = Host::new();
    with_bytes(&mut host, 16, b"old ");
    let (id, page) = host.give_away(16, "guest16");
    page.guest_write(b"new");
    host.until_log(16, 0, b"old new");
    let viewer = host.view(id, 0);
    viewer.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&mut host, &viewer), "new");
}

#[test]
fn request_before_the_server_notices_the_reuse_gets_the_new_domain_or_fails() {
    let mut host = Host::new();
    let (id, _) = with_bytes(&mut host, 16, b"old");
    let socket = host.socket_path(id, 0);
    let old_uuid = host.xen.uuid(id);
    let (id, page) = host.give_away(16, "other");
    page.guest_write(b"new");
    // Nothing changes in xenstore: the requests arrive before any watch event.
    let early = UnixStream::connect(socket).unwrap();
    early.set_nonblocking(true).unwrap();
    let asked = host.ask("view 16.0\n");
    let with_old = host.ask(&format!("view 16.0 uuid={old_uuid}\n"));
    let with_new = host.ask(&format!("stream 16.0 uuid={}\n", host.xen.uuid(id)));
    assert_eq!(rest(&mut host, &early), "");
    assert_eq!(text(&host.read_viewer(&asked, 6)), "ok\nnew");
    let refusal = rest(&mut host, &with_old);
    let wanted = format!("error Domain 16 now has the UUID {}, not {old_uuid}\n", host.xen.uuid(id));
    assert_eq!(refusal, wanted);
    assert_eq!(text(&host.read_viewer(&with_new, 3)), "ok\n");
    // The same before xenstored is notified.
    host.xen.replace(id);
    let stream = host.ask(&format!("view 16.0 uuid={}\n", host.xen.uuid(id)));
    assert_eq!(text(&host.read_viewer(&stream, 3)), "ok\n");
}

#[test]
fn a_stream_of_the_old_domain_ends_and_the_new_one_has_its_own() {
    let mut host = Host::new();
    let (id, old) = with_bytes(&mut host, 16, b"before");
    let stream = host.ask(&format!("stream 16.0 uuid={}\n", host.xen.uuid(id)));
    assert_eq!(host.read_viewer(&stream, 3), b"ok\n");
    old.guest_write(b"state");
    let (id, page) = host.give_away(16, "other");
    page.guest_write(b"new");
    assert_eq!(rest(&mut host, &stream), "state");
    host.until("the new domain's log", |host| (host.named_log("other", 0) == b"new").then_some(()));
    let stream = host.ask("stream 16.0\n");
    assert_eq!(host.read_viewer(&stream, 3), b"ok\n");
    page.guest_write(b" bytes");
    host.xen.kick(id, 2);
    assert_eq!(text(&host.read_viewer(&stream, 6)), " bytes");
}

#[test]
fn secondary_consoles_of_the_old_domain_end_with_it() {
    let mut host = Host::new();
    let (id, _) = with_bytes(&mut host, 16, b"old");
    for number in [1, 2] {
        host.secondary(id, number, "xenconsoled", "null");
        let page = host.frontend(id, number, 8, 5 + number);
        host.until_state(id, number, "4");
        page.guest_write(b"old second");
        host.xen.kick(id, 5 + number);
        host.until_log(16, number, b"old second");
    }
    let (id, page) = host.give_away(16, "other");
    host.secondary(id, 1, "xenconsoled", "null");
    // The same as the old one's: only the domain differs.
    let second = host.frontend(id, 1, 8, 6);
    second.guest_write(b"new second");
    host.until_state(id, 1, "4");
    host.until("the second log", |host| (host.named_log("other", 1) == b"new second").then_some(()));
    let viewer = host.view(id, 1);
    assert_eq!(text(&host.read_viewer(&viewer, 10)), "new second");
    check_served(&mut host, id, &page, "other", b"new");
    for number in [1, 2] {
        assert_eq!(text(&host.log(16, number)), "old second");
    }
    assert_eq!(host.run_names(), ["16.0", "16.0.journal", "16.1", "16.1.journal", "control"]);
}

#[test]
fn reuse_of_a_domid_while_its_ring_is_mapped_is_noticed() {
    let mut host = Host::new();
    let (id, page) = host.domain(16, "null");
    let first = host.xen.uuid(id);
    host.xen.replace_at_bind(id);
    page.guest_write(b"whose?");
    host.until("another domain", |host| (host.xen.uuid(id) != first).then_some(()));
    host.turn();
    host.until_log(16, 0, b"whose?");
    assert!(
        host.list().ends_with(&format!(" {}\n", host.xen.uuid(id))),
        "the ring belongs to another domain"
    );
}

#[test]
fn a_console_is_served_even_if_xen_did_not_answer_at_first() {
    let mut host = Host::new();
    // Once for each event that leads to a check.
    host.xen.leave_unanswered(2);
    let (id, page) = host.domain(16, "null");
    check_served(&mut host, id, &page, "guest16", b"heard");
}

#[test]
fn a_handshake_does_not_continue_in_another_domain_s_nodes() {
    let mut host = Host::new();
    let (id, _) = host.domain(16, "null");
    host.secondary(id, 1, "xenconsoled", "null");
    host.until_state(id, 1, "2");
    // Xen has the new domain, xenstored does not know of it.
    host.xen.replace(id);
    host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    let uuid = host.xen.uuid(id).to_string();
    assert_eq!(host.list().lines().filter(|line| line.ends_with(&uuid)).count(), 2, "{}", host.list());
    // The same with a state that the server only has to acknowledge.
    host.xen.replace(id);
    host.front_state(id, 1, "6");
    host.until_state(id, 1, "6");
    host.turn();
    let uuid = host.xen.uuid(id).to_string();
    assert_eq!(host.list().lines().filter(|line| line.ends_with(&uuid)).count(), 2, "{}", host.list());
}

/// A server is killed while only its journal has a domain's last bytes. The next server finds another domain with the
/// domid: at its start, or after it has listed the domains this many times.
#[track_caller]
fn check_last_bytes(lists: u32) {
    let mut rescued = 0;
    for fuse in 1..40 {
        let mut host = Host::new();
        let (id, page) = host.domain(9, "null");
        host.until("the console", |host| host.xen.is_bound(id, 2).then_some(()));
        host.xen.set_fuse(Some(fuse));
        let wanted: Vec<u8> = (0..10_000_u32).map(|at| b'a' + u8::try_from(at % 26).unwrap()).collect();
        let mut at = 0;
        while !host.survive(Host::turn) && at < wanted.len() {
            at += page.guest_write(&wanted[at..]);
            host.xen.kick(id, 2);
        }
        host.xen.set_fuse(None);
        host.kill();
        let taken = page.guest_get(Index::OutCons) as usize;
        rescued += u32::from(host.log(9, 0).len() < taken);
        let former = host.xen.uuid(id);
        let (id, page) = host.give_away(9, "other");
        if lists > 0 {
            host.xen.list_later(lists, id, former);
        }
        host.start();
        check_served(&mut host, id, &page, "other", b"NEW");
        let log = host.log(9, 0);
        assert!(wanted.starts_with(&log), "not what the old domain wrote, after {fuse}");
        // If the domid is reused at the worst moment, the new domain's journal replaces the old one's.
        assert!(log.len() >= taken || lists == 1, "{} of {taken} after {fuse}", log.len());
    }
    assert!(rescued > 0, "no kill came in time");
}

#[test]
fn a_killed_server_s_last_bytes_go_to_the_old_log_even_if_the_domid_is_reused() {
    check_last_bytes(0);
}

#[test]
fn last_bytes_do_not_go_to_a_domain_that_gets_the_domid_while_the_next_server_starts() {
    check_last_bytes(1);
    check_last_bytes(2);
}

#[test]
fn a_domid_that_was_reused_while_no_server_was_running_starts_empty() {
    let mut host = Host::new();
    let (id, old) = with_bytes(&mut host, 16, b"old");
    host.write("/local/domain/0/backend/console/16/1/name", "agent");
    host.secondary(id, 1, "xenconsoled", "null");
    let page = host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    page.guest_write(b"old second");
    host.xen.kick(id, 5);
    host.until_log(16, 1, b"old second");
    let stream = host.ask("stream 16.1\n");
    assert_eq!(host.read_viewer(&stream, 3), b"ok\n");
    let viewer = host.view(id, 0);
    assert_eq!(host.read_viewer(&viewer, 3), b"old");
    assert!(host.run_names().contains(&"16.agent".to_owned()));
    host.kill();
    old.guest_write(b" unread");
    let (id, page) = host.give_away(16, "other");
    host.start();
    assert_eq!(host.run_names(), ["16.0", "16.0.journal", "control"]);
    assert_eq!((rest(&mut host, &viewer), rest(&mut host, &stream)), (String::new(), String::new()));
    check_served(&mut host, id, &page, "other", b"new");
    host.secondary(id, 1, "xenconsoled", "null");
    let second = host.frontend(id, 1, 8, 5);
    host.until_state(id, 1, "4");
    let stream = host.ask("stream 16.1\n");
    assert_eq!(host.read_viewer(&stream, 3), b"ok\n");
    second.guest_write(b"new second");
    host.xen.kick(id, 5);
    assert_eq!(text(&host.read_viewer(&stream, 10)), "new second");
    assert_eq!((text(&host.log(16, 0)), text(&host.log(16, 1))), ("old".into(), "old second".into()));
}

/// Turns a journal into one of the earlier format, which had no UUID.
fn make_old(host: &Host, name: &str) {
    let path = host.folder.path().join("run").join(name);
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes[..4], 0x5350_4c02_u32.to_le_bytes());
    bytes[0] = 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_journal_without_a_uuid_is_discarded() {
    let mut host = Host::new();
    let (id, page) = with_bytes(&mut host, 16, b"old");
    let (gone, _) = with_bytes(&mut host, 17, b"gone");
    host.kill();
    host.destroy(gone);
    for name in ["16.0.journal", "17.0.journal"] {
        make_old(&host, name);
    }
    // As if bytes were missing there that the journal could supply.
    for number in [16, 17] {
        fs::OpenOptions::new().write(true).open(host.log_path(number, 0)).unwrap().set_len(1).unwrap();
    }
    host.start();
    page.guest_write(b"new");
    host.xen.kick(id, 2);
    host.until_log(16, 0, b"onew");
    assert_eq!(text(&host.log(17, 0)), "g");
    let viewer = host.view(id, 0);
    assert_eq!(text(&host.read_viewer(&viewer, 3)), "new");
    assert_eq!(host.run_names(), ["16.0", "16.0.journal", "control"]);
}

#[test]
fn names_that_a_killed_server_left_are_removed() {
    let mut host = Host::new();
    let (id, _) = with_bytes(&mut host, 16, b"old");
    host.write("/local/domain/0/backend/console/16/1/name", "agent");
    host.secondary(id, 1, "xenconsoled", "null");
    host.until_state(id, 1, "2");
    host.kill();
    let run = host.folder.path().join("run");
    fs::write(run.join("16.7.journal.new"), "").unwrap();
    fs::write(run.join("unknown"), "").unwrap();
    for name in ["16.0", "16.1", "16.agent"] {
        assert!(host.run_names().contains(&name.to_owned()), "{name}");
    }
    host.destroy(id);
    host.start();
    assert_eq!(host.run_names(), ["control", "unknown"]);
}

#[test]
fn the_log_of_a_domain_that_is_gone_stays_within_its_limit() {
    let mut host = Host::new();
    host.log_limit = 4096;
    host.kill();
    host.start();
    let mut longest = 0;
    for round in 0..30 {
        let (id, page) = host.domain(9, "null");
        host.until("the console", |host| host.xen.is_bound(id, 2).then_some(()));
        host.xen.set_fuse(Some(10 + round % 30));
        for _ in 0..20 {
            page.guest_write(&[b'x'; OUT_SIZE]);
            host.xen.kick(id, 2);
            if host.survive(Host::turn) {
                break;
            }
        }
        host.xen.set_fuse(None);
        host.kill();
        host.destroy(domid(9));
        host.start();
        longest = longest.max(host.log(9, 0).len());
        host.xenstored.destroy_domain(id);
    }
    assert!(longest <= 4096, "a log of {longest} bytes");
}
