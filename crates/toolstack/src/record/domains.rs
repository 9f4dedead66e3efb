//! The domains of a record, each looked up in Xen.

use config::Uuid;
use xen_types::DomId;
use xenstore::Store;

use super::GuestRecord;
use crate::Toolstack;
use crate::domain::{Domain, GuestId, vm_link};
use crate::error::Cause;

impl Toolstack {
    /// Finds a record's domains: sets their domids, and clears those that other domains have now.
    ///
    /// The domid of a new domain may not be recorded yet. A stubdomain is then found by its UUID, which is random. The
    /// guest's UUID may come from a configuration that another toolstack uses too, so a domain with it counts only
    /// while it has no xenstore directory: ours gets one after its domid is recorded. One that is dying may be an earlier
    /// guest's: a new one can have its UUID.
    pub(crate) fn find_domains(&self, record: &mut GuestRecord) -> Result<(), Cause> {
        let domains = self.hypervisor.list_domains()?;
        let by_uuid =
            |uuid: Uuid| domains.iter().find(|info| info.uuid == *uuid.as_bytes() && !info.state.dying);
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
