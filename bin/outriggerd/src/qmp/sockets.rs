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

    /// Has it renamed. What failed before is tried again.
    pub(super) fn rename(&mut self, socket: PathBuf) {
        let is_settled = {
            let place = self.place.borrow();
            place.pending > 0 || place.at.as_ref() == Some(&socket)
        };
        if socket == self.wanted && is_settled {
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
                if listener.is_ok() {
                    replace(&sockets, &socket);
                }
                settle(&place, listener.is_ok().then_some(socket));
                sockets.insert(id, place);
                // Without a receiver, the guest has ended meanwhile, and the removal of its socket is next.
                let _ = bound.send(listener);
            }
            Job::Rename { id, socket } => {
                let Some(place) = sockets.get(&id) else { continue };
                let before = place.borrow().at.clone();
                let renamed = before.as_ref().is_some_and(|from| rename(files, from, &socket));
                if renamed && before.as_ref() != Some(&socket) {
                    replace(&sockets, &socket);
                }
                settle(place, if renamed { Some(socket) } else { before });
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

/// Returns whether it worked.
fn rename(files: &dyn Files, from: &Path, to: &Path) -> bool {
    let renamed = files.rename(from, to);
    if let Err(error) = &renamed {
        tracing::error!(
            "A QMP socket cannot be renamed to {}; clients find it at {} until the guest is renamed again: {error}",
            to.display(),
            from.display()
        );
    }
    renamed.is_ok()
}

/// A socket takes the place of what was at its path: that of a guest that was renamed, and its socket could not be. Its
/// guest does not remove the new one at its end.
fn replace(sockets: &BTreeMap<u64, Arc<watch::Sender<Place>>>, path: &Path) {
    for place in sockets.values() {
        place.send_if_modified(|place| {
            let is_replaced = place.at.as_deref() == Some(path);
            if is_replaced {
                tracing::error!(
                    "The QMP socket {} is another guest's now; that of the one before is lost",
                    path.display()
                );
                place.at = None;
            }
            is_replaced
        });
    }
}

/// Something was done with a socket, which is here now.
fn settle(place: &watch::Sender<Place>, at: Option<PathBuf>) {
    place.send_modify(|place| {
        place.pending = place.pending.saturating_sub(1);
        place.at = at;
    });
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn socket_is_for_its_group_alone() {
        use std::os::unix::fs::MetadataExt as _;

        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("hello.sock");
        let own = nix::unistd::getgid();
        for (group, mode) in [(None, 0o600), (Some(own), 0o660)] {
            let _listener = RealFiles.bind(&socket, group).unwrap();
            let meta = std::fs::metadata(&socket).unwrap();
            assert_eq!((meta.mode() & 0o777, meta.gid()), (mode, own.as_raw()));
        }
    }

    #[tokio::test]
    async fn next_guest_of_a_name_keeps_its_socket_when_the_previous_one_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello.sock");
        let sockets = Sockets::start(Box::new(RealFiles)).unwrap();
        let (first, listener) = sockets.bind(path.clone(), None).unwrap();
        assert!(listener.await.unwrap().is_ok());
        drop(first);
        let (second, listener) = sockets.bind(path.clone(), None).unwrap();
        let _listener = listener.await.unwrap().unwrap();
        assert_eq!(second.path().ready().await, Some(path.clone()));
        assert!(UnixStream::connect(&path).is_ok());
    }

    /// A file system that renames nothing, unless this is false.
    struct Unchanging(Arc<AtomicBool>);

    impl Files for Unchanging {
        fn bind(&self, socket: &Path, group: Option<nix::unistd::Gid>) -> io::Result<UnixListener> {
            RealFiles.bind(socket, group)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            if self.0.load(Ordering::Relaxed) {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                RealFiles.rename(from, to)
            }
        }

        fn remove(&self, socket: &Path) {
            RealFiles.remove(socket);
        }
    }

    #[tokio::test]
    async fn socket_that_cannot_be_renamed_is_found_and_costs_no_other_guest_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        let fails = Arc::new(AtomicBool::new(true));
        let sockets = Sockets::start(Box::new(Unchanging(Arc::clone(&fails)))).unwrap();
        let (mut first, listener) = sockets.bind(old.clone(), None).unwrap();
        let _first = listener.await.unwrap().unwrap();
        first.rename(new.clone());
        assert_eq!(first.path().ready().await, Some(old.clone()));
        fails.store(false, Ordering::Relaxed);
        first.rename(new.clone());
        assert_eq!(first.path().ready().await, Some(new.clone()));
        fails.store(true, Ordering::Relaxed);
        first.rename(old.clone());
        assert_eq!(first.path().ready().await, Some(new.clone()));
        // The next guest of the name has its socket at the same path.
        let (second, listener) = sockets.bind(new.clone(), None).unwrap();
        let _second = listener.await.unwrap().unwrap();
        assert_eq!(first.path().ready().await, None);
        drop(first);
        // Jobs are done in order.
        let (_third, listener) = sockets.bind(old, None).unwrap();
        listener.await.unwrap().unwrap();
        assert_eq!(second.path().ready().await, Some(new.clone()));
        assert!(UnixStream::connect(&new).is_ok());
    }
}
