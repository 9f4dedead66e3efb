use config::{Nic, NicKind, Uuid};
use xen_types::DomId;
use xenbus::DeviceId;

use super::DeviceNode;

/// The MTU that a frontend is told when the configuration names none, in bytes.
const DEFAULT_MTU: u32 = 1500;
/// What the interface of a stubdomain ends with when the configuration names the guest's (libxl's
/// `TAP_DEVICE_SUFFIX`).
const STUB_SUFFIX: &str = "-emu";

/// The interface in dom0 that netback makes for a vif.
pub(crate) fn interface_name(frontend: DomId, devid: u32) -> String {
    format!("vif{frontend}.{devid}")
}

/// The nodes of a network interface for the guest's PV driver, or for its stubdomain, to whose interface QEMU's is
/// bridged (`libxl__set_xenstore_nic`).
///
/// Without a script of its own, `script` names the stock one: netback wants the key, and stock tools run it when
/// they destroy our guest.
pub(crate) fn nic_node(
    id: DeviceId,
    nic: &Nic,
    guest_uuid: &Uuid,
    script: &str,
    bridge: &str,
    stub: bool,
) -> DeviceNode {
    let mac = nic.address(guest_uuid).to_string();
    let mut node = DeviceNode::new(id);
    node.back("script", script);
    if let Some(name) = vif_name(nic, stub) {
        node.back("vifname", name);
    }
    node.back("mac", mac.clone());
    if let Some(ip) = &nic.ip {
        node.back("ip", ip.clone());
    }
    if let Some(device) = &nic.gateway_dev {
        node.back("gatewaydev", device.clone());
    }
    if let Some(rate) = nic.rate {
        node.back("rate", format!("{},{}", rate.bytes_per_interval, rate.interval_usecs));
    }
    if let Some(mtu) = nic.mtu {
        node.back("mtu", mtu.to_string());
    }
    let emulated = nic.kind == NicKind::Ioemu && !stub;
    node.back("bridge", bridge)
        .back("handle", nic.devid.to_string())
        .back("type", if emulated { "vif_ioemu" } else { "vif" })
        // The backend connects only when this says "connected".
        .back("hotplug-status", "");
    node.front("handle", nic.devid.to_string())
        .front("mac", mac)
        .front("trusted", if nic.trusted { "1" } else { "0" });
    node.fixed("mtu", nic.mtu.unwrap_or(DEFAULT_MTU).to_string());
    node
}

/// The name that the configuration gives to the interface in dom0.
pub(crate) fn vif_name(nic: &Nic, stub: bool) -> Option<String> {
    let name = nic.vifname.as_ref()?;
    Some(if stub { format!("{name}{STUB_SUFFIX}") } else { name.clone() })
}
