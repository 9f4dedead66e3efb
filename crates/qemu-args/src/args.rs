//! The arguments, in libxl's order: devices get their places on the PCI bus as they come.

use config::{DiskController, GuestConfig, UsbController, VendorDevice, Vga};
use stubdom_abi::{Argv, ImageConfig, QmpConsole};
use xen_types::KiB;

use crate::pci::{PciSlots, is_elsewhere};
use crate::{Facts, Place, PlanError, StubDisk, StubNic, StubSerial};

/// The devices that the plan found places for.
#[derive(Clone, Copy)]
pub(crate) struct Devices<'a> {
    pub(crate) disks: &'a [StubDisk],
    pub(crate) nics: &'a [StubNic],
    pub(crate) serials: &'a [StubSerial],
    pub(crate) qmp: Option<QmpConsole>,
}

struct Args {
    list: Vec<String>,
    slots: PciSlots,
}

impl Args {
    fn flag(&mut self, name: &str) {
        self.list.push(name.to_owned());
    }

    fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.list.push(name.to_owned());
        self.list.push(value.into());
    }

    /// A device in the next slot of the PCI bus.
    fn pci(&mut self, device: &str) -> Result<(), PlanError> {
        let slot = self.slots.first_free(device)?;
        self.pair("-device", format!("{device},addr={slot}"));
        Ok(())
    }
}

/// All but the guest's domid, which comes first.
pub(crate) fn build(
    config: &GuestConfig,
    facts: &Facts,
    machine_type: &str,
    devices: &Devices<'_>,
) -> Result<Vec<String>, PlanError> {
    let mut args = Args { list: Vec::new(), slots: PciSlots::of_machine(config.platform.xen_platform_pci) };
    args.flag("-no-shutdown");
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    if facts.qemu.sandbox {
        args.pair("-sandbox", ImageConfig::SANDBOX);
    }
    if let Some(console) = devices.qmp {
        args.pair("-chardev", format!("serial,id=outrigger-console,path={}", console.device()));
        args.pair("-mon", "chardev=outrigger-console,mode=control");
    }
    // A comma ends a value of QEMU's options, two are one of the value.
    args.pair("-name", format!("guest={}", config.name.replace(',', ",,")));
    args.pair("-display", "none");
    if let Some(keymap) = &config.display.keymap {
        args.pair("-k", keymap);
    }
    if devices.disks.iter().any(|disk| matches!(disk.place, Place::Scsi(_))) {
        args.pci("lsi53c895a")?;
    }
    for serial in devices.serials {
        args.pair("-serial", serial.console.device());
    }
    vga(config, &mut args)?;
    args.pair("-boot", format!("order={}", config.boot.order()));
    usb(config, &mut args)?;
    sound(config, &mut args)?;
    if config.max_vcpus > 1 {
        args.pair("-smp", format!("{},maxcpus={}", config.vcpus, config.max_vcpus));
    }
    nics(devices.nics, &mut args)?;
    if facts.incoming {
        args.flag("-S");
        args.pair("-incoming", Argv::RESTORE_INCOMING);
    }
    args.pair("-machine", machine(config, machine_type));
    args.pair("-m", memory(config)?.mib().to_string());
    if config.disk_controller == DiskController::Ahci {
        args.pci("ahci,id=ahci0")?;
    }
    for disk in devices.disks {
        args.list.extend(disk.args());
    }
    if config.vendor_device == VendorDevice::XenServer {
        args.pci("xen-pvdevice,device-id=0xc000")?;
    }
    args.list.extend(config.device_model.extra_args.iter().cloned());
    Ok(args.list)
}

fn nics(nics: &[StubNic], args: &mut Args) -> Result<(), PlanError> {
    for nic in nics {
        let model = nic.model.as_str();
        let slot = if is_elsewhere(model) { None } else { Some(args.slots.first_free(model)?) };
        args.list.extend(nic.args(slot));
    }
    if nics.is_empty() {
        args.pair("-net", "none");
    }
    Ok(())
}

fn vga(config: &GuestConfig, args: &mut Args) -> Result<(), PlanError> {
    let card = match config.display.vga {
        Vga::Cirrus => "cirrus-vga",
        Vga::StdVga => "VGA",
        Vga::None => return Ok(()),
    };
    args.pci(&format!("{card},vgamem_mb={}", config.display.video_memory.mib()))
}

fn usb(config: &GuestConfig, args: &mut Args) -> Result<(), PlanError> {
    match config.usb.controller {
        UsbController::None => {}
        UsbController::Machine => args.flag("-usb"),
        UsbController::Uhci => args.pci("piix3-usb-uhci,id=usb")?,
        UsbController::Ehci => {
            let slot = PciSlots::EHCI;
            args.slots.take(slot);
            args.pair("-device", format!("ich9-usb-ehci1,id=usb,addr={slot}.0x7,multifunction=on"));
            for (companion, (port, function)) in (1..).zip([(0, "0"), (2, "0x1"), (4, "0x2")]) {
                args.pair(
                    "-device",
                    format!(
                        "ich9-usb-uhci{companion},masterbus=usb.0,firstport={port},addr={slot}.{function},\
                         multifunction=on"
                    ),
                );
            }
        }
        UsbController::Xhci => args.pci("nec-usb-xhci,id=usb")?,
    }
    for device in &config.usb.devices {
        args.pair("-usbdevice", device);
    }
    Ok(())
}

fn sound(config: &GuestConfig, args: &mut Args) -> Result<(), PlanError> {
    match config.sound.as_deref() {
        None => {}
        Some("hda") => {
            args.pci("intel-hda")?;
            args.pair("-device", "hda-duplex");
        }
        Some(card) if is_elsewhere(card) => args.pair("-device", card),
        Some(card) => args.pci(card)?,
    }
    Ok(())
}

fn machine(config: &GuestConfig, machine_type: &str) -> String {
    let accel = if config.platform.xen_platform_pci { "" } else { ",accel=xen" };
    let mut machine = format!("{machine_type}{accel},suppress-vmdesc=on");
    if let Some(hole) = config.platform.mmio_hole {
        let below = (1_u64 << 32).saturating_sub(hole.get().saturating_mul(1024));
        machine.push_str(&format!(",max-ram-below-4g={below}"));
    }
    if !config.platform.acpi {
        machine.push_str(",acpi=off");
    }
    machine
}

/// What QEMU takes for the guest's RAM: the most it may have, without the video memory.
fn memory(config: &GuestConfig) -> Result<KiB, PlanError> {
    let (video, memory) = (config.display.video_memory, config.max_memory);
    match memory.get().checked_sub(video.get()) {
        Some(rest) if rest > 0 => Ok(KiB(rest)),
        _ => Err(PlanError::NoMemory { video, memory }),
    }
}
