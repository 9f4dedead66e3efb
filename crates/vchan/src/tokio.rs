use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;
use std::time::Instant;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::client::Client;
use crate::error::VchanError;
use crate::throttle::Throttle;

/// How much of the ring is copied at once.
const CHUNK: usize = 4096;

/// A [`Client`] as tokio's `AsyncRead` and `AsyncWrite`.
///
/// The end of the stream is the server's end. Shutting down does nothing: dropping closes. One descriptor tells of
/// room and of bytes alike, so both halves of a split are woken by either. A server that wakes this side for nothing
/// is heard 200 times a second.
#[derive(Debug)]
pub struct AsyncClient {
    fd: AsyncFd<Client>,
    waiting: Arc<Waiting>,
    throttle: Throttle,
    /// Whether bytes were moved since the last wake-up.
    has_moved: bool,
    /// Until when no wake-up can come.
    pause: Option<Pin<Box<Sleep>>>,
}

/// Who waits for the event channel: at most one reader and one writer.
#[derive(Debug, Default)]
struct Waiting {
    reader: Mutex<Option<Waker>>,
    writer: Mutex<Option<Waker>>,
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        for slot in [&self.reader, &self.writer] {
            let waker = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl AsyncClient {
    /// Takes a client into the current runtime.
    ///
    /// # Errors
    /// When the runtime cannot poll its descriptor.
    pub fn new(client: Client) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its replacement is unsafe; a client keeps its descriptor as long as it lives"
        )]
        let fd = AsyncFd::with_interest(client, Interest::READABLE)?;
        let throttle = Throttle::new(Instant::now());
        Ok(Self { fd, waiting: Arc::default(), throttle, has_moved: false, pause: None })
    }

    /// The client.
    #[must_use]
    pub fn get_ref(&self) -> &Client {
        self.fd.get_ref()
    }

    /// Moves bytes until `step` gives something or no wake-up is left.
    fn poll_moved(
        &mut self,
        mine: fn(&Waiting) -> &Mutex<Option<Waker>>,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Client) -> Result<usize, VchanError>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match step(self.fd.get_mut()) {
                Ok(0) => {}
                Ok(count) => {
                    self.has_moved = true;
                    return Poll::Ready(Ok(count));
                }
                Err(error) => return Poll::Ready(Err(to_io(error))),
            }
            *mine(&self.waiting).lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
            let both = Waker::from(Arc::clone(&self.waiting));
            let mut cx_of_both = Context::from_waker(&both);
            if let Some(pause) = &mut self.pause {
                if pause.as_mut().poll(&mut cx_of_both).is_pending() {
                    return Poll::Pending;
                }
                self.pause = None;
                self.fd.get_ref().unmask().map_err(to_io)?;
                Arc::clone(&self.waiting).wake();
                continue;
            }
            let mut guard = match self.fd.poll_read_ready_mut(&mut cx_of_both) {
                Poll::Ready(Ok(guard)) => guard,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            // Cleared first: a wake-up that comes after it was taken sets it again.
            guard.clear_ready();
            if guard.get_inner().has_fired().map_err(to_io)? {
                let idle = !core::mem::take(&mut self.has_moved);
                let delay = if idle { self.throttle.idle_wakeup(Instant::now()) } else { Duration::ZERO };
                if delay.is_zero() {
                    self.fd.get_ref().unmask().map_err(to_io)?;
                } else {
                    self.pause = Some(Box::pin(sleep(delay)));
                }
                // The other half may have been waiting for this one.
                Arc::clone(&self.waiting).wake();
            }
        }
    }
}

impl AsyncRead for AsyncClient {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut buffer = [0; CHUNK];
        let length = CHUNK.min(into.remaining());
        let moved = self.get_mut().poll_moved(
            |waiting| &waiting.reader,
            cx,
            |client| client.read(&mut buffer[..length]),
        );
        match moved {
            Poll::Ready(Ok(count)) => {
                into.put_slice(&buffer[..count]);
                Poll::Ready(Ok(()))
            }
            // The end of the stream.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for AsyncClient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        if from.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.get_mut().poll_moved(|waiting| &waiting.writer, cx, |client| client.write(from))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn to_io(error: VchanError) -> io::Error {
    let kind = match error {
        VchanError::Closed => io::ErrorKind::BrokenPipe,
        VchanError::Lie(_) => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
