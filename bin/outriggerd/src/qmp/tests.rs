//! Sessions over real sockets, with a QEMU that the test plays.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener as Listener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use ::qmp::policy::Policy;
use ::qmp::testing::{Play, Stage, conformance, conformance_after_loss};
use config::{GuestConfig, Uuid};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use xen_types::DomId;

use super::*;
use crate::dial::{Connection, Dialing, Place, Stream};
use crate::tests::world::PATIENCE;

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 1, \"minor\": 2, \"major\": 7}, \
                        \"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n";

type Player = Box<dyn FnMut(&str, &Value) -> Play + Send>;

/// QEMUs that a function plays: one connection after the other.
#[derive(Clone, Default)]
struct Played {
    inner: Arc<Mutex<Inside>>,
}

#[derive(Default)]
struct Inside {
    player: Option<Player>,
    /// The connection of now.
    stream: Option<UnixStream>,
    connections: usize,
    /// The monitor is on a console: it greets nobody, and an earlier daemon has negotiated with it.
    on_console: bool,
}

impl Played {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, text: &str) {
        if let Some(stream) = &mut self.lock().stream {
            let _ = stream.write_all(text.as_bytes());
        }
    }

    fn hang_up(&self) {
        if let Some(stream) = self.lock().stream.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Plays one connection to its end.
    fn play(&self, stream: UnixStream) {
        let on_console = self.lock().on_console;
        if !on_console {
            self.say(GREETING);
        }
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { return };
            if line == b"\xff" {
                self.say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"stray input\"}}\r\n");
                continue;
            }
            let line = String::from_utf8(line).unwrap();
            let request: Value = serde_json::from_str(&line).unwrap();
            let verb = if request["execute"].is_null() { "exec-oob" } else { "execute" };
            let command = request[verb].as_str().unwrap().to_owned();
            let play = match command.as_str() {
                "qmp_capabilities" if on_console => {
                    Play::Refuse(::qmp::ErrorClass::CommandNotFound, "already complete".to_owned())
                }
                "qmp_capabilities" => Play::Return(json!({})),
                "query-version" if on_console => {
                    Play::Return(json!({"qemu": {"micro": 1, "minor": 2, "major": 7}, "package": ""}))
                }
                other => match &mut self.lock().player {
                    Some(player) => player(other, &request["arguments"]),
                    None => Play::Return(json!({"running": true, "status": "running"})),
                },
            };
            let id = &request["id"];
            let text = match play {
                Play::Return(value) => json!({"return": value, "id": id}).to_string(),
                Play::ReturnAfter(events, value) => {
                    events.iter().for_each(|event| self.tell(&event.name, &event.data));
                    json!({"return": value, "id": id}).to_string()
                }
                Play::Refuse(class, desc) => {
                    json!({"error": {"class": class.name(), "desc": desc}, "id": id}).to_string()
                }
                Play::Silence => continue,
                Play::Lose => return self.hang_up(),
            };
            self.say(&format!("{text}\r\n"));
        }
    }

    fn tell(&self, name: &str, data: &Value) {
        let mut event = json!({"event": name, "timestamp": {"seconds": 1, "microseconds": 2}});
        if !data.is_null() {
            event["data"] = data.clone();
        }
        self.say(&format!("{event}\r\n"));
    }
}

impl Dial for Played {
    fn dial(&self, _: Place) -> Dialing {
        let (ours, theirs) = UnixStream::pair().unwrap();
        {
            let mut inside = self.lock();
            inside.stream = Some(theirs.try_clone().unwrap());
            inside.connections += 1;
        }
        let played = self.clone();
        let on_console = self.lock().on_console;
        thread::spawn(move || played.play(theirs));
        Box::pin(async move {
            ours.set_nonblocking(true)?;
            let stream: Box<dyn Stream> = Box::new(tokio::net::UnixStream::from_std(ours)?);
            Ok(if on_console { Connection::Console(stream) } else { Connection::Session(stream) })
        })
    }
}

/// A daemon's sessions in an event loop of their own.
struct World {
    qmp: Qmp,
    played: Played,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    folder: TempDir,
}

fn guest() -> Guest {
    let domid = |number| DomId::new(number).unwrap();
    let config = config::load_str("/x.cfg", "name='hello'\ntype='hvm'\nmemory=32\n").config;
    let config: GuestConfig = config.expect("a configuration");
    let uuid = "7d6f8f3e-0d83-4c1c-a0ce-5b1e8d7a3a10".parse().unwrap();
    Guest {
        uuid,
        stub_uuid: Uuid::from_u128(2),
        name: "hello".to_owned(),
        domid: domid(5),
        stub_domid: domid(6),
        config,
    }
}

impl World {
    fn new() -> Self {
        Self::with(MuxConfig::default())
    }

    /// On a console.
    fn on_console() -> Self {
        let played = Played::default();
        played.lock().on_console = true;
        Self::of(played, MuxConfig::default())
    }

    fn with(config: MuxConfig) -> Self {
        Self::of(Played::default(), config)
    }

    fn of(played: Played, config: MuxConfig) -> Self {
        Self::with_files(played, config, Box::new(RealFiles))
    }

    fn with_files(played: Played, config: MuxConfig, files: Box<dyn Files>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dial = Arc::new(played.clone());
        let access = Access::new(Policy::default()).unwrap();
        let qmp =
            Qmp::with_files(&folder.path().join("outriggerd.sock"), access, config, dial, files).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, started) = mpsc::channel();
        let kept = qmp.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                kept.has(&guest());
                ready.send(()).unwrap();
                let _ = stopped.await;
                kept.gone(&guest());
            });
        });
        started.recv().unwrap();
        Self { qmp, played, stop: Some(stop), thread: Some(thread), folder }
    }

    /// Where the guest's socket is, once it is settled.
    fn socket(&self) -> Option<PathBuf> {
        let socket = self.qmp.socket(guest().id()).expect("a session");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(socket.ready())
    }

    fn client(&self) -> Client {
        let stream = UnixStream::connect(self.socket().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client { writer: stream.try_clone().unwrap(), reader: BufReader::new(stream) };
        assert!(!client.line()["QMP"].is_null());
        assert_eq!(client.ask(&json!({"execute": "qmp_capabilities"})), json!({"return": {}}));
        client
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

struct Client {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Client {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn send(&mut self, request: &Value) {
        self.writer.write_all(request.to_string().as_bytes()).unwrap();
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.send(request);
        self.line()
    }
}

/// The stage of the real monitor: each has a world of its own.
#[derive(Default)]
struct RealStage {
    worlds: Mutex<Vec<World>>,
}

impl RealStage {
    fn played(&self) -> Played {
        self.worlds.lock().unwrap().last().expect("a world").played.clone()
    }
}

impl Stage for RealStage {
    fn monitor(&self, player: Player) -> Arc<dyn Monitor> {
        let world = World::new();
        world.played.lock().player = Some(player);
        let monitor = world.qmp.monitor(guest().id()).unwrap();
        // Its session stands when a client is greeted.
        let mut client = world.client();
        drop(client.ask(&json!({"execute": "__io.outrigger_status"})));
        self.worlds.lock().unwrap().push(world);
        monitor
    }

    fn tell(&self, name: &str, data: Value) {
        self.played().tell(name, &data);
    }

    fn lose(&self) {
        self.played().hang_up();
    }
}

#[test]
fn monitor_passes_the_conformance_suite_of_the_fake() {
    conformance(&RealStage::default());
    conformance_after_loss(&RealStage::default());
}

#[test]
fn two_hundred_quick_rounds_lose_no_greeting() {
    let world = World::new();
    for round in 0..200 {
        let answer = world.client().ask(&json!({"execute": "query-status", "id": round}));
        assert_eq!(answer["id"], round);
    }
    assert_eq!(world.played.lock().connections, 1);
}

#[test]
fn hundred_clients_at_once_get_their_own_answers() {
    let world = World::new();
    thread::scope(|scope| {
        for n in 0..100 {
            let world = &world;
            scope.spawn(move || {
                let mut client = world.client();
                for round in 0..20 {
                    let answer = client.ask(&json!({"execute": "query-status", "id": [n, round]}));
                    assert_eq!(answer["id"], json!([n, round]));
                    assert_eq!(answer["return"]["status"], "running");
                }
            });
        }
    });
    assert_eq!(world.played.lock().connections, 1);
}

#[test]
fn clients_stay_when_the_session_is_made_anew() {
    clients_stay(&World::new());
}

#[test]
fn clients_stay_when_the_session_on_a_console_is_made_anew() {
    clients_stay(&World::on_console());
}

fn clients_stay(world: &World) {
    let mut client = world.client();
    assert_eq!(client.ask(&json!({"execute": "query-status"}))["return"]["running"], true);
    world.played.lock().player = Some(Box::new(|_, _| Play::Silence));
    client.send(&json!({"execute": "query-status", "id": 1}));
    // The request has to be with QEMU: the status of ours tells so.
    while client_status(world)["in-flight"] != 1 {
        thread::yield_now();
    }
    world.played.lock().player = None;
    world.played.hang_up();
    let lost = client.line();
    assert!(lost["error"]["desc"].as_str().unwrap().contains("was lost"), "{lost}");
    assert_eq!(lost["id"], 1);
    assert_eq!(client.line()["event"], "OUTRIGGER_SESSION_LOST");
    assert_eq!(client.line()["event"], "OUTRIGGER_SESSION_RESTORED");
    assert_eq!(client.ask(&json!({"execute": "query-status"}))["return"]["running"], true);
}

fn client_status(world: &World) -> Value {
    world.client().ask(&json!({"execute": "__io.outrigger_status"}))["return"].clone()
}

#[test]
fn client_that_reads_nothing_harms_nobody() {
    let world = World::new();
    let mut deaf = world.client();
    deaf.writer.set_nonblocking(true).unwrap();
    let request = json!({"execute": "query-status"}).to_string();
    while deaf.writer.write(request.as_bytes()).is_ok() {}
    for n in 0..2000 {
        world.played.tell("BLOCK_IO_ERROR", &json!({"n": n, "pad": "x".repeat(200)}));
    }
    let mut client = world.client();
    for id in 0..50 {
        client.send(&json!({"execute": "query-status", "id": id}));
        while client.line()["id"] != id {}
    }
}

#[test]
fn socket_goes_with_its_guest_and_with_its_name() {
    let world = World::new();
    let mut client = world.client();
    let renamed = Guest { name: "a/b".to_owned(), ..guest() };
    world.qmp.has(&renamed);
    let socket = world.folder.path().join("qmp/a%2Fb.sock");
    assert_eq!(world.socket().unwrap(), socket);
    assert_eq!(client.ask(&json!({"execute": "query-status"}))["return"]["running"], true);
    world.qmp.gone(&renamed);
    let end = client.line();
    assert!(end["data"]["reason"].as_str().unwrap().contains("ended"), "{end}");
    let mut line = String::new();
    assert_eq!(client.reader.read_line(&mut line).unwrap(), 0, "{line}");
    assert!(world.qmp.monitor(guest().id()).is_err());
    let start = Instant::now();
    while socket.exists() {
        assert!(start.elapsed() < PATIENCE, "the socket is still there");
        thread::yield_now();
    }
}

/// A file system that hangs until the other end is dropped.
struct Hung(Mutex<mpsc::Receiver<()>>);

impl Hung {
    fn until_dropped() -> (Box<dyn Files>, mpsc::Sender<()>) {
        let (thaw, frozen) = mpsc::channel();
        (Box::new(Self(Mutex::new(frozen))), thaw)
    }

    fn hang(&self) {
        let _ = self.0.lock().unwrap().recv();
    }
}

impl Files for Hung {
    fn bind(&self, socket: &Path, group: Option<nix::unistd::Gid>) -> io::Result<Listener> {
        self.hang();
        RealFiles.bind(socket, group)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.hang();
        RealFiles.rename(from, to)
    }

    fn remove(&self, socket: &Path) {
        self.hang();
        RealFiles.remove(socket);
    }
}

#[test]
fn file_system_of_the_sockets_that_hangs_delays_nothing_else() {
    let (files, thaw) = Hung::until_dropped();
    // It has started, so the event loop did not wait for the socket.
    let world = World::with_files(Played::default(), MuxConfig::default(), files);
    let monitor = world.qmp.monitor(guest().id()).unwrap();
    let status = monitor.execute(&::qmp::Request::new("query-status"), Instant::now() + PATIENCE).unwrap();
    assert!(status.get().contains("running"), "{status}");
    // All the changes that wait are made in order when it answers again.
    for name in ["b", "c", "hello"] {
        world.qmp.has(&Guest { name: name.to_owned(), ..guest() });
    }
    assert!(!world.folder.path().join("qmp/hello.sock").exists());
    drop(thaw);
    assert_eq!(world.socket().unwrap(), world.folder.path().join("qmp/hello.sock"));
    assert_eq!(world.client().ask(&json!({"execute": "query-status"}))["return"]["running"], true);
    assert!(!world.folder.path().join("qmp/b.sock").exists());
}

#[test]
fn long_name_of_a_guest_does_not_cost_it_its_socket() {
    let long = |last: &str| Guest { name: "x".repeat(99) + last, uuid: Uuid::from_u128(7), ..guest() };
    let folder = Path::new("/run/outrigger/qmp");
    let path = super::socket_path(folder, &long("a"));
    assert_eq!(path, folder.join("%uuid-00000000-0000-0000-0000-000000000007.sock"));
    assert_eq!(super::socket_path(folder, &guest()), folder.join("hello.sock"));
}

#[test]
fn what_a_listener_and_a_late_request_leave_is_removed() {
    let world = World::new();
    let shared = world.qmp.lock().get(&guest().id()).unwrap().shared();
    let monitor = world.qmp.monitor(guest().id()).unwrap();
    let subscriptions: Vec<_> = (0..10).map(|_| monitor.events(&["STOP"]).unwrap()).collect();
    assert_eq!(shared.waiters().listeners.len(), 10);
    drop(subscriptions);
    assert_eq!(shared.waiters().listeners.len(), 0);
    drop(world);
    let late = monitor.execute(&::qmp::Request::new("query-status"), Instant::now() + PATIENCE);
    assert!(matches!(late, Err(QmpError::NoSession { .. })), "{late:?}");
    assert_eq!(shared.waiters().answers.len(), 0);
    // Nor does one whose events are all that is left of the session.
    let subscription = monitor.events(&["STOP"]);
    drop(subscription);
    assert_eq!(shared.waiters().listeners.len(), 0);
}
