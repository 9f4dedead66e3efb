//! The task that owns the connection to a device model.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use super::shared::Shared;
use crate::dial::{Connection, Dial, Dialing, Place, Stream};

/// What is read of a device model at once: what its side of a vchan holds at most, near enough.
const CHUNK: usize = 4096;

/// The connection to a device model.
pub(super) struct Link {
    shared: Arc<Shared>,
    dial: Arc<dyn Dial>,
    place: Place,
    state: State,
}

enum State {
    Idle,
    Dialing(Dialing),
    Open(Open),
}

struct Open {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    output: Vec<u8>,
    written: usize,
}

/// What the connection's task has waited for.
enum Woken {
    Work,
    Due,
    Dialed(io::Result<Connection>),
    Read(io::Result<usize>),
    Written(io::Result<usize>),
}

impl Link {
    pub(super) fn new(shared: Arc<Shared>, dial: Arc<dyn Dial>, place: Place) -> Self {
        Self { shared, dial, place, state: State::Idle }
    }

    /// Keeps the connection for as long as the session lives.
    pub(super) async fn run(mut self) {
        let mut chunk = vec![0; CHUNK];
        let mut now = self.shared.clock.now();
        loop {
            let (next, pause) = self.follow(now);
            let woken = {
                let work = self.shared.work.notified();
                let sleep = async {
                    match next {
                        Some(next) => tokio::time::sleep_until(next.into()).await,
                        None => std::future::pending().await,
                    }
                };
                let mut moved = pin!(self.state.moved(&mut chunk, pause));
                let moved = poll_fn(|cx| {
                    // Where the work begins that the device model pays for.
                    now = self.shared.clock.now();
                    moved.as_mut().poll(cx)
                });
                tokio::select! {
                    biased;
                    woken = moved => woken,
                    () = work => Woken::Work,
                    () = sleep => Woken::Due,
                }
            };
            if let (Woken::Due, Some(next)) = (&woken, next) {
                // This clock is behind the one that woke us.
                now = now.max(next);
            }
            let is_bytes = matches!(woken, Woken::Read(_));
            self.take(woken, &chunk, now);
            if is_bytes {
                let start = std::mem::replace(&mut now, self.shared.clock.now());
                self.shared.mux().session_worked(now.saturating_duration_since(start), now);
            }
        }
    }

    /// Brings the connection to where the multiplexer wants it; gives when to look again, and how long not to read.
    fn follow(&mut self, now: Instant) -> (Option<Instant>, Option<Duration>) {
        let mut mux = self.shared.mux();
        mux.tick(now);
        let mut waiters = self.shared.settle(&mut mux);
        if std::mem::take(&mut waiters.hangup) {
            self.state = State::Idle;
        }
        match &mut self.state {
            State::Idle if mux.wants_dial() => {
                self.state = State::Dialing(self.dial.dial(self.place));
            }
            State::Open(open) if open.written == open.output.len() => {
                open.output = mux.take_session_output();
                open.written = 0;
            }
            _ => {}
        }
        waiters.planned = mux.next_tick();
        (waiters.planned, mux.session_pause(now))
    }

    fn connected(&mut self, connection: Connection, now: Instant) {
        let (stream, is_console) = match connection {
            Connection::Session(stream) => (stream, false),
            Connection::Console(stream) => (stream, true),
        };
        let (reader, writer) = tokio::io::split(stream);
        self.state = State::Open(Open { reader, writer, output: Vec::new(), written: 0 });
        self.shared.with(|mux| match is_console {
            true => mux.connected_to_console(&nonce(), now),
            false => mux.connected(now),
        });
    }

    fn take(&mut self, woken: Woken, chunk: &[u8], now: Instant) {
        let lost = match woken {
            Woken::Work | Woken::Due => return,
            Woken::Dialed(Ok(connection)) => return self.connected(connection, now),
            Woken::Read(Ok(count)) if count > 0 => {
                let bytes = chunk.get(..count).unwrap_or_default();
                return self.shared.with(|mux| mux.session_bytes(bytes, now));
            }
            Woken::Written(Ok(count)) => {
                if let State::Open(open) = &mut self.state {
                    open.written += count;
                }
                return;
            }
            Woken::Read(Ok(_)) => "the device model has closed the connection".to_owned(),
            Woken::Dialed(Err(error)) | Woken::Read(Err(error)) | Woken::Written(Err(error)) => {
                error.to_string()
            }
        };
        self.state = State::Idle;
        self.shared.with(|mux| mux.disconnected(&lost, now));
    }
}

/// A text that no session before had: 64 bits of the system's randomness.
fn nonce() -> String {
    use std::hash::{BuildHasher as _, RandomState};

    format!("{:016x}{:016x}", RandomState::new().hash_one(0), std::process::id())
}

impl State {
    /// Waits until bytes have moved or the connection stands.
    async fn moved(&mut self, chunk: &mut [u8], pause: Option<Duration>) -> Woken {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Dialing(dialing) => Woken::Dialed(dialing.await),
            Self::Open(Open { reader, writer, output, written }) => {
                let rest = output.get(*written..).unwrap_or_default();
                let read = async {
                    match pause {
                        // It has sent too much: let it wait.
                        Some(pause) => {
                            tokio::time::sleep(pause).await;
                            Woken::Work
                        }
                        None => Woken::Read(reader.read(chunk).await),
                    }
                };
                tokio::select! {
                    woken = read => woken,
                    count = writer.write(rest), if !rest.is_empty() => Woken::Written(count),
                }
            }
        }
    }
}
