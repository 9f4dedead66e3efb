//! The socket files of guests, on a thread of their own.
//!
//! They are in `/run`, like everything that the daemon could lose. Binding, renaming and removing a socket is work of
//! the file system, which may hang: the event loop never waits for it. One thread does it all in order, so a guest's
//! socket is removed before the next guest of that name gets its own.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::Gid;
use tokio::sync::{oneshot, watch};

/// How long a client waits for the socket that it asks for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the daemon waits at its end for the removal of its sockets.
const LAST: Duration = Duration::from_secs(1);

/// What is done with socket files. Each of it may block.
pub(super) trait Files: Send {
    /// Listens at a path, for the group's members if there is one.
    fn bind(&self, socket: &Path, group: Option<Gid>) -> io::Result<UnixListener>;
    /// Renames a socket.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a socket.
    fn remove(&self, socket: &Path);
}

/// The file system.
pub(super) struct RealFiles;

impl Files for RealFiles {
    fn bind(&self, socket: &Path, group: Option<Gid>) -> io::Result<UnixListener> {
        use std::os::unix::fs::PermissionsExt as _;

        if let Some(folder) = socket.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let listener = crate::listen::bind_blocking(socket)?;
        if let Some(group) = group {
            // Who may do what is decided by the peer's credentials.
            std::os::unix::fs::chown(socket, None, Some(group.as_raw()))?;
            std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
        }
        Ok(listener)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, socket: &Path) {
        // Already removed when the daemon clears its directory.
        let _ = std::fs::remove_file(socket);
    }
}

/// Where a guest's socket is.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// What is still to be done with it.
    pending: usize,
    /// Absent when it could not be bound.
    at: Option<PathBuf>,
}

/// A client's wait for a guest's socket.
pub(crate) struct SocketPath(watch::Receiver<Place>);

impl SocketPath {
    /// The path of the socket once it is bound; `None` if it cannot be bound, or not within `PATIENCE`.
    pub(crate) async fn ready(mut self) -> Option<PathBuf> {
        let settled = self.0.wait_for(|place| place.pending == 0);
        let settled = tokio::time::timeout(PATIENCE, settled).await.ok()?;
        settled.ok()?.at.clone()
    }
}

type Bound = oneshot::Sender<io::Result<UnixListener>>;

enum Job {
    Bind { id: u64, socket: PathBuf, group: Option<Gid>, bound: Bound, place: Arc<watch::Sender<Place>> },
    Rename { id: u64, socket: PathBuf },
    Remove { id: u64 },
}

/// The sockets of all guests.
pub(super) struct Sockets {
    /// Absent at its end. As many jobs wait as guests have begun, ended and been renamed since the file system hangs.
    jobs: Option<Sender<Job>>,
    next: Mutex<u64>,
    ended: Mutex<Receiver<()>>,
}

/// One guest's socket. Dropping it removes the file.
pub(super) struct Socket {
    id: u64,
    /// Where it is meant to be.
    wanted: PathBuf,
    place: Arc<watch::Sender<Place>>,
    jobs: Sender<Job>,
}

impl Sockets {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(super) fn start(files: Box<dyn Files>) -> io::Result<Self> {
        let (jobs, received) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new().name("QMP sockets".to_owned()).spawn(move || {
            work(&*files, &received);
            drop(end);
        })?;
        Ok(Self { jobs: Some(jobs), next: Mutex::new(0), ended: Mutex::new(ended) })
    }

    /// Has a socket bound; the listener comes when that is done, and does not block.
    pub(super) fn bind(
        &self,
        socket: PathBuf,
        group: Option<Gid>,
    ) -> Option<(Socket, oneshot::Receiver<io::Result<UnixListener>>)> {
        let jobs = self.jobs.clone()?;
        let id = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        let (bound, listener) = oneshot::channel();
        let place = Arc::new(watch::Sender::new(Place { pending: 1, at: None }));
        let job = Job::Bind { id, socket: socket.clone(), group, bound, place: Arc::clone(&place) };
        jobs.send(job).ok()?;
        Some((Socket { id, wanted: socket, place, jobs }, listener))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(LAST) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("left QMP sockets behind, because their file system does not answer");
        }
    }
}

impl Socket {
    /// Where it is.
    pub(super) fn path(&self) -> SocketPath {
        SocketPath(self.place.subscribe())
    }

    /// Has it renamed.
    pub(super) fn rename(&mut self, socket: PathBuf) {
        if socket == self.wanted {
            return;
        }
        self.wanted.clone_from(&socket);
        self.place.send_modify(|place| place.pending += 1);
        // The thread lives as long as this.
        let _ = self.jobs.send(Job::Rename { id: self.id, socket });
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::Remove { id: self.id });
    }
}

/// Does the jobs until nobody can send any more.
fn work(files: &dyn Files, jobs: &Receiver<Job>) {
    let mut sockets: BTreeMap<u64, Arc<watch::Sender<Place>>> = BTreeMap::new();
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Bind { id, socket, group, bound, place } => {
                let listener = files.bind(&socket, group).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok(listener)
                });
                if let Err(error) = &listener {
                    tracing::error!(socket = %socket.display(), %error, "cannot bind a QMP socket");
                }
                settle(&place, listener.is_ok().then_some(socket));
                sockets.insert(id, place);
                // Without a receiver, the guest has ended meanwhile, and the removal of its socket is next.
                let _ = bound.send(listener);
            }
            Job::Rename { id, socket } => {
                let Some(place) = sockets.get(&id) else { continue };
                let mut at = place.borrow().at.clone();
                if let Some(from) = &mut at {
                    match files.rename(from, &socket) {
                        Ok(()) => *from = socket,
                        Err(error) => {
                            tracing::error!(socket = %socket.display(), %error, "cannot rename a QMP socket");
                        }
                    }
                }
                settle(place, at);
            }
            Job::Remove { id } => {
                let at = sockets.remove(&id).and_then(|place| place.borrow().at.clone());
                if let Some(at) = at {
                    files.remove(&at);
                }
            }
        }
    }
}

/// Something was done with a socket, which is here now.
fn settle(place: &watch::Sender<Place>, at: Option<PathBuf>) {
    place.send_modify(|place| {
        place.pending = place.pending.saturating_sub(1);
        place.at = at;
    });
}
