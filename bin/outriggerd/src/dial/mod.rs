//! How a device model's monitor is reached.

mod pace;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::Uuid;
use console::attach::ask;
use console::request::{Request, Wanted as ConsoleRequest, Which};
use nix::sys::socket::{setsockopt, sockopt};
use stubdom_abi::{DmKey, QmpConsole};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use toolstack::Guest;
use vchan::{AsyncClient, Attempt, Client};
use xen::Hypervisor;
use xen_types::DomId;
use xenstore::Xenstore;

use pace::Pace;

/// A connection to a device model's monitor.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection, and what it is for QEMU.
pub(crate) enum Connection {
    /// A session of its own, with a greeting.
    Session(Box<dyn Stream>),
    /// A console: the same monitor as for everyone before.
    Console(Box<dyn Stream>),
}

/// What [`Dial::dial`] returns.
pub(crate) type Dialing = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

/// Where a device model's monitor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The stubdomain's domid.
    pub(crate) stub: DomId,
    /// Its UUID, to check that the domid still belongs to it.
    pub(crate) stub_uuid: Uuid,
    /// The domid of the guest that it serves.
    pub(crate) target: DomId,
    /// The console of the stubdomain that carries the monitor; nothing: the stubdomain serves it by vchan.
    pub(crate) console: Option<QmpConsole>,
}

impl Place {
    /// Of a guest's device model.
    pub(crate) fn of(guest: &Guest) -> Self {
        // The guest runs: its serial ports have left a console.
        let console = qemu_args::qmp_console(&guest.config).ok().flatten();
        Self { stub: guest.stub_domid, stub_uuid: guest.stub_uuid, target: guest.domid, console }
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
    hypervisor: Arc<dyn Hypervisor>,
    store: Xenstore,
    /// The folder of the console daemon's sockets.
    consoles: PathBuf,
}

impl HostDial {
    pub(crate) fn new(hypervisor: Arc<dyn Hypervisor>, store: Xenstore, consoles: &Path) -> Self {
        Self { hypervisor, store, consoles: consoles.to_owned() }
    }
}

impl Dial for HostDial {
    fn dial(&self, place: Place) -> Dialing {
        let hypervisor = Arc::clone(&self.hypervisor);
        if let Some(console) = place.console {
            return Box::pin(take_console(hypervisor, self.consoles.clone(), place, console));
        }
        let store = self.store.clone();
        Box::pin(async move {
            let client = connect(hypervisor, store, place).await?;
            Ok(Connection::Session(Box::new(AsyncClient::new(client)?)))
        })
    }
}

/// Takes the console's stream: every byte from now on, and nobody else has it. That it cannot be had, because its
/// daemon does not run or an earlier stream has not ended, is reported, and the session tries again.
async fn take_console(
    hypervisor: Arc<dyn Hypervisor>,
    folder: PathBuf,
    place: Place,
    console: QmpConsole,
) -> io::Result<Connection> {
    let console = ConsoleRequest {
        domid: place.stub,
        which: Which::Number(u32::from(console.number())),
        uuid: Some(place.stub_uuid),
    };
    let stream = blocking(move || {
        verify(&*hypervisor, place)?;
        let stream = ask(&folder, &Request::Stream { console }).map_err(io::Error::other)?;
        stream.set_nonblocking(true)?;
        setsockopt(&stream, sockopt::SndBuf, &ON_THE_WAY)?;
        Ok(stream)
    })
    .await?;
    Ok(Connection::Console(Box::new(UnixStream::from_std(stream)?)))
}

/// Fails unless the domid still belongs to the stubdomain.
fn verify(hypervisor: &dyn Hypervisor, place: Place) -> io::Result<()> {
    let info = hypervisor.domain_info(place.stub).map_err(io::Error::other)?;
    if info.is_some_and(|info| info.uuid == *place.stub_uuid.as_bytes()) {
        return Ok(());
    }
    let why = format!("domain {} is no longer the stubdomain {}", place.stub, place.stub_uuid);
    Err(io::Error::new(io::ErrorKind::NotFound, why))
}

/// Tries again when the server's keys change, but not as often as the stubdomain changes them: each try takes several
/// requests of xenstored, which all of dom0 shares. Takes no thread while it waits: most of a guest's life, where its
/// image serves no QMP.
async fn connect(hypervisor: Arc<dyn Hypervisor>, store: Xenstore, place: Place) -> io::Result<Client> {
    let dir = DmKey::QmpVchan.path(place.stub, place.target);
    let changed = Arc::new(Notify::new());
    let wake = Arc::clone(&changed);
    let (asked, path) = (store.clone(), dir.clone());
    let watch = blocking(move || asked.watch(&path).map_err(io::Error::other)).await?;
    let _watch = watch.into_callback(move |_| wake.notify_one());
    let mut pace = Pace::new(Instant::now());
    loop {
        tokio::time::sleep(pace.next(Instant::now())).await;
        let (hypervisor, store, dir) = (Arc::clone(&hypervisor), store.clone(), dir.clone());
        let attempt = blocking(move || {
            verify(&*hypervisor, place)?;
            Client::attempt(&store, place.stub, &dir).map_err(io::Error::other)
        });
        let attempt = attempt.await?;
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
