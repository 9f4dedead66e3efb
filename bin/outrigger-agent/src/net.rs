//! Each emulated NIC's tap is bridged with its PV NIC.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xenstore::{Connection, RelPath, Store};

use crate::error::AgentError;
use crate::plan::Nic;
use crate::rtnl::{Change, LinkWatch, Rtnl};

/// How long a PV NIC may take to appear.
const APPEAR: Duration = Duration::from_secs(10);
/// The address of every PV NIC inside the stubdomain. The toolstack gives the PV NIC the guest's own address, and a
/// bridge keeps what is for its port's address to itself.
const NEUTRAL_ADDRESS: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xfe];
/// What the helper for QEMU's scripts reads: a tap and its bridge on each line.
const TABLE: &str = "/run/outrigger-nics";
/// The sizes of packets that are believed.
const MTUS: core::ops::RangeInclusive<u64> = 68..=65535;

/// A NIC whose bridge is ready for the tap.
#[derive(Clone, Debug)]
pub(crate) struct ReadyNic {
    tap: String,
    bridge: String,
    mtu: Option<u32>,
    attached: bool,
}

impl ReadyNic {
    /// For the log.
    pub(crate) fn describe(&self) -> String {
        let mtu = self.mtu.map_or(String::new(), |mtu| format!(", MTU {mtu}"));
        format!("tap {} will join {}{mtu}", self.tap, self.bridge)
    }
}

/// Waits for each PV NIC and makes its bridge. No packet leaves: the stubdomain has no addresses of its own.
pub(crate) fn prepare(nics: &[Nic], store: &Connection) -> Result<Vec<ReadyNic>, AgentError> {
    if nics.is_empty() {
        return Ok(Vec::new());
    }
    let watch = LinkWatch::open().map_err(|e| AgentError::System("watch the interfaces", e))?;
    let mut rtnl = Rtnl::open().map_err(|e| AgentError::System("open a netlink socket", e))?;
    let deadline = Instant::now() + APPEAR;
    let mut ready = Vec::new();
    for nic in nics {
        let pv = wait_for_pv(nic.devid, &watch, deadline)?;
        let mtu = read_mtu(nic.devid, store)?;
        build_bridge(&mut rtnl, &pv, &nic.bridge(), mtu)?;
        ready.push(ReadyNic { tap: nic.tap.clone(), bridge: nic.bridge(), mtu, attached: false });
    }
    let table: String = ready.iter().map(|nic| format!("{} {}\n", nic.tap, nic.bridge)).collect();
    fs::write(TABLE, table).map_err(|e| AgentError::System("write the table of NICs", e))?;
    Ok(ready)
}

/// Joins every tap that has appeared since to its bridge; gives a line for the log for each.
pub(crate) fn attach_taps(nics: &mut [ReadyNic]) -> Vec<String> {
    let mut lines = Vec::new();
    for nic in nics.iter_mut().filter(|nic| !nic.attached && exists(&nic.tap)) {
        nic.attached = true;
        lines.push(match attach(&nic.tap, &nic.bridge, nic.mtu) {
            Ok(()) => format!("tap {} joined {}", nic.tap, nic.bridge),
            Err(error) => crate::error::chain(&error),
        });
    }
    lines
}

/// Whether a tap is still awaited.
pub(crate) fn is_awaiting(nics: &[ReadyNic]) -> bool {
    nics.iter().any(|nic| !nic.attached)
}

/// QEMU's `/etc/qemu-ifup <tap>`: does what [`attach_taps`] does, whoever is first.
pub(crate) fn ifup(tap: &str) -> Result<(), AgentError> {
    let table = fs::read_to_string(TABLE).map_err(|e| AgentError::System("read the table of NICs", e))?;
    let bridge = table.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == tap);
    let (_, bridge) = bridge.ok_or(AgentError::Absent("bridge for this tap in the agent's table"))?;
    attach(tap, bridge, None)
}

fn attach(tap: &str, bridge: &str, mtu: Option<u32>) -> Result<(), AgentError> {
    let failed = |what, name: &str| {
        let name = name.to_owned();
        move |source| AgentError::Link { what, name, source }
    };
    let mut rtnl = Rtnl::open().map_err(|e| AgentError::System("open a netlink socket", e))?;
    let bridge_index = index_of(bridge).map_err(failed("find", bridge))?;
    let tap_index = index_of(tap).map_err(failed("find", tap))?;
    let mut changes = vec![Change::Bridge(bridge_index), Change::Up];
    changes.extend(mtu.map(Change::Mtu));
    rtnl.change(tap_index, &changes).map_err(failed("bridge", tap))
}

fn build_bridge(rtnl: &mut Rtnl, pv: &str, bridge: &str, mtu: Option<u32>) -> Result<(), AgentError> {
    let failed = |what, name: &str| {
        let name = name.to_owned();
        move |source| AgentError::Link { what, name, source }
    };
    rtnl.add_bridge(bridge).map_err(failed("make the bridge", bridge))?;
    let settings = Path::new("/sys/class/net").join(bridge).join("bridge");
    // A plain wire: nothing learnt about groups, no delay before the first packet.
    for (name, value) in [("multicast_snooping", "0"), ("forward_delay", "0")] {
        let _ = fs::write(settings.join(name), value);
    }
    let bridge_index = index_of(bridge).map_err(failed("find", bridge))?;
    let pv_index = index_of(pv).map_err(failed("find", pv))?;
    let mut changes = vec![Change::Address(NEUTRAL_ADDRESS), Change::Bridge(bridge_index)];
    changes.extend(mtu.map(Change::Mtu));
    rtnl.change(pv_index, &changes).map_err(failed("bridge", pv))?;
    rtnl.change(pv_index, &[Change::Up]).map_err(failed("bring up", pv))?;
    rtnl.change(bridge_index, &[Change::Up]).map_err(failed("bring up", bridge))
}

/// The name of the PV NIC's interface. It is not always `eth<devid>`: Linux counts them as they appear.
fn wait_for_pv(devid: u32, watch: &LinkWatch, deadline: Instant) -> Result<String, AgentError> {
    let folder = PathBuf::from(format!("/sys/bus/xen/devices/vif-{devid}/net"));
    loop {
        if let Some(name) = only_entry(&folder) {
            return Ok(name);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AgentError::NoNic { devid, seconds: APPEAR.as_secs() });
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], timeout);
        watch.drain();
    }
}

fn only_entry(folder: &Path) -> Option<String> {
    fs::read_dir(folder).ok()?.next()?.ok()?.file_name().into_string().ok()
}

fn read_mtu(devid: u32, store: &Connection) -> Result<Option<u32>, AgentError> {
    let path = RelPath::new(format!("device/vif/{devid}/mtu"))?;
    let mtu = store.read_number(&path).ok().flatten().filter(|mtu| MTUS.contains(mtu));
    Ok(mtu.and_then(|mtu| u32::try_from(mtu).ok()))
}

fn exists(name: &str) -> bool {
    index_of(name).is_ok()
}

fn index_of(name: &str) -> std::io::Result<u32> {
    Ok(if_nametoindex(name)?)
}
