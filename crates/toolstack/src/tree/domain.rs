use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::{GuestConfig, Uuid};
use xen::{HvmBuilt, Placed};
use xen_types::{DomId, EventPort, Gfn, KiB};
use xenstore::{Permissions, XsPath};

use super::{below, libxl_dir, own, read_only};
use crate::batch::Batch;

/// What `dm-version` and `platform/device-model` say: QEMU of Xen's kind, wherever it runs.
const DEVICE_MODEL: &str = "qemu_xen";

/// A domain whose tree is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DomainTree<'a> {
    pub(crate) domid: DomId,
    pub(crate) uuid: Uuid,
    pub(crate) name: &'a str,
    pub(crate) hvm: bool,
}

impl DomainTree<'_> {
    pub(crate) fn dir(&self) -> XsPath {
        XsPath::domain(self.domid)
    }

    pub(crate) fn vm(&self) -> XsPath {
        vm_dir(self.uuid)
    }
}

/// `/vm/<uuid>`.
pub(crate) fn vm_dir(uuid: Uuid) -> XsPath {
    XsPath::new(format!("/vm/{uuid}")).expect("a UUID has only digits, letters and hyphens")
}

/// The directories of a new domain and who may do what with them (`libxl__domain_make`).
pub(crate) fn make_domain(batch: &mut Batch, tree: &DomainTree<'_>) {
    let (dir, vm, libxl) = (tree.dir(), tree.vm(), libxl_dir(tree.domid));
    let (readable, private) = (read_only(tree.domid), Permissions::owned_by(DomId::DOM0));
    batch.remove(dir.clone()).remove(vm.clone()).remove(libxl.clone());
    batch.make(&dir, &readable).make(&vm, &readable);
    batch.make(&libxl, &private).write(&below(&libxl, "device"), "");
    batch.write(&below(&dir, "vm"), vm.as_str());
    batch.write(&below(&dir, "name"), tree.name);
    // These have their parent's permissions.
    for name in ["cpu", "memory", "device", "control"] {
        batch.write(&below(&dir, name), "");
    }
    batch.make(&below(&dir, "device/suspend/event-channel"), &own(tree.domid));
    if tree.hvm {
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
    if tree.hvm {
        writable.extend(["control/feature-s3", "control/feature-s4"]);
    }
    for name in writable {
        batch.make(&below(&dir, name), &own(tree.domid));
    }
    batch.write(&below(&vm, "uuid"), tree.uuid.to_string());
    batch.write(&below(&vm, "name"), tree.name);
    batch.write(&below(&dir, "control/platform-feature-multiprocessor-suspend"), "1");
    batch.write(&below(&dir, "control/platform-feature-xs_reset_watches"), "1");
    batch.write(&below(&libxl, "type"), if tree.hvm { "hvm" } else { "pv" });
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
pub(crate) fn ring_details(batch: &mut Batch, tree: &DomainTree<'_>, ring: StoreRing, vcpus: VcpuCounts) {
    let dir = tree.dir();
    batch.write(&below(&dir, "domid"), tree.domid.to_string());
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

/// What a guest's balloon driver is told to aim at, when the guest is to have `memory` in all.
pub(crate) fn memory_target(config: &GuestConfig, memory: KiB) -> KiB {
    // A guest that may have more than it has is given a little slack by libxl.
    let slack = if config.max_memory > memory { 1024 } else { 0 };
    KiB(memory.get().saturating_sub(config.display.video_memory.get() + slack))
}

fn memory(batch: &mut Batch, dir: &XsPath, max: KiB, target: KiB, video: KiB) {
    batch.write(&below(dir, "memory/static-max"), max.get().to_string());
    batch.write(&below(dir, "memory/target"), target.get().to_string());
    batch.write(&below(dir, "memory/videoram"), video.get().to_string());
}

/// What hvmloader, the guest's drivers and other tools read of an HVM guest's platform.
pub(crate) fn guest_details(
    batch: &mut Batch,
    tree: &DomainTree<'_>,
    config: &GuestConfig,
    built: &HvmBuilt,
    stub: DomId,
) {
    let (dir, vm) = (tree.dir(), tree.vm());
    let video = config.display.video_memory;
    memory(batch, &dir, config.max_memory, memory_target(config, config.memory), video);
    let platform = &config.platform;
    let flag = |set: bool| if set { "1" } else { "0" };
    batch.write(&below(&dir, "platform/acpi"), flag(platform.acpi));
    batch.write(&below(&dir, "platform/acpi_s3"), flag(platform.acpi_s3));
    batch.write(&below(&dir, "platform/acpi_s4"), flag(platform.acpi_s4));
    batch.write(&below(&dir, "platform/acpi_laptop_slate"), flag(platform.acpi_laptop_slate));
    batch.write(&below(&dir, "platform/device-model"), DEVICE_MODEL);
    if let Some(hole) = platform.mmio_hole {
        batch.write(&below(&dir, "platform/mmio_hole_size"), (hole.get() * 1024).to_string());
    }
    batch.write(&below(&dir, "hvmloader/bios"), config.firmware.kind.xenstore_name());
    // QEMU cannot follow when hvmloader moves memory to make the hole for devices larger.
    batch.write(&below(&dir, "hvmloader/allow-memory-relocate"), "0");
    placed(batch, &dir, "hvmloader/smbios", built.smbios);
    placed(batch, &dir, "hvmloader/acpi", built.acpi);
    batch.write(&below(&dir, "image/device-model-domid"), stub.to_string());
    batch.write(&below(&vm, "rtc/timeoffset"), "");
    batch.write(&below(&vm, "image/ostype"), "hvm");
    batch.write(&below(&vm, "start_time"), start_time());
    batch.write(&below(&libxl_dir(tree.domid), "dm-version"), DEVICE_MODEL);
}

/// Tells hvmloader where extra tables are (`xen/include/public/hvm/hvm_xs_strings.h`).
fn placed(batch: &mut Batch, dir: &XsPath, name: &str, place: Option<Placed>) {
    if let Some(place) = place {
        batch.write(&below(dir, &format!("{name}/address")), format!("{:#x}", place.address));
        batch.write(&below(dir, &format!("{name}/length")), format!("{:#x}", place.length));
    }
}

/// What is told about the stubdomain, a PV domain.
pub(crate) fn pv_details(
    batch: &mut Batch,
    tree: &DomainTree<'_>,
    total: KiB,
    kernel: &str,
    ramdisk: &str,
    cmdline: &str,
) {
    let (dir, vm) = (tree.dir(), tree.vm());
    memory(batch, &dir, total, total, KiB(0));
    batch.write(&below(&vm, "image/ostype"), "linux");
    batch.write(&below(&vm, "image/kernel"), kernel);
    batch.write(&below(&vm, "image/ramdisk"), ramdisk);
    batch.write(&below(&vm, "image/cmdline"), cmdline);
    batch.write(&below(&vm, "start_time"), start_time());
}

/// Seconds and hundredths since 1970.
fn start_time() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("{}.{:02}", now.as_secs(), now.subsec_millis() / 10)
}
