//! Domains by identity: a domid is a domain's only while Xen has the domain's UUID under it.
//!
//! Xen reuses domids: it starts again at 1 after a restart of the host, and wraps around within a boot. So records
//! contain UUIDs, with the domids that went with them. Code that acts on a domain first checks that the domid still
//! belongs to it. The result is a [`Domain`], which is made for one step and not stored.

use config::Uuid;
use serde::{Deserialize, Serialize};
use xen::DomainInfo;
use xen_types::DomId;
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::error::Cause;
use crate::record::GuestRecord;
use crate::tree::{below, vm_dir};

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

    /// Xen's current information about a domain; `None` when it is gone.
    pub(crate) fn look(&self, domain: Domain) -> Result<Option<DomainInfo>, Cause> {
        self.domain_info(domain.domid, domain.uuid)
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

    /// Finds a record's domains: sets their domids, and clears those that other domains have now.
    ///
    /// The domid of a new domain may not be recorded yet. A stubdomain is then found by its UUID, which is random. The
    /// guest's UUID may come from a configuration that another toolstack uses too, so a domain with it counts only
    /// while it has no xenstore directory: ours gets one after its domid is recorded.
    pub(crate) fn find_domains(&self, record: &mut GuestRecord) -> Result<(), Cause> {
        let domains = self.hypervisor.list_domains()?;
        let by_uuid = |uuid: Uuid| domains.iter().find(|info| info.uuid == *uuid.as_bytes());
        record.domid = match record.domid {
            Some(domid) => self.holder(domid, record.uuid)?.ours(),
            None => match by_uuid(record.uuid) {
                Some(info) if self.xenstore.read(&vm_link(info.domid))?.is_none() => Some(info.domid),
                _ => None,
            },
        };
        record.stub_domid = match record.stub_domid {
            Some(domid) => self.holder(domid, record.stub_uuid)?.ours(),
            None => by_uuid(record.stub_uuid).map(|info| info.domid),
        };
        Ok(())
    }
}

impl GuestRecord {
    /// The guest's identity.
    #[must_use]
    pub const fn id(&self) -> GuestId {
        GuestId(self.uuid)
    }

    /// The guest's domain, if it exists.
    pub(crate) fn guest_domain(&self, ts: &Toolstack) -> Result<Option<Domain>, Cause> {
        ts.domain(self.domid, self.uuid)
    }

    /// The stubdomain, if it exists.
    pub(crate) fn stub_domain(&self, ts: &Toolstack) -> Result<Option<Domain>, Cause> {
        ts.domain(self.stub_domid, self.stub_uuid)
    }

    /// The existing domains, the stubdomain first: it has the guest's memory mapped.
    pub(crate) fn domains(&self, ts: &Toolstack) -> Result<Vec<Domain>, Cause> {
        Ok([self.stub_domain(ts)?, self.guest_domain(ts)?].into_iter().flatten().collect())
    }

    /// The domids whose devices, nodes, interfaces and scripts are this guest's: no other domain has them.
    pub(crate) fn own_numbers(&self, ts: &Toolstack) -> Result<Vec<DomId>, Cause> {
        let mut own = Vec::new();
        for (domid, uuid) in [(self.stub_domid, self.stub_uuid), (self.domid, self.uuid)] {
            if let Some(domid) = domid {
                own.extend(ts.holder(domid, uuid)?.ours());
            }
        }
        Ok(own)
    }
}

fn vm_link(domid: DomId) -> XsPath {
    below(&XsPath::domain(domid), "vm")
}
