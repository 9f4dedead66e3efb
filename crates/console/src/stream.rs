//! A console as a one-way stream of the toolstack's: state out (console 1) and state in (console 2).
//!
//! A console has no end. This is how each side learns of one:
//!
//! | direction | the toolstack | the guest |
//! |---|---|---|
//! | out, framed | [`Stream::receive`] returns after the last frame, when length and checksum are right | wrote the last frame |
//! | out, plain | [`Stream::receive_plain`]: the caller says when QEMU is done (QMP), and then everything that is still in the ring or on its way has come when nothing came for a while | QEMU says so over QMP |
//! | in, framed | [`Stream::send`] returns when the guest has taken every byte | reads the last frame |
//! | in, plain | [`Stream::send_plain`], the same | the format has an end of its own |
//!
//! Nothing is lost on the way: the daemon leaves bytes in the ring until the stream's reader has taken those before
//! them, and the guest waits. A stream begins with the byte that the guest writes next: open it before the guest is
//! asked to write.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stubdom_abi::stream::{CHUNK_MAX, Decoder, Encoder, FrameError, Piece};
use thiserror::Error;
use uuid::Uuid;
use xen_types::DomId;

use crate::attach::{AttachError, ask};
use crate::request::{Request, Wanted, Which};

/// Why a stream did not reach its end.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The daemon does not give it.
    #[error("Cannot open the stream of a console")]
    Open(#[from] AttachError),
    /// The console ended before the stream did.
    #[error("The console of domain {domid} ended after {bytes} bytes of a stream; its log may say why")]
    Ended {
        /// The domain.
        domid: DomId,
        /// Bytes that were moved.
        bytes: u64,
    },
    /// Nothing moved for as long as the caller would wait.
    #[error("The stream of domain {domid} made no progress for {patience:?} after {bytes} bytes")]
    Stalled {
        /// The domain.
        domid: DomId,
        /// Bytes that were moved.
        bytes: u64,
        /// How long was waited.
        patience: Duration,
    },
    /// The bytes are not what was sent.
    #[error("The stream of domain {domid} is damaged")]
    Frame {
        /// The domain.
        domid: DomId,
        /// How.
        source: FrameError,
    },
    /// The toolstack's own end failed.
    #[error("Cannot {doing} for the stream of domain {domid}")]
    Own {
        /// What was tried.
        doing: &'static str,
        /// The domain.
        domid: DomId,
        /// The system's error.
        source: io::Error,
    },
}

/// Ends a stream that another thread works on, which then fails.
#[derive(Debug)]
pub struct Closer(UnixStream);

impl Closer {
    /// Ends it now.
    pub fn close(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// One console's bytes from now on, none lost.
#[derive(Debug)]
pub struct Stream {
    folder: PathBuf,
    domid: DomId,
    uuid: Option<Uuid>,
    number: u32,
    socket: UnixStream,
    /// How long nothing may move.
    patience: Duration,
    moved: u64,
}

impl Stream {
    /// Takes the stream of a console; `folder` is the daemon's socket folder ([`crate::attach::SOCKET_DIR`]). Without a
    /// byte moving for `patience`, operations fail.
    ///
    /// # Errors
    /// When there is no such console or daemon, or someone else has the stream.
    pub fn open(folder: &Path, domid: DomId, number: u32, patience: Duration) -> Result<Self, StreamError> {
        // The UUID is checked at the end, since the domid may be reused until then.
        let uuid = || Ok::<_, StreamError>(listed(folder, domid, number)?.and_then(|listed| listed.uuid));
        let known = uuid()?;
        let mut stream = Self::open_named(folder, domid, known, number, patience)?;
        if known.is_none() {
            // The daemon found the console between the two requests.
            stream.uuid = uuid()?;
        }
        Ok(stream)
    }

    /// The same for a caller who knows the domain's UUID.
    ///
    /// # Errors
    /// As [`Stream::open`], and when another domain has the domid.
    pub fn open_of(
        folder: &Path,
        (domid, uuid): (DomId, Uuid),
        number: u32,
        patience: Duration,
    ) -> Result<Self, StreamError> {
        Self::open_named(folder, domid, Some(uuid), number, patience)
    }

    fn open_named(
        folder: &Path,
        domid: DomId,
        uuid: Option<Uuid>,
        number: u32,
        patience: Duration,
    ) -> Result<Self, StreamError> {
        let console = Wanted { domid, which: Which::Number(number), uuid };
        let socket = ask(folder, &Request::Stream { console })?;
        let stream = Self { folder: folder.to_owned(), domid, uuid, number, socket, patience, moved: 0 };
        stream.socket.set_read_timeout(Some(patience)).map_err(stream.own("set a deadline"))?;
        stream.socket.set_write_timeout(Some(patience)).map_err(stream.own("set a deadline"))?;
        Ok(stream)
    }

    /// Writes a framed stream from the console to `to`, and returns its length without frames.
    ///
    /// # Errors
    /// When it ends, stalls, is damaged, or `to` fails.
    pub fn receive(mut self, to: &mut impl Write) -> Result<u64, StreamError> {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = self.read(&mut buffer)?;
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let domid = self.domid;
                let (used, piece) =
                    decoder.take(rest).map_err(|source| StreamError::Frame { domid, source })?;
                rest = rest.get(used..).unwrap_or_default();
                match piece {
                    Piece::Data(bytes) => to.write_all(&bytes).map_err(self.own("write"))?,
                    Piece::End { length } => {
                        to.flush().map_err(self.own("write"))?;
                        return Ok(length);
                    }
                    Piece::More => {}
                }
            }
        }
    }

    /// Writes a plain stream from the console to `to` until `is_done` says that the guest has written its end and then
    /// nothing has come for `quiet`; returns its length.
    ///
    /// # Errors
    /// When it ends, stalls before `is_done`, or `to` fails.
    pub fn receive_plain(
        mut self,
        to: &mut impl Write,
        quiet: Duration,
        mut is_done: impl FnMut() -> bool,
    ) -> Result<u64, StreamError> {
        let mut buffer = vec![0; 64 * 1024];
        self.socket.set_read_timeout(Some(quiet)).map_err(self.own("set a deadline"))?;
        let mut last = Instant::now();
        // Asked before each wait: what was written before the answer comes within the wait.
        let mut done = is_done();
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(self.ended()),
                Ok(count) => {
                    to.write_all(&buffer[..count]).map_err(self.own("write"))?;
                    self.moved += count as u64;
                    last = Instant::now();
                }
                Err(error) if is_timeout(&error) && done => {
                    to.flush().map_err(self.own("write"))?;
                    return Ok(self.moved);
                }
                Err(error) if is_timeout(&error) && last.elapsed() >= self.patience => {
                    return Err(self.stalled());
                }
                Err(error) if is_timeout(&error) => {}
                Err(source) => return Err(self.own("read the console")(source)),
            }
            done = done || is_done();
        }
    }

    /// Sends everything that `from` has as a framed stream, and returns its length without frames when the guest has
    /// taken every byte.
    ///
    /// # Errors
    /// When the console ends or stalls, or `from` fails.
    pub fn send(mut self, from: &mut impl Read) -> Result<u64, StreamError> {
        let mut encoder = Encoder::default();
        let mut buffer = vec![0; CHUNK_MAX];
        let mut frame = Vec::new();
        loop {
            let count = from.read(&mut buffer).map_err(self.own("read"))?;
            frame.clear();
            if count == 0 {
                encoder.end(&mut frame);
            } else {
                encoder.data(&buffer[..count], &mut frame);
            }
            self.write(&frame)?;
            if count == 0 {
                self.wait_until_taken()?;
                return Ok(encoder.length());
            }
        }
    }

    /// Sends everything that `from` has as it is, and returns its length when the guest has taken every byte.
    ///
    /// # Errors
    /// When the console ends or stalls, or `from` fails.
    pub fn send_plain(mut self, from: &mut impl Read) -> Result<u64, StreamError> {
        let mut buffer = vec![0; CHUNK_MAX];
        loop {
            let count = from.read(&mut buffer).map_err(self.own("read"))?;
            if count == 0 {
                self.wait_until_taken()?;
                return Ok(self.moved);
            }
            self.write(&buffer[..count])?;
        }
    }

    /// Lets another thread end the stream.
    ///
    /// # Errors
    /// When the system has no descriptor for it.
    pub fn closer(&self) -> Result<Closer, StreamError> {
        self.socket.try_clone().map(Closer).map_err(self.own("share"))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        match self.socket.read(buffer) {
            Ok(0) => Err(self.ended()),
            Ok(count) => {
                self.moved += count as u64;
                Ok(count)
            }
            Err(error) if is_timeout(&error) => Err(self.stalled()),
            Err(source) => Err(self.own("read the console")(source)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        match self.socket.write_all(bytes) {
            Ok(()) => {
                self.moved += bytes.len() as u64;
                Ok(())
            }
            Err(error) if is_timeout(&error) => Err(self.stalled()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.ended()),
            Err(source) => Err(self.own("write to the console")(source)),
        }
    }

    /// Tells the daemon that this is all, and waits until it says that the guest has it.
    fn wait_until_taken(&mut self) -> Result<(), StreamError> {
        self.socket.shutdown(Shutdown::Write).map_err(self.own("end the stream"))?;
        let mut buffer = [0; 4096];
        loop {
            // What the guest says meanwhile is not of interest.
            match self.socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if is_timeout(&error) => return Err(self.stalled()),
                Err(source) => return Err(self.own("read the console")(source)),
            }
        }
        // The connection also ends when the console does.
        let listed = listed(&self.folder, self.domid, self.number)?;
        let is_there = listed.is_some_and(|listed| listed.is_connected && listed.uuid == self.uuid);
        if is_there { Ok(()) } else { Err(self.ended()) }
    }

    const fn ended(&self) -> StreamError {
        StreamError::Ended { domid: self.domid, bytes: self.moved }
    }

    const fn stalled(&self) -> StreamError {
        StreamError::Stalled { domid: self.domid, bytes: self.moved, patience: self.patience }
    }

    fn own(&self, doing: &'static str) -> impl Fn(io::Error) -> StreamError + use<> {
        let domid = self.domid;
        move |source| StreamError::Own { doing, domid, source }
    }
}

/// A console in the daemon's list.
struct Listed {
    is_connected: bool,
    /// `None` when the daemon is of a version that does not list it.
    uuid: Option<Uuid>,
}

fn listed(folder: &Path, domid: DomId, number: u32) -> Result<Option<Listed>, StreamError> {
    let mut report = String::new();
    let failed = |source| StreamError::Own { doing: "read the list", domid, source };
    ask(folder, &Request::List)?.read_to_string(&mut report).map_err(failed)?;
    let id = format!("{domid}.{number} ");
    Ok(report.lines().find_map(|line| {
        let words: Vec<&str> = line.strip_prefix(&id)?.split(' ').collect();
        let uuid = words.get(5).and_then(|word| word.parse().ok());
        Some(Listed { is_connected: words.first() == Some(&"connected"), uuid })
    }))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
