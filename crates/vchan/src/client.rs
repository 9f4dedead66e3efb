use core::time::Duration;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use xen::{Access, Errno, EventChannels, GrantTable, OnUnmap, XenError};
use xen_types::{DomId, EventPort};
use xenstore::{Xenstore, XsPath};

use crate::advert::{Advert, Snapshot};
use crate::channel::{self, Channel};
use crate::error::VchanError;
use crate::layout::{self, RingSizes};
use crate::pages::{AWAITED, GONE, LIVE, RingPages};
use crate::place::Place;
use crate::ring::{Ring, RingMemory, Side, Stream, Wish};

/// How often a server is looked at that says nothing in xenstore when its last client leaves (libxenvchan's).
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What came of one attempt to connect.
#[derive(Debug)]
pub enum Attempt {
    /// The connection.
    Connected(Client),
    /// There is no server; it will write its keys when it comes.
    NotServed,
    /// The server has another client, or is not ready for the next; a fresh one writes its keys again when it is.
    NotReady,
}

/// The client's end of a vchan. Dropping it closes the connection, and so does the end of its process.
///
/// Nothing here waits. [`read`](Self::read) and [`write`](Self::write) move what they can; when that is nothing, the
/// other side has been asked for a wake-up: wait until the descriptor ([`AsFd`]) is readable, call
/// [`take_wakeup`](Self::take_wakeup), and try again.
#[derive(Debug)]
pub struct Client {
    // First of the two: unmapping its pages, the driver clears `cli_live` and wakes the server, and only closing the
    // event channel then lets the next client bind.
    channel: Channel,
    events: EventChannels,
}

impl Client {
    /// Connects to the server at `place` in domain `peer`, waiting for it until `deadline`.
    ///
    /// # Errors
    /// [`VchanError::Timeout`]; and what [`attempt`](Self::attempt) gives.
    pub fn connect(
        store: &Xenstore,
        peer: DomId,
        place: &XsPath,
        deadline: Instant,
    ) -> Result<Self, VchanError> {
        let whole = Place::from(place.clone());
        let watch = store.watch(place).map_err(VchanError::store("watch", &whole))?;
        loop {
            let why = match Self::attempt(store, peer, place)? {
                Attempt::Connected(client) => return Ok(client),
                Attempt::NotServed => "it is not served",
                Attempt::NotReady => "its server is not ready for another client",
            };
            let now = Instant::now();
            if now >= deadline {
                return Err(VchanError::Timeout { place: whole, peer, why });
            }
            let next = deadline.min(now + LOOK_AGAIN);
            watch.recv_deadline(next).map_err(VchanError::store("watch", &whole))?;
            while watch.try_recv().map_err(VchanError::store("watch", &whole))?.is_some() {}
        }
    }

    /// Tries once to connect to the server at `place` in domain `peer`.
    ///
    /// # Errors
    /// When the drivers are not there, xenstore fails, or the server offers something absurd.
    pub fn attempt(store: &dyn Snapshot, peer: DomId, place: &XsPath) -> Result<Attempt, VchanError> {
        let Some(advert) = Advert::read(store, &place.clone().into())? else { return Ok(Attempt::NotServed) };
        let events = EventChannels::open().map_err(VchanError::xen("open the event channel", peer))?;
        // Xen lets one client bind: a second client fails here, before it touches the ring.
        let Some(port) = not_any_more(events.bind_interdomain(peer, advert.port))
            .map_err(VchanError::xen("bind the event channel", peer))?
        else {
            return Ok(Attempt::NotReady);
        };
        let Some(pages) = map(peer, advert, port)? else { return Ok(Attempt::NotReady) };
        // From here on dropping `pages` tells the server that this client is gone.
        if !take(&pages, advert) {
            return Ok(Attempt::NotReady);
        }
        pages.ask(Side::Server, Wish::Written);
        let channel = Channel { ring: Ring::new(pages, Side::Client), port, peer };
        let client = Self { channel, events };
        client.channel.kick(&client.events)?;
        Ok(Attempt::Connected(client))
    }

    /// Reads at most `into.len()` bytes; 0 when there are none yet.
    ///
    /// # Errors
    /// [`VchanError::Closed`] when the server is gone and all is read; [`VchanError::Lie`] when the server's indices
    /// cannot be true.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, VchanError> {
        let is_open = self.is_open();
        self.channel.read(&self.events, into, is_open)
    }

    /// Writes as much of `from` as there is room for; 0 when there is none yet.
    ///
    /// # Errors
    /// [`VchanError::Closed`] when the server is gone; [`VchanError::Lie`] when its indices cannot be true.
    pub fn write(&mut self, from: &[u8]) -> Result<usize, VchanError> {
        if !self.is_open() {
            return Err(VchanError::Closed);
        }
        self.channel.write(&self.events, from)
    }

    /// Whether the server is there. What it wrote before its end can still be read.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.channel.ring.memory().live(Side::Server) != GONE
    }

    /// Takes the wake-up for which the descriptor was readable; gives whether there was one.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn take_wakeup(&mut self) -> Result<bool, VchanError> {
        self.channel.take_wakeup(&self.events)
    }

    /// Takes a wake-up without letting the next one come.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_fired(&self) -> Result<bool, VchanError> {
        self.channel.has_fired(&self.events)
    }

    /// Lets the next wake-up come.
    #[cfg(feature = "tokio")]
    pub(crate) fn unmask(&self) -> Result<(), VchanError> {
        self.channel.unmask(&self.events)
    }

    /// The sizes of the rings.
    #[must_use]
    pub fn sizes(&self) -> RingSizes {
        self.channel.ring.memory().sizes()
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        channel::fd(&self.events)
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        channel::raw_fd(&self.events)
    }
}

/// Maps the server's pages; nothing when they are not granted any more.
fn map(peer: DomId, advert: Advert, port: EventPort) -> Result<Option<RingPages>, VchanError> {
    let failed = |what| VchanError::xen(what, peer);
    let table = GrantTable::open().map_err(failed("open the grant table"))?;
    let on_unmap = OnUnmap { clear_byte: Some(layout::live(Side::Client)), notify: Some(port) };
    let shared = table.map_with(peer, &[advert.ring_ref], Access::ReadWrite, on_unmap);
    let Some(shared) = not_any_more(shared).map_err(failed("map the shared page"))? else { return Ok(None) };
    let shared = shared.into_pages();
    let sizes = RingPages::read_sizes(&shared)?;
    let mut rings = [None, None];
    for (ring, (stream, access)) in
        rings.iter_mut().zip([(Stream::Left, Access::ReadWrite), (Stream::Right, Access::Read)])
    {
        let grants = RingPages::read_grants(&shared, sizes, stream);
        if !grants.is_empty() {
            // A server that makes its ring anew takes the old one back in this moment.
            let mapped = not_any_more(table.map(peer, &grants, access)).map_err(failed("map the rings"))?;
            let Some(mapped) = mapped else { return Ok(None) };
            *ring = Some(mapped.into_pages());
        }
    }
    let [left, right] = rings;
    Ok(Some(RingPages::new(shared, left, right, sizes)))
}

/// Makes the ring this client's; gives whether it can be.
fn take(pages: &RingPages, advert: Advert) -> bool {
    let taken = if advert.fresh {
        pages.change_client(AWAITED, LIVE)
    } else {
        // A stock server keeps its ring, and what is in it, for the next client.
        [AWAITED, GONE].into_iter().any(|free| pages.change_client(free, LIVE))
    };
    taken && pages.live(Side::Server) != GONE
}

/// Separates what a server has taken back meanwhile from true failures: Xen says `EINVAL` for a port that nobody
/// offers and for a grant that is none.
fn not_any_more<T>(result: Result<T, XenError>) -> Result<Option<T>, XenError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}
