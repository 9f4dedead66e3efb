//! What the steps of a create leave for the next ones.

use config::GuestConfig;
use stubdom_abi::Serves;

use super::prepare::Prepared;
use crate::domain::Domain;
use crate::error::Cause;
use crate::nodes::vm_dir;
use crate::record::GuestRecord;
use crate::{Toolstack, guest, stubdomain};

/// What the steps have made so far, in this process: what a step leaves, its accessor finds. A domain is looked up in
/// Xen again each time. The undo of a step uses none of it: it works from the record.
pub(crate) struct Progress<'a> {
    ts: &'a Toolstack,
    name: &'a str,
    pub(super) prepared: Option<Prepared>,
    pub(super) guest_made: Option<guest::Made>,
    pub(super) guest_built: Option<guest::Built>,
    pub(super) stub_made: Option<stubdomain::Made>,
    pub(super) stub_built: Option<stubdomain::Built>,
    pub(super) stub_running: Option<stubdomain::Running>,
}

impl<'a> Progress<'a> {
    /// Nothing is made yet.
    pub(super) fn new(ts: &'a Toolstack, name: &'a str) -> Self {
        Self {
            ts,
            name,
            prepared: None,
            guest_made: None,
            guest_built: None,
            stub_made: None,
            stub_built: None,
            stub_running: None,
        }
    }

    pub(super) fn prepared(&self) -> Result<&Prepared, Cause> {
        self.prepared.as_ref().ok_or(Cause::TooEarly { what: "plan of the guest" })
    }

    pub(crate) fn guest_made(&self) -> Result<guest::Made, Cause> {
        self.found(self.guest_made, |made| made.domain, "domain")
    }

    pub(super) fn guest_built(&self) -> Result<guest::Built, Cause> {
        self.found(self.guest_built, |built| built.made.domain, "domain with memory")
    }

    pub(crate) fn stub_made(&self) -> Result<stubdomain::Made, Cause> {
        self.found(self.stub_made, |made| made.domain, "stubdomain")
    }

    pub(super) fn stub_built(&self) -> Result<stubdomain::Built, Cause> {
        self.found(self.stub_built, |built| built.made.domain, "stubdomain with memory")
    }

    pub(crate) fn stub_running(&self) -> Result<stubdomain::Running, Cause> {
        self.found(self.stub_running, |running| running.domain, "running stubdomain")
    }

    fn found<T>(&self, made: Option<T>, domain: fn(&T) -> Domain, what: &'static str) -> Result<T, Cause> {
        let made = made.ok_or(Cause::TooEarly { what })?;
        match self.ts.look(domain(&made))? {
            Some(_) => Ok(made),
            None => Err(Cause::NotNow { name: self.name.to_owned(), why: format!("has no {what}") }),
        }
    }

    pub(super) fn guest_spec<'s>(
        &'s self,
        config: &'s GuestConfig,
        record: &GuestRecord,
    ) -> Result<guest::Spec<'s>, Cause> {
        let Prepared { guest: prepared, incoming, .. } = self.prepared()?;
        Ok(guest::Spec { config, uuid: record.uuid, prepared, is_fresh: !incoming })
    }

    pub(super) fn stub_spec<'s>(
        &'s self,
        config: &'s GuestConfig,
        record: &GuestRecord,
    ) -> Result<stubdomain::Spec<'s>, Cause> {
        let target = self.guest_made()?.domain.domid();
        Ok(stubdomain::Spec {
            uuid: record.stub_uuid,
            prepared: &self.prepared()?.stubdomain,
            hold: self.prepared()?.incoming,
            grants: &config.grants,
            qmp: config.device_model.qmp,
            target: Some(Serves { target, vm: vm_dir(record.uuid) }),
        })
    }
}
