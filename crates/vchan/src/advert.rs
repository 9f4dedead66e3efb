//! Where clients find a vchan: its directory in xenstore.

use xen_types::{DomId, EventPort, GrantRef};
use xenstore::{Access, Connection, Permissions, Store, StoreError, Transaction, Xenstore};

use crate::error::VchanError;
use crate::place::Place;

const RING_REF: &str = "ring-ref";
const EVENT_CHANNEL: &str = "event-channel";
/// Ours, beyond libxenvchan, which does not look at it.
const FRESH: &str = "fresh-rings";
const YES: &[u8] = b"1";

/// What a server writes into its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advert {
    /// `ring-ref`: the grant of the shared page.
    pub ring_ref: GrantRef,
    /// `event-channel`: the server's port, to which the client binds.
    pub port: EventPort,
    /// `fresh-rings` (`1` or absent): that the server gives each client a clean ring, and writes the keys anew when it
    /// is ready. A client then connects only where `cli_live` is 2, and otherwise waits for the keys to be written.
    /// libxenvchan's servers do not write it, its clients do not read it.
    pub fresh: bool,
}

impl Advert {
    /// Reads what a server has written; `None` if there is no server.
    ///
    /// # Errors
    /// When xenstore does not answer, or what is written is no advertisement.
    pub fn read(store: &dyn Snapshot, place: &Place) -> Result<Option<Self>, VchanError> {
        Keys::of(place.clone())?.get(store)
    }
}

/// The three keys of a vchan.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) place: Place,
    ring_ref: Place,
    port: Place,
    fresh: Place,
}

impl Keys {
    pub(crate) fn of(place: Place) -> Result<Self, VchanError> {
        let child =
            |name| place.child(name).map_err(|source| VchanError::Place { place: place.clone(), source });
        let (ring_ref, port, fresh) = (child(RING_REF)?, child(EVENT_CHANNEL)?, child(FRESH)?);
        Ok(Self { place, ring_ref, port, fresh })
    }

    /// Writes the keys, readable for the peer, inside of a transaction.
    pub(crate) fn put(
        &self,
        store: &dyn Store,
        advert: Advert,
        permissions: &Permissions,
    ) -> Result<(), StoreError> {
        let put = |key: &Place, value: &[u8]| {
            store.write(key.node(), value)?;
            store.set_perms(key.watched(), permissions)
        };
        if advert.fresh {
            put(&self.fresh, YES)?;
        }
        put(&self.ring_ref, advert.ring_ref.to_string().as_bytes())?;
        put(&self.port, advert.port.to_string().as_bytes())
    }

    /// Writes what is there already once more, for those who wait for it.
    pub(crate) fn touch(&self, store: &dyn Store, ring_ref: GrantRef) -> Result<(), StoreError> {
        store.write(self.ring_ref.node(), ring_ref.to_string().as_bytes())
    }

    /// Reads the keys; nothing when there is no server.
    pub(crate) fn get(&self, store: &dyn Snapshot) -> Result<Option<Advert>, VchanError> {
        let mut values = (None, None, None);
        store
            .snapshot(&mut |store| {
                let read = |key: &Place| store.read(key.node());
                values = (read(&self.ring_ref)?, read(&self.port)?, read(&self.fresh)?);
                Ok(())
            })
            .map_err(VchanError::store("read", &self.place))?;
        let (Some(ring_ref), Some(port), fresh) = values else { return Ok(None) };
        Ok(Some(Advert {
            ring_ref: GrantRef(self.number(RING_REF, &ring_ref)?),
            port: EventPort(self.number(EVENT_CHANNEL, &port)?),
            fresh: fresh.as_deref() == Some(YES),
        }))
    }

    /// A number as a hostile server may have written it. Zero is neither a grant nor a port, as for libxenvchan.
    fn number(&self, key: &'static str, value: &[u8]) -> Result<u32, VchanError> {
        let text = core::str::from_utf8(value).unwrap_or_default();
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if plain { text.parse().ok() } else { None };
        number
            .filter(|number| *number != 0)
            .ok_or_else(|| VchanError::BadAdvert { place: self.place.clone(), key })
    }
}

/// Permissions of a vchan's keys: the server's own, nobody else's, readable by the client's domain.
pub(crate) fn permissions(own: DomId, peer: DomId) -> Permissions {
    Permissions::owned_by(own).allow(peer, Access::Read)
}

/// A connection to xenstore that reads several keys as of one moment.
pub trait Snapshot {
    /// Runs `read` in a transaction.
    ///
    /// # Errors
    /// As `read`'s, and those of the transaction.
    fn snapshot(
        &self,
        read: &mut dyn FnMut(&Transaction<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;
}

impl Snapshot for Connection {
    fn snapshot(
        &self,
        read: &mut dyn FnMut(&Transaction<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.transaction(read)
    }
}

impl Snapshot for Xenstore {
    fn snapshot(
        &self,
        read: &mut dyn FnMut(&Transaction<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.transaction(read)
    }
}
