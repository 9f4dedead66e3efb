//! A host of domains that exist only here: their ring pages and event channels, and the toolstack's writes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use console::logfile::LogStyle;
use console::platform::{DomainState, Platform};
use console::ring::{Index, RingMemory, XenconsInterface};
use console::server::{Server, Settings};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tempfile::TempDir;
use xen_types::{DomId, EventPort, Gfn, GrantRef};
use xenstore::server::Server as Xenstored;
use xenstore::{Access, Connection, Permissions, Store, XsPath};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type Page = Arc<XenconsInterface>;

#[derive(Default)]
struct State {
    dying: BTreeMap<DomId, bool>,
    grants: HashMap<(DomId, GrantRef), Page>,
    /// Ports that guests offer, and to which local port each is bound.
    offers: HashMap<(DomId, EventPort), Option<EventPort>>,
    next_port: u32,
    fired: VecDeque<EventPort>,
    masked: HashMap<EventPort, bool>,
    notified: HashMap<(DomId, EventPort), usize>,
    hypervisor_port: Option<EventPort>,
    hypervisor_said: Vec<u8>,
    /// After so many of the server's accesses to Xen and to rings, its process is killed.
    fuse: Option<u32>,
}

/// What unwinds when the server's process is killed.
pub(crate) struct Killed;

/// The simulated Xen.
#[derive(Clone)]
pub(crate) struct Xen(Arc<(Mutex<State>, EventFd)>);

impl Xen {
    fn new() -> Self {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
        Self(Arc::new((Mutex::default(), wake)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    fn fire(&self, port: EventPort) {
        let mut state = self.state();
        match state.masked.get_mut(&port) {
            Some(latched @ false) => *latched = true,
            Some(true) => {}
            None => {
                // Masked from now on, with nothing latched.
                state.masked.insert(port, false);
                state.fired.push_back(port);
            }
        }
        self.0.1.write(1).unwrap();
    }

    /// The guest sends an event.
    pub(crate) fn kick(&self, domid: DomId, port: u32) {
        let local = self.state().offers.get(&(domid, EventPort(port))).copied().flatten();
        if let Some(local) = local {
            self.fire(local);
        }
    }

    /// Kills the server's process after so many of its accesses, or not at all.
    pub(crate) fn set_fuse(&self, accesses: Option<u32>) {
        self.state().fuse = accesses;
    }

    /// Counts an access.
    fn access(&self) {
        let burnt = {
            let mut state = self.state();
            state.fuse = state.fuse.map(|left| left.saturating_sub(1));
            let burnt = state.fuse == Some(0);
            if burnt {
                state.fuse = None;
            }
            burnt
        };
        if burnt {
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// Xen itself says something on its console.
    pub(crate) fn say(&self, text: &str) {
        self.state().hypervisor_said.extend_from_slice(text.as_bytes());
        let port = self.state().hypervisor_port;
        if let Some(port) = port {
            self.fire(port);
        }
    }

    /// How often the guest was woken through this port of its.
    pub(crate) fn notified(&self, domid: DomId, port: u32) -> usize {
        self.state().notified.get(&(domid, EventPort(port))).copied().unwrap_or(0)
    }

    pub(crate) fn is_bound(&self, domid: DomId, port: u32) -> bool {
        self.state().offers.get(&(domid, EventPort(port))).is_some_and(Option::is_some)
    }

    /// Binds a port as another process does, until what this gives is dropped.
    pub(crate) fn take_port(&self, domid: DomId, port: u32) -> SimPlatform {
        let mut other = SimPlatform { xen: self.clone(), bound: Vec::new() };
        other.bind(domid, EventPort(port)).unwrap();
        other
    }

    /// Shares a fresh ring page and a port.
    pub(crate) fn offer(&self, domid: DomId, grant: u32, port: u32) -> Page {
        let page = Page::default();
        let mut state = self.state();
        state.grants.insert((domid, GrantRef(grant)), Arc::clone(&page));
        state.offers.insert((domid, EventPort(port)), None);
        page
    }
}

/// A ring page that the server has mapped.
pub(crate) struct Mapped {
    page: Page,
    xen: Xen,
}

impl RingMemory for Mapped {
    fn load(&self, index: Index) -> u32 {
        self.xen.access();
        self.page.load(index)
    }

    fn store(&self, index: Index, value: u32) {
        // A process can be killed before it and after it.
        self.xen.access();
        self.page.store(index, value);
        self.xen.access();
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) {
        self.page.copy_out(offset, to);
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        self.xen.access();
        self.page.copy_in(offset, from);
    }
}

/// One process's handle on the simulated Xen; what it holds goes when it is dropped, as when a process is killed.
pub(crate) struct SimPlatform {
    xen: Xen,
    bound: Vec<EventPort>,
}

impl Platform for SimPlatform {
    type Page = Mapped;

    fn domains(&mut self) -> io::Result<Vec<DomainState>> {
        Ok(self
            .xen
            .state()
            .dying
            .iter()
            .map(|(domid, dying)| DomainState { domid: *domid, dying: *dying })
            .collect())
    }

    fn map_grant(&mut self, domid: DomId, grant: GrantRef) -> io::Result<Mapped> {
        self.xen.access();
        let page = self.xen.state().grants.get(&(domid, grant)).cloned();
        let page = page.ok_or(ErrorKind::NotFound)?;
        Ok(Mapped { page, xen: self.xen.clone() })
    }

    fn map_frame(&mut self, domid: DomId, frame: Gfn) -> io::Result<Mapped> {
        self.map_grant(domid, GrantRef(u32::try_from(frame.get()).unwrap()))
    }

    fn bind(&mut self, domid: DomId, remote: EventPort) -> io::Result<EventPort> {
        self.xen.access();
        let port = {
            let mut state = self.xen.state();
            state.next_port += 1;
            let local = EventPort(state.next_port);
            match state.offers.get_mut(&(domid, remote)) {
                Some(offer @ None) => *offer = Some(local),
                _ => return Err(ErrorKind::InvalidInput.into()),
            }
            local
        };
        self.bound.push(port);
        self.xen.fire(port);
        Ok(port)
    }

    fn unbind(&mut self, port: EventPort) {
        let mut state = self.xen.state();
        state.offers.values_mut().filter(|bound| **bound == Some(port)).for_each(|bound| *bound = None);
        state.masked.remove(&port);
        self.bound.retain(|bound| *bound != port);
    }

    fn notify(&mut self, port: EventPort) {
        self.xen.access();
        let mut state = self.xen.state();
        assert!(self.bound.contains(&port), "an event for a port that is not bound");
        // One whose other end the domain has closed, to offer it anew: Xen drops the event.
        let remote = state.offers.iter().find(|(_, bound)| **bound == Some(port)).map(|(remote, _)| *remote);
        if let Some(remote) = remote {
            *state.notified.entry(remote).or_default() += 1;
        }
    }

    fn unmask(&mut self, port: EventPort) {
        self.xen.access();
        let latched = self.xen.state().masked.remove(&port);
        assert!(latched.is_some(), "a port that has not fired was unmasked");
        if latched == Some(true) {
            self.xen.fire(port);
        }
    }

    fn next_event(&mut self) -> io::Result<Option<EventPort>> {
        let port = self.xen.state().fired.pop_front();
        if port.is_none() {
            let _ = self.xen.0.1.read();
        }
        Ok(port)
    }

    fn watch_hypervisor_log(&mut self) -> io::Result<EventPort> {
        let port = {
            let mut state = self.xen.state();
            state.next_port += 1;
            EventPort(state.next_port)
        };
        self.xen.state().hypervisor_port = Some(port);
        Ok(port)
    }

    fn hypervisor_log(&mut self, index: u32) -> io::Result<(Vec<u8>, u32)> {
        let said = self.xen.state().hypervisor_said.clone();
        let start = usize::try_from(index).unwrap().min(said.len());
        Ok((said[start..].to_vec(), u32::try_from(said.len()).unwrap()))
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.xen.0.1.as_fd()
    }
}

impl Drop for SimPlatform {
    fn drop(&mut self) {
        for port in self.bound.clone() {
            self.unbind(port);
        }
    }
}

/// The host: simulated Xen, xenstored in this process, folders, and a console server.
pub(crate) struct Host {
    pub(crate) xen: Xen,
    pub(crate) xenstored: Xenstored,
    pub(crate) store: Connection,
    pub(crate) folder: TempDir,
    pub(crate) server: Option<Server<SimPlatform>>,
    pub(crate) log_limit: u64,
    /// How long a turn may last in which nothing happens.
    pub(crate) rest: Duration,
    /// What is different from the usual settings.
    pub(crate) adapt: fn(&mut Settings),
}

pub(crate) fn domid(number: u16) -> DomId {
    DomId::new(number).unwrap()
}

pub(crate) fn path(text: &str) -> XsPath {
    XsPath::new(text).unwrap()
}

impl Host {
    pub(crate) fn new() -> Self {
        let xenstored = Xenstored::start();
        let store = xenstored.connection(DomId::DOM0);
        // In memory, as the daemon's own folder: on a disk, a file that takes another one's name waits for that disk.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut host = Self {
            xen: Xen::new(),
            xenstored,
            store,
            folder,
            server: None,
            log_limit: LogStyle::DEFAULT_LIMIT,
            rest: Duration::from_millis(5),
            adapt: |_| {},
        };
        host.start();
        host
    }

    pub(crate) fn start(&mut self) {
        let platform = SimPlatform { xen: self.xen.clone(), bound: Vec::new() };
        let folder = self.folder.path();
        let mut settings = Settings::new(folder.join("log"), folder.join("run"));
        settings.log_style.limit = self.log_limit;
        (self.adapt)(&mut settings);
        let store = self.xenstored.connection(DomId::DOM0);
        self.server = Some(Server::start(platform, store, settings).unwrap());
    }

    /// As SIGKILL does: no goodbye, the sockets' names stay.
    pub(crate) fn kill(&mut self) {
        self.server = None;
    }

    /// Does something as a process that may be killed meanwhile; says whether it was.
    pub(crate) fn survive(&mut self, what: impl FnOnce(&mut Self)) -> bool {
        let killed = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| what(self))) {
            Ok(()) => return false,
            Err(payload) => payload,
        };
        if !killed.is::<Killed>() {
            std::panic::resume_unwind(killed);
        }
        self.kill();
        true
    }

    pub(crate) fn turn(&mut self) {
        self.server.as_mut().unwrap().turn(Some(self.rest)).unwrap();
    }

    /// Whether a turn that may last so long ends before.
    pub(crate) fn rests_less_than(&mut self, patience: Duration) -> bool {
        let start = Instant::now();
        self.server.as_mut().unwrap().turn(Some(patience)).unwrap();
        start.elapsed() < patience / 2
    }

    #[track_caller]
    pub(crate) fn until<T>(&mut self, what: &str, mut found: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "{what} has not come");
            self.turn();
        }
    }

    pub(crate) fn write(&self, at: &str, value: &str) {
        self.store.write(&path(at), value.as_bytes()).unwrap();
    }

    pub(crate) fn read(&self, at: &str) -> Option<String> {
        self.store.read(&path(at)).unwrap().map(|value| String::from_utf8(value).unwrap())
    }

    /// Makes a domain with a primary console whose port is 2.
    pub(crate) fn domain(&self, number: u16, output: &str) -> (DomId, Page) {
        let id = domid(number);
        let page = self.xen.offer(id, 0, 2);
        self.xen.state().dying.insert(id, false);
        let dir = format!("/local/domain/{number}");
        self.write(&format!("{dir}/name"), &format!("guest{number}"));
        for (key, value) in [("type", "xenconsoled"), ("output", output), ("ring-ref", "77"), ("port", "2")] {
            self.write(&format!("{dir}/console/{key}"), value);
        }
        let readable = Permissions::owned_by(DomId::DOM0).allow(id, Access::Read);
        self.store.set_perms(&path(&dir), &readable).unwrap();
        // Introduces it.
        drop(self.xenstored.connection(id));
        (id, page)
    }

    /// Makes the nodes of a secondary console as a toolstack does.
    pub(crate) fn secondary(&self, id: DomId, number: u32, kind: &str, output: &str) {
        let back = format!("/local/domain/0/backend/console/{id}/{number}");
        let front = format!("/local/domain/{id}/device/console/{number}");
        self.store
            .transaction(|t| {
                t.mkdir(&path(&front))?;
                t.set_perms(&path(&front), &Permissions::owned_by(id).allow(DomId::DOM0, Access::Read))?;
                t.write(&path(&format!("{front}/state")), b"1")?;
                for (key, value) in [("state", "1"), ("online", "1"), ("type", kind), ("output", output)] {
                    t.write(&path(&format!("{back}/{key}")), value.as_bytes())?;
                }
                Ok(())
            })
            .unwrap();
    }

    /// Plays the guest's driver: offers a ring and a port, and says so.
    pub(crate) fn frontend(&self, id: DomId, number: u32, grant: u32, port: u32) -> Page {
        let page = self.xen.offer(id, grant, port);
        let front = format!("/local/domain/{id}/device/console/{number}");
        self.write(&format!("{front}/ring-ref"), &grant.to_string());
        self.write(&format!("{front}/port"), &port.to_string());
        self.front_state(id, number, "3");
        page
    }

    pub(crate) fn front_state(&self, id: DomId, number: u32, state: &str) {
        self.write(&format!("/local/domain/{id}/device/console/{number}/state"), state);
    }

    pub(crate) fn back_state(&self, id: DomId, number: u32) -> Option<String> {
        self.read(&format!("/local/domain/0/backend/console/{id}/{number}/state"))
    }

    #[track_caller]
    pub(crate) fn until_state(&mut self, id: DomId, number: u32, state: &str) {
        self.until(&format!("backend state {state}"), |host| {
            (host.back_state(id, number).as_deref() == Some(state)).then_some(())
        });
    }

    /// The domain is destroyed as Xen does it: first dying.
    pub(crate) fn destroy(&self, id: DomId) {
        self.xen.state().dying.insert(id, true);
        self.xenstored.shut_down_domain(id);
    }

    pub(crate) fn log_path(&self, number: u16, console: u32) -> PathBuf {
        self.folder.path().join(format!("log/guest{number}.{console}.log"))
    }

    pub(crate) fn log(&self, number: u16, console: u32) -> Vec<u8> {
        fs::read(self.log_path(number, console)).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn until_log(&mut self, number: u16, console: u32, wanted: &[u8]) {
        self.until(&format!("log {:?}", String::from_utf8_lossy(wanted)), |host| {
            (host.log(number, console) == wanted).then_some(())
        });
    }

    pub(crate) fn socket_path(&self, id: DomId, number: u32) -> PathBuf {
        self.folder.path().join(format!("run/{id}.{number}"))
    }

    #[track_caller]
    pub(crate) fn view(&mut self, id: DomId, number: u32) -> UnixStream {
        let path = self.socket_path(id, number);
        let stream = self.until("the console's socket", |_| UnixStream::connect(&path).ok());
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// Says something at the control socket.
    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> UnixStream {
        let path = self.folder.path().join("run/control");
        let mut stream = UnixStream::connect(path).unwrap();
        io::Write::write_all(&mut stream, line.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// Reads from a viewer until it has as many bytes, or is closed.
    #[track_caller]
    pub(crate) fn read_viewer(&mut self, mut stream: &UnixStream, most: usize) -> Vec<u8> {
        let mut got = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        self.until("a viewer's bytes", |_| match io::Read::read(&mut stream, &mut buffer) {
            Ok(0) => Some(()),
            Ok(count) => {
                got.extend_from_slice(&buffer[..count]);
                (got.len() >= most).then_some(())
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        });
        got
    }
}
