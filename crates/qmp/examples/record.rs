//! Records sessions with a real QEMU as seeds for the fuzz targets `qmp_mux` and `qmp_decoder`.
//!
//! ```text
//! cargo run -p qmp --example record -- fuzz/seeds
//! ```
//! Clients, the toolstack and a console that is cut off speak with `qemu-system-x86_64` through a [`Mux`], as the daemon
//! would do it. What goes in is written down in the form of `fuzz/fuzz_targets/qmp_mux.rs`, what QEMU says also as it is.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use qmp::Request;
use qmp::mux::{Action, ClientId, Mux, MuxConfig, Token};
use qmp::policy::{Peer, Policy};

/// What the fuzz target gives every console.
const NONCE: &str = "7f";
/// After this time without a byte QEMU has said everything.
const QUIET: Duration = Duration::from_millis(200);

/// The clients' requests, one story each.
const STORIES: [(&str, &[&str]); 5] = [
    (
        "questions",
        &[
            r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#,
            r#"{"execute":"query-version","id":1}{"execute":"query-status","id":"s"}"#,
            r#"{"execute":"query-block","id":[2]}"#,
            r#"{"execute":"query-chardev","id":{"a":{"b":null}}}"#,
            r#"{"execute":"query-cpus-fast"}"#,
            r#"{"execute":"qom-list","arguments":{"path":"/machine"},"id":-1.5e3}"#,
            r#"{"execute":"query-pci","id":3}"#,
            r#"{"exec-oob":"query-yank","id":4}"#,
        ],
    ),
    (
        "refusals",
        &[
            r#"{"execute":"query-status"}"#,
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"execute":"qom-list","arguments":{"path":"/nowhere\u0000\""},"id":1}"#,
            r#"{"execute":"quit","id":2}{"execute":"nonsense","id":3}"#,
            r#"{"execute":"query-status","arguments":{"x":1},"id":4}"#,
            "{\"execute\":\"query-status\" \"id\":5}\n",
            r#"{"execute":"screendump","arguments":{"filename":"/dev/fdset/9"},"id":6}"#,
            r#"{"execute":"__io.outrigger_role","arguments":{"role":"observer"},"id":7}"#,
            r#"{"execute":"system_reset","id":8}"#,
        ],
    ),
    (
        "events",
        &[
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"execute":"system_reset","id":1}"#,
            r#"{"execute":"system_powerdown","id":2}"#,
            r#"{"execute":"__io.outrigger_subscribe","arguments":{"events":["RESET","STO*"]},"id":3}"#,
            r#"{"execute":"system_reset","id":4}"#,
            r#"{"execute":"set_link","arguments":{"name":"n0","up":false},"id":5}"#,
            r#"{"execute":"__io.outrigger_status","id":6}"#,
        ],
    ),
    (
        "console",
        &[
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"execute":"query-status","id":1}"#,
            r#"{"execute":"query-name","id":2}{"execute":"query-uuid","id":3}"#,
            r#"{"execute":"system_reset","id":4}"#,
        ],
    ),
    (
        "console-cut",
        &[
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"execute":"query-block","id":1}"#,
            "cut",
            r#"{"execute":"query-status","id":2}"#,
            "cut",
            r#"{"execute":"query-chardev","id":3}"#,
        ],
    ),
];

/// The toolstack's, after those of the clients.
const TOOLSTACK: [&str; 2] = ["stop", "cont"];

/// A QEMU and the two ways to its monitor.
struct Qemu {
    child: Child,
    to: File,
    from: Receiver<u8>,
    _folder: tempfile::TempDir,
}

impl Qemu {
    fn start(on_console: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("monitor");
        let chardev = match on_console {
            true => format!("pipe,id=m,path={}", place.display()),
            false => format!("socket,id=m,path={},server=on,wait=off", place.display()),
        };
        let end = |name: &str| folder.path().join(format!("monitor.{name}"));
        if on_console {
            let made = Command::new("mkfifo").arg(end("in")).arg(end("out")).status();
            assert!(made.expect("mkfifo is coreutils'").success());
        }
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "pc",
                "-m",
                "32",
                "-display",
                "none",
                "-nodefaults",
                "-mon",
                "chardev=m,mode=control",
            ])
            .args(["-netdev", "hubport,id=n0,hubid=0", "-device", "e1000,netdev=n0,romfile="])
            .args(["-chardev", &chardev])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 is installed");
        let (to, mut read) = if on_console {
            let open = |name| OpenOptions::new().read(true).write(true).open(end(name)).expect("a FIFO");
            (open("in"), open("out"))
        } else {
            let stream = loop {
                match UnixStream::connect(&place) {
                    Ok(stream) => break stream,
                    Err(_) => std::thread::yield_now(),
                }
            };
            let fd = std::os::fd::OwnedFd::from(stream);
            (File::from(fd.try_clone().expect("a descriptor")), File::from(fd))
        };
        let (sender, from) = channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while read.read(&mut byte).is_ok_and(|count| count == 1) && sender.send(byte[0]).is_ok() {}
        });
        Self { child, to, from, _folder: folder }
    }

    /// What it says until it is quiet, or so many bytes.
    fn hear(&self, most: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        while heard.len() < most
            && let Ok(byte) = self.from.recv_timeout(QUIET)
        {
            heard.push(byte);
        }
        heard
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A story while it is told.
struct Story {
    qemu: Qemu,
    mux: Mux,
    now: Instant,
    on_console: bool,
    client: Option<ClientId>,
    /// What went into the multiplexer.
    tape: Vec<u8>,
    said: Vec<u8>,
    asked: u64,
}

impl Story {
    fn new(on_console: bool) -> Self {
        let now = Instant::now();
        let config = MuxConfig { clients: 4, event_bytes: 4096, ..MuxConfig::default() };
        Self {
            qemu: Qemu::start(on_console),
            mux: Mux::new(config, Arc::new(Policy::default()), now),
            now,
            on_console,
            client: None,
            tape: vec![u8::from(on_console)],
            said: Vec::new(),
            asked: 0,
        }
    }

    /// Writes down an operation and what follows from it.
    fn note(&mut self, kind: u8, bytes: &[u8]) {
        for chunk in bytes.chunks(255) {
            self.tape.extend([kind, u8::try_from(chunk.len()).expect("at most 255")]);
            self.tape.extend_from_slice(chunk);
        }
        if bytes.is_empty() {
            self.tape.extend([kind, 0]);
        }
        self.work();
    }

    fn work(&mut self) {
        self.mux.tick(self.now);
        while let Some(action) = self.mux.next_action() {
            if matches!(action, Action::Dial) {
                match self.on_console {
                    true => self.mux.connected_to_console(NONCE, self.now),
                    false => self.mux.connected(self.now),
                }
            }
        }
        self.qemu.to.write_all(&self.mux.take_session_output()).expect("QEMU reads");
    }

    fn hear(&mut self, most: usize) {
        loop {
            let heard = self.qemu.hear(most.min(255));
            if heard.is_empty() {
                return;
            }
            self.said.extend_from_slice(&heard);
            self.mux.session_bytes(&heard, self.now);
            self.note(0, &heard);
            if most < 255 {
                return;
            }
        }
    }

    fn tell(&mut self, requests: &[&str]) {
        self.work();
        self.hear(usize::MAX);
        self.client = self.mux.open_client(Peer { uid: 0, gid: 0 });
        self.note(2, &[]);
        for request in requests {
            if *request == "cut" {
                self.cut();
                continue;
            }
            let client = self.client.expect("there is room for one");
            self.mux.client_bytes(client, request.as_bytes(), self.now);
            self.note(3, request.as_bytes());
            self.hear(usize::MAX);
            while self.mux.take_client_output(client).is_some() {}
            self.note(5, &[]);
        }
        for command in TOOLSTACK {
            self.asked += 1;
            let deadline = self.now + Duration::from_secs(1);
            self.mux.ask(Token(self.asked), Request::new(command), deadline, self.now);
            self.note(6, &[]);
            self.hear(usize::MAX);
        }
    }

    /// The console is lost with half of a request sent and half of an answer taken.
    fn cut(&mut self) {
        let client = self.client.expect("there is room for one");
        let request = br#"{"execute":"query-version"}"#;
        self.mux.client_bytes(client, request, self.now);
        self.note(3, request);
        self.hear(20);
        self.mux.disconnected("fuzz", self.now);
        self.note(1, &[]);
        self.qemu.to.write_all(br#"{"execute":"query-st"#).expect("QEMU reads");
        self.now += Duration::from_millis(200);
        self.tape.extend([7, 2, 0, 0]);
        self.work();
        self.hear(usize::MAX);
    }
}

fn main() {
    let folder = std::env::args().nth(1).expect("the folder of the seeds is named");
    let folder = Path::new(&folder);
    for (name, requests) in STORIES {
        let mut story = Story::new(name.starts_with("console"));
        story.tell(requests);
        assert!(story.mux.is_up() && story.mux.counts().strikes == 0, "{name}: {:?}", story.mux.counts());
        let said = [&[63], story.said.as_slice()].concat();
        fs::write(folder.join("qmp_mux").join(name), &story.tape).expect("a seed is written");
        fs::write(folder.join("qmp_decoder").join(name), &said).expect("a seed is written");
        println!("{name}: {} and {} bytes", story.tape.len(), said.len());
    }
}
