//! A host in memory with the daemon on it, and a player of stubdomains.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ::qmp::mux::MuxConfig;
use ::qmp::policy::Policy;
use api::client::{Client, ClientError};
use api::frame::Splitter;
use api::types::{
    CreateParameters, Event, Guest, GuestParameter, Guests, OneGuest, Outcome, Progress, Refusal, State,
};
use config::HostDefaults;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{broadcast, oneshot};
use toolstack::host::SimHost;
use toolstack::{Deadlines, Paths, Toolstack};
use xen::{Hypervisor, Operation, ShutdownReason, SimHypervisor};
use xen_types::DomId;
use xenstore::Xenstore;
use xenstore::server::Server;

use super::qemu::{self, Qemus};
use crate::daemon::Daemon;
use crate::dial::{Dial, Dialing, Place};
use crate::guest::registry::Registry;
use crate::guest::shared::Shared;
use crate::qmp::{Access, Qmp};

/// Device models that never answer.
struct Never;

impl Dial for Never {
    fn dial(&self, _: Place) -> Dialing {
        Box::pin(std::future::pending())
    }
}

fn sessions(socket: &Path, dial: Arc<dyn Dial>) -> Qmp {
    let access = Access::new(Policy::default()).unwrap();
    Qmp::new(socket, access, MuxConfig::default(), dial).unwrap()
}

/// How long anything that has to come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The configuration's file, as clients say it.
pub(crate) const FILE: &str = "/etc/xen/hello.cfg";

/// The host.
pub(crate) struct World {
    pub(crate) hypervisor: Arc<SimHypervisor>,
    pub(crate) server: Arc<Server>,
    pub(crate) host: Arc<SimHost>,
    pub(crate) stubs: Arc<Stubs>,
    pub(crate) qemus: Qemus,
    files: TempDir,
}

/// A daemon on it.
pub(crate) struct Service {
    pub(crate) shared: Shared,
    pub(crate) events: Listener,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let hypervisor = Arc::new(SimHypervisor::new());
        let server = Arc::new(Server::start());
        let stubs = Arc::new(Stubs::default());
        let (store, player, xenstored) = (server.connect(DomId::DOM0), stubs.clone(), server.clone());
        hypervisor.observe(move |hypervisor, operation| {
            player.play(hypervisor, &store, &xenstored, operation);
        });
        let (qemus, files) = (Qemus::new(&server), tempfile::tempdir().unwrap());
        let world = Self { hypervisor, server, host: Arc::default(), stubs, qemus, files };
        for name in ["vmlinuz", "initramfs.img", "hvmloader", "seabios"] {
            let path = world.files.path().join(name);
            // The simulated hypervisor reads what goes into a domain from real files.
            fs::write(&path, b"content").unwrap();
            world.host.put_file(&path, b"content");
        }
        world
    }

    /// A toolstack on a connection of its own, as each daemon has one.
    pub(crate) fn toolstack(&self) -> Toolstack {
        let file = |name: &str| self.files.path().join(name);
        let paths = Paths {
            state: file("state"),
            stubdomain: self.files.path().to_owned(),
            hvmloader: vec![file("hvmloader")],
            seabios: vec![file("seabios")],
            ..Paths::default()
        };
        let store = self.server.connect(DomId::DOM0);
        Toolstack::new(self.hypervisor.clone(), store, self.host.clone())
            .with_paths(paths)
            .with_deadlines(Deadlines::default())
    }

    /// What drivers share, without a daemon.
    pub(crate) fn shared(&self) -> Shared {
        let toolstack = self.toolstack();
        let qmp = sessions(&self.files.path().join("outriggerd.sock"), Arc::new(Never));
        Shared { toolstack, registry: Registry::new(), qmp, host: Arc::default() }
    }

    pub(crate) fn start(&self) -> Service {
        self.start_with(self.toolstack())
    }

    pub(crate) fn start_with(&self, toolstack: Toolstack) -> Service {
        self.serve(toolstack, Arc::new(Never), HostDefaults::default())
    }

    /// A daemon on a host with an `xl.conf`.
    pub(crate) fn start_on(&self, host: HostDefaults) -> Service {
        self.serve(self.toolstack(), Arc::new(Never), host)
    }

    /// A daemon that reaches the QEMUs.
    pub(crate) fn start_with_qemu(&self, toolstack: Toolstack) -> Service {
        let qemus = Arc::new(self.qemus.clone());
        self.serve(toolstack.with_states(qemus.clone()), qemus, HostDefaults::default())
    }

    fn serve(&self, toolstack: Toolstack, dial: Arc<dyn Dial>, host: HostDefaults) -> Service {
        let socket = self.files.path().join("outriggerd.sock");
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, started) = mpsc::channel();
        let path = socket.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let outcome = runtime.block_on(async {
                let daemon = Daemon::start(&path, toolstack, sessions(&path, dial), host).await?;
                // Drivers have not begun yet, so nothing is missed.
                let events = Listener::new(&daemon.shared);
                let _ = ready.send((daemon.shared.clone(), events));
                let end = async {
                    let _ = stopped.await;
                };
                daemon.run(end).await
            });
            // A killed daemon waits for nothing.
            runtime.shutdown_background();
            outcome
        });
        let (shared, events) = started.recv_timeout(PATIENCE).unwrap();
        Service { shared, events, socket, stop: Some(stop), thread: Some(thread) }
    }

    /// A domain shuts itself down, and xenstored tells it.
    pub(crate) fn end(&self, domid: DomId, reason: ShutdownReason) {
        self.hypervisor.guest_shuts_down(domid, reason);
        self.server.shut_down_domain(domid);
    }

    /// Another toolstack destroys a guest and its stubdomain.
    pub(crate) fn destroy_behind(&self, guest: &Guest) {
        for domid in [guest.stub_domid, Some(guest.domid)].into_iter().flatten() {
            self.hypervisor.destroy_domain(domid).unwrap();
            self.server.destroy_domain(domid);
        }
    }

    /// Nothing of any guest is left.
    pub(crate) fn check_clean(&self) {
        assert_eq!(self.hypervisor.leftovers(), Vec::<String>::new());
        let state = self.host.state();
        let is_json = |path: &&PathBuf| path.extension().is_some_and(|end| end == "json");
        let files: Vec<_> = state.files.keys().filter(is_json).collect();
        assert!(files.is_empty() && state.loops.is_empty(), "{files:?} {:?}", state.loops);
    }
}

impl Service {
    /// Waits until everything that an earlier daemon left is settled.
    pub(crate) fn settle(&self) {
        let under_way = [State::Creating, State::Destroying];
        eventually("what was left is settled", || {
            self.shared.registry.all().iter().all(|entry| !under_way.contains(&entry.view.state))
        });
    }

    pub(crate) fn client(&self) -> Client {
        let client = Client::connect(&self.socket).unwrap();
        client.set_deadline(Some(PATIENCE)).unwrap();
        client
    }

    pub(crate) fn raw(&self) -> Raw {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw { stream, splitter: Splitter::default() }
    }

    pub(crate) fn create(&self, more: &str) -> Result<Guest, ClientError> {
        create(&mut self.client(), &config(more), &mut Vec::new())
    }

    pub(crate) fn destroy(&self, guest: &str) -> Result<(), ClientError> {
        self.client().call("Destroy", &named(guest)).map(|_: Progress| ())
    }

    pub(crate) fn get(&self, guest: &str) -> Result<Guest, ClientError> {
        self.client().call("Get", &named(guest)).map(|found: OneGuest| found.guest)
    }

    pub(crate) fn list(&self) -> Vec<Guest> {
        self.client().call::<_, Guests>("List", &json!({})).unwrap().guests
    }

    /// Ends the daemon as SIGKILL does: what is under way stays as it is.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.stop.take();
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits until the daemon ends by itself.
    pub(crate) fn wait(mut self) -> anyhow::Result<()> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A configuration of a guest called hello.
pub(crate) fn config(more: &str) -> String {
    format!("type = \"hvm\"\nname = \"hello\"\nmemory = 64\n{more}\n")
}

pub(crate) fn parameters(config: &str) -> CreateParameters {
    CreateParameters { config: config.to_owned(), path: FILE.to_owned(), paused: false, force: false }
}

pub(crate) fn named(guest: &str) -> GuestParameter {
    GuestParameter { guest: guest.to_owned() }
}

/// Creates a guest, noting the steps.
pub(crate) fn create(
    client: &mut Client,
    config: &str,
    steps: &mut Vec<(String, Outcome)>,
) -> Result<Guest, ClientError> {
    let mut guest = None;
    client.call_more("Create", &parameters(config), |progress: Progress| {
        steps.extend(progress.step.map(|step| (step.id, step.outcome)));
        guest = progress.guest;
        true
    })?;
    Ok(guest.unwrap())
}

/// The failure of the interface that a call ended with.
pub(crate) fn failure<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Refusal {
    match result {
        Err(ClientError::Refused { refusal, .. }) => *refusal,
        other => panic!("{other:?} where a failure has to be"),
    }
}

/// Subscribes to events.
pub(crate) struct Listener {
    events: broadcast::Receiver<Event>,
}

impl Listener {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self { events: shared.registry.subscribe() }
    }

    pub(crate) fn next(&mut self) -> Event {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let next = async { tokio::time::timeout(PATIENCE, self.events.recv()).await };
        runtime.block_on(next).expect("something happens").unwrap()
    }

    /// The next events are these, in this order; the last one is returned.
    pub(crate) fn expect(&mut self, kinds: &[&str]) -> Event {
        let seen: Vec<Event> = kinds.iter().map(|_| self.next()).collect();
        assert_eq!(seen.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), kinds);
        seen.into_iter().next_back().unwrap()
    }

    /// Whether this event was published, whatever else was.
    pub(crate) fn heard(&mut self, kind: &str) -> bool {
        std::iter::from_fn(|| self.events.try_recv().ok()).any(|event| event.kind == kind)
    }

    /// No event was published that was not asked for.
    pub(crate) fn expect_nothing(&mut self) {
        assert!(self.events.is_empty(), "{:?}", self.events.try_recv());
    }
}

/// A connection without the client's manners.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    splitter: Splitter,
}

impl Raw {
    pub(crate) fn send(&mut self, call: &Value) {
        self.stream.write_all(format!("{call}\0").as_bytes()).unwrap();
    }

    /// The next reply; nothing when the daemon has closed the connection.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        loop {
            if let Some(frame) = self.splitter.next_frame() {
                return Some(serde_json::from_slice(&frame).unwrap());
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.splitter.push(&chunk[..count]).unwrap(),
                // Closed with bytes of ours unread.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Looks until something holds, at most as long as anything may take.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

/// What stubdomains do when they are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Say that QEMU runs.
    #[default]
    Work,
    /// Say nothing, and hold whoever starts them, until they are to do something else.
    Hold,
    /// End at once, as crashed.
    Die,
    /// Panic whoever starts them.
    Panic,
}

/// Plays all stubdomains.
#[derive(Default)]
pub(crate) struct Stubs {
    state: Mutex<StubsState>,
    changed: Condvar,
}

#[derive(Default)]
struct StubsState {
    mode: Mode,
    /// Stubdomains started so far.
    started: usize,
    /// The first so many of them never go on.
    abandoned: usize,
    /// Calls to Xen that lifecycles may make before one never gets its answer.
    calls: Option<usize>,
    /// Whether that one was made.
    cut: bool,
}

impl Stubs {
    pub(crate) fn set(&self, mode: Mode) {
        self.state.lock().unwrap().mode = mode;
        self.changed.notify_all();
    }

    /// Those that are held now never go on, like the threads of a killed daemon; later ones work.
    pub(crate) fn abandon(&self) {
        let mut state = self.state.lock().unwrap();
        state.abandoned = state.started;
        state.mode = Mode::Work;
    }

    /// Of the next lifecycle, the thread never goes on after its `n`th call to Xen, from 1.
    pub(crate) fn cut_at(&self, n: usize) {
        self.state.lock().unwrap().calls = Some(n);
    }

    /// Whether a lifecycle was cut off.
    pub(crate) fn has_cut(&self) -> bool {
        self.state.lock().unwrap().cut
    }

    /// Waits until so many stubdomains were started.
    pub(crate) fn wait_started(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let (_state, waited) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| state.started < count).unwrap();
        assert!(!waited.timed_out(), "{count} stubdomains are not started");
    }

    fn play(&self, hypervisor: &SimHypervisor, store: &Xenstore, server: &Server, operation: &Operation) {
        self.count_call();
        let (Some(stub), "unpause_domain", true) = (operation.domid, operation.name, operation.done) else {
            return;
        };
        let Some(target) = hypervisor.target(stub) else { return };
        match self.wait_turn() {
            Mode::Work => qemu::begin(store, stub, target),
            Mode::Die => {
                hypervisor.guest_shuts_down(stub, ShutdownReason::Crash);
                server.shut_down_domain(stub);
            }
            Mode::Panic => panic!("a lifecycle's bug, for a test"),
            Mode::Hold => {}
        }
    }

    fn count_call(&self) {
        // Others, which look at guests, have no names of lifecycles.
        let lifecycle = thread::current().name().is_some_and(|name| name.ends_with(" hello"));
        let mut state = self.state.lock().unwrap();
        let Some(left) = state.calls.filter(|_| lifecycle) else { return };
        state.calls = left.checked_sub(1).filter(|left| *left > 0);
        if state.calls.is_none() {
            state.cut = true;
            drop(state);
            // Longer than any test takes: this thread's daemon is dead.
            thread::park_timeout(100 * PATIENCE);
        }
    }

    fn wait_turn(&self) -> Mode {
        let mut state = self.state.lock().unwrap();
        state.started += 1;
        let number = state.started;
        self.changed.notify_all();
        let held = |state: &mut StubsState| state.mode == Mode::Hold || number <= state.abandoned;
        // Longer than any test waits for anything.
        let (state, _) = self.changed.wait_timeout_while(state, 3 * PATIENCE, held).unwrap();
        if number <= state.abandoned { Mode::Hold } else { state.mode }
    }
}

/// The path of the stubdomain's log in dom0.
pub(crate) fn stub_log() -> PathBuf {
    Paths::default().console_log("hello-dm", 0)
}
