//! One guest's session: its tasks and its socket.

use std::io;
use std::os::unix::net::UnixListener as Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::qmp::mux::MuxConfig;
use ::qmp::policy::Peer;
use config::Uuid;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use toolstack::{Guest, GuestId};

use super::access::Access;
use super::client;
use super::link::Link;
use super::shared::Shared;
use super::sockets::{Socket, SocketPath, Sockets};
use crate::dial::{Dial, Place};

/// A guest's session. Dropping it ends it, and its clients with it.
pub(super) struct Session {
    stub: Uuid,
    /// Absent at the daemon's end only.
    socket: Option<Socket>,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Session {
    /// Starts it. To be called in the event loop.
    pub(super) fn start(
        guest: &Guest,
        socket: PathBuf,
        (sockets, access): (&Sockets, Arc<Access>),
        config: MuxConfig,
        dial: &Arc<dyn Dial>,
    ) -> Self {
        let bound = sockets.bind(socket, access.group);
        let shared = Arc::new(Shared::new(&guest.name, config, &access));
        let place = Place::of(guest);
        let link = Link::new(Arc::clone(&shared), Arc::clone(dial), place);
        let mut tasks = vec![tokio::spawn(link.run())];
        let socket = bound.map(|(socket, listener)| {
            tasks.push(tokio::spawn(listen(listener, Arc::clone(&shared), access, guest.id())));
            socket
        });
        Self { stub: guest.stub_uuid, socket, shared, tasks }
    }

    pub(super) fn serves(&self, stub: Uuid) -> bool {
        self.stub == stub
    }

    pub(super) fn socket(&self) -> Option<SocketPath> {
        self.socket.as_ref().map(Socket::path)
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The guest has left this host: clients are told.
    pub(super) fn left(&self, how: &Value) {
        self.shared.with(|mux| mux.guest_left(how));
    }

    /// There will be no connection to the device model any more. Clients stay, and are told.
    pub(super) fn end(&self, why: &str) {
        let now = self.shared.clock.now();
        self.shared.with(|mux| mux.end(why, now));
    }

    /// The guest has another name.
    pub(super) fn move_socket(&mut self, socket: PathBuf) {
        if let Some(own) = &mut self.socket {
            own.rename(socket);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.end("the guest has ended");
        self.shared.end();
    }
}

/// Accepts clients as soon as the socket is bound. Until then the session serves the toolstack alone.
async fn listen(
    bound: oneshot::Receiver<io::Result<Bound>>,
    shared: Arc<Shared>,
    access: Arc<Access>,
    guest: GuestId,
) {
    // Errors of binding are reported where it is done.
    let Ok(Ok(listener)) = bound.await else { return };
    match UnixListener::from_std(listener) {
        Ok(listener) => accept(listener, shared, access, guest).await,
        Err(error) => tracing::error!(guest = shared.name, %error, "cannot listen for QMP clients"),
    }
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
