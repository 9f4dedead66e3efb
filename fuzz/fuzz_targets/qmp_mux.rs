//! A story of a session, on a connection or on a console, and its clients: bytes of the device model, of clients,
//! losses, time, the end.
#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use qmp::Request;
use qmp::mux::{Action, Mux, MuxConfig, Token};
use qmp::policy::{Peer, Policy};

fuzz_target!(|data: &[u8]| {
    let mut now = Instant::now();
    let config = MuxConfig { clients: 4, event_bytes: 4096, ..MuxConfig::default() };
    let mut mux = Mux::new(config, Arc::new(Policy::default()), now);
    let mut clients = Vec::new();
    let (mut asked, mut answered) = (0, 0);
    let Some((first, mut rest)) = data.split_first() else { return };
    let on_console = first % 2 == 1;
    while let [kind, length, more @ ..] = rest {
        let (bytes, behind) = more.split_at(more.len().min(usize::from(*length)));
        rest = behind;
        match kind % 8 {
            0 => mux.session_bytes(bytes, now),
            1 if *length == 255 => mux.end("fuzz", now),
            1 => mux.disconnected("fuzz", now),
            2 => clients.extend(mux.open_client(Peer { uid: u32::from(*length) % 2, gid: 0 })),
            3 | 4 => {
                if let Some(client) = clients.get(usize::from(*kind) % clients.len().max(1)) {
                    mux.client_bytes(*client, bytes, now);
                }
            }
            5 => {
                for client in &clients {
                    while let Some(text) = mux.take_client_output(*client) {
                        // Every line that a client gets is a whole message.
                        let line = text.strip_suffix("\r\n").expect("a line");
                        assert!(!line.contains(['\r', '\n']));
                        serde_json::from_str::<serde_json::Value>(line).expect("a message");
                    }
                    mux.read_client(*client, now);
                }
            }
            6 => {
                asked += 1;
                mux.ask(Token(asked), Request::new("stop"), now + Duration::from_secs(1), now);
            }
            _ => {
                now += Duration::from_millis(u64::from(*length) * 100);
                mux.tick(now);
            }
        }
        mux.tick(now);
        answered += work(&mut mux, on_console, now);
    }
    now += Duration::from_secs(100_000);
    mux.tick(now);
    answered += work(&mut mux, on_console, now);
    assert_eq!(asked, answered);
});

/// Does the shell's part; gives how many answers the toolstack got.
fn work(mux: &mut Mux, on_console: bool, now: Instant) -> u64 {
    let mut answers = 0;
    while let Some(action) = mux.next_action() {
        match action {
            Action::Dial if on_console => mux.connected_to_console("7f", now),
            Action::Dial => mux.connected(now),
            Action::Answer(..) => answers += 1,
            _ => {}
        }
    }
    mux.take_session_output();
    answers
}
