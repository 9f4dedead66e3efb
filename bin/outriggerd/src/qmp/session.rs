//! One guest's session: the task that owns the connection to its device model.

use std::collections::BTreeMap;
use std::future::{Future as _, poll_fn};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::qmp::mux::{Action, ClientId, Mux, MuxConfig, Token};
use ::qmp::policy::Peer;
use ::qmp::{Event, QmpError, Request};
use config::Uuid;
use nix::unistd::Gid;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use toolstack::{Guest, GuestId};

use super::access::Access;
use super::client;
use super::clock::Clock;
use super::dial::{Dial, Dialing, Place, Reached, Stream};

/// What is read of a device model at once: what its side of a vchan holds at most, near enough.
const CHUNK: usize = 4096;
/// Events of the toolstack's listeners that may wait; a listener that is slower loses its subscription.
pub(super) const BACKLOG: usize = 256;

/// A guest's session. Dropping it ends it, and its clients with it.
pub(super) struct Session {
    stub: Uuid,
    socket: PathBuf,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the tasks of a session share, and the toolstack's threads.
pub(super) struct Shared {
    name: String,
    mux: Mutex<Mux>,
    outside: Mutex<Outside>,
    /// The connection's task has something to do.
    work: Notify,
    pub(super) clock: Clock,
}

/// Waiters, listeners and pending work outside the multiplexer.
#[derive(Default)]
pub(super) struct Outside {
    pub(super) clients: BTreeMap<ClientId, Arc<Notify>>,
    /// The last messages for clients that the multiplexer has closed.
    pub(super) closing: BTreeMap<ClientId, Vec<u8>>,
    pub(super) answers: BTreeMap<u64, SyncSender<Result<Box<RawValue>, QmpError>>>,
    pub(super) listeners: Vec<Listener>,
    pub(super) next_token: u64,
    /// Until when the connection's task sleeps.
    planned: Option<Instant>,
    /// The connection is to be dropped.
    hangup: bool,
    ended: bool,
}

impl Outside {
    fn act(&mut self, action: Action, guest: &str) {
        match action {
            // The connection's task looks at the multiplexer.
            Action::Dial => {}
            Action::Hangup => self.hangup = true,
            Action::Close(id, last) => {
                self.closing.insert(id, last);
                if let Some(notify) = self.clients.get(&id) {
                    notify.notify_one();
                }
            }
            Action::Answer(Token(token), answer) => {
                if let Some(waits) = self.answers.remove(&token) {
                    // Its thread has given up otherwise.
                    let _ = waits.try_send(answer);
                }
            }
            Action::Event(event) => self.listeners.retain(|listener| {
                let wants = listener.names.is_empty() || listener.names.contains(&event.name);
                !wants || listener.events.try_send(Told::Event(event.clone())).is_ok()
            }),
            Action::Lost(why) => {
                for listener in self.listeners.drain(..) {
                    let _ = listener.events.try_send(Told::Lost(why.clone()));
                }
            }
            Action::Note(note) => tracing::info!(guest, "QMP: {note}"),
        }
    }
}

/// A subscription of the toolstack.
pub(super) struct Listener {
    pub(super) names: Vec<String>,
    pub(super) events: SyncSender<Told>,
}

/// A notification for a listener.
pub(super) enum Told {
    Event(Event),
    Lost(String),
}

impl Session {
    /// Starts it. To be called in the event loop.
    pub(super) fn start(
        guest: &Guest,
        socket: PathBuf,
        access: Arc<Access>,
        config: MuxConfig,
        dial: &Arc<dyn Dial>,
    ) -> Self {
        let group = access.group;
        let shared = Arc::new(Shared {
            name: guest.name.clone(),
            mux: Mutex::new(Mux::new(config, Arc::clone(&access.policy), Instant::now())),
            outside: Mutex::default(),
            work: Notify::new(),
            clock: Clock::start(),
        });
        let place = Place::of(guest);
        let link = Link { shared: Arc::clone(&shared), dial: Arc::clone(dial), place, state: State::Idle };
        let mut tasks = vec![tokio::spawn(link.run())];
        match bind(&socket, group) {
            Ok(listener) => {
                tasks.push(tokio::spawn(accept(listener, Arc::clone(&shared), access, guest.id())));
            }
            Err(error) => {
                tracing::error!(guest = guest.name, socket = %socket.display(), %error, "no QMP socket");
            }
        }
        Self { stub: guest.stub_uuid, socket, shared, tasks }
    }

    pub(super) fn serves(&self, stub: Uuid) -> bool {
        self.stub == stub
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// There will be no connection to the device model any more. Clients stay, and are told.
    pub(super) fn end(&self, why: &str) {
        let now = self.shared.clock.now();
        self.shared.with(|mux| mux.end(why, now));
    }

    /// The guest has another name.
    pub(super) fn move_socket(&mut self, socket: PathBuf) {
        if socket == self.socket {
            return;
        }
        match std::fs::rename(&self.socket, &socket) {
            Ok(()) => self.socket = socket,
            Err(error) => {
                tracing::error!(socket = %socket.display(), %error, "cannot rename a QMP socket");
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        // Already removed when the daemon clears its directory.
        let _ = std::fs::remove_file(&self.socket);
        self.end("the guest has ended");
        self.shared.end();
    }
}

pub(super) fn bind(socket: &Path, group: Option<Gid>) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;

    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = crate::server::bind(socket)?;
    if let Some(group) = group {
        // Who may do what is decided by the peer's credentials.
        std::os::unix::fs::chown(socket, None, Some(group.as_raw()))?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    }
    Ok(listener)
}

async fn accept(listener: UnixListener, shared: Arc<Shared>, access: Arc<Access>, guest: GuestId) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(peer) = stream.peer_cred() else { continue };
                let peer = Peer { uid: own_as_root(peer.uid()), gid: peer.gid() };
                let permit = access.permit(peer.uid, guest);
                let client = permit.and_then(|permit| Some((permit, shared.open_client(peer)?)));
                if let Some((permit, (id, notify))) = client {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        client::serve(shared, stream, id, notify).await;
                        drop(permit);
                    });
                } else if let Some(refused) = access.refused(Instant::now()) {
                    // Anyone in the sockets' group can cause it as often as they like.
                    tracing::warn!(
                        guest = shared.name,
                        uid = peer.uid,
                        refused,
                        "refused QMP connections; the last one was this"
                    );
                }
            }
            Err(error) => {
                // Most likely out of file descriptors: others may close theirs.
                tracing::error!(%error, "cannot accept a QMP client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A daemon that is not root's, as in tests, is its own root.
fn own_as_root(uid: u32) -> u32 {
    if uid == nix::unistd::getuid().as_raw() { 0 } else { uid }
}

impl Shared {
    pub(super) fn mux(&self) -> MutexGuard<'_, Mux> {
        // A panic inside would be a bug; the others still deserve their answers.
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn outside(&self) -> MutexGuard<'_, Outside> {
        self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_client(&self, peer: Peer) -> Option<(ClientId, Arc<Notify>)> {
        let id = self.mux().open_client(peer)?;
        let notify = Arc::new(Notify::new());
        self.outside().clients.insert(id, Arc::clone(&notify));
        Some((id, notify))
    }

    /// Runs an operation on the multiplexer and wakes the tasks that have work after it.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Mux) -> T) -> T {
        let mut mux = self.mux();
        let result = work(&mut mux);
        let mut outside = self.settle(&mut mux);
        let sooner = match (mux.next_tick(), outside.planned) {
            (Some(next), Some(planned)) => next < planned,
            (next, _) => next.is_some(),
        };
        if sooner || outside.hangup || mux.has_session_output() || mux.wants_dial() {
            // Whatever it is, the connection's task looks at all of it.
            outside.planned = mux.next_tick();
            self.work.notify_one();
        }
        result
    }

    /// Asks on behalf of the toolstack.
    pub(super) fn ask(&self, token: Token, request: Request, deadline: Instant) {
        self.with(|mux| mux.ask(token, request, deadline, Instant::now()));
    }

    /// Does what the multiplexer wants, and wakes the clients that have something to read.
    fn settle(&self, mux: &mut Mux) -> MutexGuard<'_, Outside> {
        let mut outside = self.outside();
        while let Some(action) = mux.next_action() {
            outside.act(action, &self.name);
        }
        for (id, notify) in &outside.clients {
            if mux.has_client_output(*id) {
                notify.notify_one();
            }
        }
        outside
    }

    /// The guest has ended: nothing waits any longer.
    fn end(&self) {
        let mut outside = self.outside();
        outside.ended = true;
        outside.answers.clear();
        outside.listeners.clear();
        for notify in outside.clients.values() {
            notify.notify_one();
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.outside().ended
    }
}

/// The connection to a device model.
struct Link {
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
    Dialed(io::Result<Reached>),
    Read(io::Result<usize>),
    Written(io::Result<usize>),
}

impl Link {
    async fn run(mut self) {
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
        let mut outside = self.shared.settle(&mut mux);
        if std::mem::take(&mut outside.hangup) {
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
        outside.planned = mux.next_tick();
        (outside.planned, mux.session_pause(now))
    }

    fn reached(&mut self, reached: Reached, now: Instant) {
        let (stream, is_console) = match reached {
            Reached::Session(stream) => (stream, false),
            Reached::Console(stream) => (stream, true),
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
            Woken::Dialed(Ok(reached)) => return self.reached(reached, now),
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
