//! A client of a guest's QMP socket.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use qmp::{Decoder, Limits};
use serde_json::{Value, json};

use super::command::outrigger;
use super::peer::until;
use super::seconds;

/// A connection that has negotiated.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    decoder: Decoder,
    events: VecDeque<Value>,
}

/// What `outrigger qmp --json` returns for a command without arguments.
pub(crate) fn by_command(guest: &str, command: &str) -> Result<Value> {
    let said = outrigger(&["qmp", "--json", guest, command])?.good()?.stdout;
    serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))
}

/// Where the daemon serves a guest's QMP.
pub(crate) fn socket(guest: &str) -> String {
    format!("/run/outrigger/qmp/{guest}.sock")
}

impl Qmp {
    /// Connects, is greeted, negotiates.
    pub(crate) fn connect(guest: &str) -> Result<Self> {
        let socket = socket(guest);
        // A daemon that has just started binds it on a thread.
        let complaint = format!("cannot connect to {socket}");
        let stream = until(&complaint, || UnixStream::connect(&socket))?;
        let mut client = Self { stream, decoder: Decoder::new(Limits::QEMU), events: VecDeque::new() };
        let greeting = client.message(30).context("no greeting")?;
        ensure!(greeting["QMP"]["version"]["qemu"]["major"].is_u64(), "no greeting: {greeting}");
        let answer = client.ask(&json!({"execute": "qmp_capabilities"}))?;
        ensure!(answer == json!({"return": {}}), "{answer}");
        Ok(client)
    }

    /// Connects, and may send commands that nobody has classified.
    pub(crate) fn connect_unsafe(guest: &str) -> Result<Self> {
        let mut client = Self::connect(guest)?;
        let answer = client.ask(&json!({"execute": "__io.outrigger_role", "arguments": {"unsafe": true}}))?;
        ensure!(answer["error"].is_null(), "{answer}");
        Ok(client)
    }

    /// Sends a request.
    pub(crate) fn send(&mut self, request: &Value) -> Result<()> {
        self.stream.write_all(format!("{request}\n").as_bytes()).context("cannot send a request")
    }

    /// Sends a request and waits for the next answer.
    pub(crate) fn ask(&mut self, request: &Value) -> Result<Value> {
        self.send(request)?;
        self.answer(60)
    }

    /// Waits until so many requests, of all clients, are with QEMU.
    pub(crate) fn wait_in_flight(&mut self, count: u64, within: u64) -> Result<()> {
        let deadline = Instant::now() + seconds(within);
        loop {
            let status = self.ask(&json!({"execute": "__io.outrigger_status"}))?;
            if status["return"]["in-flight"] == count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not {count} requests with QEMU within {within} s: {status}");
        }
    }

    /// The next message that is no event.
    pub(crate) fn answer(&mut self, within: u64) -> Result<Value> {
        loop {
            let message = self.message(within)?;
            if message["event"].is_null() {
                return Ok(message);
            }
            self.events.push_back(message);
        }
    }

    /// Waits for an event of this name.
    pub(crate) fn event(&mut self, name: &str, within: u64) -> Result<Value> {
        while let Some(event) = self.events.pop_front() {
            if event["event"] == name {
                return Ok(event);
            }
        }
        let deadline = Instant::now() + seconds(within);
        while Instant::now() < deadline {
            let message = self.message(within).with_context(|| format!("waiting for {name}"))?;
            if message["event"] == name {
                return Ok(message);
            }
        }
        bail!("{name} did not come within {within} s")
    }

    /// The next message.
    pub(crate) fn message(&mut self, within: u64) -> Result<Value> {
        let deadline = Instant::now() + seconds(within);
        loop {
            if let Some(message) = self.decoder.next_message() {
                return serde_json::from_str(message?.text()).context("not JSON");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "nothing came within {within} s");
            self.stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("the connection was closed"),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot read from the socket"),
            }
        }
    }
}

/// Lets all clients do the same at once, each in a thread of its own with its number; every one stays connected until the
/// last has finished.
pub(crate) fn at_once(
    mut clients: Vec<Qmp>,
    work: impl Fn(usize, &mut Qmp) -> Result<()> + Sync,
) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .enumerate()
            .map(|(number, client)| scope.spawn(move || work(number, client)))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
    })
}
