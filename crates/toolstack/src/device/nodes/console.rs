use xen_types::{DomId, EventPort, Gfn};
use xenbus::{DeviceId, DeviceKind};

use super::DeviceNode;

/// How many bytes of a console's output were once kept (`LIBXL_XENCONSOLE_LIMIT`).
const CONSOLE_LIMIT: &str = "1048576";

/// A console, which the console daemon of dom0 serves; the primary one (number 0) has its ring and port.
pub(crate) fn console_node(
    domid: DomId,
    number: u32,
    output: &str,
    ring: Option<(Gfn, EventPort)>,
) -> DeviceNode {
    let mut node = DeviceNode::new(DeviceId::of_dom0(DeviceKind::Console, domid, number));
    node.back("protocol", "vt100").back("type", "xenconsoled").back("output", output);
    node.fixed("limit", CONSOLE_LIMIT).fixed("type", "xenconsoled").fixed("output", output).fixed("tty", "");
    match ring {
        Some((gfn, port)) => {
            node.front.retain(|(key, _)| *key != "state");
            node.fixed("port", port.to_string()).fixed("ring-ref", gfn.to_string());
        }
        None => {
            node.front("protocol", "vt100");
        }
    }
    node
}

/// A console of a stubdomain for the toolstack: what comes out goes to the toolstack's stream alone, while there is one.
/// It is QEMU's monitor, or the state of its devices, which has secrets of the guest's.
pub(crate) fn private_node(stub: DomId, number: u8) -> DeviceNode {
    let mut node = console_node(stub, u32::from(number), "null", None);
    node.back("log", "none");
    node
}

/// A channel: a secondary console of the guest's with libxl's keys (`libxl__init_console_from_channel`). The guest
/// learns its name, and not where it leads.
pub(crate) fn channel_node(domid: DomId, number: u32, channel: &config::Channel) -> DeviceNode {
    let output = format!("chardev:libxl-channel{}", number - 1);
    let mut node = console_node(domid, number, &output, None);
    node.fixed("name", &channel.name).back("name", &channel.name);
    match &channel.connection {
        config::ChannelConnection::Pty => node.back("connection", "pty"),
        config::ChannelConnection::Socket(path) => node.back("connection", "socket").back("path", path),
    };
    node
}
