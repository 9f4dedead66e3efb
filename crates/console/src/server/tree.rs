//! What this daemon reads from xenstore and writes to it. Values that a guest can write are bounded and parsed here;
//! one that makes no sense counts as absent.

use xen_types::{DomId, EventPort, GrantRef};
use xenbus::{DeviceId, DeviceKind, XenbusState, kind_dir};
use xenstore::{Access, Connection, Permissions, Store, StoreError, XsPath, parse_number, parse_string};

use super::id::ConsoleId;
use super::looks::{LookError, Looks};
use crate::handshake::{Offer, Picture};
use crate::history::HISTORY;
use crate::output::{OutputError, Plan};

/// The longest text value that is looked at.
const TEXT_MAX: usize = 1024;

/// What the toolstack says about a primary console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Primary {
    /// The ring's frame: a guest frame number (HVM, PVH) or machine frame number (PV).
    pub(crate) frame: u64,
    pub(crate) port: EventPort,
}

/// Where the device model's side of a secondary console is kept, for all domains.
pub(crate) fn backends() -> XsPath {
    kind_dir(DeviceKind::Console, DomId::DOM0)
}

pub(crate) fn primary_dir(domid: DomId) -> XsPath {
    device(ConsoleId { domid, number: 0 }).front()
}

fn backend_dir(id: ConsoleId) -> XsPath {
    device(id).back()
}

pub(crate) fn frontend_dir(id: ConsoleId) -> XsPath {
    device(id).front()
}

/// The directory of the console that the toolstack alone can write.
fn toolstack_dir(id: ConsoleId) -> XsPath {
    if id.number == 0 { primary_dir(id.domid) } else { backend_dir(id) }
}

/// This daemon serves its consoles from dom0.
const fn device(id: ConsoleId) -> DeviceId {
    DeviceId::of_dom0(DeviceKind::Console, id.domid, id.number)
}

fn below(dir: &XsPath, key: &str) -> XsPath {
    dir.join(key).expect("a short word makes a path no too long")
}

/// The secondary console that a path below [`backends`] is about.
pub(crate) fn backend_of(changed: &XsPath) -> Option<ConsoleId> {
    let rest = changed.strip_prefix(&backends())?;
    let mut parts = rest.trim_start_matches('/').split('/');
    let domid = parts.next()?.parse().ok()?;
    let number = console_number(parts.next()?)?;
    Some(ConsoleId { domid, number })
}

/// A secondary console's number; 0 is the primary one, which has a backend directory that nobody uses.
pub(crate) fn console_number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// The secondary consoles of a domain that have a backend.
pub(crate) fn secondaries(store: &Connection, domid: DomId) -> Result<Vec<u32>, StoreError> {
    let names = soft(store.list(&below(&backends(), &domid.to_string())))?.unwrap_or_default();
    Ok(names.iter().filter_map(|name| console_number(name)).collect())
}

/// Reads what xenstore has of one console; what cannot be read or makes no sense is absent, a lost connection is an
/// error. Each value is asked for once in a look.
pub(crate) struct Reader<'a> {
    store: &'a Connection,
    looks: &'a Looks,
    id: ConsoleId,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(store: &'a Connection, looks: &'a Looks, id: ConsoleId) -> Self {
        Self { store, looks, id }
    }

    fn value(&self, path: &XsPath) -> Result<Option<Vec<u8>>, LookError> {
        self.looks.read(self.id, path, || soft(self.store.read(path)))
    }

    fn bytes(&self, dir: &XsPath, key: &str) -> Result<Option<Vec<u8>>, LookError> {
        self.value(&below(dir, key))
    }

    fn text(&self, dir: &XsPath, key: &str) -> Result<Option<String>, LookError> {
        let path = below(dir, key);
        Ok(self.value(&path)?.and_then(|value| parse_string(&path, value, TEXT_MAX).ok()))
    }

    fn number<T: TryFrom<u64>>(&self, dir: &XsPath, key: &str) -> Result<Option<T>, LookError> {
        let path = below(dir, key);
        let number = self.value(&path)?.and_then(|value| parse_number(&path, &value).ok());
        Ok(number.and_then(|number| number.try_into().ok()))
    }

    pub(crate) fn domain_name(&self) -> Result<Option<String>, LookError> {
        self.text(&XsPath::domain(self.id.domid), "name")
    }

    /// A primary console that is this daemon's to serve and complete.
    pub(crate) fn primary(&self) -> Result<Option<Primary>, LookError> {
        let dir = primary_dir(self.id.domid);
        let (Some(frame), Some(port)) = (self.number(&dir, "ring-ref")?, self.number(&dir, "port")?) else {
            return Ok(None);
        };
        let kind = self.bytes(&dir, "type")?;
        // Without the key it is for the console daemon: so does the stock one read it.
        let ours = kind.is_none_or(|kind| kind == b"xenconsoled");
        Ok(ours.then_some(Primary { frame, port: EventPort(port) }))
    }

    /// Whether a secondary console is this daemon's to serve, and not QEMU's.
    ///
    /// The backend's `type` decides. Without it the frontend's does, where stock toolstacks write it; the guest may
    /// have changed that one, but all it wins is that bytes of its own go to its own log.
    pub(crate) fn is_ours(&self) -> Result<bool, LookError> {
        let kind = match self.bytes(&backend_dir(self.id), "type")? {
            Some(kind) => Some(kind),
            None => self.bytes(&frontend_dir(self.id), "type")?,
        };
        Ok(kind.is_some_and(|kind| kind == b"xenconsoled"))
    }

    /// Where the console's bytes go. A secondary console's keys are taken from the backend's directory only: the guest
    /// owns the frontend's, and could otherwise name any file.
    pub(crate) fn plan(&self) -> Result<(Plan, Vec<OutputError>), LookError> {
        let dir = toolstack_dir(self.id);
        Plan::read(|key| self.text(&dir, key))
    }

    /// Bytes that may wait for who reads the console's pseudo-terminal (`limit`, at most what is kept anyway).
    pub(crate) fn limit(&self) -> Result<u64, LookError> {
        let limit: Option<u64> = self.number(&toolstack_dir(self.id), "limit")?;
        Ok(limit.filter(|limit| *limit > 0).map_or(HISTORY as u64, |limit| limit.min(HISTORY as u64)))
    }

    pub(crate) fn picture(&self) -> Result<Picture, LookError> {
        let (back, front) = (backend_dir(self.id), frontend_dir(self.id));
        let state = |dir| Ok::<_, LookError>(self.bytes(dir, "state")?.and_then(|v| XenbusState::parse(&v)));
        let ring = self.number(&front, "ring-ref")?.map(GrantRef);
        let port = self.number(&front, "port")?.map(EventPort);
        Ok(Picture {
            backend: state(&back)?,
            online: self.bytes(&back, "online")?.is_none_or(|value| value != b"0"),
            frontend: state(&front)?,
            offer: ring.zip(port).map(|(ring, port)| Offer { ring, port }),
        })
    }
}

/// Writes what others are to know of a console.
pub(crate) struct Writer<'a> {
    store: &'a Connection,
}

impl<'a> Writer<'a> {
    pub(crate) const fn new(store: &'a Connection) -> Self {
        Self { store }
    }

    /// Writes the backend's state, unless the toolstack has removed the device meanwhile: writing would make its
    /// directory anew, for ever.
    ///
    /// `is_owner` asks Xen whether the domid still belongs to the console's domain. It is called after the device's
    /// directory was read: if another domain gets the domid later, that directory changes, and this transaction is
    /// repeated.
    pub(crate) fn write_state(
        &self,
        id: ConsoleId,
        state: XenbusState,
        is_owner: &mut dyn FnMut() -> bool,
    ) -> Result<(), StoreError> {
        let node = below(&backend_dir(id), "state");
        let written = self.store.transaction(|transaction| {
            if transaction.read(&node)?.is_none() || !is_owner() {
                return Ok(None);
            }
            transaction.write(&node, state.value()).map(Some)
        });
        soft(written).map(drop)
    }

    /// Tells stock tools where the console's pseudo-terminal is (`libxl_console_get_tty`, `xenconsole`). The guest
    /// may read it but not write it (XSA-57). `is_owner` is as for [`Writer::write_state`].
    pub(crate) fn write_tty(
        &self,
        id: ConsoleId,
        tty: &str,
        is_owner: &mut dyn FnMut() -> bool,
    ) -> Result<(), StoreError> {
        let dir = frontend_dir(id);
        let node = below(&dir, "tty");
        let permissions = Permissions::owned_by(DomId::DOM0).allow(id.domid, Access::Read);
        let written = self.store.transaction(|transaction| {
            if transaction.get_perms(&dir)?.is_none() || !is_owner() {
                return Ok(None);
            }
            transaction.write(&node, tty.as_bytes())?;
            transaction.set_perms(&node, &permissions).map(Some)
        });
        soft(written).map(drop)
    }
}

/// Only the loss of xenstored is an error; what it refuses or a guest garbles is absent.
pub(crate) fn soft<T>(result: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Err(
            error @ (StoreError::ConnectionLost { .. } | StoreError::Timeout { .. } | StoreError::Io { .. }),
        ) => Err(error),
        Err(_) => Ok(None),
        Ok(value) => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_consoles() {
        let of = |text: &str| backend_of(&XsPath::new(text).unwrap());
        let base = "/local/domain/0/backend/console";
        let id = ConsoleId { domid: DomId::new(7).unwrap(), number: 12 };
        assert_eq!(of(&format!("{base}/7/12")), Some(id));
        assert_eq!(of(&format!("{base}/7/12/state")), Some(id));
        for other in ["", "/7", "/7/0", "/7/0/state", "/x/1", "/7/1x", "/99999/1", "/7/01"] {
            assert_eq!(of(&format!("{base}{other}")), None, "{other}");
        }
    }
}
