//! vchans: with stock libxenvchan at either end, and QEMU's monitor over the agent's.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vchan::{Attempt, Client, RingSizes};
use xen::{Access, EventChannels, GrantAllocator, OnUnmap};
use xen_types::{DomId, EventPort, GrantRef};
use xenstore::{Store as _, Xenstore, XsPath};

use super::Case;
use crate::harness::command::Stopped;
use crate::harness::config::GuestConfig;
use crate::harness::daemons::{kill_hard, start_outriggerd};
use crate::harness::guest::unused;
use crate::harness::seconds;
use crate::harness::vchan::{Asking, Echo, GREETING, pattern, place};

pub(super) const CASES: &[Case] = &[
    Case::new("vchan::own_client_and_server", own),
    Case::new("vchan::ring_that_was_taken_back_is_not_ready", taken_back),
    Case::new("vchan::stock_client_of_our_server", stock_client),
    Case::new("vchan::our_client_of_stock_server", stock_server),
    Case::new("vchan::two_hundred_monitor_sessions", monitor_sessions),
];

const PROXY: &str = "vchan-socket-proxy";

fn own() -> Result<()> {
    for (to_server, to_client) in [(0, 0), (2048, 1024), (4096, 4096)] {
        let echo = Echo::start("own", RingSizes::at_least(to_server, to_client)?)?;
        // Several times around each ring.
        comes_back(&echo.place, (8 * to_client).clamp(16_000, 2_500_000))?;
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

/// Greets, and then sends so many bytes back.
fn comes_back(place: &XsPath, count: usize) -> Result<()> {
    let bytes = pattern(count);
    let mut client = Asking::connect(DomId::DOM0, place)?;
    client.expect(GREETING)?;
    ensure!(client.exchange(&bytes, bytes.len())? == bytes, "bytes came back changed");
    Ok(())
}

/// The server's bytes of `struct vchan_interface`: orders 12 of both rings, the client awaited, the server there, and two
/// bytes without a meaning. The references of the rings' grants follow.
const ORDERS_AND_LIVE: [u8; 8] = [12, 0, 12, 0, 2, 1, 0, 0];
/// Where they are.
const OFFSET: usize = 16;

/// A server that makes its ring anew, stopped where the old ring's pages are granted no more and its keys still name it.
fn taken_back() -> Result<()> {
    let (store, place) = (Xenstore::open()?, place("taken-back")?);
    let (events, allocator) = (EventChannels::open()?, GrantAllocator::open()?);
    let share = |pages| allocator.share(DomId::DOM0, pages, Access::ReadWrite, OnUnmap::default());
    let (shared, rings) = (share(1)?, share(2)?);
    let port = events.bind_unbound_port(DomId::DOM0)?;
    let grants: Vec<u8> = rings.refs().iter().flat_map(|grant| grant.0.to_le_bytes()).collect();
    shared.pages().write(OFFSET, &[&ORDERS_AND_LIVE[..], &grants].concat());
    announce(&store, &place, shared.refs()[0], port)?;
    drop(rings);
    let taken = Client::attempt(&store, DomId::DOM0, &place);
    store.rm(&place)?;
    ensure!(matches!(taken, Ok(Attempt::NotReady)), "a ring that is granted no more gave {taken:?}");
    Ok(())
}

/// Writes what clients look for.
fn announce(store: &Xenstore, place: &XsPath, ring: GrantRef, port: EventPort) -> Result<()> {
    Ok(store.transaction(|store| {
        store.write(&place.join("ring-ref")?, ring.to_string().as_bytes())?;
        store.write(&place.join("event-channel")?, port.to_string().as_bytes())
    })?)
}

fn stock_client() -> Result<()> {
    for (to_server, to_client) in [(0, 0), (4096, 65_536), (1 << 20, 1 << 20)] {
        let echo = Echo::start("stock-client", RingSizes::at_least(to_server, to_client)?)?;
        for round in 0..5 {
            let count = if round == 0 { 20_000 } else { 100 };
            through_stock_client(&echo.place, count).with_context(|| format!("round {round}"))?;
        }
        echo.quit()?;
    }
    Ok(())
}

/// Sends so many bytes into the stock client's input, and waits for them at its output.
fn through_stock_client(place: &XsPath, count: usize) -> Result<()> {
    let mut command = Command::new(PROXY);
    command.args(["0", place.as_str(), "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = start_proxy(&mut command)?;
    let output = chunks(child.0.stdout.take().context("no output")?);
    let mut input = child.0.stdin.take().context("no input")?;
    let bytes = pattern(count);
    let expected = [GREETING, &bytes].concat();
    let writer = thread::spawn(move || input.write_all(&bytes).map(|()| input));
    ensure!(so_many(&output, expected.len())? == expected, "bytes came back changed");
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    Ok(())
}

fn start_proxy(command: &mut Command) -> Result<Stopped> {
    command.spawn().map(Stopped).context("cannot start the stock proxy")
}

/// At least so many bytes, and what came with the last of them.
fn so_many(output: &Receiver<Vec<u8>>, count: usize) -> Result<Vec<u8>> {
    let deadline = Instant::now() + seconds(30);
    let mut got = Vec::new();
    while got.len() < count {
        let left = deadline.saturating_duration_since(Instant::now());
        let chunk = output.recv_timeout(left);
        got.extend(chunk.with_context(|| format!("{} bytes of {count} came", got.len()))?);
    }
    Ok(got)
}

fn stock_server() -> Result<()> {
    let place = place("stock-server")?;
    let socket = unused("vchan.sock")?;
    let ends = greet_and_echo(UnixListener::bind(&socket)?);
    let server = start_proxy(Command::new(PROXY).args(["--mode=server", "0", place.as_str()]).arg(&socket))?;
    for round in 0..3 {
        comes_back(&place, 20_000).with_context(|| format!("round {round}"))?;
        // A client that came before the stock server has noticed the end would get no greeting.
        ends.recv_timeout(seconds(30)).context("the stock server does not notice the client's end")?;
    }
    drop(server);
    Xenstore::open()?.rm(&place)?;
    Ok(fs::remove_file(&socket)?)
}

/// Greets each who connects, and sends everything back. Tells when a connection has ended.
fn greet_and_echo(listener: UnixListener) -> Receiver<()> {
    let (ended, ends) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.write_all(GREETING);
            echo(stream);
            let _ = ended.send(());
        }
    });
    ends
}

/// Sends everything back, to the connection's end.
fn echo(mut stream: UnixStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
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

/// How many sessions of the monitor there are.
const ROUNDS: u32 = 200;

fn monitor_sessions() -> Result<()> {
    let guest = GuestConfig::hello("asked").create()?;
    let (target, stub) = guest.domids()?;
    let place = XsPath::new(format!("/local/domain/{stub}/device-model/{target}/qmp-vchan"))?;
    // It holds the one session there can be.
    kill_hard("outriggerd")?;
    let begin = Instant::now();
    for round in 0..ROUNDS {
        ask(stub, &place).with_context(|| format!("round {round} of {ROUNDS}"))?;
    }
    println!("{ROUNDS} sessions of QEMU's monitor took {} ms", begin.elapsed().as_millis());
    cut_sessions_leave_nothing(stub, &place)?;
    start_outriggerd()?;
    guest.destroy()
}

/// Cut in the middle of a command, and of an answer: the next session knows nothing of it.
fn cut_sessions_leave_nothing(stub: DomId, place: &XsPath) -> Result<()> {
    for request in [
        "{\"execute\": \"qmp_capabilities\"",
        "{\"execute\": \"qmp_capabilities\"}{\"execute\": \"query-qmp-schema\"}",
    ] {
        let mut session = Asking::connect(stub, place)?;
        ensure!(session.line()?.starts_with("{\"QMP\""), "no greeting");
        session.send(request.as_bytes())?;
        drop(session);
        ask(stub, place).with_context(|| format!("after {request} was cut"))?;
    }
    Ok(())
}

/// One session: greeting, negotiation, one question.
fn ask(stub: DomId, place: &XsPath) -> Result<()> {
    let mut session = Asking::connect(stub, place)?;
    let greeting = session.line()?;
    ensure!(greeting.starts_with("{\"QMP\""), "the first line is no greeting: {greeting}");
    session.command("{\"execute\": \"qmp_capabilities\"}")?;
    session.send(b"{\"execute\": \"query-status\"}")?;
    let answer = session.answer()?;
    ensure!(answer.contains("\"running\""), "the monitor answers {answer}");
    Ok(())
}
