use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xen_types::{DomId, EventPort, Gfn, KiB};
use xenstore::{Permissions, XsPath};

use super::{below, libxl_dir, own, read_only, vm_dir};
use crate::batch::Batch;
use crate::domain::Domain;

/// A domain whose nodes are to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DomainNodes<'a> {
    pub(crate) domain: Domain,
    pub(crate) name: &'a str,
    pub(crate) hvm: bool,
}

/// The directories of a new domain and who may do what with them (`libxl__domain_make`).
pub(crate) fn make_domain(batch: &mut Batch, nodes: &DomainNodes<'_>) {
    let DomainNodes { domain, name: domain_name, hvm } = *nodes;
    let (domid, uuid) = (domain.domid(), domain.uuid());
    let (dir, vm, libxl) = (XsPath::domain(domid), vm_dir(uuid), libxl_dir(domid));
    let (readable, private) = (read_only(domid), Permissions::owned_by(DomId::DOM0));
    batch.remove(dir.clone()).remove(vm.clone()).remove(libxl.clone());
    batch.make(&dir, &readable).make(&vm, &readable);
    batch.make(&libxl, &private).write(&below(&libxl, "device"), "");
    batch.write(&below(&dir, "vm"), vm.as_str());
    batch.write(&below(&dir, "name"), domain_name);
    // These have their parent's permissions.
    for name in ["cpu", "memory", "device", "control"] {
        batch.write(&below(&dir, name), "");
    }
    batch.make(&below(&dir, "device/suspend/event-channel"), &own(domid));
    if hvm {
        batch.write(&below(&dir, "hvmloader"), "");
    }
    let mut writable = vec![
        "control/shutdown",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "control/sysrq",
        "data",
        "drivers",
        "feature",
        "attr",
        "error",
    ];
    if hvm {
        writable.extend(["control/feature-s3", "control/feature-s4"]);
    }
    for name in writable {
        batch.make(&below(&dir, name), &own(domid));
    }
    batch.write(&below(&vm, "uuid"), uuid.to_string());
    batch.write(&below(&vm, "name"), domain_name);
    batch.write(&below(&dir, "control/platform-feature-multiprocessor-suspend"), "1");
    batch.write(&below(&dir, "control/platform-feature-xs_reset_watches"), "1");
    batch.write(&below(&libxl, "type"), if hvm { "hvm" } else { "pv" });
}

/// A domain's xenstore ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreRing {
    pub(crate) port: EventPort,
    pub(crate) gfn: Gfn,
}

/// How many virtual CPUs a domain has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VcpuCounts {
    pub(crate) online: u32,
    pub(crate) max: u32,
}

/// What is known of a domain once it is built (`libxl__build_post`): its ring, CPUs and memory.
///
/// `target` is what the balloon driver aims at; video memory is the device model's and not in it.
pub(crate) fn ring_details(batch: &mut Batch, domain: Domain, ring: StoreRing, vcpus: VcpuCounts) {
    let dir = XsPath::domain(domain.domid());
    batch.write(&below(&dir, "domid"), domain.domid().to_string());
    batch.write(&below(&dir, "store/port"), ring.port.to_string());
    batch.write(&below(&dir, "store/ring-ref"), ring.gfn.to_string());
    for cpu in 0..vcpus.max {
        batch.write(&below(&dir, &format!("cpu/{cpu}/availability")), cpu_availability(cpu, vcpus.online));
    }
}

/// What a virtual CPU's node says when this many are in use.
pub(crate) const fn cpu_availability(cpu: u32, online: u32) -> &'static str {
    if cpu < online { "online" } else { "offline" }
}

/// What a domain's balloon driver reads.
pub(crate) fn memory(batch: &mut Batch, dir: &XsPath, max: KiB, target: KiB, video: KiB) {
    batch.write(&below(dir, "memory/static-max"), max.get().to_string());
    batch.write(&below(dir, "memory/target"), target.get().to_string());
    batch.write(&below(dir, "memory/videoram"), video.get().to_string());
}

/// Seconds and hundredths since 1970.
pub(crate) fn start_time() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("{}.{:02}", now.as_secs(), now.subsec_millis() / 10)
}
