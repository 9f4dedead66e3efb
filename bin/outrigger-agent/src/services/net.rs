//! Each emulated NIC's tap is bridged with its PV NIC, from the start and when one is plugged in later.
//!
//! The agent makes the taps, persistent and QEMU's own, because QEMU has no right to make interfaces. A tap without a
//! QEMU has no carrier: nothing leaves before QEMU runs, and what comes is dropped.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xenbus::DeviceKind;
use xenstore::{Connection, RelPath, Store};

use super::rtnl::{Change, LinkWatch, Rtnl};
use crate::error::{AgentError, chain};
use crate::plan::Nic;
use crate::system::{XEN_DEVICES, xen_devices};

/// How long a PV NIC may take to appear.
const APPEAR: Duration = Duration::from_secs(10);
/// The address of every PV NIC inside the stubdomain. The toolstack gives the PV NIC the guest's own address, and a
/// bridge does not forward what is addressed to one of its ports.
const NEUTRAL_ADDRESS: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xfe];
/// What the helper for QEMU's scripts reads: a tap and its bridge on each line. Not where QEMU can write.
const TABLE: &str = "/etc/outrigger-nics";
/// The sizes of packets that are accepted, in bytes.
const MTUS: core::ops::RangeInclusive<u64> = 68..=65535;
/// The most NICs that are served.
const NICS_MAX: usize = 64;

/// The stubdomain's NICs.
#[derive(Debug)]
pub(crate) struct Nics {
    watch: LinkWatch,
    rtnl: Rtnl,
    /// The user who may use the taps.
    owner: u32,
    known: Vec<Nic>,
}

impl Nics {
    /// Waits for the PV NIC of each NIC in QEMU's arguments and bridges it with a tap; returns lines for the log too.
    /// `waits` is called when it has to wait.
    pub(crate) fn prepare(
        nics: &[Nic],
        owner: u32,
        store: &Connection,
        waits: &mut dyn FnMut(),
    ) -> Result<(Self, Vec<String>), AgentError> {
        let watch = LinkWatch::open().map_err(|e| AgentError::System("watch the interfaces", e))?;
        let rtnl = Rtnl::open().map_err(|e| AgentError::System("open a netlink socket", e))?;
        let mut this = Self { watch, rtnl, owner, known: Vec::new() };
        let deadline = Instant::now() + APPEAR;
        let mut lines = Vec::new();
        for nic in nics {
            let pv = this.wait_for_pv(nic.devid, deadline, waits)?;
            lines.push(this.join(nic, &pv, store)?);
            this.known.push(nic.clone());
        }
        this.write_table();
        Ok((this, lines))
    }

    /// Looks which PV NICs have come and gone; returns lines for the log.
    pub(crate) fn look(&mut self, store: &Connection) -> Vec<String> {
        self.watch.drain();
        let now = present();
        let mut lines = Vec::new();
        let (stay, gone): (Vec<Nic>, Vec<Nic>) = core::mem::take(&mut self.known)
            .into_iter()
            .partition(|nic| now.iter().any(|(devid, _)| *devid == nic.devid));
        self.known = stay;
        for nic in &gone {
            lines.push(self.part(nic));
        }
        let changed = self.known.len();
        for (devid, pv) in now {
            if self.known.len() >= NICS_MAX || self.known.iter().any(|nic| nic.devid == devid) {
                continue;
            }
            let nic = Nic::plugged(devid);
            match self.join(&nic, &pv, store) {
                Ok(line) => {
                    lines.push(line);
                    self.known.push(nic);
                }
                // Another event comes when it can be joined, if ever.
                Err(error) => lines.push(chain(&error)),
            }
        }
        if !gone.is_empty() || self.known.len() > changed {
            self.write_table();
        }
        lines
    }

    /// Bridges a PV NIC with a new tap.
    fn join(&mut self, nic: &Nic, pv: &str, store: &Connection) -> Result<String, AgentError> {
        let mtu = read_mtu(nic.devid, store)?;
        linux_tap::create(&nic.tap, self.owner).map_err(link_error("make the tap", &nic.tap))?;
        let bridge = nic.bridge();
        let bridge_index = self.make_bridge(&bridge)?;
        self.add_port(&nic.tap, None, bridge_index, mtu)?;
        self.add_port(pv, Some(NEUTRAL_ADDRESS), bridge_index, mtu)?;
        self.rtnl.change(bridge_index, &[Change::Up]).map_err(link_error("bring up", &bridge))?;
        let mtu = mtu.map_or(String::new(), |mtu| format!(", MTU {mtu}"));
        Ok(format!("tap {} and PV NIC {} ({pv}) are in {bridge}{mtu}", nic.tap, nic.devid))
    }

    fn make_bridge(&mut self, bridge: &str) -> Result<u32, AgentError> {
        self.rtnl.add_bridge(bridge).map_err(link_error("make the bridge", bridge))?;
        let settings = Path::new("/sys/class/net").join(bridge).join("bridge");
        // Forwards everything at once: nothing learnt about groups, no delay before the first packet.
        for (name, value) in [("multicast_snooping", "0"), ("forward_delay", "0")] {
            let _ = fs::write(settings.join(name), value);
        }
        index_of(bridge).map_err(link_error("find", bridge))
    }

    fn add_port(
        &mut self,
        name: &str,
        address: Option<[u8; 6]>,
        bridge: u32,
        mtu: Option<u32>,
    ) -> Result<(), AgentError> {
        let index = index_of(name).map_err(link_error("find", name))?;
        let mut changes: Vec<Change> = address.map(Change::Address).into_iter().collect();
        changes.push(Change::Bridge(bridge));
        changes.extend(mtu.map(Change::Mtu));
        self.rtnl.change(index, &changes).map_err(link_error("bridge", name))?;
        self.rtnl.change(index, &[Change::Up]).map_err(link_error("bring up", name))
    }

    /// Removes what was made for a PV NIC that is gone.
    fn part(&mut self, nic: &Nic) -> String {
        for name in [&nic.tap, &nic.bridge()] {
            if let Ok(index) = index_of(name) {
                let _ = self.rtnl.remove(index);
            }
        }
        format!("PV NIC {} and tap {} were removed", nic.devid, nic.tap)
    }

    fn write_table(&self) {
        let table: String = self.known.iter().map(|nic| format!("{} {}\n", nic.tap, nic.bridge())).collect();
        // Read by helpers only, of which most toolstacks want none.
        let _ = fs::write(TABLE, table);
    }

    /// The name of the PV NIC's interface. It is not always `eth<devid>`: Linux counts them as they appear.
    fn wait_for_pv(
        &self,
        devid: u32,
        deadline: Instant,
        waits: &mut dyn FnMut(),
    ) -> Result<String, AgentError> {
        let mut is_first = true;
        loop {
            if let Some((_, name)) = interface_of(&format!("vif-{devid}")) {
                return Ok(name);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::NoNic { devid, seconds: APPEAR.as_secs() });
            }
            if core::mem::take(&mut is_first) {
                waits();
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut [PollFd::new(self.watch.as_fd(), PollFlags::POLLIN)], timeout);
            self.watch.drain();
        }
    }
}

impl AsFd for Nics {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

/// QEMU's `/etc/qemu-ifup <tap>` and `/etc/qemu-ifdown <tap>`: join the tap to its bridge, or take it out.
///
/// The agent has joined each tap before; a caller without the right to change interfaces, as QEMU is, therefore
/// succeeds without doing anything.
pub(crate) fn script(tap: &str, is_up: bool) -> Result<(), AgentError> {
    let table = fs::read_to_string(TABLE).map_err(|e| AgentError::System("read the table of NICs", e))?;
    let bridge = table.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == tap);
    let (_, bridge) = bridge.ok_or(AgentError::Absent("bridge for this tap in the agent's table"))?;
    match set_port(tap, is_up.then_some(bridge)) {
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => Ok(()),
        other => other.map_err(link_error("bridge", tap)),
    }
}

fn set_port(tap: &str, bridge: Option<&str>) -> std::io::Result<()> {
    let bridge = bridge.map_or(Ok(0), index_of)?;
    let mut changes = vec![Change::Bridge(bridge)];
    if bridge != 0 {
        changes.push(Change::Up);
    }
    Rtnl::open()?.change(index_of(tap)?, &changes)
}

fn link_error<'a>(what: &'static str, name: &'a str) -> impl FnOnce(std::io::Error) -> AgentError + 'a {
    move |source| AgentError::Link { what, name: name.to_owned(), source }
}

/// The PV NICs that exist, with the names of their interfaces.
fn present() -> Vec<(u32, String)> {
    xen_devices().iter().filter_map(|name| interface_of(name)).collect()
}

/// The number of the xenbus device `vif-<devid>` and its interface, if it has one.
fn interface_of(device: &str) -> Option<(u32, String)> {
    let devid = device.strip_prefix("vif-")?.parse().ok()?;
    let folder = Path::new(XEN_DEVICES).join(device).join("net");
    let name = fs::read_dir(folder).ok()?.next()?.ok()?.file_name().into_string().ok()?;
    Some((devid, name))
}

fn read_mtu(devid: u32, store: &Connection) -> Result<Option<u32>, AgentError> {
    let path = RelPath::new(format!("device/{}/{devid}/mtu", DeviceKind::Vif.name()))?;
    let mtu = store.read_number(&path).ok().flatten().filter(|mtu| MTUS.contains(mtu));
    Ok(mtu.and_then(|mtu| u32::try_from(mtu).ok()))
}

fn index_of(name: &str) -> std::io::Result<u32> {
    Ok(if_nametoindex(name)?)
}
