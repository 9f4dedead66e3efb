//! Places on the guest's PCI bus, said in the arguments instead of left to QEMU.
//!
//! A saved state names a device by its place. QEMU gives the next free one to each device without, so a device that is
//! left out would shift those behind it: an emulated NIC that the guest's PV drivers have unplugged, say. The places
//! are those that QEMU gives to libxl's arguments.

use std::fmt;

use crate::PlanError;

/// Slots of a PCI bus.
const SLOTS: u8 = 32;
/// The machine's host bridge.
const HOST_BRIDGE: u8 = 0;
/// The machine's PIIX3: ISA bridge, IDE, UHCI (`-usb`) and power management are its functions.
const PIIX3: u8 = 1;
/// Xen's platform device, in machines that have it.
const PLATFORM: u8 = 2;

/// A slot of the guest's PCI bus, as an option's value: `0x3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PciSlot(u8);

impl fmt::Display for PciSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Which slots are taken, one bit each.
#[derive(Clone, Debug)]
pub(crate) struct PciSlots {
    taken: u32,
}

impl PciSlots {
    /// Where the EHCI controller and its companions are, one function each.
    pub(crate) const EHCI: PciSlot = PciSlot(0x1d);

    /// The bus of a machine, with Xen's platform device or without it.
    pub(crate) fn of_machine(has_platform: bool) -> Self {
        let mut slots = Self { taken: 0 };
        for own in [HOST_BRIDGE, PIIX3] {
            slots.take(PciSlot(own));
        }
        if has_platform {
            slots.take(PciSlot(PLATFORM));
        }
        slots
    }

    /// Takes a certain slot.
    pub(crate) fn take(&mut self, slot: PciSlot) {
        self.taken |= Self::bit(slot);
    }

    /// Takes the first free slot, as QEMU does for a device (`NAME,OPTIONS`) without one.
    pub(crate) fn first_free(&mut self, device: &str) -> Result<PciSlot, PlanError> {
        let free = (0..SLOTS).map(PciSlot).find(|slot| self.taken & Self::bit(*slot) == 0);
        let name = device.split(',').next().unwrap_or(device);
        let slot = free.ok_or_else(|| PlanError::NoPciSlot { device: name.to_owned() })?;
        self.take(slot);
        Ok(slot)
    }

    const fn bit(slot: PciSlot) -> u32 {
        1 << slot.0
    }
}

/// Whether a device of QEMU's, which a configuration may name as a NIC's model or a sound card, is on another bus.
pub(crate) fn is_elsewhere(device: &str) -> bool {
    const ISA_SOUND: [&str; 4] = ["adlib", "cs4231a", "gus", "sb16"];
    ISA_SOUND.contains(&device) || device.starts_with("usb-") || device == "ne2k_isa"
}

/// The slot and the class of a device with an address (`NAME,OPTIONS`).
pub(crate) fn device(option: &str) -> Option<(u32, Option<u32>)> {
    let name = option.split(',').next().unwrap_or(option);
    let address = option.split(',').find_map(|field| field.strip_prefix("addr=0x"))?;
    let slot = u32::from_str_radix(address.split('.').next().unwrap_or(address), 16).ok()?;
    let class = match name {
        "lsi53c895a" => Some(0x0100),
        "ahci" => Some(0x0106),
        "VGA" | "cirrus-vga" => Some(0x0300),
        "intel-hda" => Some(0x0403),
        _ if name.contains("usb-") => Some(0x0c03),
        _ if option.contains(",netdev=") => Some(0x0200),
        _ => None,
    };
    Some((slot, class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_free_slot_is_behind_the_machines_own() {
        for (has_platform, first) in [(true, "0x3"), (false, "0x2")] {
            let mut slots = PciSlots::of_machine(has_platform);
            assert_eq!(slots.first_free("VGA").unwrap().to_string(), first);
        }
    }

    #[test]
    fn slot_that_is_taken_is_passed_over_and_the_last_is_the_end() {
        let mut slots = PciSlots::of_machine(true);
        slots.take(PciSlots::EHCI);
        let found: Vec<u8> = std::iter::from_fn(|| Some(slots.first_free("e1000").ok()?.0)).collect();
        assert_eq!(found, (3..0x1d).chain(0x1e..32).collect::<Vec<u8>>());
        assert_eq!(
            slots.first_free("e1000,id=nic0"),
            Err(PlanError::NoPciSlot { device: "e1000".to_owned() })
        );
    }

    #[test]
    fn slot_and_class_are_read_from_an_option() {
        assert_eq!(device("e1000,id=nic0,netdev=net0,addr=0x4"), Some((4, Some(0x0200))));
        assert_eq!(
            device("ich9-usb-ehci1,id=usb,addr=0x1d.0x7,multifunction=on"),
            Some((0x1d, Some(0x0c03)))
        );
        assert_eq!(device("xen-pvdevice,device-id=0xc000,addr=0x5"), Some((5, None)));
        assert_eq!(device("usb-tablet"), None);
    }
}
