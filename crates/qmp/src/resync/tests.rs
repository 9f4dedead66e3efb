use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// QEMU's end of a console, as far as this matters: its lexer drops what it has at a byte that cannot be.
#[derive(Default)]
struct Qemu {
    text: Vec<u8>,
    negotiated: bool,
    /// What it has said.
    said: Vec<u8>,
}

impl Qemu {
    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == 0xff {
                self.text.clear();
                self.say(
                    &json!({"error": {"class": "GenericError", "desc": "JSON parse error, stray input"}}),
                );
                continue;
            }
            self.text.push(byte);
            let Ok(request) = serde_json::from_slice::<Value>(&self.text) else { continue };
            self.text.clear();
            if request.is_object() {
                self.execute(&request);
            }
        }
    }

    fn execute(&mut self, request: &Value) {
        let answer = match (request["execute"].as_str(), self.negotiated) {
            (Some("qmp_capabilities"), false) => {
                self.negotiated = true;
                json!({"return": {}, "id": request["id"]})
            }
            (Some("qmp_capabilities"), true) => json!({"error": {"class": "CommandNotFound",
                "desc": "Capabilities negotiation is already complete, command ignored"}, "id": request["id"]}),
            _ => json!({"return": {"status": "run}ning", "of": [1, "\"{"]}, "id": request["id"]}),
        };
        self.say(&answer);
    }

    fn say(&mut self, value: &Value) {
        self.said.extend_from_slice(value.to_string().as_bytes());
        self.said.extend_from_slice(b"\r\n");
    }
}

/// An earlier session: what went out, what came back.
fn earlier(qemu: &mut Qemu) -> (Vec<u8>, Vec<u8>) {
    let mut sent = b"\xff\n{\"execute\":\"qmp_capabilities\",\"id\":\"resync-old\"}\n".to_vec();
    for n in 0..3 {
        sent.extend_from_slice(
            format!("{{\"execute\":\"query-status\",\"arguments\":{{\"a\\\"{{\":\"}}\"}},\"id\":{n}}}\n")
                .as_bytes(),
        );
    }
    let mut probe = Qemu::default();
    probe.feed(&sent);
    qemu.negotiated = false;
    (sent, probe.said)
}

/// Runs a new session over a console on which the old one was cut.
fn recover(qemu: &mut Qemu, left: &[u8], step: usize) {
    let mut resync = Resync::new(Limits::QEMU, "00ff17");
    let now = Instant::now();
    resync.push(left);
    assert!(!resync.is_in_step());
    let reset = resync.poll_send(now).unwrap();
    qemu.feed(&reset);
    qemu.feed(b"{\"execute\":\"query-status\",\"id\":77}\n");
    let mut messages = Vec::new();
    let mut session: Option<(Decoder, Leftovers)> = None;
    for chunk in std::mem::take(&mut qemu.said).chunks(step) {
        if let Some((decoder, _)) = &mut session {
            decoder.push(chunk);
        } else {
            resync.push(chunk);
            assert!(!resync.is_in_step() || resync.poll_send(now + Duration::from_secs(60)).is_none());
            session = resync.session();
        }
        while let Some((decoder, leftovers)) = &mut session
            && let Some(message) = decoder.next_message()
        {
            let message = message.expect("only the session is decoded");
            assert!(!leftovers.takes(&message));
            messages.push(message);
        }
    }
    let ids: Vec<_> = messages.iter().map(|message| message.read::<u64>(Member::Id)).collect();
    assert_eq!(ids, [Some(77)]);
}

#[test]
fn session_recovers_from_a_request_cut_at_every_byte() {
    let (sent, _) = earlier(&mut Qemu::default());
    for cut in 0..=sent.len() {
        let mut qemu = Qemu::default();
        qemu.feed(&sent[..cut]);
        // The old session has read all that was said.
        qemu.said.clear();
        recover(&mut qemu, b"", 7);
    }
}

#[test]
fn session_recovers_from_an_answer_cut_at_every_byte() {
    let (sent, said) = earlier(&mut Qemu::default());
    for cut in 0..=said.len() {
        let mut qemu = Qemu::default();
        qemu.feed(&sent);
        // The old session has read up to there; the rest comes to the new one, before or after its reset.
        qemu.said.drain(..cut);
        recover(&mut qemu, b"", 5);
        let mut qemu = Qemu::default();
        qemu.feed(&sent);
        let left = qemu.said.split_off(cut);
        qemu.said.clear();
        recover(&mut qemu, &left, 1000);
    }
}

#[test]
fn session_recovers_from_both_ends_cut_and_a_lost_line_break() {
    let (sent, said) = earlier(&mut Qemu::default());
    for cut in (0..sent.len()).step_by(3) {
        for read in (0..said.len()).step_by(5) {
            let mut qemu = Qemu::default();
            qemu.feed(&sent[..cut]);
            qemu.said.truncate(read);
            // Half an answer without an end, right before the new one's.
            recover(&mut qemu, b"", 3);
        }
    }
}

#[test]
fn lost_reset_is_sent_again_and_what_answers_it_is_passed_over_once() {
    let mut resync = Resync::new(Limits::QEMU, "a");
    let now = Instant::now();
    assert_eq!(resync.due(), None);
    let first = resync.poll_send(now).unwrap();
    assert!(resync.poll_send(now).is_none());
    assert_eq!(resync.due(), Some(now + AGAIN));
    assert_eq!(resync.poll_send(now + AGAIN).unwrap(), first);
    let mut qemu = Qemu::default();
    qemu.feed(&first);
    qemu.feed(&first);
    resync.push(&qemu.said);
    let (mut decoder, mut leftovers) = resync.session().expect("in step");
    let mut late = Vec::new();
    while let Some(message) = decoder.next_message() {
        late.push(message.unwrap());
    }
    assert_eq!(late.len(), 2, "an error without an id, and our answer");
    for message in late {
        assert!(leftovers.takes(&message) && !leftovers.takes(&message), "{}", message.text());
    }
}

proptest! {
    #[test]
    fn nothing_but_our_answer_brings_it_in_step(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut resync = Resync::new(Limits::QEMU, "0123");
        resync.push(&bytes);
        prop_assert!(!resync.is_in_step());
        resync.push(b"\n{\"return\": {}, \"id\": \"resync-0123\"}\n");
        prop_assert!(resync.is_in_step());
    }
}
