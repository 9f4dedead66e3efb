//! What a domain's part of xenstore looks like: pure, from values to writes.
//!
//! Paths, values and permissions are those that libxl 4.17 writes (`libxl__domain_make`, `libxl__build_post`,
//! `libxl__device_generic_add` and the `device_*_add` functions in `tools/libs/light`).

mod device;
mod disk;
mod domain;
mod nic;

use xen_types::DomId;
use xenstore::{Access, Permissions, XsPath};

pub(crate) use device::{
    DeviceId, DeviceKind, DeviceNode, add_device, backend_parent, channel_node, console_node, monitor_node,
};
pub(crate) use disk::{DiskBacking, disk_node};
pub(crate) use domain::{
    DomainTree, StoreRing, VcpuCounts, cpu_availability, guest_details, make_domain, memory_target,
    pv_details, ring_details, vm_dir,
};
pub(crate) use nic::{interface_name, nic_node, vif_name};

/// A path below another, of words that are known to make a path.
pub(crate) fn below(path: &XsPath, name: &str) -> XsPath {
    path.join(name).expect("a domain's directory, a few short words and numbers make a path")
}

/// `/libxl/<domid>`: what the toolstack keeps for itself and other tools of dom0.
pub(crate) fn libxl_dir(domid: DomId) -> XsPath {
    XsPath::new(format!("/libxl/{domid}")).expect("two short words make a path")
}

/// Domain 0's, readable by the domain.
pub(crate) fn read_only(domid: DomId) -> Permissions {
    Permissions::owned_by(DomId::DOM0).allow(domid, Access::Read)
}

/// The domain's own.
pub(crate) fn own(domid: DomId) -> Permissions {
    Permissions::owned_by(domid)
}
