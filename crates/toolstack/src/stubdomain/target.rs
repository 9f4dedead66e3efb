//! The guest that a stubdomain serves: what makes it that guest's device model, in Xen, in xenstore's nodes, and for
//! xenstored.

use super::nodes;
use crate::Toolstack;
use crate::batch::Batch;
use crate::domain::Domain;
use crate::operation::StepResult;

/// Gives the stubdomain the right to be the guest's device model.
pub(crate) fn set_target(ts: &Toolstack, stub: Domain, guest: Domain) -> StepResult {
    Ok(ts.hypervisor.set_target(stub.domid(), guest.domid())?)
}

/// Names the target in xenstore, and makes the directory in which the stubdomain reports.
pub(crate) fn write_target(batch: &mut Batch, stub: Domain, guest: Domain) {
    nodes::target(batch, stub, guest);
}

/// Lets the stubdomain act for its target in xenstore. xenstored wants both to be connected.
pub(crate) fn introduce_target(ts: &Toolstack, stub: Domain, guest: Domain) -> StepResult {
    Ok(ts.xenstore.set_target(stub.domid(), guest.domid())?)
}
