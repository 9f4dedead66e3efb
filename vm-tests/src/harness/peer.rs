//! The other host of a pair: a case that runs on both tells it words and hears its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::seconds;

/// The disk that both hosts have.
pub(crate) const SHARED_DISK: &str = "/dev/vda";
/// Another one, of 1 MiB.
pub(crate) const SMALL_SHARED_DISK: &str = "/dev/vdb";
/// Where host-a listens.
const PORT: u16 = 7700;
/// How long one host waits for the other, in seconds: both do things that take their time.
const PATIENCE: u64 = 360;
/// Between attempts to reach a host that does not listen yet.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest word, in bytes: what a command has said may be in it.
const LONGEST: u64 = 1 << 20;

/// Which of the two this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its name in `/etc/hosts` of both.
    pub(crate) const fn host_name(self) -> &'static str {
        match self {
            Self::A => "host-a",
            Self::B => "host-b",
        }
    }
}

/// The connection to the other host.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) side: Side,
    stream: BufReader<TcpStream>,
}

impl Peer {
    /// Joins the other host, which calls this too.
    pub(crate) fn join() -> Result<Self> {
        let side = match std::env::var("OUTRIGGER_HOST").as_deref() {
            Ok("a") => Side::A,
            Ok("b") => Side::B,
            _ => bail!("this dom0 is not of a pair of hosts (OUTRIGGER_HOST)"),
        };
        let address = SocketAddr::new(address(Side::A.host_name())?, PORT);
        let stream = match side {
            Side::A => accept(address)?,
            Side::B => connect(address)?,
        };
        stream.set_read_timeout(Some(seconds(PATIENCE)))?;
        Ok(Self { side, stream: BufReader::new(stream) })
    }

    /// Tells the other host a word, which has no line break.
    pub(crate) fn tell(&mut self, word: &str) -> Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(format!("{word}\n").as_bytes()).context("the other host cannot be told")
    }

    /// Waits for a word of the other host.
    pub(crate) fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.by_ref().take(LONGEST).read_line(&mut line).context("the other host says nothing")?;
        ensure!(line.ends_with('\n'), "the other host hung up");
        line.pop();
        Ok(line)
    }
}

/// The address that `/etc/hosts` has for a name.
pub(super) fn address(name: &str) -> Result<IpAddr> {
    let hosts = std::fs::read_to_string("/etc/hosts").context("cannot read /etc/hosts")?;
    let line = hosts.lines().find(|line| line.split_whitespace().skip(1).any(|word| word == name));
    let address = line.and_then(|line| line.split_whitespace().next());
    address.with_context(|| format!("/etc/hosts has no {name}"))?.parse().context("no address")
}

fn accept(address: SocketAddr) -> Result<TcpStream> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
    listener.set_nonblocking(true)?;
    let stream = until("host-b does not come", || listener.accept().map(|(stream, _)| stream))?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    until("host-a does not listen", || TcpStream::connect_timeout(&address, seconds(5)))
}

/// Tries until it succeeds.
pub(crate) fn until<T>(complaint: &str, mut attempt: impl FnMut() -> std::io::Result<T>) -> Result<T> {
    let deadline = Instant::now() + seconds(PATIENCE);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error).context(complaint.to_owned()),
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
}
