//! How a session reaches a device model.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use contract::DmKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use vchan::{AsyncClient, Attempt, Client};
use xen_types::DomId;
use xenstore::Xenstore;

/// A connection to a device model's monitor.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What [`Dial::dial`] gives.
pub(crate) type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Connects to device models.
pub(crate) trait Dial: Send + Sync {
    /// Waits until the monitor of the device model in `stub` that serves `target` can be reached, and connects.
    fn dial(&self, stub: DomId, target: DomId) -> Dialing;
}

/// How often a server is tried again that has another client, or is not ready, and may not say when it is.
const AGAIN: Duration = Duration::from_millis(250);

/// Connects by vchan.
pub(crate) struct VchanDial {
    store: Xenstore,
}

impl VchanDial {
    pub(crate) fn new(store: Xenstore) -> Self {
        Self { store }
    }
}

impl Dial for VchanDial {
    fn dial(&self, stub: DomId, target: DomId) -> Dialing {
        let store = self.store.clone();
        Box::pin(async move {
            let client = connect(store, stub, target).await?;
            let stream: Box<dyn Stream> = Box::new(AsyncClient::new(client)?);
            Ok(stream)
        })
    }
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
