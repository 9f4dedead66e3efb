//! QEMUs of the simulated host, which can be stopped, saved and restored.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use stubdom_abi::{DmKey, Feature, HELD_STEP, HOLD_WORD, has_word};
use toolstack::{Cause, DeviceStates, Domain};
use xen_types::DomId;
use xenstore::server::Server;
use xenstore::{Store as _, Xenstore, XsPath};

use crate::dial::{Connection, Dial, Dialing, Place, Stream};

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 1, \"minor\": 2, \"major\": 7}, \
                        \"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n";
/// What the state of every QEMU is.
const STATE: &[u8] = b"QEVM\x00\x00\x00\x03\x04 devices\x00";

/// The QEMUs of all stubdomains. All clones are the same.
#[derive(Clone)]
pub(crate) struct Qemus {
    server: Arc<Server>,
    machines: Arc<Mutex<BTreeMap<DomId, Machine>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Machine {
    /// It was stopped, or has loaded a state and was not told to run.
    stopped: bool,
    /// It has loaded a state.
    loaded: bool,
}

impl Qemus {
    pub(crate) fn new(server: &Arc<Server>) -> Self {
        Self { server: server.clone(), machines: Arc::default() }
    }

    /// Whether the QEMU in this stubdomain runs, rather than being stopped.
    pub(crate) fn runs(&self, stub: DomId) -> bool {
        !self.machine(stub, |machine| machine.stopped)
    }

    /// Whether the QEMU in this stubdomain goes on where another was.
    pub(crate) fn has_loaded(&self, stub: DomId) -> bool {
        self.machine(stub, |machine| machine.loaded)
    }

    fn machine<T>(&self, stub: DomId, look: impl FnOnce(&mut Machine) -> T) -> T {
        look(self.machines.lock().unwrap().entry(stub).or_default())
    }

    /// Plays one connection to its end.
    fn play(&self, place: Place, stream: UnixStream) {
        let mut writer = stream.try_clone().unwrap();
        let mut say = |text: &str| writer.write_all(text.as_bytes()).is_ok();
        if !say(GREETING) {
            return;
        }
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { return };
            let request: Value = serde_json::from_slice(&line).unwrap();
            let verb = if request["execute"].is_null() { "exec-oob" } else { "execute" };
            let value = self.answer(place, request[verb].as_str().unwrap());
            if !say(&format!("{}\r\n", json!({"return": value, "id": request["id"]}))) {
                return;
            }
        }
    }

    fn answer(&self, place: Place, command: &str) -> Value {
        match command {
            "stop" => self.machine(place.stub, |machine| machine.stopped = true),
            "cont" => {
                self.machine(place.stub, |machine| machine.stopped = false);
                say_running(&self.server.connect(DomId::DOM0), place.stub, place.target);
            }
            "query-pci" => return json!([]),
            "query-version" => {
                return json!({"qemu": {"major": 7, "minor": 2, "micro": 1}, "package": ""});
            }
            "query-migrate" => {
                let has_loaded = self.has_loaded(place.stub);
                return if has_loaded { json!({"status": "completed"}) } else { json!({}) };
            }
            "query-status" => {
                let runs = self.runs(place.stub);
                return json!({"status": if runs { "running" } else { "paused" }, "running": runs});
            }
            _ => {}
        }
        json!({})
    }

    /// Removes a key that the toolstack has written for the agent; returns whether it was there.
    fn take_key(&self, stub: DomId, key: DmKey) -> bool {
        let store = self.server.connect(DomId::DOM0);
        let models = XsPath::domain(stub).join("device-model").unwrap();
        let targets = store.list(&models).unwrap().unwrap_or_default();
        let mut paths = targets.iter().map(|target| key.path(stub, target.parse().unwrap()));
        paths.any(|path| store.read(&path).unwrap().is_some() && store.rm(&path).is_ok())
    }
}

impl Dial for Qemus {
    fn dial(&self, place: Place) -> Dialing {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemus = self.clone();
        thread::spawn(move || qemus.play(place, theirs));
        Box::pin(async move {
            ours.set_nonblocking(true)?;
            let stream: Box<dyn Stream> = Box::new(tokio::net::UnixStream::from_std(ours)?);
            Ok(Connection::Session(stream))
        })
    }
}

impl DeviceStates for Qemus {
    fn receive(
        &self,
        stub: Domain,
        _: Duration,
        ask: &mut dyn FnMut() -> Result<(), Cause>,
    ) -> Result<Vec<u8>, Cause> {
        ask()?;
        assert!(!self.runs(stub.domid()), "a state of a QEMU that runs is older than the memory");
        assert!(self.take_key(stub.domid(), DmKey::StateEnd), "the agent was not told that this is all");
        Ok(STATE.to_vec())
    }

    fn send(&self, stub: Domain, state: &[u8], _: Duration) -> Result<(), Cause> {
        assert!(self.take_key(stub.domid(), DmKey::Start), "the agent was not told to start QEMU");
        assert_eq!(state, STATE);
        self.machine(stub.domid(), |machine| *machine = Machine { stopped: true, loaded: true });
        Ok(())
    }
}

/// A stubdomain's agent has started: it says what it can do, and that QEMU runs, unless it has to hold it.
pub(crate) fn begin(store: &Xenstore, stub: DomId, target: DomId) {
    let features = [Feature::Hold, Feature::StateFrames].map(Feature::word).join(" ");
    store.write(&DmKey::Features.path(stub, target), features.as_bytes()).unwrap();
    if is_held(store, stub) {
        store.write(&DmKey::AgentStep.path(stub, target), HELD_STEP.as_bytes()).unwrap();
    } else {
        say_running(store, stub, target);
    }
}

fn say_running(store: &Xenstore, stub: DomId, target: DomId) {
    store.write(&DmKey::State.path(stub, target), b"running").unwrap();
}

fn is_held(store: &Xenstore, stub: DomId) -> bool {
    let read = |path: String| {
        let value = store.read(&XsPath::new(path).unwrap()).unwrap().unwrap_or_default();
        String::from_utf8(value).unwrap()
    };
    let vm = read(format!("/local/domain/{stub}/vm"));
    has_word(&read(format!("{vm}/image/cmdline")), HOLD_WORD)
}
