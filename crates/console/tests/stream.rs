//! The toolstack's end of a stream, with the test in the daemon's place.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use console::Uuid;
use console::request::CONTROL;
use console::stream::{Stream, StreamError};
use xen_types::DomId;

const PATIENCE: Duration = Duration::from_secs(20);

/// The next client, and the line that it sends.
fn next_client(listener: &UnixListener) -> (UnixStream, String) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    (stream, line)
}

/// Sends a stream to console 5.1, which is listed with these words before and afterwards. A client that found no UUID
/// before asks again once it has the stream.
fn send(before: &'static str, after: &'static str) -> (Result<u64, StreamError>, String) {
    send_found(before, after, after)
}

/// The same with other words in that second list.
fn send_found(
    before: &'static str,
    meanwhile: &'static str,
    after: &'static str,
) -> (Result<u64, StreamError>, String) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(CONTROL)).unwrap();
    let daemon = std::thread::spawn(move || {
        let list = |words: &str| {
            let (mut client, line) = next_client(&listener);
            assert_eq!(line, "list\n");
            let own = if words.is_empty() { String::new() } else { format!("5.1 {words}\n") };
            write!(client, "ok\n5.0 connected 1 0 - - -\n{own}").unwrap();
        };
        list(before);
        let (mut client, request) = next_client(&listener);
        client.write_all(b"ok\n").unwrap();
        if !request.contains("uuid=") {
            list(meanwhile);
        }
        client.read_to_end(&mut Vec::new()).unwrap();
        drop(client);
        list(after);
        request
    });
    let sent = Stream::open(folder.path(), DomId::new(5).unwrap(), 1, PATIENCE)
        .and_then(|stream| stream.send_plain(&mut b"state".as_slice()));
    (sent, daemon.join().unwrap())
}

const OWN: &str = "connected 9 1 - - 00000000-0000-0000-0000-00000000000a";

#[test]
fn a_stream_that_the_domain_read_to_the_end_is_complete() {
    let (sent, request) = send(OWN, OWN);
    assert_eq!(sent.unwrap(), 5);
    assert_eq!(request, format!("stream 5.1 uuid={}\n", Uuid::from_u128(10)));
}

#[test]
fn a_console_of_another_domain_with_the_domid_does_not_complete_it() {
    let (sent, _) = send(OWN, "connected 0 0 - - 00000000-0000-0000-0000-00000000000b");
    assert!(matches!(sent, Err(StreamError::Ended { bytes: 5, .. })), "{sent:?}");
    let (sent, _) = send(OWN, "waiting 9 0 - - 00000000-0000-0000-0000-00000000000a");
    assert!(matches!(sent, Err(StreamError::Ended { .. })), "{sent:?}");
}

#[test]
fn a_console_that_appears_between_two_requests_is_the_streams() {
    let (sent, request) = send("", OWN);
    assert_eq!(sent.unwrap(), 5);
    assert_eq!(request, "stream 5.1\n");
    let (sent, _) = send_found("", OWN, "connected 0 0 - - 00000000-0000-0000-0000-00000000000b");
    assert!(matches!(sent, Err(StreamError::Ended { .. })), "{sent:?}");
}

#[test]
fn a_daemon_that_lists_no_uuids_is_served_as_before() {
    let (sent, request) = send("connected 9 1 - -", "connected 9 1 - -");
    assert_eq!(sent.unwrap(), 5);
    assert_eq!(request, "stream 5.1\n");
}
