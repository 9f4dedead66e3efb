use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::{Access, Request, SpecialWatch, Store, StoreError, XsPath};

const PATIENCE: Duration = Duration::from_secs(10);

fn dom(n: u16) -> DomId {
    DomId::new(n).unwrap()
}

fn path(text: &str) -> XsPath {
    XsPath::new(text).unwrap()
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

#[test]
fn a_failed_request_is_not_carried_out_and_the_next_is() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    server.fail_nth_request(2);
    store.write(&path("/a"), b"1").unwrap();
    let error = store.write(&path("/b"), b"2").unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::Io));
    store.write(&path("/c"), b"3").unwrap();
    assert_eq!(server.requests(), 3);
    let nodes: Vec<_> = server.dump().into_keys().collect();
    assert_eq!(nodes, ["/", "/a", "/c", "/tool", "/tool/xenstored"]);
}

#[test]
fn a_dropped_connection_fails_every_later_call_at_once() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    let watch = store.watch(&path("/a")).unwrap();
    watch.recv_deadline(soon()).unwrap().unwrap();
    server.drop_at_nth_request(1);
    assert!(store.write(&path("/a"), b"1").unwrap_err().is_lost());
    assert!(store.read(&path("/a")).unwrap_err().is_lost());
    assert!(watch.recv_deadline(soon()).unwrap_err().is_lost());
    assert!(store.watch(&path("/a")).err().unwrap().is_lost());
    assert!(store.is_lost());
    assert_eq!(server.connect(DomId::DOM0).read(&path("/a")).unwrap(), None);
}

#[test]
fn faults_of_a_guest_leave_domain_zero_alone() {
    let server = Server::start();
    server.fail_nth_request_of(dom(5), 1, ErrorCode::NoSpace);
    server.connect(DomId::DOM0).write(&path("/a"), b"1").unwrap();
    let error = server.connect(dom(5)).read(&path("/a")).unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::NoSpace));
}

#[test]
fn a_stopped_server_ends_waiting() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    let connection = server.connection(DomId::DOM0);
    connection.watch(&path("/a"), "token").unwrap();
    connection.next_event(soon()).unwrap().unwrap();
    let watch = store.watch(&path("/a")).unwrap();
    let (sender, receiver) = mpsc::channel();
    let _guard = watch.into_callback(move |event| sender.send(event.map(drop)).unwrap());
    server.stop();
    let events: Vec<_> = core::iter::from_fn(|| receiver.recv_timeout(PATIENCE).ok()).take(2).collect();
    assert!(matches!(events.last(), Some(Err(StoreError::ConnectionLost { .. }))), "{events:?}");
    assert!(connection.next_event(soon()).unwrap_err().is_lost());
    assert!(connection.read(&path("/a")).unwrap_err().is_lost());
}

#[test]
fn nodes_are_read_with_many_connections_in_the_order_asked_for() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    let paths: Vec<_> = (0..11).map(|number| path(&format!("/node/{number}"))).collect();
    let mut expected = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        let value = (number % 4 != 2).then(|| number.to_string().into_bytes());
        if let Some(value) = &value {
            store.write(path, value).unwrap();
        }
        expected.push(value);
    }
    let first = server.connection(DomId::DOM0);
    let others: Vec<_> = (0..3).map(|_| server.connection(DomId::DOM0)).collect();
    assert_eq!(first.read_each(&others, &paths).unwrap(), expected);
    assert_eq!(first.read_each(&[], &paths).unwrap(), expected);
    // What nobody may read is an error, not an absent value, and harms none of the connections.
    let (domid, secret) = (DomId::new(7).unwrap(), path("/secret"));
    store.write(&secret, b"").unwrap();
    store.set_perms(&secret, &Permissions::owned_by(DomId::DOM0)).unwrap();
    let connections = [server.connection(domid), server.connection(domid)];
    let error = connections[0].read_each(&connections[1..], &[secret, paths[0].clone()]).unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    store.set_perms(&paths[0], &Permissions::owned_by(domid)).unwrap();
    for connection in &connections {
        assert_eq!(connection.read(&paths[0]).unwrap(), Some(b"0".to_vec()));
    }
}

#[test]
fn a_peer_that_is_silent_is_waited_for_only_so_long() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let store = Xenstore::from_stream(ours).unwrap().with_timeout(Duration::from_millis(30));
    let begin = Instant::now();
    assert!(matches!(store.read(&path("/a")), Err(StoreError::Timeout { .. })));
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let connection = Connection::from_stream(ours).unwrap().with_timeout(Duration::from_millis(30));
    assert!(matches!(connection.read(&path("/a")), Err(StoreError::Timeout { .. })));
    assert_eq!(connection.next_event(Instant::now() + Duration::from_millis(30)).unwrap(), None);
    assert!(begin.elapsed() < PATIENCE);
}

#[test]
fn a_peer_that_takes_nothing_is_waited_for_only_so_long() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let store = Xenstore::from_stream(ours).unwrap().with_timeout(Duration::from_millis(30));
    let value = [b'x'; 4000];
    let outcome: Vec<_> = (0..1000).map(|_| Request::write(&path("/a"), &value)).collect();
    assert!(matches!(store.request_all(&outcome), Err(StoreError::Timeout { .. })));
}

#[test]
fn a_message_that_is_too_long_ends_the_connection() {
    use std::io::{Read, Write};
    let server = Server::start();
    let mut stream = server.stream(DomId::DOM0);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let header: Vec<u8> = [2u32, 1, 0, 4097].iter().flat_map(|field| field.to_ne_bytes()).collect();
    stream.write_all(&header).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let store = Xenstore::from_stream(ours).unwrap();
    theirs.write_all(&header).unwrap();
    assert!(store.read(&path("/a")).unwrap_err().is_lost());
}

#[test]
fn a_loop_that_polls_sees_every_event() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    let connection = server.connection(DomId::DOM0);
    connection.watch(&path("/a"), "a").unwrap();
    connection.watch(&path("/b"), "b").unwrap();
    store.write(&path("/a/1"), b"").unwrap();
    // The events come while this answer is awaited, too.
    connection.read(&path("/a")).unwrap();
    store.write(&path("/b/2"), b"").unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        while let Some(event) = connection.next_event(Instant::now()).unwrap() {
            seen.push(format!("{} {}", event.token, event.path));
        }
        if seen.len() < 4 {
            let fd = PollFd::new(connection.as_fd(), PollFlags::POLLIN);
            assert!(poll(&mut [fd], PollTimeout::from(10_000u16)).unwrap() > 0, "{seen:?}");
        }
    }
    assert_eq!(seen, ["a /a", "b /b", "a /a/1", "b /b/2"]);
    connection.unwatch(&path("/a"), "a").unwrap();
    store.write(&path("/a/1"), b"").unwrap();
    assert_eq!(connection.next_event(Instant::now()).unwrap(), None);
}

#[test]
fn a_connection_waits_for_values_and_keeps_other_events() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    let connection = server.connection(DomId::DOM0);
    connection.watch(&path("/other"), "other").unwrap();
    store.write(&path("/state"), b"running").unwrap();
    let value = connection.wait_for(&path("/state"), soon(), |value| value.map(<[u8]>::to_vec)).unwrap();
    assert_eq!(value, b"running");
    assert_eq!(connection.next_event(soon()).unwrap().unwrap().token, "other");
    let late = Instant::now() + Duration::from_millis(20);
    let missing = connection.wait_for(&path("/none"), late, |value| value.map(drop)).unwrap_err();
    assert!(missing.to_string().contains("/none"), "{missing}");
    assert!(missing.to_string().contains("absent"), "{missing}");
    assert_eq!(connection.next_event(Instant::now()).unwrap(), None, "its own events are gone");
}

#[test]
fn too_many_events_fold_into_one_for_the_watched_path() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    let connection = server.connection(DomId::DOM0);
    connection.watch(&path("/w"), "token").unwrap();
    let watch = store.watch(&path("/w")).unwrap();
    let requests: Vec<_> = (0..1030).map(|n| Request::mkdir(&path(&format!("/w/{n}")))).collect();
    store.request_all(&requests).unwrap();
    connection.read(&path("/w/0")).unwrap();
    let events: Vec<_> = core::iter::from_fn(|| watch.try_recv().unwrap()).collect();
    assert!(events.len() < 20, "{}", events.len());
    assert_eq!(events[0].path.node(), Some(&path("/w")));
    let events: Vec<_> = core::iter::from_fn(|| connection.next_event(Instant::now()).unwrap()).collect();
    assert!(events.len() < 20, "{}", events.len());
    assert_eq!(events[0].path.node(), Some(&path("/w")));
}

#[test]
fn clients_on_a_listening_socket_are_domain_zero() {
    let server = Server::start();
    let folder = tempfile();
    server.listen(&folder.join("socket")).unwrap();
    let store = Xenstore::open_path(&folder.join("socket")).unwrap();
    assert!(store.is_introduced(DomId::DOM0).unwrap());
    store.write(&path("/a"), b"1").unwrap();
    let connection = Connection::open_path(&folder.join("socket")).unwrap();
    assert_eq!(connection.read(&path("/a")).unwrap(), Some(b"1".to_vec()));
    let error = Xenstore::open_path(&folder.join("nothing")).unwrap_err();
    assert!(matches!(error, StoreError::Connect { .. }));
    std::fs::remove_dir_all(folder).unwrap();
}

fn tempfile() -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("xenstore-test-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn a_destroyed_domain_is_told_and_leaves_nothing() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    let before = server.dump();
    let home = XsPath::domain(dom(7));
    store.write(&home, b"").unwrap();
    store.set_perms(&home, &Permissions::owned_by(dom(7))).unwrap();
    let guest = server.connect(dom(7));
    guest.write(&home.join("data").unwrap(), b"x").unwrap();
    let watch = store.watch(&SpecialWatch::ReleaseDomain).unwrap();
    watch.recv_deadline(soon()).unwrap().unwrap();
    server.shut_down_domain(dom(7));
    assert!(watch.recv_deadline(soon()).unwrap().is_some());
    assert!(server.is_introduced(dom(7)));
    server.destroy_domain(dom(7));
    assert!(watch.recv_deadline(soon()).unwrap().is_some());
    assert!(!server.is_introduced(dom(7)));
    assert!(guest.read(&home).unwrap_err().is_lost());
    store.rm(&path("/local")).unwrap();
    assert_eq!(server.dump(), before);
}

#[test]
fn code_that_takes_a_store_works_inside_and_outside_of_a_transaction() {
    fn build(store: &dyn Store, at: &XsPath) -> Result<(), StoreError> {
        store.write(&at.join("name")?, b"guest")?;
        store.set_perms(&at.join("name")?, &Permissions::owned_by(DomId::DOM0).others(Access::Read))
    }
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    let connection = server.connection(DomId::DOM0);
    build(&store, &path("/a")).unwrap();
    build(&connection, &path("/b")).unwrap();
    store.transaction(|t| build(t, &path("/c"))).unwrap();
    connection.transaction(|t| build(t, &path("/d"))).unwrap();
    for at in ["/a/name", "/b/name", "/c/name", "/d/name"] {
        let (value, permissions) = server.dump().remove(at).unwrap();
        assert_eq!((value.as_slice(), permissions.to_string().as_str()), (&b"guest"[..], "r0"));
    }
}

#[test]
fn many_threads_share_one_handle() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..50 {
                    let node = path(&format!("/{thread}/{n}"));
                    store.write(&node, node.as_str().as_bytes()).unwrap();
                    assert_eq!(store.read(&node).unwrap(), Some(node.as_str().as_bytes().to_vec()));
                }
            });
        }
    });
    assert_eq!(server.dump().len(), 3 + 8 * 51);
}

#[test]
fn dropping_a_watch_ends_it_at_the_server() {
    let server = Server::start();
    let guest = server.connect(dom(3));
    for _ in 0..300 {
        // The quota of watches would be used up.
        drop(guest.watch(&crate::RelPath::new("x").unwrap()).unwrap());
    }
}

#[test]
fn what_would_destroy_a_host_is_not_sent() {
    let server = Server::start();
    let store = server.connect(DomId::DOM0);
    assert!(matches!(store.rm(&XsPath::root()), Err(StoreError::Destructive { .. })));
    let in_transaction = store.transaction(|t| t.rm(&XsPath::root()));
    assert!(matches!(in_transaction, Err(StoreError::Destructive { .. })));
    assert!(matches!(store.release(DomId::DOM0), Err(StoreError::Destructive { .. })));
    // The start and the end of the transaction.
    assert_eq!(server.requests(), 2);
}
