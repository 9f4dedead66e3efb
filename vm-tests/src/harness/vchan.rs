//! vchans: an echo server of ours, a client that waits, and QEMU's monitor behind one.

use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vchan::{Change, Client, RingSizes, Server, VchanError};
use xen_types::DomId;
use xenstore::{Connection, Store as _, Xenstore, XsPath};

use super::seconds;

/// What the echo server says first.
pub(crate) const GREETING: &[u8] = b"welcome\n";
/// A client that says this ends the server.
const QUIT: &[u8] = b"quit\n";

/// Where a server of dom0's is announced.
pub(crate) fn place(name: &str) -> Result<XsPath> {
    Ok(XsPath::new(format!("/local/domain/0/vm-tests-{name}"))?)
}

/// A server in dom0 for clients in dom0, which greets and then sends everything back.
pub(crate) struct Echo {
    pub(crate) place: XsPath,
    thread: JoinHandle<Result<()>>,
}

impl Echo {
    /// Starts it; it has opened its vchan when this returns.
    pub(crate) fn start(name: &str, sizes: RingSizes) -> Result<Self> {
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

    /// Ends it, and fails when it has failed or its keys are left.
    pub(crate) fn quit(self) -> Result<()> {
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
pub(crate) struct Asking {
    client: Client,
    deadline: Instant,
}

impl Asking {
    /// Connects.
    pub(crate) fn connect(peer: DomId, place: &XsPath) -> Result<Self> {
        let deadline = Instant::now() + seconds(30);
        Ok(Self { client: Client::connect(&Xenstore::open()?, peer, place, deadline)?, deadline })
    }

    /// Sends all of `bytes`.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.exchange(bytes, 0).map(drop)
    }

    /// Fails unless exactly these bytes come.
    pub(crate) fn expect(&mut self, bytes: &[u8]) -> Result<()> {
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
    pub(crate) fn exchange(&mut self, mut bytes: &[u8], count: usize) -> Result<Vec<u8>> {
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
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            ensure!(line.len() < 65_536, "a line without end");
            line.extend(self.exchange(&[], 1)?);
        }
        Ok(String::from_utf8(line)?)
    }

    /// The next line that is no event, of QEMU's monitor.
    pub(crate) fn answer(&mut self) -> Result<String> {
        for _ in 0..100 {
            let line = self.line()?;
            if !line.contains("\"event\"") {
                return Ok(line);
            }
        }
        bail!("a hundred events and no answer")
    }

    /// Fails unless QEMU's monitor answers that it has done what was asked.
    pub(crate) fn command(&mut self, request: &str) -> Result<()> {
        self.send(request.as_bytes())?;
        let answer = self.answer()?;
        ensure!(answer.contains("{\"return\": {}}"), "the monitor answers {answer} to {request}");
        Ok(())
    }
}

/// Bytes that are different everywhere.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 13 & 0xff).unwrap_or(0)).collect()
}
