//! Machine types by their versioned names, and whether a QEMU has what its arguments ask for.
//!
//! A state of the device model (`xl save`, a migration, the replacement of a QEMU) fits the machine type that it was
//! taken from, and nothing in the state says which that was: QEMU may load one into another machine, report success and
//! leave devices out. So no alias is used, and the name is kept with the guest. Which type:
//!
//! - `xenfv-3.1` is what stock `xl` starts in Debian 12 and 13: its `-machine xenfv` means that in QEMU 7.2 and 10.0.
//!   So a state crosses between `xl` and this toolstack, and between both releases.
//! - `xenfv-4.2` where the QEMU has no `xenfv-3.1`, which is from QEMU 11.1 on, and what `xenfv` means there. States do
//!   not cross between the two; a guest changes from one to the other when it is started anew.
//! - Without Xen's platform device (`xen_platform_pci=0`), `xl` says `pc`, which is another type in each release of
//!   QEMU, so that its own states do not cross releases. `pc-i440fx-7.2` is in all of QEMU 7.2 to 11.1 and what `pc`
//!   means in Debian 12.
//!
//! For an image whose manifest lists nothing, the first of each is taken.

use std::fmt;

use config::GuestConfig;
use stubdom_abi::QemuAbilities;

use crate::PlanError;

/// Machine types with Xen's platform device, through which PV drivers are found and emulated devices unplugged: the
/// first that a QEMU has is taken.
const WITH_PLATFORM: [&str; 2] = ["xenfv-3.1", "xenfv-4.2"];
/// The same without it.
const WITHOUT_PLATFORM: [&str; 2] = ["pc-i440fx-7.2", "pc-i440fx-10.0"];
/// The devices that names of `usbdevice=` stand for.
const USB: [(&str, &str); 4] = [
    ("keyboard", "usb-kbd"),
    ("mouse", "usb-mouse"),
    ("tablet", "usb-tablet"),
    ("wacom-tablet", "usb-wacom-tablet"),
];
/// The controller that `-usb` adds to these machines.
const USB_CONTROLLER: &str = "piix3-usb-uhci";

/// A kind of part that a QEMU may have or lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A machine type.
    Machine,
    /// A device.
    Device,
    /// A format, or a kind of place, of disks.
    Format,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "machine type",
            Self::Device => "device",
            Self::Format => "disk format",
        })
    }
}

/// The machine type of a guest in a certain QEMU.
pub(crate) fn machine(config: &GuestConfig, has: Option<&QemuAbilities>) -> &'static str {
    let types = if config.platform.xen_platform_pci { WITH_PLATFORM } else { WITHOUT_PLATFORM };
    let [first, ..] = types;
    has.and_then(|has| types.into_iter().find(|name| has.has_machine(name))).unwrap_or(first)
}

/// Checks that a QEMU has what its arguments ask for. What cannot be judged is left to QEMU.
pub(crate) fn check(args: &[String], has: &QemuAbilities) -> Result<(), PlanError> {
    let mut args = args.iter().peekable();
    while let Some(option) = args.next() {
        let Some(option) = option.strip_prefix("--").or(option.strip_prefix('-')) else { continue };
        let value = args.peek().map_or("", |value| value.as_str());
        let (kind, name) = match option {
            "machine" | "M" => (Part::Machine, first_or(value, "type")),
            "device" => (Part::Device, first_or(value, "driver")),
            "usbdevice" => {
                (Part::Device, USB.iter().find(|(name, _)| *name == value).map(|(_, device)| *device))
            }
            "usb" => (Part::Device, Some(USB_CONTROLLER)),
            "drive" => (Part::Format, field(value, "format")),
            _ => continue,
        };
        let found = |name| match kind {
            Part::Machine => has.has_machine(name),
            Part::Device => has.has_device(name),
            Part::Format => has.has_format(name),
        };
        match name {
            Some(name) if !found(name) => return Err(PlanError::NotInQemu { kind, name: name.to_owned() }),
            _ => {}
        }
    }
    Ok(())
}

/// What an option's value says under a key that may be left out before the first comma.
fn first_or<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    let first = value.split(',').next().unwrap_or(value);
    let is_name = !first.is_empty() && !first.contains('=') && !first.starts_with('{');
    if is_name { Some(first) } else { field(value, key) }
}

/// What an option's value says under a key.
fn field<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    value.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has() -> QemuAbilities {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        QemuAbilities {
            machines: names(&["xenfv", "xenfv-4.2", "pc-i440fx-10.0"]),
            devices: names(&["VGA", "e1000", "usb-tablet"]),
            formats: names(&["host_device"]),
        }
    }

    #[track_caller]
    fn lacks(args: &[&str], expected: Option<(Part, &str)>) {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let expected = expected.map(|(kind, name)| PlanError::NotInQemu { kind, name: name.to_owned() });
        assert_eq!(check(&args, &has()).err(), expected, "{args:?}");
    }

    #[test]
    fn test_what_arguments_ask_for_must_be_there() {
        lacks(&["-machine", "xenfv-4.2,suppress-vmdesc=on", "-device", "VGA,vgamem_mb=16"], None);
        lacks(&["-machine", "xenfv-3.1,x=y"], Some((Part::Machine, "xenfv-3.1")));
        lacks(&["-M", "type=pc"], Some((Part::Machine, "pc")));
        lacks(&["-device", "rtl8139,id=nic0"], Some((Part::Device, "rtl8139")));
        lacks(&["--device", "id=a,driver=sb16"], Some((Part::Device, "sb16")));
        lacks(&["-usb", "-usbdevice", "tablet"], Some((Part::Device, "piix3-usb-uhci")));
        lacks(&["-usbdevice", "mouse"], Some((Part::Device, "usb-mouse")));
        lacks(&["-drive", "file=/dev/xvda,if=ide,format=qcow2"], Some((Part::Format, "qcow2")));
        lacks(&["-drive", "file=/dev/xvda,format=host_device", "-drive", "if=none,id=x"], None);
    }

    #[test]
    fn test_what_cannot_be_judged_is_left_to_qemu() {
        lacks(&["-usbdevice", "host:1.2"], None);
        lacks(&["-machine", "hpet=off", "-device", "{\"driver\": \"x\"}", "-device"], None);
        lacks(&["-name", "device", "-global", "isa-fdc.fdtypeA=none"], None);
    }

    fn machine_of(platform: &str, has: Option<&QemuAbilities>) -> &'static str {
        let text = format!("type = 'hvm'\nname = 'g'\nmemory = 256\n{platform}\n");
        machine(&config::load_str("test.cfg", &text).config.unwrap(), has)
    }

    #[test]
    fn test_machine_is_the_first_that_the_qemu_has() {
        let (with, without) = ("", "xen_platform_pci = 0");
        assert_eq!((machine_of(with, None), machine_of(without, None)), ("xenfv-3.1", "pc-i440fx-7.2"));
        let mut has = has();
        assert_eq!(machine_of(with, Some(&has)), "xenfv-4.2");
        assert_eq!(machine_of(without, Some(&has)), "pc-i440fx-10.0");
        has.machines.push("xenfv-3.1".to_owned());
        assert_eq!(machine_of(with, Some(&has)), "xenfv-3.1");
        // None of them: the check then names the first.
        assert_eq!(machine_of(with, Some(&QemuAbilities::default())), "xenfv-3.1");
    }
}
