use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

mod console;
mod flood;
mod toolstack;

const ROOT: Peer = Peer { uid: 0, gid: 0 };
const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 1, \"minor\": 2, \"major\": 7}, \
                        \"package\": \"x\"}, \"capabilities\": [\"oob\"]}}\r\n";

/// A multiplexer, its QEMU played by the test, and a clock.
struct World {
    mux: Mux,
    now: Instant,
    /// What QEMU was asked and has not answered: id and command.
    asked: VecDeque<(u64, Value)>,
    done: Vec<String>,
}

impl World {
    fn new(config: MuxConfig) -> Self {
        let now = Instant::now();
        let mux = Mux::new(config, Arc::new(Policy::default()), now);
        Self { mux, now, asked: VecDeque::new(), done: Vec::new() }
    }

    fn up() -> Self {
        let mut world = Self::new(MuxConfig::default());
        world.connect();
        world
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.mux.tick(self.now);
        self.look();
    }

    /// Lets the shell's work be done.
    fn look(&mut self) {
        while let Some(action) = self.mux.next_action() {
            let done = match action {
                Action::Dial => "dial".to_owned(),
                Action::Hangup => {
                    // A dial that has not come to anything is given up.
                    self.done.retain(|done| done != "dial");
                    "hangup".to_owned()
                }
                Action::Close(_, last) => format!("close {}", String::from_utf8(last).unwrap()),
                Action::Answer(Token(token), Ok(value)) => format!("answer {token} {value}"),
                Action::Answer(Token(token), Err(error)) => format!("answer {token} {error}"),
                Action::Event(event) => format!("event {} {}", event.name, event.data),
                Action::Lost(why) => format!("lost {why}"),
                Action::Note(_) => continue,
            };
            self.done.push(done);
        }
        let output = self.mux.take_session_output();
        for line in String::from_utf8(output).unwrap().lines() {
            let request: Value = serde_json::from_str(line).unwrap();
            self.asked.push_back((request["id"].as_u64().unwrap(), request));
        }
    }

    fn connect(&mut self) {
        while !self.done.iter().any(|done| done == "dial") {
            self.pass(10);
        }
        self.done.retain(|done| done != "dial");
        self.mux.connected(self.now);
        self.say(GREETING);
        assert_eq!(self.next_asked(), "qmp_capabilities");
        self.say("{\"return\": {}, \"id\": 0}\n");
        assert!(self.mux.is_up());
    }

    fn say(&mut self, text: &str) {
        self.mux.session_bytes(text.as_bytes(), self.now);
        self.look();
    }

    /// Takes the next command off what QEMU was asked, without an answer.
    fn next_asked(&mut self) -> String {
        let (_, request) = self.asked.pop_front().expect("something was asked");
        let name = if request["execute"].is_null() { &request["exec-oob"] } else { &request["execute"] };
        name.as_str().unwrap().to_owned()
    }

    /// Answers the oldest request with its own id.
    fn answer(&mut self) {
        let (id, _) = self.asked.pop_front().expect("something was asked");
        self.say(&format!("{{\"return\": {{\"was\":\n {id}}}, \"id\": {id}}}\r\n"));
    }

    fn client(&mut self) -> ClientId {
        let id = self.mux.open_client(ROOT).unwrap();
        assert!(self.read(id).starts_with("{\"QMP\":"));
        self.ask(id, r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#);
        assert_eq!(self.read(id), "{\"return\":{}}");
        id
    }

    fn ask(&mut self, id: ClientId, text: &str) {
        self.mux.client_bytes(id, text.as_bytes(), self.now);
        self.look();
    }

    /// The next line for a client; empty when there is none.
    fn read(&mut self, id: ClientId) -> String {
        let text = self.mux.take_client_output(id).unwrap_or_default();
        assert!(text.is_empty() || text.ends_with("\r\n"), "{text:?}");
        self.mux.read_client(id, self.now);
        self.look();
        let line = text.trim_end_matches("\r\n").to_owned();
        assert!(!line.contains(['\n', '\r']), "{line}");
        line
    }
}

#[test]
fn each_client_gets_its_own_answer_under_its_own_id() {
    let mut world = World::up();
    let (a, b) = (world.client(), world.client());
    world.ask(a, r#"{"execute": "query-status", "id": "x"}"#);
    world.ask(b, r#"{"execute": "query-status", "id": {"n": [1]}}{"execute": "query-kvm"}"#);
    assert_eq!(world.asked.len(), 3);
    let first = world.asked[0].0;
    world.answer();
    assert_eq!(world.read(a), format!("{{\"return\":{{\"was\":  {first}}},\"id\":\"x\"}}"));
    world.answer();
    world.answer();
    assert!(world.read(b).ends_with(",\"id\":{\"n\": [1]}}"));
    assert!(!world.read(b).contains("\"id\":"));
    assert_eq!(world.read(b), "");
}

#[test]
fn client_waits_for_the_first_greeting_and_negotiates_for_itself() {
    let mut world = World::new(MuxConfig::default());
    let early = world.mux.open_client(ROOT).unwrap();
    assert_eq!(world.read(early), "");
    world.connect();
    assert!(world.read(early).starts_with("{\"QMP\":"));
    world.ask(early, r#"{"execute": "query-status"}"#);
    assert!(world.read(early).contains("CommandNotFound"));
    world.ask(early, r#"{"execute": "qmp_capabilities"} {"execute": "qmp_capabilities", "id": 1}"#);
    assert_eq!(world.read(early), "{\"return\":{}}");
    assert!(world.read(early).contains("already complete"));
    world.ask(early, r#"{"exec-oob": "query-status", "id": 2}"#);
    assert!(world.read(early).contains("was not enabled"));
    // While the session is away a client is greeted as well.
    world.mux.disconnected("test", world.now);
    world.client();
}

#[test]
fn requests_out_of_band_pass_those_that_wait() {
    let mut world = World::up();
    let client = world.client();
    for _ in 0..10 {
        world.ask(client, r#"{"execute": "query-block"}"#);
    }
    assert_eq!(world.asked.len(), MuxConfig::default().window);
    world.ask(client, r#"{"exec-oob": "query-yank", "id": 1}"#);
    assert_eq!(world.asked.back().unwrap().1["exec-oob"], "query-yank");
    let (id, _) = world.asked.pop_back().unwrap();
    world.say(&format!("{{\"return\": {{}}, \"id\": {id}}}"));
    assert_eq!(world.read(client), "{\"return\":{},\"id\":1}");
    for _ in 0..10 {
        world.answer();
    }
    assert!(world.asked.is_empty());
}

#[test]
fn refusal_takes_its_turn_behind_answers_to_earlier_requests() {
    let mut world = World::up();
    let client = world.client();
    world.ask(client, r#"{"execute": "query-status", "id": 1} {"execute": "quit", "id": 2} {"execute": "query-kvm", "id": 3}"#);
    assert_eq!(world.read(client), "");
    world.answer();
    assert!(world.read(client).ends_with("\"id\":1}"));
    let refusal = world.read(client);
    assert!(refusal.contains("unsafe") && refusal.ends_with("\"id\":2}"), "{refusal}");
    world.answer();
    assert!(world.read(client).ends_with("\"id\":3}"));
    assert!(world.asked.is_empty());
}

#[test]
fn role_is_taken_and_unsafe_has_to_be_said() {
    let mut world = World::up();
    let client = world.client();
    world.ask(client, r#"{"execute": "__io.outrigger_role", "arguments": {"role": "observer"}}"#);
    assert!(world.read(client).contains("observer"));
    world.ask(client, r#"{"execute": "system_reset"}"#);
    assert!(world.read(client).contains("does not allow"));
    world.ask(client, r#"{"execute": "__io.outrigger_role", "arguments": {"unsafe": true}}"#);
    world.read(client);
    world.ask(client, r#"{"execute": "device_del", "arguments": {"id": "x"}}"#);
    assert_eq!(world.next_asked(), "device_del");
    world.ask(client, r#"{"execute": "__io.outrigger_role", "arguments": {"role": "king"}}"#);
    assert!(world.read(client).is_empty(), "in its turn");
}

#[test]
fn events_go_to_those_who_want_them() {
    let mut world = World::up();
    let (all, some) = (world.client(), world.client());
    let deaf = world.mux.open_client(ROOT).unwrap();
    world.ask(some, r#"{"execute": "__io.outrigger_subscribe", "arguments": {"events": ["RESET"]}}"#);
    world.read(some);
    world.say("{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}");
    world.say("{\"event\": \"RESET\", \"data\": {\"guest\": true}, \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}");
    assert_eq!(world.read(all), "{\"event\":\"STOP\",\"timestamp\":{\"seconds\":1,\"microseconds\":2}}");
    assert!(world.read(all).contains("RESET") && world.read(some).contains("\"data\":{\"guest\": true}"));
    assert_eq!(world.read(some), "");
    assert!(world.read(deaf).starts_with("{\"QMP\""));
    assert_eq!(world.read(deaf), "");
    assert!(world.done.contains(&"event RESET {\"guest\":true}".to_owned()), "{:?}", world.done);
}

#[test]
fn client_that_does_not_read_is_told_what_it_missed() {
    let mut world = World::new(MuxConfig { event_rate: (1 << 20, 1 << 20), ..MuxConfig::default() });
    world.connect();
    let (slow, quick) = (world.client(), world.client());
    let mut got = 0;
    for n in 0..5000 {
        world.say(&format!("{{\"event\": \"X\", \"data\": {{\"n\": {n}, \"pad\": \"{}\"}}, \"timestamp\": {{\"seconds\": 1, \"microseconds\": 2}}}}", "p".repeat(100)));
        got += usize::from(world.read(quick).contains("\"X\""));
    }
    assert_eq!(got, 5000);
    let mut kept = 0;
    while world.read(slow).contains("\"X\"") {
        kept += 1;
    }
    assert!(kept > 1000 && kept < 2000, "{kept}");
    world.say("{\"event\": \"X\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}");
    assert!(
        world
            .read(slow)
            .contains(&format!("OUTRIGGER_EVENTS_MISSED\",\"data\":{{\"count\":{}}}", 5000 - kept))
    );
}

#[test]
fn lost_session_fails_what_is_in_flight_and_is_made_anew() {
    let mut world = World::up();
    let client = world.client();
    world.ask(client, r#"{"execute": "query-status", "id": 1}"#);
    world.mux.ask(Token(7), Request::new("stop"), world.now + Duration::from_secs(5), world.now);
    world.mux.disconnected("it was killed", world.now);
    world.look();
    let error = world.read(client);
    assert!(
        error.contains("it was killed") && error.contains("is not known") && error.ends_with("\"id\":1}")
    );
    assert!(world.read(client).contains("OUTRIGGER_SESSION_LOST"));
    assert!(world.done.iter().any(|done| done.starts_with("answer 7 The session with QEMU was lost")));
    assert!(world.done.iter().any(|done| done.starts_with("lost ")));
    // What is asked meanwhile waits for the new one.
    world.ask(client, r#"{"execute": "query-kvm", "id": 2}"#);
    world.asked.clear();
    world.connect();
    assert!(world.read(client).contains("OUTRIGGER_SESSION_RESTORED"));
    assert_eq!(world.asked.len(), 1);
    world.answer();
    assert!(world.read(client).ends_with("\"id\":2}"));
}

#[test]
fn hostile_session_costs_one_try_in_ten_seconds() {
    let mut world = World::new(MuxConfig::default());
    let mut dials = 0;
    for _ in 0..600 {
        world.pass(100);
        if world.done.contains(&"dial".to_owned()) {
            world.done.clear();
            dials += 1;
            world.mux.connected(world.now);
            world.say("garbage");
        }
    }
    assert!((10..=16).contains(&dials), "{dials}");
}

#[test]
fn nonsense_ends_a_session_and_reaches_nobody() {
    for nonsense in [
        "{\"return\": {}, \"id\": 999}",
        "{\"return\": {}}",
        "{\"return\": {}, \"error\": {}}",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"x\"}}",
        "{\"event\": 5}",
        "{\"event\": \"OUTRIGGER_SESSION_LOST\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 1}}",
        "{\"event\": \"A\\\"B\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 1}}",
        "{\"event\": \"X\", \"data\": 1, \"timestamp\": {\"seconds\": 1, \"microseconds\": 1}}",
        "{\"QMP\": {}}",
        "{}",
    ] {
        let mut world = World::up();
        let client = world.client();
        for _ in 0..17 {
            assert!(world.mux.is_up());
            world.say(nonsense);
        }
        assert!(!world.mux.is_up(), "{nonsense}");
        assert!(
            world.read(client).contains("OUTRIGGER_SESSION_LOST\",\"data\":{\"reason\":\"it sent too many")
        );
        assert_eq!(world.read(client), "");
    }
    let mut world = World::up();
    world.say("{\"return\": {}, \"id\": \"");
    world.say(&"x".repeat(300 << 10));
    assert!(!world.mux.is_up());
}

#[test]
fn answer_that_comes_twice_is_given_once() {
    let mut world = World::up();
    let client = world.client();
    world.ask(client, r#"{"execute": "query-status", "id": 1}"#);
    let id = world.asked[0].0;
    world.answer();
    world.say(&format!("{{\"return\": {{\"again\": 1}}, \"id\": {id}}}"));
    assert!(world.read(client).contains("was"));
    assert_eq!(world.read(client), "");
    assert_eq!(world.mux.counts().strikes, 1);
}

#[test]
fn session_that_never_answers_is_given_up() {
    let mut world = World::up();
    let client = world.client();
    world.ask(client, r#"{"execute": "query-status", "id": 1}"#);
    world.pass(59_000);
    assert_eq!(world.read(client), "");
    world.pass(1_000);
    assert!(world.read(client).contains("\"error\""));
    assert!(!world.mux.is_up());
    // And one that does not even say hello.
    let mut world = World::new(MuxConfig::default());
    world.pass(0);
    world.mux.connected(world.now);
    world.pass(10_000);
    assert!(world.done.contains(&"hangup".to_owned()));
}

#[test]
fn client_that_breaks_the_protocol_is_told_and_one_that_floods_is_closed() {
    let mut world = World::up();
    let client = world.client();
    for (line, part) in [
        ("hello\n", "is not valid there"),
        ("{\"execute\": 5}\n", "a request has"),
        ("{\"execute\": \"query-status\", \"more\": 1}\n", "a request has"),
        ("{\"execute\": \"query-status\", \"arguments\": []}\n", "must be an object"),
        ("{\"execute\": \"query-status\", \"exec-oob\": \"x\"}\n", "a request has"),
    ] {
        world.ask(client, line);
        let answer = world.read(client);
        assert!(answer.contains(part), "{line}: {answer}");
    }
    world.ask(client, &format!("{{\"execute\": \"{}", "x".repeat(300 << 10)));
    assert!(world.done.iter().any(|done| done.starts_with("close {\"error\"")), "{:?}", world.done);
    assert_eq!(world.mux.client_count(), 0);
}

#[test]
fn hundred_clients_are_all_served_in_turn() {
    let mut world = World::up();
    let clients: Vec<_> = (0..100).map(|_| world.client()).collect();
    for round in 0..5 {
        for (n, &client) in clients.iter().enumerate() {
            world.ask(client, &format!("{{\"execute\": \"query-status\", \"id\": [{n},{round}]}}"));
        }
    }
    let mut answered = 0;
    while !world.asked.is_empty() {
        assert!(world.asked.len() <= MuxConfig::default().window);
        world.answer();
        answered += 1;
        if answered == 107 {
            // Nobody has had a second turn before everyone has had one.
            assert!(clients.iter().filter(|&&id| world.mux.has_client_output(id)).count() >= 93);
        }
    }
    assert_eq!(answered, 500);
    for (n, &client) in clients.iter().enumerate() {
        for round in 0..5 {
            assert!(world.read(client).ends_with(&format!("\"id\":[{n},{round}]}}")));
        }
        assert_eq!(world.read(client), "");
    }
    assert!(world.mux.flight.is_empty());
}

#[test]
fn client_that_asks_and_does_not_read_is_not_read_either() {
    let mut world = World::up();
    let client = world.client();
    for n in 0..100 {
        world.ask(client, &format!("{{\"execute\": \"query-status\", \"id\": {n}}}"));
    }
    assert!(!world.mux.wants_client_bytes(client));
    let mut answered = 0;
    while !world.asked.is_empty() {
        world.answer();
        answered += 1;
        if answered == 16 {
            // Those that were held back come as answers go out.
            assert!(world.mux.has_client_output(client));
        }
        world.mux.read_client(client, world.now);
        world.look();
    }
    assert_eq!(answered, 100);
}

/// What may happen to a multiplexer.
#[derive(Clone, Debug)]
enum Happens {
    Client,
    Ask(usize, u8),
    Gone(usize),
    Read(usize),
    Answer,
    Event,
    Nonsense(Vec<u8>),
    Lose,
    Pass(u16),
    Toolstack,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        Just(Happens::Client),
        (0usize..8, 0u8..5).prop_map(|(n, what)| Happens::Ask(n, what)),
        (0usize..8, 0u8..5).prop_map(|(n, what)| Happens::Ask(n, what)),
        (0usize..8).prop_map(Happens::Gone),
        (0usize..8).prop_map(Happens::Read),
        Just(Happens::Answer),
        Just(Happens::Answer),
        Just(Happens::Event),
        prop::collection::vec(any::<u8>(), 1..20).prop_map(Happens::Nonsense),
        Just(Happens::Lose),
        (0u16..30_000).prop_map(Happens::Pass),
        Just(Happens::Toolstack),
    ]
}

proptest! {
    /// Whatever happens in whatever order: every request of a client that stays is answered once, and nothing grows.
    #[test]
    fn every_request_is_answered_once(story in prop::collection::vec(happens(), 1..120)) {
        let mut world = World::up();
        let mut clients: Vec<(ClientId, u64, u64)> = Vec::new();
        let mut asked_inner = 0u64;
        for event in story {
            match event {
                Happens::Client if clients.len() < 8 && world.mux.version().is_some() => {
                    clients.push((world.client(), 0, 0));
                }
                Happens::Ask(n, what) if n < clients.len() => {
                    let command = ["query-status", "query-block", "quit", "query-kvm", "screendump"][usize::from(what)];
                    let verb = if what == 3 { "exec-oob" } else { "execute" };
                    clients[n].1 += 1;
                    let id = clients[n].0;
                    world.ask(id, &format!("{{\"{verb}\": \"{command}\", \"id\": {}}}", clients[n].1));
                }
                Happens::Gone(n) if n < clients.len() => {
                    let (id, ..) = clients.swap_remove(n);
                    world.mux.close_client(id);
                }
                Happens::Read(n) if n < clients.len() => {
                    clients[n].2 += u64::from(world.read(clients[n].0).contains("\"id\":"));
                }
                Happens::Answer if world.mux.is_up() && !world.asked.is_empty() => world.answer(),
                Happens::Event => world.say("{\"event\": \"X\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}"),
                Happens::Nonsense(bytes) => {
                    world.mux.session_bytes(&bytes, world.now);
                    world.look();
                }
                Happens::Lose => {
                    world.mux.disconnected("test", world.now);
                    world.look();
                }
                Happens::Pass(millis) => world.pass(millis.into()),
                Happens::Toolstack => {
                    asked_inner += 1;
                    let deadline = world.now + Duration::from_secs(3);
                    world.mux.ask(Token(asked_inner), Request::new("stop"), deadline, world.now);
                    world.look();
                }
                _ => {}
            }
            if !world.mux.is_up() {
                world.asked.clear();
                if world.done.contains(&"dial".to_owned()) {
                    world.connect();
                }
            }
            prop_assert!(world.mux.flight.len() <= 2 * MuxConfig::default().window);
            // The shell is woken when there is something to do, and not at once again for the same.
            world.pass(0);
            prop_assert!(world.mux.next_tick().is_none_or(|next| next > world.now));
        }
        // At the end of time everyone has had every answer.
        for _ in 0..300 {
            world.pass(1000);
            for (id, _, got) in &mut clients {
                loop {
                    match world.read(*id) {
                        line if line.is_empty() => break,
                        line => *got += u64::from(line.contains("\"id\":")),
                    }
                }
            }
        }
        for (_, asked, got) in clients {
            prop_assert_eq!(asked, got);
        }
        let answers = world.done.iter().filter(|done| done.starts_with("answer ")).count();
        prop_assert_eq!(u64::try_from(answers).unwrap(), asked_inner);
    }
}

#[test]
fn decoder_of_an_idle_session_holds_nothing() {
    let mut world = World::up();
    world.say(&format!(
        "{{\"event\": \"X\", \"data\": {}, \"timestamp\": {{\"seconds\": 1, \"microseconds\": 2}}}}",
        json!({"a": "x".repeat(60_000)})
    ));
    let Session::Up { decoder, .. } = &world.mux.session else { panic!("not up") };
    assert_eq!(decoder.held(), 0);
}

#[test]
fn end_of_the_device_model_fails_what_is_asked_and_refuses_what_comes() {
    let mut world = World::up();
    let client = world.client();
    world.ask(client, r#"{"execute": "query-status", "id": 1}"#);
    world.mux.ask(Token(7), Request::new("stop"), world.now + Duration::from_secs(60), world.now);
    world.look();
    world.mux.end("the device model has ended", world.now);
    world.look();
    let lost = world.read(client);
    assert!(lost.contains("was lost (the device model has ended)") && lost.contains("\"id\":1"), "{lost}");
    assert!(world.read(client).contains("OUTRIGGER_SESSION_LOST"));
    assert!(world.done.iter().any(|done| done.starts_with("answer 7 ")), "{:?}", world.done);
    world.ask(client, r#"{"execute": "query-kvm", "id": 2}"#);
    let refused = world.read(client);
    assert!(refused.contains("query-kvm was not sent to QEMU: the device model has ended"), "{refused}");
    world.mux.ask(Token(8), Request::new("stop"), world.now + Duration::from_secs(60), world.now);
    world.look();
    assert!(world.done.iter().any(|done| done.starts_with("answer 8 ")), "{:?}", world.done);
    world.done.clear();
    world.pass(100_000);
    assert!(world.done.is_empty(), "nobody dials: {:?}", world.done);
}
