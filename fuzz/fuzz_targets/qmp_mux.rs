//! A story of a session, on a connection or on a console, and its clients of several roles: bytes of the device model,
//! honest answers, bytes of clients, losses, time, the end.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use qmp::Request;
use qmp::mux::{Action, ClientId, Mux, MuxConfig, Token};
use qmp::policy::{Peer, Policy, is_for_toolstack};
use serde_json::{Value, json};

/// What the toolstack asks for itself.
const OWN: &str = "stop";

/// Users of every role, one with filtered answers and events, and one whose role names what it must not have.
static POLICY: LazyLock<Arc<Policy>> = LazyLock::new(|| {
    let text = r#"
        group = "root"
        [role.narrow]
        inherits = "observer"
        deny = ["query-block"]
        events = ["RESET"]
        answers.query-status = ["status"]
        [role.greedy]
        commands = ["*", "quit"]
        [peers]
        1 = ["observer"]
        2 = ["operator", "observer"]
        3 = ["admin"]
        4 = ["narrow"]
        5 = ["greedy", "narrow"]
    "#;
    Arc::new(Policy::parse(text).expect("a policy"))
});

struct Story {
    mux: Mux,
    now: Instant,
    clients: Vec<ClientId>,
    on_console: bool,
    /// Whether a client of root's may have said that it knows what it does.
    is_unsafe: bool,
    /// What QEMU was asked and did not answer yet.
    with_qemu: Vec<u8>,
    asked: u64,
    answered: u64,
}

fuzz_target!(|data: &[u8]| {
    let Some((first, mut rest)) = data.split_first() else { return };
    let now = Instant::now();
    let config = MuxConfig { clients: 4, event_bytes: 4096, ..MuxConfig::default() };
    let mut story = Story {
        mux: Mux::new(config, Arc::clone(&POLICY), now),
        now,
        clients: Vec::new(),
        on_console: first % 2 == 1,
        is_unsafe: data.windows(6).any(|word| word == b"unsafe"),
        with_qemu: Vec::new(),
        asked: 0,
        answered: 0,
    };
    while let [kind, length, more @ ..] = rest {
        let (bytes, behind) = more.split_at(more.len().min(usize::from(*length)));
        rest = behind;
        story.play(*kind, *length, bytes);
        story.mux.tick(story.now);
        story.work();
    }
    story.now += Duration::from_secs(100_000);
    story.mux.tick(story.now);
    story.work();
    assert_eq!(story.asked, story.answered);
});

impl Story {
    fn play(&mut self, kind: u8, length: u8, bytes: &[u8]) {
        match kind % 16 {
            0 => self.mux.session_bytes(bytes, self.now),
            1 if length == 255 => self.mux.end("fuzz", self.now),
            1 => self.mux.disconnected("fuzz", self.now),
            2 => self.clients.extend(self.mux.open_client(Peer { uid: u32::from(length) % 8, gid: 0 })),
            3 | 4 => self.client(kind, bytes),
            5 => self.read_clients(),
            6 => {
                self.asked += 1;
                let deadline = self.now + Duration::from_secs(1);
                self.mux.ask(Token(self.asked), Request::new(OWN), deadline, self.now);
            }
            // A QEMU that is no liar.
            8 => self.greet(),
            9 => self.answer(&json!({"status": "running", "secret": 5})),
            10 => self.answer(&Value::Null),
            11 => self.mux.session_bytes(
                b"{\"event\": \"RESET\", \"timestamp\": {\"seconds\": 1, \
                                            \"microseconds\": 2}}\n",
                self.now,
            ),
            // Clients that know the protocol.
            12 => self.client(length, b"{\"execute\": \"qmp_capabilities\"}\n"),
            13 => {
                let name = String::from_utf8_lossy(bytes);
                let request = json!({"execute": name, "id": length}).to_string();
                self.client(length, request.as_bytes());
            }
            14 => {
                let roles = ["observer", "operator", "admin", "narrow", "greedy", "none"];
                let role = roles[usize::from(length) % roles.len()];
                let request = json!({"execute": "__io.outrigger_role", "arguments": {"role": role}});
                self.client(length / 8, request.to_string().as_bytes());
            }
            _ => {
                self.now += Duration::from_millis(u64::from(length) * 100);
                self.mux.tick(self.now);
            }
        }
    }

    fn client(&mut self, choice: u8, bytes: &[u8]) {
        if let Some(client) = self.clients.get(usize::from(choice) % self.clients.len().max(1)) {
            self.mux.client_bytes(*client, bytes, self.now);
        }
    }

    fn read_clients(&mut self) {
        for client in &self.clients {
            while let Some(text) = self.mux.take_client_output(*client) {
                // Every line that a client gets is a whole message.
                let line = text.strip_suffix("\r\n").expect("a line");
                assert!(!line.contains(['\r', '\n']));
                serde_json::from_str::<Value>(line).expect("a message");
            }
            self.mux.read_client(*client, self.now);
        }
    }

    fn greet(&mut self) {
        let version = json!({"qemu": {"micro": 1, "minor": 2, "major": 7}, "package": ""});
        if self.on_console {
            self.answer(&version);
        } else {
            let greeting = json!({"QMP": {"version": version, "capabilities": ["oob"]}});
            self.mux.session_bytes(format!("{greeting}\n").as_bytes(), self.now);
        }
    }

    /// Answers everything that QEMU was asked.
    fn answer(&mut self, value: &Value) {
        for line in std::mem::take(&mut self.with_qemu).split(|byte| *byte == b'\n') {
            let Ok(request) = serde_json::from_slice::<Value>(line) else { continue };
            let text = format!("{}\n", json!({"return": value, "id": request["id"]}));
            self.mux.session_bytes(text.as_bytes(), self.now);
        }
    }

    /// Does the shell's part.
    fn work(&mut self) {
        while let Some(action) = self.mux.next_action() {
            match action {
                Action::Dial if self.on_console => self.mux.connected_to_console("7f", self.now),
                Action::Dial => self.mux.connected(self.now),
                Action::Answer(..) => self.answered += 1,
                _ => {}
            }
        }
        let output = self.mux.take_session_output();
        for line in output.split(|byte| *byte == b'\n') {
            let Ok(request) = serde_json::from_slice::<Value>(line) else { continue };
            let command = request["execute"].as_str().or(request["exec-oob"].as_str()).unwrap_or(OWN);
            let allowed = command == OWN || !is_for_toolstack(command);
            assert!(allowed || self.is_unsafe, "{command} reached QEMU");
        }
        self.with_qemu.extend(output);
        let excess = self.with_qemu.len().saturating_sub(1 << 16);
        self.with_qemu.drain(..excess);
    }
}
