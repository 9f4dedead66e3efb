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

use super::session::Shared;

/// What is read of a client at once.
const CHUNK: usize = 4096;
/// Bytes that are gathered for one write.
const BATCH: usize = 16 << 10;
/// How long a client that is closed may take for its last words.
const LAST: Duration = Duration::from_secs(5);

/// Serves a client until it goes, breaks the protocol, or its guest is gone.
pub(super) async fn serve(shared: Arc<Shared>, stream: UnixStream, id: ClientId, notify: Arc<Notify>) {
    let last = pump(&shared, stream, id, &notify).await;
    shared.with(|mux| mux.close_client(id));
    let mut outside = shared.outside();
    outside.clients.remove(&id);
    outside.closing.remove(&id);
    if let Err(error) = last {
        tracing::debug!(%error, "a client of QMP is gone");
    }
}

async fn pump(shared: &Shared, stream: UnixStream, id: ClientId, notify: &Notify) -> io::Result<()> {
    let socket = Socket::new(stream)?;
    let mut chunk = vec![0; CHUNK];
    let (mut output, mut written) = (Vec::new(), 0);
    // The clock is read once for each time that this wakes: under Xen that is a system call.
    let mut now = Instant::now();
    loop {
        if written == output.len() {
            output = shared.with(|mux| gather(mux, id, now));
            written = 0;
        }
        let closing = shared.outside().closing.remove(&id);
        if let Some(last) = closing {
            output.extend_from_slice(&last);
            let rest = output.get(written..).unwrap_or_default();
            return tokio::time::timeout(LAST, socket.write_all(rest)).await?;
        }
        if shared.has_ended() {
            return Ok(());
        }
        let wants = shared.mux().wants_client_bytes(id);
        let rest = output.get(written..).unwrap_or_default();
        tokio::select! {
            count = socket.write(rest), if !rest.is_empty() => written += count?,
            count = socket.read(&mut chunk), if wants => {
                now = Instant::now();
                match count? {
                    0 => return Ok(()),
                    count => {
                        let bytes = chunk.get(..count).unwrap_or_default();
                        shared.with(|mux| mux.client_bytes(id, bytes, now));
                    }
                }
            }
            () = notify.notified() => now = Instant::now(),
        }
    }
}

/// A client's socket. Tokio's own is polled for room at all times, and wakes this process whenever the client has read;
/// here that happens only while something waits for room.
struct Socket(AsyncFd<Stream>);

impl Socket {
    fn new(stream: UnixStream) -> io::Result<Self> {
        // It stays non-blocking.
        polled(stream.into_std()?, Interest::READABLE).map(Self)
    }

    async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(count) = ready.try_io(|socket| socket.get_ref().read(into)) {
                // What fills less than there was room for was all; its end is told of by itself.
                if matches!(count, Ok(count) if count < into.len()) {
                    ready.clear_ready();
                }
                return count;
            }
        }
    }

    async fn write(&self, from: &[u8]) -> io::Result<usize> {
        match self.0.get_ref().write(from) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let again = polled(self.0.get_ref().try_clone()?, Interest::WRITABLE)?;
                again.async_io(Interest::WRITABLE, |mut socket| socket.write(from)).await
            }
            written => written,
        }
    }

    async fn write_all(&self, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            match self.write(from).await? {
                0 => return Err(ErrorKind::WriteZero.into()),
                count => from = from.get(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }
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
