use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use xen::{Access, EventChannels, GrantAllocator, GrantedPages, OnUnmap};
use xen_types::{DomId, EventPort, GrantRef};
use xenstore::{Connection, RelPath, Store, StoreError};

use crate::advert::{Advert, Keys, permissions};
use crate::channel::{self, Channel};
use crate::error::VchanError;
use crate::layout::{self, RingSizes};
use crate::pages::{AWAITED, GONE, LIVE, NOTICED, RingPages};
use crate::place::Place;
use crate::ring::{Ring, Side, Stream};

/// What has happened to the clients of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A client is there.
    Arrived,
    /// The client is gone. What it wrote can still be read; then [`Server::renew`] makes room for the next.
    Left,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guest {
    /// Nobody's: the ring waits for a client.
    Awaited,
    /// A client's.
    Present,
    /// A client's that is gone.
    Left,
}

/// The server's end of a vchan, which takes one client after the other.
///
/// Nothing here waits but for xenstore. When the descriptor ([`AsFd`]) is readable: [`take_wakeup`](Self::take_wakeup),
/// then [`change`](Self::change) until it gives nothing, then read and write while a client is there.
///
/// ```text
///            Arrived             Left
/// awaited ────────────▶ present ──────▶ left ──┐
///    ▲                     │ renew             │ renew
///    └─────────────────────┴───────────────────┘
/// ```
/// Dropping it closes the vchan but leaves its keys in xenstore, of which this domain's end rids it too;
/// [`close`](Self::close) removes them.
#[derive(Debug)]
pub struct Server {
    channel: Channel,
    ring_ref: GrantRef,
    guest: Guest,
    events: EventChannels,
    allocator: GrantAllocator,
    keys: Keys,
    own: DomId,
    sizes: RingSizes,
}

impl Server {
    /// Offers a vchan with rings of `sizes` to the domain `peer`, and says so at `place`.
    ///
    /// One ring is made before the last one goes: the driver's limit (`xen_gntalloc.limit`, 1024 pages) has to hold
    /// the pages of two, and of those that former clients have not released.
    ///
    /// # Errors
    /// When the drivers are not there or have no more grants or ports, or when xenstore refuses.
    pub fn open(
        store: &Connection,
        peer: DomId,
        place: impl Into<Place>,
        sizes: RingSizes,
    ) -> Result<Self, VchanError> {
        let keys = Keys::of(place.into())?;
        let own =
            own_domid(store).map_err(VchanError::store("learn this domain's number for", &keys.place))?;
        let own = own.ok_or(VchanError::NoDomId)?;
        let events = EventChannels::open().map_err(VchanError::xen("open the event channel", peer))?;
        let allocator = GrantAllocator::open().map_err(VchanError::xen("open the grants", peer))?;
        let (channel, ring_ref) = make(&events, &allocator, peer, sizes)?;
        let server = Self { channel, ring_ref, guest: Guest::Awaited, events, allocator, keys, own, sizes };
        server.advertise(store)?;
        Ok(server)
    }

    /// Takes the wake-up for which the descriptor was readable; gives whether there was one.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn take_wakeup(&mut self) -> Result<bool, VchanError> {
        self.channel.take_wakeup(&self.events)
    }

    /// What has happened to the client since the last call; nothing when nothing has.
    ///
    /// # Errors
    /// When a ring has to be made anew and that fails.
    pub fn change(&mut self, store: &Connection) -> Result<Option<Change>, VchanError> {
        let pages = self.channel.ring.memory();
        let live = pages.live(Side::Client);
        match (self.guest, live) {
            (Guest::Awaited, AWAITED) | (Guest::Present, NOTICED) | (Guest::Left, _) => Ok(None),
            (Guest::Awaited, LIVE) if pages.change_client(LIVE, NOTICED) => {
                self.guest = Guest::Present;
                Ok(Some(Change::Arrived))
            }
            // It came and went, or is no honest client.
            (Guest::Awaited, _) => {
                self.renew(store)?;
                Ok(None)
            }
            // It went; when the byte is LIVE, the next one is there already.
            (Guest::Present, _) => {
                self.guest = Guest::Left;
                Ok(Some(Change::Left))
            }
        }
    }

    /// Reads at most `into.len()` bytes of the client's; 0 when there are none yet.
    ///
    /// # Errors
    /// [`VchanError::Closed`] when there is no client, or it is gone and all is read; [`VchanError::Lie`] when its
    /// indices cannot be true.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, VchanError> {
        if self.guest == Guest::Awaited {
            return Err(VchanError::Closed);
        }
        let is_open = self.is_open();
        self.channel.read(&self.events, into, is_open)
    }

    /// Writes as much of `from` as there is room for; 0 when there is none yet.
    ///
    /// # Errors
    /// [`VchanError::Closed`] when there is no client; [`VchanError::Lie`] when its indices cannot be true.
    pub fn write(&mut self, from: &[u8]) -> Result<usize, VchanError> {
        if !self.is_open() {
            return Err(VchanError::Closed);
        }
        self.channel.write(&self.events, from)
    }

    /// Whether the client that has arrived is still there.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.guest == Guest::Present && self.channel.ring.memory().live(Side::Client) == NOTICED
    }

    /// Ends what was with the last client, sends it away if it is still there, and is ready for the next one.
    ///
    /// The ring stays when the client is gone and has read all that it was sent; otherwise the next one gets another.
    ///
    /// # Errors
    /// When the drivers have no more grants or ports, or when xenstore refuses. The next call tries again.
    pub fn renew(&mut self, store: &Connection) -> Result<(), VchanError> {
        self.channel.ring.discard();
        let is_clean = self.channel.ring.unread() == Ok(0);
        let pages = self.channel.ring.memory();
        match pages.live(Side::Client) {
            GONE if is_clean && pages.change_client(GONE, AWAITED) => {
                self.guest = Guest::Awaited;
                let told = self.keys.touch(store, self.ring_ref);
                told.map_err(VchanError::store("advertise", &self.keys.place))
            }
            // Someone came in the meantime, who knows nothing of fresh rings.
            LIVE | GONE if is_clean && self.guest != Guest::Present => {
                self.guest = Guest::Awaited;
                Ok(())
            }
            _ => self.replace(store),
        }
    }

    /// Makes another ring and closes the present one.
    fn replace(&mut self, store: &Connection) -> Result<(), VchanError> {
        let (channel, ring_ref) = make(&self.events, &self.allocator, self.channel.peer, self.sizes)?;
        let old = core::mem::replace(&mut self.channel, channel);
        self.ring_ref = ring_ref;
        self.guest = Guest::Awaited;
        // The new one first, so that who sees the old one closed finds it.
        let told = self.advertise(store);
        self.shut(old);
        told
    }

    fn shut(&self, old: Channel) {
        old.ring.memory().set_live(Side::Server, GONE);
        // There may be no client; and it does not matter if the port cannot be closed.
        let _ = old.kick(&self.events);
        let port = old.port;
        drop(old);
        let _ = self.events.unbind(port);
    }

    fn advertise(&self, store: &Connection) -> Result<(), VchanError> {
        let advert = Advert { ring_ref: self.ring_ref, port: self.channel.port, fresh: true };
        let permissions = permissions(self.own, self.channel.peer);
        store
            .transaction(|store| self.keys.put(store, advert, &permissions))
            .map_err(VchanError::store("advertise", &self.keys.place))
    }

    /// Closes the vchan and removes its keys.
    ///
    /// # Errors
    /// When xenstore refuses; the vchan is closed nevertheless.
    pub fn close(self, store: &Connection) -> Result<(), VchanError> {
        store.rm(self.keys.place.node()).map_err(VchanError::store("remove", &self.keys.place))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.channel.ring.memory().set_live(Side::Server, GONE);
        // The client may be gone too.
        let _ = self.channel.kick(&self.events);
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        channel::fd(&self.events)
    }
}

impl AsRawFd for Server {
    fn as_raw_fd(&self) -> RawFd {
        channel::raw_fd(&self.events)
    }
}

/// Makes a port and pages for one ring.
fn make(
    events: &EventChannels,
    allocator: &GrantAllocator,
    peer: DomId,
    sizes: RingSizes,
) -> Result<(Channel, GrantRef), VchanError> {
    let port = events.bind_unbound_port(peer).map_err(VchanError::xen("make the event channel", peer))?;
    let made = share(allocator, peer, sizes, port);
    let (pages, ring_ref) = match made {
        Ok(made) => made,
        Err(error) => {
            let _ = events.unbind(port);
            return Err(error);
        }
    };
    // A port fires only after this, and may have been masked by its forerunner with the same number.
    events.unmask(port).map_err(VchanError::xen("open the event channel", peer))?;
    Ok((Channel { ring: Ring::new(pages, Side::Server), port, peer }, ring_ref))
}

fn share(
    allocator: &GrantAllocator,
    peer: DomId,
    sizes: RingSizes,
    port: EventPort,
) -> Result<(RingPages, GrantRef), VchanError> {
    let on_unmap = OnUnmap { clear_byte: Some(layout::live(Side::Server)), notify: Some(port) };
    let grant = |pages, on_unmap| {
        allocator
            .share(peer, pages, Access::ReadWrite, on_unmap)
            .map_err(VchanError::xen("grant the pages", peer))
    };
    let shared = grant(1, on_unmap)?;
    let of = |stream| match sizes.pages(stream) {
        0 => Ok(None),
        pages => grant(pages, OnUnmap::default()).map(Some),
    };
    let (left, right) = (of(Stream::Left)?, of(Stream::Right)?);
    let refs: Vec<_> = [&left, &right].into_iter().flatten().flat_map(GrantedPages::refs).copied().collect();
    let ring_ref = shared.refs().first().copied().unwrap_or(GrantRef(0));
    let pages = RingPages::new(
        shared.into_pages(),
        left.map(GrantedPages::into_pages),
        right.map(GrantedPages::into_pages),
        sizes,
    );
    pages.offer(refs.into_iter());
    Ok((pages, ring_ref))
}

/// This domain's number, which every toolstack writes for it.
fn own_domid(store: &Connection) -> Result<Option<DomId>, StoreError> {
    let path = RelPath::new("domid").expect("a short word is a path");
    let number = store.read_number(&path)?.and_then(|number| u16::try_from(number).ok());
    Ok(number.and_then(|number| DomId::new(number).ok()))
}
