//! The virtual CPUs of a guest and of its stubdomain.

use xen::VcpuInfo;
use xen_types::DomId;

use crate::Toolstack;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};

/// A domain with its virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainVcpus {
    /// Its number.
    pub domid: DomId,
    /// Its name.
    pub name: String,
    /// Its virtual CPUs, by number.
    pub vcpus: Vec<VcpuInfo>,
}

impl Toolstack {
    /// The virtual CPUs of a guest and, behind them, those of its stubdomain.
    ///
    /// # Errors
    /// [`Cause::NoGuest`] when there is none, [`Cause::NotRunning`] when it has no domain any more; when Xen does not
    /// answer.
    pub fn vcpus(&self, id: GuestId) -> Result<Vec<DomainVcpus>, Error> {
        let record = self.record_of(id)?;
        let gone = || Cause::NotRunning { name: record.name.clone(), reason: None };
        let guest = record.guest_domain(self)?.ok_or_else(gone)?;
        let stub = record.stub_domain(self)?;
        let named = [(Some(guest), record.name.clone()), (stub, record.stub_name())];
        let existing = named.into_iter().filter_map(|(domain, name)| Some((domain?.domid(), name)));
        existing
            .map(|(domid, name)| {
                let vcpus = self.hypervisor.vcpus(domid).map_err(Cause::from)?;
                Ok(DomainVcpus { domid, name, vcpus })
            })
            .collect()
    }
}
