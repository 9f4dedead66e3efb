//! A host in memory: simulated hypervisor, xenstored in this process, simulated dom0, and a thread that plays
//! backends and stubdomains.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use config::GuestConfig;
use tempfile::TempDir;
use toolstack::host::{SimHost, SimState};
use toolstack::{CreateOptions, Deadlines, Error, Guest, GuestInfo, Paths, Toolstack};
use xen::{CpuMap, ShutdownReason, SimHypervisor};
use xen_types::DomId;
use xenstore::server::Server;
use xenstore::{Store, Watch, Xenstore, XsPath};

use crate::fault::{FaultyLink, faulty_link};
use crate::qemu::Qemu;

/// What the simulated stubdomains do when they are started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stubs {
    /// Say that QEMU runs.
    Work,
    /// End at once, as crashed.
    Die,
    /// Say nothing.
    Hang,
}

/// What the simulated guests' PV drivers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drivers {
    /// There are none.
    None,
    /// Connect devices, and let them go when asked.
    Polite,
    /// The same, but a guest that is asked to suspend takes notice, and does so when the test says so.
    Slow,
    /// Connect devices, and never let one go.
    Stubborn,
}

pub(crate) struct World {
    pub(crate) hypervisor: Arc<SimHypervisor>,
    pub(crate) server: Arc<Server>,
    pub(crate) host: Arc<SimHost>,
    pub(crate) link: FaultyLink,
    pub(crate) qemu: Qemu,
    pub(crate) toolstack: Toolstack,
    drivers: Arc<Mutex<Drivers>>,
    before: Leftovers,
    actor: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    files: TempDir,
    stubs: Stubs,
}

/// Everything that a guest could leave behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Leftovers {
    domains: Vec<String>,
    nodes: BTreeMap<String, Vec<u8>>,
    host: (usize, usize, Vec<PathBuf>),
}

/// A host with its guests, without what changes by itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    nodes: BTreeSet<String>,
    images: Vec<(String, Option<PathBuf>)>,
    loops: Vec<(PathBuf, bool)>,
    discs: Vec<(String, bool, bool)>,
    scsi: (Vec<String>, Vec<String>),
    cards: Vec<String>,
    ports: BTreeMap<String, String>,
    files: BTreeSet<PathBuf>,
    /// What each guest is told of the most memory that it may have.
    limits: Vec<Option<Vec<u8>>>,
    /// Where the first two vCPUs of each guest may run.
    affinities: Vec<[CpuMap; 2]>,
    guests: Vec<Guest>,
}

impl Picture {
    /// The guests, with their configurations.
    pub(crate) fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// Fails, naming what differs, unless both are the same.
    pub(crate) fn check_same(&self, other: &Self, case: &str) {
        let (here, there) = (self.nodes.difference(&other.nodes), other.nodes.difference(&self.nodes));
        let (more, less): (Vec<_>, Vec<_>) = (here.collect(), there.collect());
        assert!(more.is_empty() && less.is_empty(), "{case}: nodes too many {more:?}, too few {less:?}");
        assert_eq!(self.images, other.images, "{case}");
        assert_eq!(self, other, "{case}");
    }
}

pub(crate) const CONFIG: &str = r#"
type = "hvm"
name = "hello"
memory = 64
serial = ["pty", "pty"]
disk = ["/srv/a.img,raw,hda,rw", "/dev/vg/b,raw,xvdb,rw", "script=block-x,vdev=xvde,target=vol:1"]
vif = ["bridge=xenbr0", "script=vif-route,ip=10.0.0.2"]
"#;

/// One device of each kind: a fifth of the requests.
pub(crate) const SMALL_CONFIG: &str = r#"
type = "hvm"
name = "hello"
memory = 64
disk = ["/srv/a.img,raw,hda,rw"]
vif = ["bridge=xenbr0,type=vif"]
"#;

impl World {
    pub(crate) fn new(stubs: Stubs) -> Self {
        let host = Arc::new(SimHost::new());
        let files = tempfile::tempdir().unwrap();
        let paths = paths(&files, &host);
        host.put_file("/srv/a.img", &[0; 1024]);
        host.put_block("/dev/vg/b", 253, 7);
        for name in ["extra.img", "old.iso", "new.iso"] {
            host.put_file(format!("/srv/{name}"), &[0; 1024]);
        }
        host.put_bridge("xenbr0");
        host.put_bridge("xenbr1");
        Self::on(host, files, paths, stubs)
    }

    /// A world with the files of an existing host.
    fn on(host: Arc<SimHost>, files: TempDir, paths: Paths, stubs: Stubs) -> Self {
        let hypervisor = Arc::new(SimHypervisor::new());
        let server = Arc::new(Server::start());
        prepare(&server);
        let (xenstore, link) = faulty_link(&server);
        let qemu = Qemu::new(&server);
        let toolstack = Toolstack::new(hypervisor.clone(), xenstore, host.clone())
            .with_paths(paths)
            .with_monitors(Arc::new(qemu.clone()))
            .with_states(Arc::new(qemu.clone()))
            .with_deadlines(Deadlines::default().scaled(if stubs == Stubs::Hang { 0.01 } else { 1.0 }));
        let stop = Arc::new(AtomicBool::new(false));
        let drivers = Arc::new(Mutex::new(Drivers::None));
        let actor = Actor::new(&hypervisor, &server, stubs, (&drivers, &stop), &qemu);
        let actor = Some(thread::spawn(move || actor.play()));
        let before = leftovers(&hypervisor, &server, &host.state());
        Self { hypervisor, server, host, link, qemu, toolstack, drivers, before, actor, stop, files, stubs }
    }

    /// Restarts the host: its files stay, Xen counts domids from 1 and xenstore is empty.
    pub(crate) fn reboot(mut self) -> Self {
        self.host.reboot();
        let files = std::mem::replace(&mut self.files, tempfile::tempdir().unwrap());
        Self::on(self.host.clone(), files, self.toolstack.paths().clone(), self.stubs)
    }

    pub(crate) fn create(&self) -> Result<Guest, Error> {
        self.toolstack.create(&guest_config(), CreateOptions::default(), &mut |_| ())
    }

    /// Makes a guest with one device of each kind.
    pub(crate) fn create_small(&self) -> Result<Guest, Error> {
        self.toolstack.create(&parse(SMALL_CONFIG), CreateOptions::default(), &mut |_| ())
    }

    /// The guest's PV drivers come to life, or change their manners.
    pub(crate) fn give_drivers(&self, guest: DomId, drivers: Drivers) {
        *self.drivers.lock().unwrap() = drivers;
        let irq = u64::from(drivers != Drivers::None);
        xen::Hypervisor::set_hvm_param(&*self.hypervisor, guest, xen::HvmParam::CallbackIrq, irq).unwrap();
    }

    /// Replaces a file that guests are built of.
    pub(crate) fn put_firmware(&self, name: &str, content: &[u8]) {
        let path = self.files.path().join(name);
        fs::write(&path, content).unwrap();
        self.host.put_file(&path, content);
    }

    /// Waits until a device's frontend is in this state.
    pub(crate) fn wait_for_state(&self, path: &str, state: &[u8]) {
        let path = XsPath::new(path).unwrap();
        let store = self.server.connect(DomId::DOM0);
        let watch = store.watch(&path).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while store.read(&path).unwrap().as_deref() != Some(state) {
            assert!(std::time::Instant::now() < deadline, "{path} does not become {state:?}");
            let _ = watch.recv_deadline(deadline);
        }
    }

    /// The names of all nodes, what dom0 holds, and the guests' configurations.
    pub(crate) fn picture(&self) -> Picture {
        let state = self.host.state();
        let guests = self.successor().guests().unwrap();
        let nodes = self.server.dump();
        // Which image is behind each disk, whatever the loop device is.
        let image = |(path, (value, _)): (&String, &(Vec<u8>, _))| {
            let minor = String::from_utf8_lossy(value).strip_prefix("/dev/loop")?.parse::<u32>().ok()?;
            path.ends_with("/params")
                .then(|| (path.clone(), state.loops.get(&minor).map(|(file, ..)| file.clone())))
        };
        let mut loops: Vec<_> =
            state.loops.values().map(|(file, read_only, _)| (file.clone(), *read_only)).collect();
        loops.sort();
        let limit = |info: &GuestInfo| {
            nodes
                .get(&format!("/local/domain/{}/memory/static-max", info.guest.domid))
                .map(|node| node.0.clone())
        };
        let limits = guests.iter().map(limit).collect();
        let everywhere = || CpuMap::from_iter([0, 1]);
        let affinity = |domid, vcpu| {
            let hard = self.hypervisor.affinity(domid, vcpu).unwrap_or_else(everywhere);
            [hard, self.hypervisor.soft_affinity(domid, vcpu).unwrap_or_else(everywhere)]
        };
        let affinities =
            guests.iter().flat_map(|info| [0, 1].map(|vcpu| affinity(info.guest.domid, vcpu))).collect();
        Picture {
            images: nodes.iter().filter_map(image).collect(),
            nodes: nodes.into_keys().collect(),
            loops,
            // Whether an empty tray is open is no difference.
            discs: self
                .qemu
                .state()
                .0
                .into_iter()
                .map(|(id, tray)| (id, tray.disc, tray.open && tray.disc))
                .collect(),
            scsi: self.qemu.scsi(),
            cards: self.qemu.cards(),
            ports: state.ports,
            files: state.files.into_keys().filter(|path| path.starts_with("/var")).collect(),
            limits,
            affinities,
            guests: guests.into_iter().map(|info| info.guest).collect(),
        }
    }

    /// A second toolstack on a connection of its own, as a daemon's successor has it.
    pub(crate) fn successor(&self) -> Toolstack {
        Toolstack::new(self.hypervisor.clone(), self.server.connect(DomId::DOM0), self.host.clone())
            .with_paths(self.toolstack.paths().clone())
            .with_monitors(Arc::new(self.qemu.clone()))
            .with_states(Arc::new(self.qemu.clone()))
    }

    /// Removes a file that is the test's own.
    pub(crate) fn forget_file(&self, path: &std::path::Path) {
        toolstack::host::HostDevices::remove_file(&*self.host, path).unwrap();
    }

    /// What is there now that was not there at the start.
    pub(crate) fn check_clean(&self, case: &str) {
        let now = leftovers(&self.hypervisor, &self.server, &self.host.state());
        assert_eq!(now, self.before, "something is left after: {case}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(actor) = self.actor.take() {
            let _ = actor.join();
        }
    }
}

pub(crate) fn guest_config() -> GuestConfig {
    parse(CONFIG)
}

fn parse(text: &str) -> GuestConfig {
    let loaded = config::load_str("hello.cfg", text);
    assert_eq!(loaded.errors(), 0, "{}", loaded.render(false));
    loaded.config.unwrap()
}

fn paths(files: &TempDir, host: &SimHost) -> Paths {
    let put = |name: &str| {
        let path = files.path().join(name);
        // The simulated hypervisor reads what goes into a domain from real files.
        fs::write(&path, b"content").unwrap();
        host.put_file(&path, b"content");
        path
    };
    for name in ["vmlinuz", "initramfs.img"] {
        put(name);
    }
    Paths {
        stubdomain: files.path().to_owned(),
        hvmloader: vec![put("hvmloader")],
        seabios: vec![put("seabios")],
        ovmf: vec![put("ovmf")],
        ..Paths::default()
    }
}

/// The nodes that stay once the first guest was there: shared parents.
fn prepare(server: &Server) {
    let store = server.connect(DomId::DOM0);
    for path in ["/vm", "/libxl"] {
        store.mkdir(&XsPath::new(path).unwrap()).unwrap();
    }
    store.mkdir(&XsPath::new("/local/domain/0").unwrap()).unwrap();
}

fn leftovers(hypervisor: &SimHypervisor, server: &Server, host: &SimState) -> Leftovers {
    Leftovers {
        domains: hypervisor.leftovers(),
        nodes: server.dump().into_iter().map(|(path, (value, _))| (path, value)).collect(),
        host: (host.loops.len(), host.ports.len(), host.files.keys().cloned().collect()),
    }
}

/// Plays what is not simulated elsewhere: the kernel's backends, scripts' effects, and stubdomains.
struct Actor {
    hypervisor: Arc<SimHypervisor>,
    server: Arc<Server>,
    store: Xenstore,
    wake: Watch,
    stubs: Stubs,
    drivers: Arc<Mutex<Drivers>>,
    stop: Arc<AtomicBool>,
    qemu: Qemu,
}

impl Actor {
    fn new(
        hypervisor: &Arc<SimHypervisor>,
        server: &Arc<Server>,
        stubs: Stubs,
        (drivers, stop): (&Arc<Mutex<Drivers>>, &Arc<AtomicBool>),
        qemu: &Qemu,
    ) -> Self {
        let store = server.connect(DomId::DOM0);
        let wake = store.watch(&XsPath::new("/local/domain").unwrap()).unwrap();
        let (hypervisor, server) = (hypervisor.clone(), server.clone());
        let (drivers, stop) = (drivers.clone(), stop.clone());
        Self { hypervisor, server, store, wake, stubs, drivers, stop, qemu: qemu.clone() }
    }

    fn play(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            // Starting a domain changes nothing in xenstore, hence the short limit.
            let _ = self.wake.recv_timeout(Duration::from_millis(2));
            while let Ok(Some(_)) = self.wake.try_recv() {}
            let nodes = self.server.dump();
            for (path, (value, _)) in &nodes {
                self.look(path, value);
            }
        }
    }

    fn look(&self, path: &str, value: &[u8]) {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (parts.as_slice(), value) {
            (["local", "domain", "0", "backend", "vbd" | "vif", _, _, "state"], b"1") => {
                self.probe(path);
            }
            (["local", "domain", "0", "backend", kind @ ("vbd" | "vif"), frontend, devid, "state"], b"5") => {
                let front = format!("/local/domain/{frontend}/device/{kind}/{devid}/state");
                self.close(path, &front);
            }
            (["local", "domain", frontend, "device", kind @ ("vbd" | "vif"), devid, "state"], b"1") => {
                let drivers = *self.drivers.lock().unwrap();
                // A stubdomain has drivers as well; who tells its devices' states apart looks at the guest's.
                if drivers != Drivers::None {
                    let back = format!("/local/domain/0/backend/{kind}/{frontend}/{devid}/state");
                    self.change(&back, b"2", b"4");
                    if self.reads(&back, b"4") {
                        self.change(path, b"1", b"4");
                    }
                }
            }
            (["local", "domain", guest, "control", "shutdown"], b"suspend") => {
                let drivers = *self.drivers.lock().unwrap();
                if matches!(drivers, Drivers::Polite | Drivers::Slow) {
                    self.change(path, b"suspend", b"");
                }
                if drivers == Drivers::Polite
                    && let Ok(guest) = guest.parse()
                {
                    self.hypervisor.guest_shuts_down(guest, ShutdownReason::Suspend);
                }
            }
            (["local", "domain", stub, "target"], target) => {
                let (Ok(stub), Ok(target)) = (stub.parse(), String::from_utf8_lossy(target).parse()) else {
                    return;
                };
                self.play_stub(stub, target);
            }
            _ => {}
        }
    }

    /// As Linux's backends take a device up: what they can do is written whether the directory is still there or not.
    fn probe(&self, state: &str) {
        let feature =
            XsPath::new(format!("{}/max-ring-page-order", state.trim_end_matches("/state"))).unwrap();
        let _ = self.store.write(&feature, b"4");
        self.change(state, b"1", b"2");
    }

    /// As a driver does it: only if the node is still there and nobody else has changed it.
    fn change(&self, path: &str, from: &[u8], to: &[u8]) {
        let path = XsPath::new(path).unwrap();
        // Whatever fails is tried again at the next look.
        let _ = self.store.transaction(|transaction| {
            if transaction.read(&path)?.as_deref() == Some(from) {
                transaction.write(&path, to)?;
            }
            Ok(())
        });
    }

    fn reads(&self, path: &str, value: &[u8]) -> bool {
        let path = XsPath::new(path).unwrap();
        self.store.read(&path).is_ok_and(|read| read.as_deref() == Some(value))
    }

    /// A backend is to close: it does so when its frontend has, or is gone.
    fn close(&self, back: &str, front: &str) {
        if self.reads(front, b"4") {
            match *self.drivers.lock().unwrap() {
                Drivers::None | Drivers::Stubborn => return,
                Drivers::Polite | Drivers::Slow => self.change(front, b"4", b"6"),
            }
        }
        self.change(back, b"5", b"6");
    }

    /// What the agent can do.
    fn announce(&self, dir: &XsPath, is_held: bool) {
        let (features, step) = (dir.join("features").unwrap(), dir.join("agent/step").unwrap());
        let _ = self.store.transaction(|transaction| {
            if transaction.list(dir)?.is_some() && transaction.read(&features)?.is_none() {
                if is_held && transaction.read(&dir.join("start").unwrap())?.is_some() {
                    self.qemu.note_early();
                }
                transaction.write(&features, b"exit hold state-frames")?;
                transaction.write(&step, if is_held { b"held".as_slice() } else { b"serving" })?;
            }
            Ok(())
        });
    }

    /// QEMU of a restored guest starts when the agent is told, and says that it runs when it was told too.
    fn is_held(&self, stub: DomId) -> bool {
        let read = |path: &XsPath| self.store.read(path).ok().flatten();
        let vm = read(&XsPath::new(format!("/local/domain/{stub}/vm")).unwrap()).unwrap_or_default();
        let line = format!("{}/image/cmdline", String::from_utf8_lossy(&vm));
        let line = XsPath::new(line).ok().and_then(|line| read(&line)).unwrap_or_default();
        let held = stubdom_abi::has_word(&String::from_utf8_lossy(&line), stubdom_abi::HOLD_WORD);
        held && !self.qemu.goes_on_in(stub)
    }

    fn play_stub(&self, stub: DomId, target: DomId) {
        // Not through a call, since tests count calls.
        if !self.hypervisor.runs(stub) {
            return;
        }
        match self.stubs {
            Stubs::Work => {
                let dir = XsPath::new(format!("/local/domain/{stub}/device-model/{target}")).unwrap();
                let is_held = self.is_held(stub);
                self.announce(&dir, is_held);
                if is_held {
                    return;
                }
                let state = dir.join("state").unwrap();
                let _ = self.store.transaction(|transaction| {
                    if transaction.list(&dir)?.is_some() && transaction.read(&state)?.is_none() {
                        transaction.write(&state, b"running")?;
                    }
                    Ok(())
                });
            }
            Stubs::Die => {
                self.hypervisor.guest_shuts_down(stub, ShutdownReason::Crash);
                self.server.shut_down_domain(stub);
            }
            Stubs::Hang => {}
        }
    }
}
