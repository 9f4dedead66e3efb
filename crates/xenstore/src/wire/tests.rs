use proptest::prelude::*;
use xen_types::{DomId, EventPort, Gfn};

use super::*;
use crate::fuzz;

fn decode_in_steps(bytes: &[u8], step: usize) -> Result<Vec<Message>, WireError> {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    for chunk in bytes.chunks(step.max(1)) {
        let mut input = chunk;
        while let Some(message) = decoder.push(&mut input)? {
            messages.push(message);
        }
        assert!(input.is_empty());
    }
    assert!(!decoder.is_mid_message());
    Ok(messages)
}

fn message() -> impl Strategy<Value = Message> {
    (any::<u32>(), any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)).prop_map(
        |(kind, req_id, tx_id, payload)| Message {
            kind: MessageType::from_raw(kind % 30),
            req_id,
            tx_id,
            payload,
        },
    )
}

proptest! {
    #[test]
    fn messages_round_trip_however_they_are_cut(
        messages in prop::collection::vec(message(), 0..6),
        step in 1usize..300,
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(|m| m.encode().unwrap()).collect();
        prop_assert_eq!(decode_in_steps(&bytes, step), Ok(messages));
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz(&data);
    }

    #[test]
    fn bytes_behind_small_headers_never_panic(
        kind in 0u32..25,
        payload in prop::collection::vec(prop_oneof![Just(0u8), Just(b'/'), Just(b'@'), any::<u8>()], 0..60),
    ) {
        fuzz(&encode(MessageType::from_raw(kind), 1, 0, &payload).unwrap());
    }

    #[test]
    fn every_number_is_a_type(raw in any::<u32>()) {
        prop_assert_eq!(MessageType::from_raw(raw).to_raw(), raw);
    }
}

#[test]
fn long_payloads_are_refused_both_ways() {
    let payload = vec![0; PAYLOAD_MAX + 1];
    let error = WireError::TooLong { kind: MessageType::Write, length: PAYLOAD_MAX + 1 };
    assert_eq!(encode(MessageType::Write, 0, 0, &payload), Err(error));

    let mut header = Vec::new();
    for field in [2u32, 0, 0, u32::MAX] {
        header.extend_from_slice(&field.to_ne_bytes());
    }
    let refused = Decoder::new().push(&mut header.as_slice());
    assert!(matches!(refused, Err(WireError::TooLong { kind: MessageType::Read, .. })));
}

#[test]
fn requests_have_the_documented_payloads() {
    let path = crate::XsPath::new("/a/b").unwrap();
    let dom = |n| DomId::new(n).unwrap();
    let check = |request: Request, raw: u32, payload: &[u8]| {
        assert_eq!((request.kind().to_raw(), request.payload()), (raw, payload), "{request:?}");
    };
    check(Request::read(&path), 2, b"/a/b\0");
    check(Request::write(&path, b"v\0w"), 11, b"/a/b\0v\0w");
    check(Request::directory_part(&path, 12), 22, b"/a/b\x0012\0");
    check(Request::set_perms(&path, &"n0,r5".parse().unwrap()), 14, b"/a/b\0n0\0r5\0");
    check(Request::watch(&crate::SpecialWatch::ReleaseDomain, "t"), 4, b"@releaseDomain\0t\0");
    check(Request::transaction_start(), 6, b"\0");
    check(Request::transaction_end(true), 7, b"T\0");
    check(Request::introduce(dom(3), Gfn(77), EventPort(2)), 8, b"3\x0077\x002\0");
    check(Request::set_target(dom(4), dom(3)), 19, b"4\x003\0");
    check(Request::reset_watches(), 21, b"\0");
}

#[test]
fn error_names_have_a_meaning() {
    assert_eq!(ErrorCode::from_name("ENOENT"), ErrorCode::NoEntry);
    assert_eq!(ErrorCode::from_name("EWHAT").name(), "EWHAT");
}

#[test]
fn strings_end_with_a_nul_byte_each() {
    assert_eq!(strings(b""), Ok(vec![]));
    assert_eq!(strings(b"a\0bc\0"), Ok(vec!["a", "bc"]));
    assert_eq!(strings(b"a\0\0"), Ok(vec!["a", ""]));
    assert_eq!(strings(b"a"), Ok(vec!["a"]));
    assert_eq!(strings(b"\xff\0"), Err(WireError::NotText));
}

/// The bytes of an answer of any length, which [`encode`] refuses.
fn answer(kind: MessageType, payload: &[u8]) -> Vec<u8> {
    let mut bytes = encode(kind, 7, 3, b"").unwrap();
    bytes[12..].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn decoded_by_client(bytes: &[u8], step: usize) -> Result<Vec<Message>, WireError> {
    let mut decoder = Decoder::for_client();
    let mut messages = Vec::new();
    for mut input in bytes.chunks(step) {
        while let Some(message) = decoder.push(&mut input)? {
            messages.push(message);
        }
        assert!(input.is_empty() && decoder.missing() > 0);
    }
    assert!(!decoder.is_mid_message());
    Ok(messages)
}

#[test]
fn client_takes_long_lists_and_nothing_else_that_is_long() {
    let next = encode(MessageType::Read, 8, 0, b"x").unwrap();
    for length in [PAYLOAD_MAX + 1, LIST_MAX] {
        let list = vec![b'n'; length];
        let bytes = [answer(MessageType::Directory, &list), next.clone()].concat();
        for step in [1000, bytes.len()] {
            let messages = decoded_by_client(&bytes, step).unwrap();
            assert_eq!((messages.len(), messages[0].kind), (2, MessageType::Directory));
            assert!(messages[0].payload == list && messages[1].payload == b"x");
        }
        let refused = WireError::TooLong { kind: MessageType::Directory, length };
        assert_eq!(decode_in_steps(&bytes, 1000), Err(refused));
        let refused = WireError::TooLong { kind: MessageType::Read, length };
        assert_eq!(decoded_by_client(&answer(MessageType::Read, &list), 1000), Err(refused));
    }
}

#[test]
fn list_too_long_to_be_stored_is_skipped_and_the_stream_goes_on() {
    let next = encode(MessageType::Read, 8, 0, b"x").unwrap();
    let bytes = [answer(MessageType::Directory, &vec![b'n'; LIST_MAX + 1]), next].concat();
    for step in [1000, bytes.len()] {
        let messages = decoded_by_client(&bytes, step).unwrap();
        let refused = Message { kind: MessageType::Error, req_id: 7, tx_id: 3, payload: b"E2BIG\0".to_vec() };
        assert_eq!((messages.len(), &messages[0]), (2, &refused));
        assert_eq!(messages[1].payload, b"x");
    }
    let mut endless = encode(MessageType::Directory, 7, 0, b"").unwrap();
    endless[12..].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(Decoder::for_client().push(&mut endless.as_slice()).is_err());
}
