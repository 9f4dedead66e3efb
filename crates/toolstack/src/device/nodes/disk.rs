use config::{Access, Disk};
use xenbus::DeviceId;

use super::DeviceNode;
use crate::dom0::BlockDevice;

/// The script that stock tools run for a disk without one of its own.
const STOCK_SCRIPT: &str = "/etc/xen/scripts/block";

/// What is behind a disk in dom0, once it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskBacking {
    /// A CD drive without a medium.
    Empty,
    /// A block device of dom0, or the loop device of a file.
    Device {
        /// The device, or the loop device of a file.
        device: BlockDevice,
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
    id: DeviceId,
    disk: &Disk,
    backing: &DiskBacking,
    vdev: config::Vdev,
    pv: bool,
) -> DeviceNode {
    let kind = if disk.is_cdrom() { "cdrom" } else { "disk" };
    let writable = disk.access == Access::ReadWrite;
    let flag = |set: bool| if set { "1" } else { "0" };
    let mut node = DeviceNode::new(id);
    let path = match backing {
        DiskBacking::Device { device } => device.path.to_string_lossy(),
        DiskBacking::Script { target, .. } => target.into(),
        DiskBacking::Empty => "".into(),
    };
    let script = match backing {
        DiskBacking::Script { script, .. } => script.as_str(),
        _ => STOCK_SCRIPT,
    };
    // For an image file this is its loop device: the stock script, which stock tools run when they destroy our guest,
    // then leaves it alone, and does not detach what guest and stubdomain share.
    node.back("params", path.clone()).back("script", script);
    if let DiskBacking::Device { device } = backing {
        node.back("physical-device", device.physical_device());
        node.back("physical-device-path", path);
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
    node.front("virtual-device", id.devid.to_string())
        .front("device-type", kind)
        .front("trusted", flag(disk.trusted));
    if pv {
        node.front("protocol", "x86_64-abi");
    }
    node
}
