//! Domains by identity: a number is a domain's only as long as Xen gives it to the domain's UUID.
//!
//! Xen hands numbers out again: after a restart of the host from 1 on, and within a boot once they have run through.
//! So what is written down of a guest are UUIDs, with the numbers that they had; whoever acts on a domain first finds
//! out, at that moment, whether the number still is its. The answer is a [`Domain`], which is made for one step and
//! not kept.

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

/// A domain whose number was just found to be that of its UUID.
///
/// Xen numbers domains upwards, so a number does not change hands between the look and the act that follows at once. For
/// the same reason number and UUID together are one domain's within a boot of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    domid: DomId,
    uuid: Uuid,
}

impl Domain {
    /// Its number.
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

/// Which domain has a number that a record gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The record's, which may be dying.
    Ours(Domain),
    /// None since the record's: what carries the number in xenstore and dom0 was made for it.
    Nobody(DomId),
    /// Another one, or another one's xenstore directory is left.
    Another,
}

impl Holder {
    /// The number, if what carries it is the record's.
    pub(crate) const fn ours(self) -> Option<DomId> {
        match self {
            Self::Ours(domain) => Some(domain.domid),
            Self::Nobody(domid) => Some(domid),
            Self::Another => None,
        }
    }
}

impl Toolstack {
    /// What Xen says of the domain with this number, if it has this UUID.
    ///
    /// # Errors
    /// When Xen does not answer.
    pub fn domain_info(&self, domid: DomId, uuid: Uuid) -> Result<Option<DomainInfo>, Cause> {
        let info = self.hypervisor.domain_info(domid)?;
        Ok(info.filter(|info| info.uuid == *uuid.as_bytes()))
    }

    /// The domain with this number, if it has this UUID.
    pub(crate) fn domain(&self, domid: Option<DomId>, uuid: Uuid) -> Result<Option<Domain>, Cause> {
        let Some(domid) = domid else { return Ok(None) };
        Ok(self.domain_info(domid, uuid)?.map(|_| Domain { domid, uuid }))
    }

    /// What Xen says of a domain now; nothing when it is gone.
    pub(crate) fn look(&self, domain: Domain) -> Result<Option<DomainInfo>, Cause> {
        self.domain_info(domain.domid, domain.uuid)
    }

    /// Which domain has a number that a record gives for this UUID.
    pub(crate) fn holder(&self, domid: DomId, uuid: Uuid) -> Result<Holder, Cause> {
        match self.hypervisor.domain_info(domid)? {
            Some(info) if info.uuid == *uuid.as_bytes() => Ok(Holder::Ours(Domain { domid, uuid })),
            Some(_) => Ok(Holder::Another),
            None => {
                // The directory outlives its domain where nobody removes it; each toolstack writes this link first.
                let vm = self.xenstore.read(&vm_link(domid))?;
                let ours = vm.is_none_or(|vm| vm == vm_dir(uuid).as_str().as_bytes());
                Ok(if ours { Holder::Nobody(domid) } else { Holder::Another })
            }
        }
    }

    /// Finds a record's domains: sets their numbers, and clears those that are other domains' now.
    ///
    /// A domain that was just made is not in the file yet. Then the stubdomain is known by its UUID, which is random;
    /// the guest's may stand in a configuration that another toolstack uses, too, so that one counts only as long as
    /// it has no xenstore directory: ours gets its own after the number is recorded.
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

    /// The guest's domain, if it is there.
    pub(crate) fn guest_domain(&self, ts: &Toolstack) -> Result<Option<Domain>, Cause> {
        ts.domain(self.domid, self.uuid)
    }

    /// The stubdomain, if it is there.
    pub(crate) fn stub_domain(&self, ts: &Toolstack) -> Result<Option<Domain>, Cause> {
        ts.domain(self.stub_domid, self.stub_uuid)
    }

    /// The domains that are there. The stubdomain first: it holds the guest's memory mapped.
    pub(crate) fn domains(&self, ts: &Toolstack) -> Result<Vec<Domain>, Cause> {
        Ok([self.stub_domain(ts)?, self.guest_domain(ts)?].into_iter().flatten().collect())
    }

    /// The numbers whose devices, nodes, interfaces and scripts are this guest's: no other domain has them.
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
