//! vchans: with stock libxenvchan at either end, and QEMU's monitor over the agent's.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vchan::{Attempt, Change, Client, RingSizes, Server, VchanError};
use xen::{Access, EventChannels, GrantAllocator, OnUnmap};
use xen_types::DomId;
use xenstore::{Connection, Store as _, Xenstore, XsPath};

use super::Case;
use crate::harness::daemons::{kill_hard, start_outriggerd};
use crate::harness::guest::{Made, hello};
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::new("vchan::own_client_and_server", own),
    Case::new("vchan::ring_that_was_taken_back_is_not_ready", taken_back),
    Case::new("vchan::stock_client_of_our_server", stock_client),
    Case::new("vchan::our_client_of_stock_server", stock_server),
    Case::new("vchan::two_hundred_monitor_sessions", monitor_sessions),
];

const PROXY: &str = "/usr/lib/xen-4.17/bin/vchan-socket-proxy";
const GREETING: &[u8] = b"welcome\n";
/// A client that says this ends the server.
const QUIT: &[u8] = b"quit\n";

fn place(name: &str) -> Result<XsPath> {
    Ok(XsPath::new(format!("/local/domain/0/vm-tests-{name}"))?)
}

/// A server in dom0 for clients in dom0, which greets and then sends everything back.
struct Echo {
    place: XsPath,
    thread: JoinHandle<Result<()>>,
}

impl Echo {
    fn start(name: &str, sizes: RingSizes) -> Result<Self> {
        let place = place(name)?;
        let here = place.clone();
        let (ready, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            let store = Connection::open()?;
            let server = Server::open(&store, DomId::DOM0, here, sizes)?;
            let _ = ready.send(());
            echo(server, &store).inspect_err(|error| println!("the server ended: {error:#}"))
        });
        // When it fails, the thread's end tells why.
        let _ = started.recv();
        Ok(Self { place, thread })
    }

    fn quit(self) -> Result<()> {
        let mut client = Asking::connect(DomId::DOM0, &self.place)?;
        client.expect(GREETING)?;
        client.send(QUIT)?;
        self.thread.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        ensure!(Xenstore::open()?.list(&self.place)?.is_none(), "the server's keys are left");
        Ok(())
    }
}

fn echo(mut server: Server, store: &Connection) -> Result<()> {
    let (mut buffer, mut pending) = (vec![0; 65_536], Vec::new());
    let deadline = Instant::now() + seconds(120);
    loop {
        server.take_wakeup()?;
        while let Some(change) = server.change(store)? {
            pending.clear();
            match change {
                Change::Arrived => pending.extend_from_slice(GREETING),
                Change::Left => server.renew(store)?,
            }
        }
        while server.is_open() {
            if pending.is_empty() {
                match server.read(&mut buffer) {
                    Ok(0) | Err(VchanError::Closed) => break,
                    Ok(count) => pending.extend_from_slice(&buffer[..count]),
                    Err(error) => return Err(error.into()),
                }
            }
            if pending == QUIT {
                return Ok(server.close(store)?);
            }
            match server.write(&pending) {
                Ok(0) | Err(VchanError::Closed) => break,
                Ok(count) => drop(pending.drain(..count)),
                Err(error) => return Err(error.into()),
            }
        }
        wait(&server, deadline)?;
    }
}

fn wait(end: &impl AsFd, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    ensure!(!left.is_zero(), "the other end of the vchan took too long");
    let left = PollTimeout::try_from(left.min(Duration::from_secs(60))).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], left)?;
    Ok(())
}

/// A client that waits.
pub(super) struct Asking {
    client: Client,
    deadline: Instant,
}

impl Asking {
    pub(super) fn connect(peer: DomId, place: &XsPath) -> Result<Self> {
        let deadline = Instant::now() + seconds(30);
        Ok(Self { client: Client::connect(&Xenstore::open()?, peer, place, deadline)?, deadline })
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.exchange(bytes, 0).map(drop)
    }

    fn expect(&mut self, bytes: &[u8]) -> Result<()> {
        let got = self.exchange(&[], bytes.len())?;
        ensure!(
            got == bytes,
            "got {:?} instead of {:?}",
            got.escape_ascii().to_string(),
            bytes.escape_ascii()
        );
        Ok(())
    }

    /// Sends all of `bytes` and meanwhile receives `count`.
    fn exchange(&mut self, mut bytes: &[u8], count: usize) -> Result<Vec<u8>> {
        let mut got = vec![0; count];
        let mut have = 0;
        loop {
            let sent = if bytes.is_empty() { 0 } else { self.client.write(bytes)? };
            bytes = &bytes[sent..];
            let read = if have < count { self.client.read(&mut got[have..])? } else { 0 };
            have += read;
            if bytes.is_empty() && have == count {
                return Ok(got);
            }
            if sent + read == 0 {
                wait(&self.client, self.deadline)?;
                self.client.take_wakeup()?;
            }
        }
    }

    /// The next line.
    pub(super) fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            ensure!(line.len() < 65_536, "a line without end");
            line.extend(self.exchange(&[], 1)?);
        }
        Ok(String::from_utf8(line)?)
    }
}

/// Bytes that are different everywhere.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 13 & 0xff).unwrap_or(0)).collect()
}

fn own() -> Result<()> {
    for (to_server, to_client) in [(0, 0), (2048, 1024), (4096, 4096)] {
        let echo = Echo::start("own", RingSizes::at_least(to_server, to_client)?)?;
        // Several times around each ring.
        let bytes = pattern((8 * to_client).clamp(16_000, 2_500_000));
        let mut client = Asking::connect(DomId::DOM0, &echo.place)?;
        client.expect(GREETING)?;
        ensure!(client.exchange(&bytes, bytes.len())? == bytes, "bytes came back changed");
        drop(client);
        for round in 0..20 {
            let mut client = Asking::connect(DomId::DOM0, &echo.place)?;
            client.expect(GREETING).with_context(|| format!("round {round}"))?;
            // Some leave in the middle of what they asked for: the next one must not get the rest.
            client.send(b"what nobody waits for")?;
        }
        echo.quit()?;
    }
    Ok(())
}

/// A server that makes its ring anew, stopped where the old ring's pages are granted no more and its keys still name it.
fn taken_back() -> Result<()> {
    // The server's bytes of `struct vchan_interface`: orders 12 of both rings, the client awaited, the server there.
    const ORDERS_AND_LIVE: [u8; 6] = [12, 0, 12, 0, 2, 1];
    const OFFSET: usize = 16;
    let (store, place) = (Xenstore::open()?, place("taken-back")?);
    let (events, allocator) = (EventChannels::open()?, GrantAllocator::open()?);
    let share = |pages| allocator.share(DomId::DOM0, pages, Access::ReadWrite, OnUnmap::default());
    let (shared, rings) = (share(1)?, share(2)?);
    let port = events.bind_unbound_port(DomId::DOM0)?;
    shared.pages().write(OFFSET, &ORDERS_AND_LIVE);
    let grants: Vec<u8> = rings.refs().iter().flat_map(|grant| grant.0.to_le_bytes()).collect();
    shared.pages().write(OFFSET + 8, &grants);
    store.transaction(|store| {
        store.write(&place.join("ring-ref")?, shared.refs()[0].to_string().as_bytes())?;
        store.write(&place.join("event-channel")?, port.to_string().as_bytes())
    })?;
    drop(rings);
    let taken = Client::attempt(&store, DomId::DOM0, &place);
    store.rm(&place)?;
    let taken = taken?;
    ensure!(matches!(taken, Attempt::NotReady), "a ring that is granted no more gave {taken:?}");
    Ok(())
}

fn stock_client() -> Result<()> {
    for (to_server, to_client) in [(0, 0), (4096, 65_536), (1 << 20, 1 << 20)] {
        let echo = Echo::start("stock-client", RingSizes::at_least(to_server, to_client)?)?;
        for round in 0..5 {
            let mut child = Stopped(
                Command::new(PROXY)
                    .args(["0", echo.place.as_str(), "-"])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .context("cannot start the stock proxy")?,
            );
            let output = chunks(child.0.stdout.take().context("no output")?);
            let mut input = child.0.stdin.take().context("no input")?;
            let bytes = pattern(if round == 0 { 20_000 } else { 100 });
            let sent = bytes.clone();
            let writer = thread::spawn(move || input.write_all(&sent).map(|()| input));
            let expected = [GREETING, &bytes].concat();
            let deadline = Instant::now() + seconds(30);
            let mut got = Vec::new();
            while got.len() < expected.len() {
                let left = deadline.saturating_duration_since(Instant::now());
                let chunk = output.recv_timeout(left).map_err(|_| {
                    anyhow::anyhow!("round {round}: {} bytes of {} came", got.len(), expected.len())
                })?;
                got.extend(chunk);
            }
            ensure!(got == expected, "round {round}: bytes came back changed");
            writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        }
        echo.quit()?;
    }
    Ok(())
}

fn stock_server() -> Result<()> {
    let place = place("stock-server")?;
    let socket = crate::harness::guest::scratch("vchan.sock", b"")?;
    std::fs::remove_file(&socket)?;
    let listener = UnixListener::bind(&socket)?;
    let server = Command::new(PROXY)
        .args(["--mode=server", "0", place.as_str()])
        .arg(&socket)
        .spawn()
        .context("cannot start the stock proxy")?;
    let server = Stopped(server);
    let (ended, ends) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut buffer = [0; 4096];
            let _ = stream.write_all(GREETING);
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = ended.send(());
        }
    });
    for round in 0..3 {
        let mut client = Asking::connect(DomId::DOM0, &place)?;
        client.expect(GREETING).with_context(|| format!("round {round}"))?;
        let bytes = pattern(20_000);
        ensure!(client.exchange(&bytes, bytes.len())? == bytes, "bytes came back changed");
        drop(client);
        // A client that came before the stock server has noticed the end would get no greeting.
        ends.recv_timeout(seconds(30)).context("the stock server does not notice the client's end")?;
    }
    drop(server);
    Xenstore::open()?.rm(&place)?;
    std::fs::remove_file(&socket)?;
    Ok(())
}

/// A process that is ended with the value.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What comes out of a pipe.
fn chunks(mut output: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

fn monitor_sessions() -> Result<()> {
    const ROUNDS: u32 = 200;
    let guest = Made::create(&hello("asked", "")?, &[])?;
    let (stub, target) = (guest.stub()?, guest.guest.domid);
    let place = XsPath::new(format!("/local/domain/{stub}/device-model/{target}/qmp-vchan"))?;
    // It holds the one session there can be.
    kill_hard("outriggerd")?;
    let begin = Instant::now();
    for round in 0..ROUNDS {
        ask(stub, &place).with_context(|| format!("round {round} of {ROUNDS}"))?;
    }
    println!("{ROUNDS} sessions of QEMU's monitor took {} ms", begin.elapsed().as_millis());
    // Cut in the middle of a command, and of an answer: the next session knows nothing of it.
    for request in [
        "{\"execute\": \"qmp_capabilities\"",
        "{\"execute\": \"qmp_capabilities\"}{\"execute\": \"query-qmp-schema\"}",
    ] {
        let mut session = Asking::connect(stub, &place)?;
        ensure!(session.line()?.starts_with("{\"QMP\""), "no greeting");
        session.send(request.as_bytes())?;
        drop(session);
        ask(stub, &place).with_context(|| format!("after {request} was cut"))?;
    }
    start_outriggerd()?;
    guest.destroy()
}

/// One session: greeting, negotiation, one question.
fn ask(stub: DomId, place: &XsPath) -> Result<()> {
    let mut session = Asking::connect(stub, place)?;
    let greeting = session.line()?;
    ensure!(greeting.starts_with("{\"QMP\""), "the first line is no greeting: {greeting}");
    session.send(b"{\"execute\": \"qmp_capabilities\"}")?;
    let answer = answer(&mut session)?;
    ensure!(answer.contains("{\"return\": {}}"), "the monitor answers {answer}");
    session.send(b"{\"execute\": \"query-status\"}")?;
    let answer = self::answer(&mut session)?;
    ensure!(answer.contains("\"running\""), "the monitor answers {answer}");
    Ok(())
}

/// The next line that is no event.
pub(super) fn answer(session: &mut Asking) -> Result<String> {
    for _ in 0..100 {
        let line = session.line()?;
        if !line.contains("\"event\"") {
            return Ok(line);
        }
    }
    bail!("a hundred events and no answer")
}
