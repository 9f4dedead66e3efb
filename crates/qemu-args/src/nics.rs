use crate::pci::PciSlot;
use config::{GuestConfig, MacAddr, Nic, NicKind, Uuid};

/// A NIC that QEMU emulates: a tap in the stubdomain, bridged with a PV NIC of the stubdomain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubNic {
    /// The NIC's index in the configuration's list.
    pub index: usize,
    /// The devid of the PV NIC, the same for the guest and for the stubdomain. The agent finds the PV NIC of a tap
    /// by the number in the id `net<devid>`.
    pub devid: u32,
    /// The address of the emulated NIC and of the guest's PV NIC.
    pub mac: MacAddr,
    /// QEMU's name of the NIC's model.
    pub model: String,
    /// The tap's name in the stubdomain.
    pub tap: String,
}

pub(crate) fn assign(config: &GuestConfig, uuid: &Uuid) -> Vec<StubNic> {
    let emulated = config.nics.iter().enumerate().filter(|(_, nic)| nic.kind == NicKind::Ioemu);
    emulated.map(|(index, nic)| stub_nic(index, nic, uuid)).collect()
}

fn stub_nic(index: usize, nic: &Nic, uuid: &Uuid) -> StubNic {
    StubNic {
        index,
        devid: nic.devid,
        mac: nic.address(uuid),
        model: nic.model.clone(),
        tap: format!("tap{}", nic.devid),
    }
}

impl StubNic {
    /// QEMU's arguments for it. No script brings the tap up: the agent sees it come, and a sandboxed QEMU could not
    /// start one.
    pub(crate) fn args(&self, slot: Option<PciSlot>) -> [String; 4] {
        let Self { devid, mac, model, tap, .. } = self;
        let addr = slot.map_or(String::new(), |slot| format!(",addr={slot}"));
        [
            "-device".to_owned(),
            format!("{model},id=nic{devid},netdev=net{devid},mac={mac}{addr}"),
            "-netdev".to_owned(),
            format!("type=tap,id=net{devid},ifname={tap},script=no,downscript=no"),
        ]
    }
}
