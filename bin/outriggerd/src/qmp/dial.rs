//! How a session reaches a device model.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use console::attach::ask;
use console::request::{Request, Wanted, Which};
use contract::{DmKey, QmpConsole};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use toolstack::Guest;
use vchan::{AsyncClient, Attempt, Client};
use xen_types::DomId;
use xenstore::Xenstore;

/// A connection to a device model's monitor.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection, and what it is for QEMU.
pub(crate) enum Reached {
    /// A session of its own, with a greeting.
    Session(Box<dyn Stream>),
    /// A console: the same monitor as for everyone before.
    Console(Box<dyn Stream>),
}

/// What [`Dial::dial`] gives.
pub(crate) type Dialing = Pin<Box<dyn Future<Output = io::Result<Reached>> + Send>>;

/// Where a device model's monitor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The stubdomain.
    pub(crate) stub: DomId,
    /// The guest that it serves.
    pub(crate) target: DomId,
    /// The console of the stubdomain that carries the monitor; nothing: the stubdomain serves it by vchan.
    pub(crate) console: Option<QmpConsole>,
}

impl Place {
    /// Of a guest's device model.
    pub(crate) fn of(guest: &Guest) -> Self {
        // The guest runs: its serial ports have left a console.
        let console = qemu_args::qmp_console(&guest.config).ok().flatten();
        Self { stub: guest.stub_domid, target: guest.domid, console }
    }
}

/// Connects to device models.
pub(crate) trait Dial: Send + Sync {
    /// Waits until the monitor can be reached, and connects.
    fn dial(&self, place: Place) -> Dialing;
}

/// How often a server is tried again that has another client, or is not ready, and may not say when it is.
const AGAIN: Duration = Duration::from_millis(250);

/// Bytes that may be on the way to a console, near enough: when this daemon dies, QEMU has to read them all, one by one,
/// before it is in step with the next.
const ON_THE_WAY: usize = 2048;

/// Connects by vchan, or through the console daemon.
pub(crate) struct HostDial {
    store: Xenstore,
    /// The folder of the console daemon's sockets.
    consoles: PathBuf,
}

impl HostDial {
    pub(crate) fn new(store: Xenstore, consoles: &Path) -> Self {
        Self { store, consoles: consoles.to_owned() }
    }
}

impl Dial for HostDial {
    fn dial(&self, place: Place) -> Dialing {
        if let Some(console) = place.console {
            return Box::pin(take_console(self.consoles.clone(), place.stub, console));
        }
        let store = self.store.clone();
        Box::pin(async move {
            let client = connect(store, place.stub, place.target).await?;
            Ok(Reached::Session(Box::new(AsyncClient::new(client)?)))
        })
    }
}

/// Takes the console's stream: every byte from now on, and nobody else has it. That it cannot be had, because its
/// daemon does not run or an earlier stream has not ended, is told and tried again by the session.
async fn take_console(folder: PathBuf, stub: DomId, console: QmpConsole) -> io::Result<Reached> {
    let console = Wanted { domid: stub, which: Which::Number(u32::from(console.number())), uuid: None };
    let stream = blocking(move || {
        let stream = ask(&folder, &Request::Stream { console }).map_err(io::Error::other)?;
        stream.set_nonblocking(true)?;
        setsockopt(&stream, sockopt::SndBuf, &ON_THE_WAY)?;
        Ok(stream)
    })
    .await?;
    Ok(Reached::Console(Box::new(UnixStream::from_std(stream)?)))
}

/// Tries again whenever the server's keys change. Takes no thread while it waits: most of a guest's life, where its
/// image serves no QMP.
async fn connect(store: Xenstore, stub: DomId, target: DomId) -> io::Result<Client> {
    let place = DmKey::QmpVchan.path(stub, target);
    let changed = Arc::new(Notify::new());
    let wake = Arc::clone(&changed);
    let (asked, path) = (store.clone(), place.clone());
    let watch = blocking(move || asked.watch(&path).map_err(io::Error::other)).await?;
    let _watch = watch.into_callback(move |_| wake.notify_one());
    loop {
        let (store, place) = (store.clone(), place.clone());
        let attempt =
            blocking(move || Client::attempt(&store, stub, &place).map_err(io::Error::other)).await?;
        match attempt {
            Attempt::Connected(client) => return Ok(client),
            Attempt::NotServed => changed.notified().await,
            Attempt::NotReady => {
                // Either is good.
                let _ = tokio::time::timeout(AGAIN, changed.notified()).await;
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
