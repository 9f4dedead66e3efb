//! The transport of migrations between two hosts, which have no ssh: `vm-tests relay HOST` is what `--connect` gets, and
//! [`Receiver`] starts `outrigger migrate-receive` for each connection; with `--xl`, one of its own starts xl's.
//!
//! ```text
//!   outrigger migrate --connect 'vm-tests relay host-b …'         outrigger migrate-receive
//!                stdin, stdout │                                     │ stdin and stdout
//!                        vm-tests relay ──────── TCP ───────── Receiver of host-b
//! ```
//!
//! A relay passes on half-closes. Instead of the byte behind a given number it cuts the connection, or holds that byte up for
//! as long as a file is there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use clap::Args;

use super::command::XL;
use super::files;
use super::peer::{Side, address, until};

/// What xl's receivers have said.
pub(crate) const XL_LOG: &str = "/var/log/outrigger/xl-migrate-receive.log";
/// How much is passed on at once, in bytes.
const PIECE: usize = 64 << 10;

/// Whose receiver a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toolstack {
    Ours,
    Xl,
}

impl Toolstack {
    /// Where a host listens for its migrations.
    const fn port(self) -> u16 {
        match self {
            Self::Ours => 7701,
            Self::Xl => 7702,
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Ours => "outrigger",
            Self::Xl => XL,
        }
    }

    /// What its receivers have said, which is shown when a case fails.
    const fn log(self) -> &'static str {
        match self {
            Self::Ours => "/var/log/outrigger/migrate-receive.log",
            Self::Xl => XL_LOG,
        }
    }

    fn place(self, host: &str) -> Result<SocketAddr> {
        Ok(SocketAddr::new(address(host)?, self.port()))
    }
}

/// What a relay is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct Relay {
    /// The other host.
    host: String,
    /// Connects to xl's receiver.
    #[arg(long)]
    xl: bool,
    /// Sends only so many bytes to the other host.
    #[arg(long)]
    sent: Option<u64>,
    /// Counts them only once so many bytes were received.
    #[arg(long, default_value_t)]
    since: u64,
    /// Receives only so many bytes from the other host.
    #[arg(long)]
    received: Option<u64>,
    /// Instead of cutting the connection, makes this file, and goes on when it is removed.
    #[arg(long)]
    hold: Option<PathBuf>,
    /// Writes what was [`Counted`] into this file at the end.
    #[arg(long)]
    count: Option<PathBuf>,
}

/// How many bytes a relay has passed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// To the other host.
    pub(crate) sent: u64,
    /// From the other host, after each piece: what that host says in one go comes as one, unless the network divides it.
    pub(crate) received: Vec<u64>,
}

impl Relay {
    /// To a host, without an end of its own.
    pub(crate) fn to(side: Side) -> Self {
        Self { host: side.host_name().to_owned(), ..Self::default() }
    }

    /// To xl's receiver.
    pub(crate) fn xl(self) -> Self {
        Self { xl: true, ..self }
    }

    /// Sends only so many bytes.
    pub(crate) fn sent(self, bytes: u64) -> Self {
        Self { sent: Some(bytes), ..self }
    }

    /// Sends only so many bytes once so many were received.
    pub(crate) fn sent_since(self, received: u64, bytes: u64) -> Self {
        Self { sent: Some(bytes), since: received, ..self }
    }

    /// Receives only so many bytes.
    pub(crate) fn received(self, bytes: u64) -> Self {
        Self { received: Some(bytes), ..self }
    }

    /// Waits where it stops for as long as this file is there.
    pub(crate) fn hold(self, file: PathBuf) -> Self {
        Self { hold: Some(file), ..self }
    }

    /// Counts into a file.
    pub(crate) fn count(self, file: PathBuf) -> Self {
        Self { count: Some(file), ..self }
    }

    /// The command for `--connect`.
    pub(crate) fn command(&self) -> String {
        let mut words = vec!["/usr/bin/vm-tests".to_owned(), "relay".to_owned(), self.host.clone()];
        words.extend(self.xl.then(|| "--xl".to_owned()));
        let since = (self.since > 0).then_some(self.since);
        for (option, bytes) in [("--sent", self.sent), ("--since", since), ("--received", self.received)] {
            words.extend(bytes.map(|bytes| format!("{option}={bytes}")));
        }
        for (option, file) in [("--hold", &self.hold), ("--count", &self.count)] {
            words.extend(file.iter().map(|file| format!("{option}={}", file.display())));
        }
        words.join(" ")
    }

    /// Is the relay between the standard input and output and the other host.
    pub(crate) fn run(&self) -> Result<()> {
        let toolstack = if self.xl { Toolstack::Xl } else { Toolstack::Ours };
        let stream =
            TcpStream::connect(toolstack.place(&self.host)?).context("the other host cannot be reached")?;
        let [input, output] = [io::stdin().as_fd(), io::stdout().as_fd()].map(|fd| fd.try_clone_to_owned());
        let counted = self.pass(input?, output?, &stream, close_output)?;
        let Some(file) = &self.count else { return Ok(()) };
        let numbers = std::iter::once(counted.sent).chain(counted.received);
        let words: Vec<String> = numbers.map(|number| number.to_string()).collect();
        Ok(fs::write(file, words.join(" ") + "\n")?)
    }

    /// Passes on both ways until both have ended or the connection is cut.
    fn pass(
        &self,
        input: OwnedFd,
        output: OwnedFd,
        stream: &TcpStream,
        close_output: impl FnOnce(),
    ) -> Result<Counted> {
        let (there, back) = (stream.try_clone()?, stream.try_clone()?);
        // How much was received.
        let seen = Arc::new(AtomicU64::new(0));
        let (seen_there, relay) = (Arc::clone(&seen), self.clone());
        let sending = thread::spawn(move || {
            let (mut sent, mut limit) = (0, None);
            let _ = copy(&mut File::from(input), &mut &there, |count| {
                if limit.is_none() && seen_there.load(Ordering::Acquire) >= relay.since {
                    limit = relay.sent.map(|bytes| sent + bytes);
                }
                let room = room(limit, sent, count);
                sent += count;
                (room, relay.stop(&there))
            });
            let _ = there.shutdown(Shutdown::Write);
            sent
        });
        let mut received = Vec::new();
        let whole = copy(&mut &back, &mut File::from(output), |count| {
            let before = seen.fetch_add(count, Ordering::AcqRel);
            received.push(before + count);
            (room(self.received, before, count), self.stop(&back))
        });
        close_output();
        // After a cut, who writes to the relay may wait for the other side: its pipe is closed with this process.
        let sent = if whole { sending.join().ok().context("the sending thread panicked")? } else { 0 };
        Ok(Counted { sent, received })
    }

    /// What is done where the relay stops; returns whether it goes on.
    fn stop<'a>(&'a self, stream: &'a TcpStream) -> impl FnOnce() -> bool + 'a {
        || match &self.hold {
            Some(file) => {
                let held = fs::write(file, "held\n").context("cannot make the file");
                held.and_then(|()| until("nobody removes the file", || gone(file))).is_ok()
            }
            None => {
                let _ = stream.shutdown(Shutdown::Both);
                false
            }
        }
    }
}

/// How many of `count` bytes behind the first `before` are passed on before the limit; `None` if all are, or if it was
/// reached before.
fn room(limit: Option<u64>, before: u64, count: u64) -> Option<usize> {
    let room = limit?.checked_sub(before)?;
    if room < count { usize::try_from(room).ok() } else { None }
}

fn gone(file: &Path) -> io::Result<()> {
    if file.exists() { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(()) }
}

/// Copies to the end of the input, and returns whether it was not stopped before. `take` gets the length of each piece, and
/// returns how much of it goes before the stop, and the stop.
fn copy<S: FnOnce() -> bool>(
    from: &mut impl Read,
    to: &mut impl Write,
    mut take: impl FnMut(u64) -> (Option<usize>, S),
) -> bool {
    let mut buffer = vec![0; PIECE];
    loop {
        let piece = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The end, or nobody is there any more.
            Ok(0) | Err(_) => return true,
            Ok(count) => &buffer[..count],
        };
        let (room, stop) = take(piece.len() as u64);
        let (first, rest) = piece.split_at(room.unwrap_or(piece.len()));
        if to.write_all(first).is_err() {
            return true;
        }
        if room.is_some() && !stop() {
            return false;
        }
        if to.write_all(rest).is_err() {
            return true;
        }
    }
}

/// Lets the reader of the standard output see its end, whether it is a pipe or a socket that is the input too.
fn close_output() {
    if let Ok(output) = io::stdout().as_fd().try_clone_to_owned() {
        let _ = UnixStream::from(output).shutdown(Shutdown::Write);
    }
    if let Ok(nothing) = File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(nothing);
    }
}

/// Starts a toolstack's `migrate-receive` for each connection, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Receiver {
    place: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Listens on this host.
    pub(crate) fn listen(side: Side, toolstack: Toolstack) -> Result<Self> {
        let place = toolstack.place(side.host_name())?;
        let listener = TcpListener::bind(place).with_context(|| format!("cannot listen at {place}"))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Acquire) {
                    return;
                }
                if let Err(error) = stream.map_err(Into::into).and_then(|stream| receive(stream, toolstack)) {
                    eprintln!("a connection for a migration failed: {error:#}");
                }
            }
        });
        Ok(Self { place, is_over, thread: Some(thread) })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        // Ends the wait for a connection.
        if TcpStream::connect(self.place).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Gives a connection to a receiver.
fn receive(stream: TcpStream, toolstack: Toolstack) -> Result<()> {
    let log = OpenOptions::new().append(true).create(true).open(toolstack.log())?;
    let mut child = Command::new(toolstack.program())
        .arg("migrate-receive")
        .stdin(Stdio::from(OwnedFd::from(stream.try_clone()?)))
        .stdout(Stdio::from(OwnedFd::from(stream)))
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run {} migrate-receive", toolstack.program()))?;
    thread::spawn(move || child.wait());
    Ok(())
}

/// A file that a relay makes when it holds the connection up.
#[derive(Debug)]
pub(crate) struct Hold(pub(crate) PathBuf);

impl Hold {
    /// Waits until the connection is held up.
    pub(crate) fn wait(&self) -> Result<()> {
        until("the connection is not held up", || fs::metadata(&self.0).map(drop))
    }

    /// Lets it go on.
    pub(crate) fn release(self) {
        drop(self);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_file(&self.0);
    }
}

impl Counted {
    /// Reads what a relay has written.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        // The relay may end a moment after the migration.
        let text = String::from_utf8(files::wait_for(file, |bytes| bytes.ends_with(b"\n"))?)?;
        let mut numbers = text.split_whitespace().map(str::parse);
        let sent = numbers.next().context("the relay has counted nothing")??;
        Ok(Self { sent, received: numbers.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relay between two ends.
    struct World {
        near: UnixStream,
        far: TcpStream,
        relay: JoinHandle<Result<Counted>>,
    }

    fn world(relay: Relay) -> World {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let (near, theirs) = UnixStream::pair().unwrap();
        let relay = thread::spawn(move || {
            let (input, output) = (theirs.try_clone()?.into(), theirs.try_clone()?.into());
            let result = relay.pass(input, output, &stream, || {
                let _ = theirs.shutdown(Shutdown::Write);
            });
            // As the process that ends.
            let _ = (theirs.shutdown(Shutdown::Both), stream.shutdown(Shutdown::Both));
            result
        });
        World { near, far, relay }
    }

    impl World {
        /// What the relay has counted in the end.
        fn counted(self) -> Counted {
            drop((self.near, self.far));
            self.relay.join().unwrap().unwrap()
        }
    }

    fn rest(mut stream: impl Read) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn say(mut stream: impl Write, text: &str) {
        stream.write_all(text.as_bytes()).unwrap();
    }

    fn hear(mut stream: impl Read, text: &str) {
        let mut bytes = vec![0; text.len()];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, text.as_bytes());
    }

    #[test]
    fn each_direction_ends_by_itself() {
        let world = world(Relay::default());
        say(&world.near, "there");
        world.near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&world.far), "there");
        say(&world.far, "and back");
        world.far.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&world.near), "and back");
        assert_eq!(world.counted(), Counted { sent: 5, received: vec![8] });
    }

    #[test]
    fn connection_is_cut_instead_of_the_next_byte() {
        let cut = world(Relay::default().sent(3));
        say(&cut.near, "abcdef");
        assert_eq!((rest(&cut.far), rest(&cut.near)), ("abc".to_owned(), String::new()));
        let cut = world(Relay::default().received(2));
        say(&cut.far, "abcdef");
        assert_eq!((rest(&cut.near), rest(&cut.far)), ("ab".to_owned(), String::new()));
        let cut = world(Relay::default().sent(0));
        say(&cut.near, "a");
        assert_eq!((rest(&cut.far), rest(&cut.near)), (String::new(), String::new()));
    }

    #[test]
    fn what_is_sent_is_counted_from_an_answer_on() {
        let cut = world(Relay::default().sent_since(6, 2));
        say(&cut.near, "as much as wanted");
        hear(&cut.far, "as much as wanted");
        say(&cut.far, "answer");
        hear(&cut.near, "answer");
        say(&cut.near, "abc");
        assert_eq!((rest(&cut.far), rest(&cut.near)), ("ab".to_owned(), String::new()));
    }

    #[test]
    fn held_byte_goes_on_when_the_file_is_gone() {
        let file = std::env::temp_dir().join(format!("outrigger-relay-{}", std::process::id()));
        let hold = Hold(file);
        let world = world(Relay::default().sent(3).hold(hold.0.clone()));
        say(&world.near, "abcdef");
        hold.wait().unwrap();
        hear(&world.far, "abc");
        world.far.set_nonblocking(true).unwrap();
        let error = (&world.far).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        world.far.set_nonblocking(false).unwrap();
        hold.release();
        world.near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&world.far), "def");
        assert_eq!(world.counted(), Counted { sent: 6, received: Vec::new() });
    }

    #[test]
    fn command_is_what_the_program_takes() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            relay: Relay,
        }
        for relay in [
            Relay::to(Side::B),
            Relay::to(Side::B).xl(),
            Relay::to(Side::A).sent(0).count("/tmp/count".into()),
            Relay::to(Side::A).sent_since(9, 1).received(7).hold("/tmp/hold".into()),
        ] {
            let command = relay.command();
            let words = command.split(' ').skip(1);
            let line = <Line as clap::Parser>::try_parse_from(words).unwrap();
            assert_eq!(line.relay, relay, "{command}");
        }
    }
}
