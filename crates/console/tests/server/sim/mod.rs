//! A host of domains that exist only here: their ring pages and event channels, and the toolstack's writes.

mod xen;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use console::logfile::{Disk, LogStyle};
use console::server::{Server, Settings};
use tempfile::TempDir;
use xen_types::DomId;
use xenstore::server::Server as Xenstored;
use xenstore::{Access, Connection, Permissions, Store, XsPath};

pub(crate) use xen::{Killed, Page, SimPlatform, Xen};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The host: simulated Xen, xenstored in this process, folders, and a console server.
pub(crate) struct Host {
    pub(crate) xen: Xen,
    pub(crate) xenstored: Arc<Xenstored>,
    pub(crate) store: Connection,
    pub(crate) folder: TempDir,
    pub(crate) server: Option<Server<SimPlatform>>,
    pub(crate) log_limit: u64,
    /// How long a turn may last in which nothing happens.
    pub(crate) rest: Duration,
    /// What is different from the usual settings.
    pub(crate) adapt: fn(&mut Settings),
    /// How many connections to xenstored the server has made.
    pub(crate) connections: Arc<AtomicU64>,
    /// The disk of logs and files, if it is not the host's.
    pub(crate) disk: Option<Arc<dyn Disk>>,
    /// Makes the next connection to xenstored panic.
    pub(crate) bug_of_connect: Arc<AtomicBool>,
}

pub(crate) fn domid(number: u16) -> DomId {
    DomId::new(number).unwrap()
}

pub(crate) fn path(text: &str) -> XsPath {
    XsPath::new(text).unwrap()
}

impl Host {
    pub(crate) fn new() -> Self {
        let xenstored = Arc::new(Xenstored::start());
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
            connections: Arc::default(),
            disk: None,
            bug_of_connect: Arc::default(),
        };
        host.start();
        host
    }

    pub(crate) fn start(&mut self) {
        let platform = SimPlatform::new(self.xen.clone());
        let folder = self.folder.path();
        let mut settings = Settings::new(folder.join("log"), folder.join("run"));
        settings.log_style.limit = self.log_limit;
        (self.adapt)(&mut settings);
        if let Some(disk) = &self.disk {
            settings.disk = Arc::clone(disk);
        }
        let xenstored = Arc::clone(&self.xenstored);
        let connections = Arc::clone(&self.connections);
        let bug = Arc::clone(&self.bug_of_connect);
        let connect = Arc::new(move || {
            connections.fetch_add(1, Ordering::Relaxed);
            if bug.swap(false, Ordering::Relaxed) {
                std::panic::resume_unwind(Box::new("a bug, for a test"));
            }
            Ok(xenstored.connection(DomId::DOM0))
        });
        self.server = Some(Server::start(platform, connect, settings).unwrap());
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
        self.xen.create(id);
        let page = self.xen.offer(id, 0, 2);
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
        self.xen.kill(id);
        self.xenstored.shut_down_domain(id);
    }

    /// Destroys the domain and gives its domid to another one with this name before the server checks.
    pub(crate) fn give_away(&self, number: u16, name: &str) -> (DomId, Page) {
        let id = domid(number);
        self.destroy(id);
        self.xenstored.destroy_domain(id);
        for at in [format!("/local/domain/{id}"), format!("/local/domain/0/backend/console/{id}")] {
            // A toolstack removes the old directories.
            let _ = self.store.rm(&path(&at));
        }
        let made = self.domain(number, "null");
        self.write(&format!("/local/domain/{id}/name"), name);
        made
    }

    /// The server's list of its consoles, one line for each.
    #[track_caller]
    pub(crate) fn list(&mut self) -> String {
        let stream = self.ask("list\n");
        String::from_utf8(self.read_viewer(&stream, usize::MAX)).unwrap()
    }

    /// The log of a domain with this name.
    pub(crate) fn named_log(&self, name: &str, console: u32) -> Vec<u8> {
        fs::read(self.folder.path().join(format!("log/{name}.{console}.log"))).unwrap_or_default()
    }

    /// The names in the folder of the sockets.
    pub(crate) fn run_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("run")).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
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
