//! Sessions on a console: no greeting, and a QEMU that has been negotiated with already.

use super::*;

const RESET: &str = "\u{fffd}\n{\"execute\":\"qmp_capabilities\",\"id\":\"resync-n1\"}\n";
const STRAY: &str =
    "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '\\\\xFF'\"}}\r\n";
const AGREED: &str = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"already complete\"}, \
                      \"id\": \"resync-n1\"}\r\n";
const VERSION: &str = "{\"return\": {\"qemu\": {\"micro\": 1, \"minor\": 2, \"major\": 7}, \"package\": \"x\"}, \
                       \"id\": 0}\r\n";

impl World {
    fn on_console() -> Self {
        let mut world = Self::new(MuxConfig::default());
        world.reach_console();
        world
    }

    /// Dials until the console is there; the first reset is sent.
    fn reach_console(&mut self) {
        while !self.done.iter().any(|done| done == "dial") {
            self.pass(10);
        }
        self.done.retain(|done| done != "dial");
        self.mux.connected_to_console("n1", self.now);
        assert_eq!(self.sent(), RESET);
    }

    fn sent(&mut self) -> String {
        String::from_utf8_lossy(&self.mux.take_session_output()).into_owned()
    }

    /// A client that does not ask for what a console's session lacks.
    fn plain_client(&mut self) -> ClientId {
        let id = self.mux.open_client(ROOT).unwrap();
        assert!(self.read(id).contains("\"capabilities\":[]"));
        self.ask(id, r#"{"execute": "qmp_capabilities"}"#);
        assert_eq!(self.read(id), "{\"return\":{}}");
        id
    }

    fn come_in_step(&mut self) {
        self.say(STRAY);
        self.say(AGREED);
        assert_eq!(self.next_asked(), "query-version");
        self.say(VERSION);
        assert!(self.mux.is_up());
    }
}

#[test]
fn session_on_a_console_greets_clients_with_what_qemu_says_it_is() {
    let mut world = World::on_console();
    let early = world.mux.open_client(ROOT).unwrap();
    assert_eq!(world.read(early), "");
    // What an earlier session has left: half an answer, an event, an answer to someone else.
    world.say(
        "ning\"}, \"id\": 7}\r\n{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"return\": {}, \"id\": 1}\r\n",
    );
    assert!(!world.mux.is_up());
    world.come_in_step();
    let greeting = world.read(early);
    assert!(greeting.contains("\"major\":7"), "{greeting}");
    let client = world.plain_client();
    world.ask(client, r#"{"execute": "query-status", "id": "x"}"#);
    world.answer();
    assert!(world.read(client).ends_with("\"id\":\"x\"}"));
    assert_eq!(world.mux.counts().strikes, 0);
}

#[test]
fn request_in_flight_fails_when_the_console_is_lost_and_its_late_answer_goes_to_nobody() {
    let mut world = World::on_console();
    world.come_in_step();
    let client = world.plain_client();
    world.ask(client, r#"{"execute": "query-status", "id": 9}"#);
    let (late, _) = world.asked.pop_front().unwrap();
    world.mux.disconnected("the daemon of consoles is gone", world.now);
    assert!(world.read(client).contains("was lost"));
    assert!(world.read(client).contains("OUTRIGGER_SESSION_LOST"));
    world.look();
    world.reach_console();
    world.say(&format!("{{\"return\": {{}}, \"id\": {late}}}\r\n"));
    world.come_in_step();
    assert!(world.read(client).contains("OUTRIGGER_SESSION_RESTORED"));
    assert_eq!(world.read(client), "");
    assert_eq!(world.mux.counts().strikes, 0);
}

#[test]
fn reset_without_an_answer_is_sent_again_then_the_console_is_given_up() {
    let mut world = World::on_console();
    let mut resets = 0;
    while !world.done.iter().any(|done| done == "hangup") {
        let next = world.mux.next_tick().expect("something is due");
        world.now = world.now.max(next);
        world.mux.tick(world.now);
        resets += usize::from(world.sent() == RESET);
        world.look();
    }
    assert_eq!(resets, 4, "every two of ten seconds, after the first");
    world.reach_console();
    // Both come late, and what answers them within the session makes no strike.
    world.mux.tick(world.now + Duration::from_secs(2));
    assert_eq!(world.sent(), RESET);
    world.say(&format!("{STRAY}{AGREED}{STRAY}{AGREED}"));
    assert_eq!(world.next_asked(), "query-version");
    world.say(VERSION);
    assert!(world.mux.is_up());
    assert_eq!(world.mux.counts().strikes, 0);
    world.say(STRAY);
    assert_eq!(world.mux.counts().strikes, 1, "one more than was asked for");
}

#[test]
fn qemu_that_does_not_say_what_it_is_has_no_session() {
    let mut world = World::on_console();
    world.say(AGREED);
    world.say("{\"return\": [], \"id\": 0}\r\n");
    assert!(!world.mux.is_up() && world.done.iter().any(|done| done == "hangup"));
}

#[test]
fn clients_are_told_where_their_guest_is() {
    let mut world = World::up();
    let client = world.client();
    world.mux.guest_left(&json!({"how": "migrated", "host": "beta"}));
    world.mux.end("the device model has ended", world.now);
    world.look();
    let left = world.read(client);
    assert!(left.contains("OUTRIGGER_GUEST_LEFT") && left.contains("beta"), "{left}");
    assert!(world.read(client).contains("OUTRIGGER_SESSION_LOST"));
}
