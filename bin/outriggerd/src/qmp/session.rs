//! One guest's session: its tasks and its socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::qmp::mux::MuxConfig;
use ::qmp::policy::Peer;
use config::Uuid;
use nix::unistd::Gid;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use toolstack::{Guest, GuestId};

use super::access::Access;
use super::client;
use super::link::Link;
use super::shared::Shared;
use crate::dial::{Dial, Place};

/// A guest's session. Dropping it ends it, and its clients with it.
pub(super) struct Session {
    stub: Uuid,
    socket: PathBuf,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
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
        let shared = Arc::new(Shared::new(&guest.name, config, &access));
        let place = Place::of(guest);
        let link = Link::new(Arc::clone(&shared), Arc::clone(dial), place);
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
    let listener = crate::listen::bind(socket)?;
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
