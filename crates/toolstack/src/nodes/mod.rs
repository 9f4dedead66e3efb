//! The part of xenstore that every domain has: pure, from values to writes.
//!
//! Paths, values and permissions are those that libxl 4.17 writes (`libxl__domain_make`, `libxl__build_post`). Devices'
//! are in `device::nodes`.

mod domain;

use config::Uuid;
use xen_types::DomId;
use xenstore::{Access, Permissions, XsPath};

pub(crate) use domain::{
    DomainNodes, StoreRing, VcpuCounts, cpu_availability, make_domain, memory, ring_details, start_time,
};

/// A path below another, of words that are known to make a path.
pub(crate) fn below(path: &XsPath, name: &str) -> XsPath {
    path.join(name).expect("a domain's directory, a few short words and numbers make a path")
}

/// `/libxl/<domid>`: what the toolstack keeps for itself and other tools of dom0.
pub(crate) fn libxl_dir(domid: DomId) -> XsPath {
    XsPath::new(format!("/libxl/{domid}")).expect("two short words make a path")
}

/// `/vm/<uuid>`.
pub(crate) fn vm_dir(uuid: Uuid) -> XsPath {
    XsPath::new(format!("/vm/{uuid}")).expect("a UUID has only digits, letters and hyphens")
}

/// Domain 0's, readable by the domain.
pub(crate) fn read_only(domid: DomId) -> Permissions {
    Permissions::owned_by(DomId::DOM0).allow(domid, Access::Read)
}

/// The domain's own.
pub(crate) fn own(domid: DomId) -> Permissions {
    Permissions::owned_by(domid)
}
