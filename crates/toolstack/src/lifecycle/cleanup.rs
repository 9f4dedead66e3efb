//! Removing what xenstore has of a guest's two domains.

use xen_types::DomId;
use xenbus::{DeviceKind, backend_parent, errors_dir, errors_parent, kind_dir};
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::batch::Batch;
use crate::domain::{self, Domain};
use crate::nodes::{below, libxl_dir, vm_dir};
use crate::operation::StepResult;
use crate::record::GuestRecord;

/// Removes everything that xenstore has of the two domains.
pub(crate) fn remove_nodes(ts: &Toolstack, record: &GuestRecord) -> StepResult {
    let mut batch = Batch::new();
    for domid in record.own_numbers(ts)? {
        remove_numbered(ts, &mut batch, domid)?;
    }
    let own = [record.domid, record.stub_domid];
    let domains = ts.hypervisor.list_domains()?;
    for uuid in [record.uuid, record.stub_uuid] {
        // Another toolstack may have created a guest from the same configuration.
        let another =
            |info: &xen::DomainInfo| info.uuid == *uuid.as_bytes() && !own.contains(&Some(info.domid));
        if !domains.iter().any(another) {
            batch.remove(vm_dir(uuid));
        }
    }
    batch.apply(&ts.xenstore)?;
    remove_empty_kinds(ts)
}

/// Removes the directories of the kinds of which no backend is left, as libxl does (`libxl__xs_path_cleanup`), and those
/// of which no error is left.
fn remove_empty_kinds(ts: &Toolstack) -> StepResult {
    let dom0 = XsPath::domain(DomId::DOM0);
    let (backends, errors) = (below(&dom0, "backend"), below(&dom0, "error/backend"));
    // A transaction, so that a device which someone adds meanwhile is not taken along.
    ts.xenstore.transaction(|inside| {
        let kinds = DeviceKind::ALL.map(|kind| kind_dir(kind, DomId::DOM0));
        let mut dirs: Vec<_> = kinds.into_iter().chain([backends.clone()]).collect();
        if inside.list(&errors)?.is_some() {
            let kinds = DeviceKind::ALL.map(|kind| errors_dir(kind, DomId::DOM0));
            dirs.extend(kinds.into_iter().chain([errors.clone(), below(&dom0, "error")]));
        }
        for dir in dirs {
            if inside.list(&dir)?.is_some_and(|children| children.is_empty()) {
                inside.rm(&dir)?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn remove_numbered(ts: &Toolstack, batch: &mut Batch, domid: DomId) -> StepResult {
    let dom0 = XsPath::domain(DomId::DOM0);
    // Where Linux's xenbus writes the errors of backends.
    let errors = ts.xenstore.list(&below(&dom0, "error/backend"))?.is_some();
    for kind in DeviceKind::ALL {
        batch.remove(backend_parent(kind, DomId::DOM0, domid));
        if errors {
            batch.remove(errors_parent(kind, DomId::DOM0, domid));
        }
    }
    batch.remove(XsPath::domain(domid)).remove(libxl_dir(domid));
    Ok(())
}

/// Destroys a domain and waits until it is gone.
pub(super) fn end(ts: &Toolstack, domain: Option<Domain>) -> StepResult {
    let Some(domain) = domain else { return Ok(()) };
    domain::kill(ts, domain)?;
    domain::wait_gone(ts, vec![domain])
}
