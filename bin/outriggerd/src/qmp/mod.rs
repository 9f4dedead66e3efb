//! QMP sessions: one a guest, shared by local clients and by the toolstack's steps.
//!
//! [`Qmp`] has a [`session::Session`] for each guest that runs: a task that owns the connection to the device model
//! and moves its bytes in and out of a [`qmp::mux::Mux`], and one small task for each client of the guest's socket,
//! `/run/outrigger/qmp/<name>.sock`. The socket files are made and removed by a thread ([`sockets`]), because the file
//! system may hang.

mod access;
mod client;
mod clock;
mod link;
mod monitor;
mod session;
mod shared;
mod sockets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ::qmp::mux::MuxConfig;
use ::qmp::{Monitor, QmpError};
use serde_json::json;
use tokio::runtime::Handle;
use toolstack::{Guest, GuestId, Left, Monitors};

pub(crate) use access::Access;
use monitor::SharedMonitor;
use session::Session;
pub(crate) use sockets::SocketPath;
use sockets::{Files, RealFiles, Sockets};

use crate::dial::Dial;
use crate::guest::observer::Observer;

/// Where a guest's socket is, below the daemon's own folder.
const FOLDER: &str = "qmp";

/// The sessions of all guests. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Qmp {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    access: Arc<Access>,
    config: MuxConfig,
    dial: Arc<dyn Dial>,
    sessions: Mutex<BTreeMap<GuestId, Session>>,
    /// After the sessions, which remove theirs.
    sockets: Sockets,
    /// Where sessions run that a job's thread begins.
    runtime: OnceLock<Handle>,
}

impl Qmp {
    /// No sessions yet; sockets will be in a folder beside the daemon's own socket.
    ///
    /// # Errors
    /// When the system has no thread for the sockets.
    pub(crate) fn new(
        socket: &Path,
        access: Access,
        config: MuxConfig,
        dial: Arc<dyn Dial>,
    ) -> io::Result<Self> {
        Self::with_files(socket, access, config, dial, Box::new(RealFiles))
    }

    fn with_files(
        socket: &Path,
        access: Access,
        config: MuxConfig,
        dial: Arc<dyn Dial>,
        files: Box<dyn Files>,
    ) -> io::Result<Self> {
        let folder = socket.parent().unwrap_or(Path::new("/")).join(FOLDER);
        let (access, sessions) = (Arc::new(access), Mutex::default());
        let sockets = Sockets::start(files)?;
        Ok(Self {
            inner: Arc::new(Inner {
                folder,
                access,
                config,
                dial,
                sessions,
                sockets,
                runtime: OnceLock::new(),
            }),
        })
    }

    /// Says in which event loop sessions run.
    pub(crate) fn run_in(&self, runtime: Handle) {
        let _ = self.inner.runtime.set(runtime);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GuestId, Session>> {
        // The map is whole between any two statements that hold the lock.
        self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket of a guest: absent when the guest has no session.
    pub(crate) fn socket(&self, guest: GuestId) -> Option<SocketPath> {
        self.lock().get(&guest).and_then(Session::socket)
    }
}

/// The longest path of a socket that Linux takes (`sockaddr_un`), in bytes, with room for the end of the name that it is
/// bound under at first.
const LONGEST: usize = 107;

/// The path of a guest's socket. Where its name makes that too long, its UUID is used.
fn socket_path(folder: &Path, guest: &Guest) -> PathBuf {
    let path = folder.join(format!("{}.sock", xen_types::file_name(&guest.name)));
    if path.as_os_str().len() <= LONGEST {
        return path;
    }
    // No name is encoded like this.
    folder.join(format!("%uuid-{}.sock", guest.uuid))
}

impl Observer for Qmp {
    fn has(&self, guest: &Guest) {
        let socket = socket_path(&self.inner.folder, guest);
        let mut sessions = self.lock();
        if let Some(session) = sessions.get_mut(&guest.id())
            && session.serves(guest.stub_uuid)
        {
            // The same device model, perhaps under another name.
            return session.move_socket(socket);
        }
        let inner = &self.inner;
        // The previous one must release the socket first.
        sessions.remove(&guest.id());
        let shared = (&inner.sockets, Arc::clone(&inner.access));
        let session = Session::start(guest, socket, shared, inner.config.clone(), &inner.dial);
        sessions.insert(guest.id(), session);
    }

    fn gone(&self, guest: &Guest) {
        self.lock().remove(&guest.id());
    }
}

impl Monitors for Qmp {
    fn begin(&self, guest: &Guest) {
        let _guard = self.inner.runtime.get().map(Handle::enter);
        Observer::has(self, guest);
    }

    fn give_up(&self, guest: &Guest) {
        Observer::gone(self, guest);
    }

    fn left(&self, guest: GuestId, how: Left<'_>) {
        if let Some(session) = self.lock().get(&guest) {
            session.left(&match how {
                Left::Saved => json!({"how": "saved"}),
                Left::Migrated(host) => json!({"how": "migrated", "host": host}),
            });
        }
    }

    fn release(&self, guest: GuestId) {
        if let Some(session) = self.lock().get(&guest) {
            session.end("the device model has ended");
        }
    }

    fn monitor(&self, guest: GuestId) -> Result<Arc<dyn Monitor>, QmpError> {
        match self.lock().get(&guest) {
            Some(session) => Ok(Arc::new(SharedMonitor::new(session.shared()))),
            None => Err(QmpError::NoSession {
                command: "any command".to_owned(),
                why: format!("no guest with the UUID {guest} is running"),
            }),
        }
    }
}
