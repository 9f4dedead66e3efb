//! Domains by identity: a domid is a domain's only while Xen has the domain's UUID under it.
//!
//! Xen reuses domids: it starts again at 1 after a restart of the host, and wraps around within a boot. So records
//! contain UUIDs, with the domids that went with them. Code that acts on a domain first checks that the domid still
//! belongs to it. The result is a [`Domain`], which is made for one step and not stored.

use std::time::{Duration, Instant};

use config::Uuid;
use serde::{Deserialize, Serialize};
use xen::{Channel, DomainInfo, DomainSpec};
use xen_types::{DomId, Gfn, KiB};
use xenstore::wire::ErrorCode;
use xenstore::{SpecialWatch, Store, StoreError, XsPath};

use crate::Toolstack;
use crate::error::Cause;
use crate::nodes::{below, vm_dir};
use crate::wait::Watcher;

/// What each domain may hold beyond its memory (`LIBXL_MAXMEM_CONSTANT`): QEMU's option ROMs are in it.
pub(crate) const EXTRA_MEMORY: KiB = KiB(1024);
/// The longest name that is read, in bytes.
const NAME_LIMIT: usize = 256;

/// A guest's identity: its UUID, which is also its domain's handle in Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestId(pub Uuid);

impl std::fmt::Display for GuestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A domain whose domid was just checked against its UUID.
///
/// Xen counts domids upwards, so a domid is not reused between the check and an action right after it. For the same
/// reason, domid and UUID together identify one domain within a boot of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    domid: DomId,
    uuid: Uuid,
}

impl Domain {
    /// Its domid.
    #[must_use]
    pub const fn domid(self) -> DomId {
        self.domid
    }

    /// Its UUID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.uuid
    }
}

/// The domain that has a recorded domid now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The recorded domain, which may be dying.
    Ours(Domain),
    /// None since the recorded domain: everything with its domid in xenstore and dom0 was made for it.
    Nobody(DomId),
    /// Another domain has it, or has left its xenstore directory.
    Another,
}

impl Holder {
    /// The domid, if everything with it belongs to the recorded domain.
    pub(crate) const fn ours(self) -> Option<DomId> {
        match self {
            Self::Ours(domain) => Some(domain.domid),
            Self::Nobody(domid) => Some(domid),
            Self::Another => None,
        }
    }
}

impl Toolstack {
    /// Xen's information about the domain with this domid, if it has this UUID.
    ///
    /// # Errors
    /// When Xen does not answer.
    pub fn domain_info(&self, domid: DomId, uuid: Uuid) -> Result<Option<DomainInfo>, Cause> {
        let info = self.hypervisor.domain_info(domid)?;
        Ok(info.filter(|info| info.uuid == *uuid.as_bytes()))
    }

    /// The domain with this domid, if it has this UUID.
    pub(crate) fn domain(&self, domid: Option<DomId>, uuid: Uuid) -> Result<Option<Domain>, Cause> {
        let Some(domid) = domid else { return Ok(None) };
        Ok(self.domain_info(domid, uuid)?.map(|_| Domain { domid, uuid }))
    }

    /// A domain that was just created.
    pub(crate) fn new_domain(&self, domid: DomId, uuid: Uuid) -> Result<Domain, Cause> {
        self.domain(Some(domid), uuid)?.ok_or_else(|| Cause::NoGuest(format!("in domain {domid}")))
    }

    /// The number of an XSM label, 0 without one.
    pub(crate) fn security_label(&self, label: Option<&String>) -> Result<u32, Cause> {
        Ok(label.map_or(Ok(0), |label| self.hypervisor.security_id(label))?)
    }

    /// Xen's current information about a domain; `None` when it is gone.
    pub(crate) fn look(&self, domain: Domain) -> Result<Option<DomainInfo>, Cause> {
        self.domain_info(domain.domid, domain.uuid)
    }

    /// Fails when the host has less free memory than this.
    pub(crate) fn check_free_memory(&self, what: &'static str, need: KiB) -> Result<(), Cause> {
        // Memory that waits to be scrubbed is given out like free memory.
        let free = self.hypervisor.host_info()?.free_memory;
        if need <= free {
            return Ok(());
        }
        let dom0 = self.hypervisor.domain_info(DomId::DOM0).ok().flatten().map(|info| info.memory);
        Err(Cause::Memory { what, need, free, dom0 })
    }

    /// Waits until a domain is gone, woken when any domain ends, at most this long; returns whether it is.
    ///
    /// # Errors
    /// When Xen or xenstore does not answer.
    pub fn wait_until_gone(&self, domid: DomId, uuid: Uuid, patience: Duration) -> Result<bool, Cause> {
        let mut watcher = Watcher::new();
        watcher.watch(&self.xenstore, &SpecialWatch::ReleaseDomain)?;
        let gone = watcher.until(Instant::now() + patience, || {
            Ok(self.domain_info(domid, uuid)?.is_none().then_some(()))
        })?;
        Ok(gone.is_some())
    }

    /// A domain's name.
    ///
    /// # Errors
    /// When xenstore does not answer.
    pub fn domain_name(&self, domid: DomId) -> Result<Option<String>, Cause> {
        let value = self.xenstore.read(&below(&XsPath::domain(domid), "name"))?;
        Ok(value.map(|value| {
            let value = value.get(..NAME_LIMIT).unwrap_or(&value);
            String::from_utf8_lossy(value).chars().filter(|c| !c.is_control()).collect()
        }))
    }

    /// The domain that now has the domid recorded for this UUID.
    pub(crate) fn holder(&self, domid: DomId, uuid: Uuid) -> Result<Holder, Cause> {
        match self.hypervisor.domain_info(domid)? {
            Some(info) if info.uuid == *uuid.as_bytes() => Ok(Holder::Ours(Domain { domid, uuid })),
            Some(_) => Ok(Holder::Another),
            None => {
                // A directory that is not removed outlives its domain; each toolstack writes this link first.
                let vm = self.xenstore.read(&vm_link(domid))?;
                let ours = vm.is_none_or(|vm| vm == vm_dir(uuid).as_str().as_bytes());
                Ok(if ours { Holder::Nobody(domid) } else { Holder::Another })
            }
        }
    }
}

pub(crate) fn vm_link(domid: DomId) -> XsPath {
    below(&XsPath::domain(domid), "vm")
}

/// Limits the grants of a domain that is to be made.
pub(crate) fn limit_grants(spec: &mut DomainSpec, grants: &config::GrantLimits) {
    spec.max_grant_frames = grants.max_grant_frames;
    spec.max_maptrack_frames = grants.max_maptrack_frames;
    if let Some(version) = grants.max_version {
        spec.max_grant_version = version;
    }
}

/// The two event channels that a domain is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) store: Channel,
    pub(crate) console: Channel,
}

impl Channels {
    /// Those of a new domain, to xenstored and the console daemon, which both run in dom0.
    pub(crate) fn allocate(ts: &Toolstack, domid: DomId) -> Result<Self, Cause> {
        let peer = DomId::DOM0;
        let store = Channel { port: ts.hypervisor.alloc_unbound_port(domid, peer)?, peer };
        let console = Channel { port: ts.hypervisor.alloc_unbound_port(domid, peer)?, peer };
        Ok(Self { store, console })
    }
}

/// Connects a domain that is built to xenstored, which uses this page of it.
pub(crate) fn introduce(ts: &Toolstack, domain: Domain, page: Gfn, channels: Channels) -> Result<(), Cause> {
    Ok(ts.xenstore.introduce(domain.domid(), page, channels.store.port)?)
}

/// Stops a domain's vCPUs; one that is gone is fine.
pub(crate) fn pause(ts: &Toolstack, domain: Domain) -> Result<(), Cause> {
    match ts.hypervisor.pause_domain(domain.domid()) {
        Err(error) if !error.is_no_domain() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Destroys a domain; one that is gone is fine. xenstored releases it at once.
pub(crate) fn kill(ts: &Toolstack, domain: Domain) -> Result<(), Cause> {
    match ts.hypervisor.destroy_domain(domain.domid()) {
        Err(error) if !error.is_no_domain() => return Err(error.into()),
        _ => {}
    }
    match ts.xenstore.release(domain.domid()) {
        // It was never introduced, or xenstored has noticed by itself; oxenstored calls that `EINVAL`.
        Err(StoreError::Refused { code: ErrorCode::NoEntry | ErrorCode::Invalid, .. }) => Ok(()),
        other => Ok(other?),
    }
}

/// Waits until domains are gone from Xen's list, that is, until nothing holds their memory any more.
pub(crate) fn wait_gone(ts: &Toolstack, domains: Vec<Domain>) -> Result<(), Cause> {
    let mut watcher = Watcher::new();
    watcher.watch(&ts.xenstore, &SpecialWatch::ReleaseDomain)?;
    let after = ts.deadlines.domain_gone;
    let mut left = domains;
    let gone = watcher.until(Instant::now() + after, || {
        let mut still = Vec::new();
        for domain in &left {
            if ts.look(*domain)?.is_some() {
                still.push(*domain);
            }
        }
        left = still;
        Ok(left.is_empty().then_some(()))
    })?;
    match (gone, left.first()) {
        (None, Some(domain)) => Err(Cause::DomainStays { domid: domain.domid(), after }),
        _ => Ok(()),
    }
}

/// Whether a domain is there and has neither shut down nor crashed.
pub(crate) fn lives(ts: &Toolstack, domain: Domain) -> Result<bool, Cause> {
    let info = ts.look(domain)?;
    Ok(info.is_some_and(|info| !info.state.dying && info.state.shutdown.is_none()))
}
