//! QEMU's arguments and the stubdomain's devices, from the configuration.

use qemu_args::{Facts, Plan, QemuFeatures, plan};
use xen_types::DomId;

use super::Creation;
use crate::error::Cause;

impl Creation<'_> {
    /// What QEMU is started with for a guest of this domid.
    ///
    /// The devices do not depend on the domid, so that they are known before there is a domain.
    pub(super) fn plan(&self, target: DomId) -> Result<Plan, Cause> {
        let qemu = QemuFeatures { sandbox: self.image.qemu.sandbox };
        let facts = Facts { target, uuid: self.record.uuid, qemu, incoming: false };
        Ok(plan(self.config, &facts)?)
    }
}
