//! One client of a guest's socket.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream as Stream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::qmp::mux::ClientId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::shared::Shared;

/// What is read of a client at once.
const CHUNK: usize = 4096;
/// Bytes that are gathered for one write.
const BATCH: usize = 16 << 10;
/// How long a closing client may take to read its last messages.
const LAST: Duration = Duration::from_secs(5);

/// Serves a client until it disconnects, violates the protocol, or its guest ends.
pub(super) async fn serve(shared: Arc<Shared>, stream: UnixStream, id: ClientId, notify: Arc<Notify>) {
    let last = pump(&shared, stream, id, &notify).await;
    shared.with(|mux| mux.close_client(id));
    let mut waiters = shared.waiters();
    waiters.clients.remove(&id);
    waiters.closing.remove(&id);
    if let Err(error) = last {
        tracing::debug!(%error, "a QMP client disconnected");
    }
}

async fn pump(shared: &Shared, stream: UnixStream, id: ClientId, notify: &Notify) -> io::Result<()> {
    let mut socket = Socket::new(stream)?;
    let mut chunk = vec![0; CHUNK];
    let (mut output, mut written) = (Vec::new(), 0);
    let mut now = shared.clock.now();
    loop {
        if written == output.len() {
            output = shared.with(|mux| gather(mux, id, now));
            written = 0;
        }
        let closing = shared.waiters().closing.remove(&id);
        if let Some(last) = closing {
            output.extend_from_slice(&last);
            let rest = output.get(written..).unwrap_or_default();
            return tokio::time::timeout(LAST, socket.write_all(rest)).await?;
        }
        if shared.has_ended() {
            return tokio::time::timeout(LAST, say_all(shared, &mut socket, id, output, written)).await?;
        }
        let wants = shared.mux().wants_client_bytes(id);
        let rest = output.get(written..).unwrap_or_default();
        let moved = tokio::select! {
            moved = socket.moved(wants.then_some(chunk.as_mut_slice()), rest) => moved?,
            () = notify.notified() => {
                now = shared.clock.now();
                continue;
            }
        };
        match moved {
            Moved::Written(count) => written += count,
            Moved::Read(0) => return Ok(()),
            Moved::Read(count) => {
                now = shared.clock.now();
                let bytes = chunk.get(..count).unwrap_or_default();
                shared.with(|mux| mux.client_bytes(id, bytes, now));
            }
        }
    }
}

/// Writes everything that waits for a client.
async fn say_all(
    shared: &Shared,
    socket: &mut Socket,
    id: ClientId,
    mut output: Vec<u8>,
    written: usize,
) -> io::Result<()> {
    output.drain(..written);
    while !output.is_empty() {
        socket.write_all(&output).await?;
        output = shared.with(|mux| gather(mux, id, shared.clock.now()));
    }
    Ok(())
}

/// A client's socket. Tokio's own is polled for room at all times, and wakes this process whenever the client has read;
/// here that happens only while something waits for room.
struct Socket {
    stream: AsyncFd<Stream>,
    /// Another descriptor of it, while there is no room. A client that does not read costs no system calls then,
    /// however often there is news for it.
    full: Option<AsyncFd<Stream>>,
}

impl Socket {
    fn new(stream: UnixStream) -> io::Result<Self> {
        // It stays non-blocking.
        Ok(Self { stream: polled(stream.into_std()?, Interest::READABLE)?, full: None })
    }

    /// Moves bytes, whichever way can. Nothing is lost when it is dropped while it waits.
    async fn moved(&mut self, into: Option<&mut [u8]>, from: &[u8]) -> io::Result<Moved> {
        let Self { stream, full } = self;
        let read = async {
            match into {
                Some(into) => read(stream, into).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            count = write(stream, full, from), if !from.is_empty() => count.map(Moved::Written),
            count = read => count.map(Moved::Read),
        }
    }

    async fn write_all(&mut self, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            match write(&self.stream, &mut self.full, from).await? {
                0 => return Err(ErrorKind::WriteZero.into()),
                count => from = from.get(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }
}

/// How many bytes went which way.
enum Moved {
    Read(usize),
    Written(usize),
}

async fn read(socket: &AsyncFd<Stream>, into: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = socket.readable().await?;
        if let Ok(count) = ready.try_io(|socket| socket.get_ref().read(into)) {
            // What fills less than there was room for was all; its end is told of by itself.
            if matches!(count, Ok(count) if count < into.len()) {
                ready.clear_ready();
            }
            return count;
        }
    }
}

async fn write(
    socket: &AsyncFd<Stream>,
    full: &mut Option<AsyncFd<Stream>>,
    from: &[u8],
) -> io::Result<usize> {
    if full.is_none() {
        match socket.get_ref().write(from) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                *full = Some(polled(socket.get_ref().try_clone()?, Interest::WRITABLE)?);
            }
            written => return written,
        }
    }
    let Some(again) = full.as_ref() else { return Err(ErrorKind::WouldBlock.into()) };
    let written = again.async_io(Interest::WRITABLE, |mut socket| socket.write(from)).await;
    *full = None;
    written
}

fn polled(stream: Stream, interest: Interest) -> io::Result<AsyncFd<Stream>> {
    #[expect(
        deprecated,
        reason = "its replacement is unsafe; a stream keeps its descriptor as long as it lives"
    )]
    AsyncFd::with_interest(stream, interest)
}

/// Takes what waits for a client, and reads on in what it has sent where that was held up.
fn gather(mux: &mut ::qmp::mux::Mux, id: ClientId, now: Instant) -> Vec<u8> {
    let mut output = Vec::new();
    while output.len() < BATCH
        && let Some(text) = mux.take_client_output(id)
    {
        output.extend_from_slice(text.as_bytes());
    }
    mux.read_client(id, now);
    output
}
