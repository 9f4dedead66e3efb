//! All domains of the host.

use std::time::Duration;

use config::Uuid;
use serde::Serialize;
use xen::DomainInfo;
use xen_types::{DomId, KiB};
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::error::{Cause, ToolstackError as Error};
use crate::nodes::below;

/// A domain as `list` shows it, made by any toolstack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DomainEntry {
    /// Its number.
    pub domid: DomId,
    /// Its name; `(null)` as `xl list` says when it has none.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Memory that it holds.
    pub memory: KiB,
    /// Online virtual CPUs.
    pub vcpus: u32,
    /// Its state in the letters of `xl list`.
    pub state: String,
    /// Processor time that it has used.
    pub cpu_time: Duration,
    /// The guest that it serves as a stubdomain.
    pub target: Option<DomId>,
}

impl Toolstack {
    /// All domains, by number.
    ///
    /// # Errors
    /// When Xen or xenstore does not answer.
    pub fn list(&self) -> Result<Vec<DomainEntry>, Error> {
        let domains = self.hypervisor.list_domains().map_err(Cause::from)?;
        domains.iter().map(|info| self.entry(info).map_err(Error::from)).collect()
    }

    fn entry(&self, info: &DomainInfo) -> Result<DomainEntry, Cause> {
        let dir = XsPath::domain(info.domid);
        // A stubdomain's `target` is only dom0's to write.
        let target = self.xenstore.read(&below(&dir, "target"))?;
        let target = target.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok());
        Ok(DomainEntry {
            domid: info.domid,
            name: self.domain_name(info.domid)?.unwrap_or_else(|| "(null)".to_owned()),
            uuid: Uuid::from_bytes(info.uuid),
            memory: info.memory,
            vcpus: info.online_vcpus,
            state: info.state.to_string(),
            cpu_time: info.cpu_time,
            target,
        })
    }

    /// The domain with this name, or with this number when the text is one and no domain has it as its name.
    ///
    /// # Errors
    /// [`Cause::NoGuest`] when there is none.
    pub fn find_domain(&self, name_or_domid: &str) -> Result<DomId, Error> {
        for info in self.hypervisor.list_domains().map_err(Cause::from)? {
            if self.domain_name(info.domid)?.as_deref() == Some(name_or_domid) {
                return Ok(info.domid);
            }
        }
        if let Ok(domid) = name_or_domid.parse::<DomId>()
            && self.hypervisor.domain_info(domid).map_err(Cause::from)?.is_some()
        {
            return Ok(domid);
        }
        Err(Cause::NoGuest(format!("called {name_or_domid}")).into())
    }
}
