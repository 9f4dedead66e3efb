use config::{Access, Disk, DiskSource};
use xen_types::DomId;

use super::{DeviceKind, DeviceNode};
use crate::host::BlockDevice;

/// What is behind a disk in dom0, once it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskBacking {
    /// A CD drive without a medium.
    Empty,
    /// A block device of dom0, or the loop device of a file.
    Device {
        /// The device.
        device: BlockDevice,
        /// Whether it is a loop device that was attached for this guest.
        looped: bool,
    },
    /// What a hotplug script makes; it writes `physical-device` itself.
    Script {
        /// The script.
        script: String,
        /// The text that it interprets.
        target: String,
    },
}

/// The nodes of a disk for one of its two users: the guest's PV drivers, or its stubdomain (`device_disk_add` in
/// `libxl_disk.c`, the branch for block devices).
pub(crate) fn disk_node(
    disk: &Disk,
    backing: &DiskBacking,
    frontend: DomId,
    vdev: config::Vdev,
    pv: bool,
) -> DeviceNode {
    let devid = vdev.devid();
    let kind = if disk.is_cdrom() { "cdrom" } else { "disk" };
    let writable = disk.access == Access::ReadWrite;
    let flag = |set: bool| if set { "1" } else { "0" };
    let mut node = DeviceNode::new(DeviceKind::Vbd, devid, frontend);
    let (params, script) = match (&disk.source, backing) {
        (DiskSource::Path(path), _) => (path.as_str(), "/etc/xen/scripts/block"),
        (_, DiskBacking::Script { script, target }) => (target.as_str(), script.as_str()),
        _ => ("", "/etc/xen/scripts/block"),
    };
    node.back("params", params).back("script", script);
    if let DiskBacking::Device { device, looped } = backing {
        let path = device.path.to_string_lossy();
        node.back("physical-device", device.physical_device());
        node.back("physical-device-path", path.clone());
        if *looped {
            // Where the stock script looks for what it has to detach.
            node.back("node", path);
        }
        node.back("hotplug-status", "connected");
    }
    node.back("removable", flag(disk.is_cdrom()))
        .back("bootable", "1")
        .back("dev", vdev.to_string())
        .back("type", "phy")
        .back("mode", if writable { "w" } else { "r" })
        .back("device-type", kind);
    if disk.direct_io_safe {
        node.back("direct-io-safe", "1");
    }
    node.back("discard-enable", flag(disk.discard.unwrap_or(writable))).back("specification", "xen");
    node.front("virtual-device", devid.to_string())
        .front("device-type", kind)
        .front("trusted", flag(disk.trusted));
    if pv {
        node.front("protocol", "x86_64-abi");
    }
    node
}
