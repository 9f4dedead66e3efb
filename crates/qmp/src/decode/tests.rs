use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn decoder() -> Decoder {
    Decoder::new(Limits::QEMU)
}

/// Decodes all of it in chunks of `step` bytes.
fn decode(bytes: &[u8], step: usize) -> Vec<Result<String, DecodeError>> {
    let mut decoder = decoder();
    let mut found = Vec::new();
    for chunk in bytes.chunks(step) {
        decoder.push(chunk);
        while let Some(message) = decoder.next_message() {
            found.push(message.map(|message| message.text().to_owned()));
        }
    }
    found
}

fn check(bytes: &[u8], expected: Result<(), DecodeError>) {
    let found = decode(bytes, bytes.len().max(1));
    assert_eq!(
        found.first().map(|first| first.as_ref().map(drop)),
        Some(expected.as_ref().map(drop)),
        "{found:?}"
    );
}

#[test]
fn members_of_an_answer_are_found() {
    let mut decoder = decoder();
    decoder.push(b"\r\n {\"return\": {\"id\": 1, \"x\": [\"}\"]}, \"id\" : \"a\\\"b\" , \"more\": null}{");
    let message = decoder.next_message().unwrap().unwrap();
    assert_eq!(message.get(Member::Return), Some("{\"id\": 1, \"x\": [\"}\"]}"));
    assert_eq!(message.get(Member::Id), Some("\"a\\\"b\""));
    assert!(message.has_others());
    assert_eq!(message.kind(), crate::Kind::Return);
    assert!(decoder.next_message().is_none() && decoder.is_inside());
}

#[test]
fn what_breaks_the_rules_is_refused_where_it_does() {
    check(b"{\"a\": 1, \"a\": 2}", Err(DecodeError::DuplicateKey { at: 11 }));
    check(b"{\"a\": {\"b\": 1}, \"c\": {\"b\": 1}, \"b\": 0}", Ok(()));
    check(b"{\"\\u0061\": 1}", Err(DecodeError::Syntax { at: 2 }));
    check(b"[1]", Err(DecodeError::Syntax { at: 0 }));
    check(b"{\"a\": 01}", Err(DecodeError::Syntax { at: 7 }));
    check(b"{\"a\": 1,}", Err(DecodeError::Syntax { at: 8 }));
    check(b"{\"a\": [1,]}", Err(DecodeError::Syntax { at: 9 }));
    check(b"{\"a\": nul}", Err(DecodeError::Syntax { at: 9 }));
    check(b"{\"a\": \"\n\"}", Err(DecodeError::Syntax { at: 7 }));
    check(b"{\"a\": \"\xff\"}", Err(DecodeError::Text { at: 8 }));
    check(b"{\"a\": \"\\ud800x\"}", Err(DecodeError::Text { at: 13 }));
    check(b"{\"a\": \"\\udc00\"}", Err(DecodeError::Text { at: 13 }));
    check(b"{\"a\": \"\\ud83d\\ude00\"}", Ok(()));
    check(b"{\"a\": 18446744073709551615}", Ok(()));
    check(b"{\"a\": -9223372036854775808}", Ok(()));
    check(b"{\"a\": 18446744073709551616}", Err(DecodeError::NumberRange { at: 26 }));
    check(b"{\"a\": 1e201}", Err(DecodeError::NumberRange { at: 11 }));
    check(b"{\"a\": -1.5E+200}", Ok(()));
}

#[test]
fn limits_hold_at_the_byte_that_exceeds_them() {
    let limits = Limits {
        message: 100,
        depth: 3,
        values: 8,
        keys: 4,
        object_keys: 3,
        string: 10,
        number: 5,
        nonsense: 1000,
        events: 1,
    };
    let check = |text: &str, what: Option<&str>| {
        let mut decoder = Decoder::new(limits);
        decoder.push(text.as_bytes());
        let found = decoder.next_message().unwrap();
        match (found, what) {
            (Ok(_), None) => {}
            (Err(DecodeError::Limit { what: found, .. }), Some(what)) => assert_eq!(found, what, "{text}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    };
    check(&format!("{{\"a\":\"b\"{}", " ".repeat(200)), Some("bytes"));
    check("{\"a\":[[1]]}", None);
    check("{\"a\":[[[", Some("levels"));
    check("{\"a\":1,\"b\":2,\"c\":3}", None);
    check("{\"a\":1,\"b\":2,\"c\":3,\"d", Some("keys in one object"));
    check("{\"a\":1,\"b\":{\"c\":3,\"d\":4},\"e", Some("keys"));
    check("{\"a\":\"0123456789\"}", None);
    check("{\"a\":\"0123456789a", Some("bytes in a string"));
    check("{\"a\":12345}", None);
    check("{\"a\":[{},[],0,\"\",true,{},0]}", None);
    check("{\"a\":[{},[],0,\"\",true,{},0,0]}", Some("values"));
    check("{\"a\":123456", Some("digits"));
}

#[test]
fn endless_message_holds_no_more_than_its_limit() {
    let mut decoder = Decoder::new(Limits { message: 10_000, ..Limits::QEMU });
    decoder.push(b"{\"a\": [");
    let mut errors = 0;
    for _ in 0..1000 {
        decoder.push(&b"1,".repeat(500));
        while let Some(message) = decoder.next_message() {
            assert!(message.is_err());
            errors += 1;
        }
        assert!(decoder.held() <= 11_000, "{}", decoder.held());
    }
    assert_eq!(errors, 1);
}

#[test]
fn next_line_is_read_after_a_broken_one() {
    let mut decoder = decoder();
    decoder.push(b"hello {\"a\": 1}\n{\"execute\": \"stop\"}\n");
    assert!(decoder.next_message().unwrap().is_err());
    decoder.skip_line();
    assert_eq!(decoder.next_message().unwrap().unwrap().text(), "{\"execute\": \"stop\"}");
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e100f64..1e100).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-z-]{1,6}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    prop::collection::btree_map("[a-z-]{1,6}|id|return", value, 0..6)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

proptest! {
    #[test]
    fn objects_survive_any_cut(objects in prop::collection::vec(json(), 1..5), step in 1usize..40) {
        let stream: String = objects.iter().map(|object| format!("{object}\r\n")).collect();
        let found = decode(stream.as_bytes(), step);
        prop_assert_eq!(found.len(), objects.len());
        for (found, object) in found.iter().zip(&objects) {
            prop_assert_eq!(found.as_ref().unwrap(), &object.to_string());
        }
    }

    #[test]
    fn what_is_taken_is_json_and_no_cut_changes_it(
        text in r#"[{}\[\]",:0-9a-f.eE+\-\\u ntrl]{0,60}"#, step in 1usize..9
    ) {
        let whole = format!("{{\"a\":{text}}}");
        let found = decode(whole.as_bytes(), whole.len());
        prop_assert_eq!(&found, &decode(whole.as_bytes(), step));
        if let Some(Ok(first)) = found.first() {
            prop_assert!(serde_json::from_str::<Value>(first).is_ok(), "{}", first);
        }
        // What serde refuses is refused; it accepts duplicates and escaped keys, which we do not.
        if serde_json::from_str::<Value>(&whole).is_err() {
            let shorter = |first: &Result<String, _>| first.as_ref().is_ok_and(|first| first.len() < whole.len());
            let refused = found.iter().any(Result::is_err) || found.first().is_none_or(shorter);
            prop_assert!(refused);
        }
    }

    #[test]
    fn any_bytes_end_in_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
        let mut decoder = decoder();
        for chunk in bytes.chunks(step) {
            decoder.push(chunk);
            while let Some(message) = decoder.next_message() {
                if message.is_err() {
                    decoder.skip_line();
                }
            }
        }
    }
}

#[test]
fn messages_that_mean_nothing_are_taken_up_to_a_number() {
    let limits = Limits { nonsense: 3, ..Limits::QEMU };
    let mut decoder = Decoder::new(limits);
    decoder.push(b"{}{}{\"return\":{}}{}{}");
    for _ in 0..5 {
        assert!(decoder.next_message().unwrap().is_ok());
    }
    decoder.push(b"{}");
    let limit = DecodeError::Limit { what: "messages that mean nothing", limit: 3 };
    assert_eq!(decoder.next_message().unwrap().unwrap_err(), limit);
    assert!(decoder.next_message().is_none());
    // Nor are they after a line that was passed over.
    decoder.skip_line();
    decoder.push(b"\n{}{\"event\":\"X\"}{}");
    assert_eq!(decoder.next_message().unwrap().unwrap_err(), limit);
}
