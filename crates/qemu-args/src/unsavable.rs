//! What of a configuration does not fit into a saved state of QEMU.
//!
//! `xen-save-devices-state` asks neither for migration blockers nor whether a device can be saved
//! (`qmp_xen_save_devices_state` in `migration/savevm.c`): it leaves out what cannot, without a word, and the guest
//! finds the device as after a reset. So it has to be refused before.

use std::fmt;

use config::GuestConfig;

/// Something that QEMU does not save, or not wholly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsavable {
    /// The key of the configuration that asks for it.
    pub key: &'static str,
    /// QEMU's name of it, as the configuration has it.
    pub what: String,
    /// Why it is not saved.
    pub why: WhyUnsavable,
}

/// Why something is not saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhyUnsavable {
    /// QEMU does not save what such a device knows: it says so itself (`unmigratable`), or the device has no state.
    NoState,
    /// It is a device, a folder or another process of the host, which does not go along.
    OfHost,
    /// Spice keeps sessions and, with some cards, the screen outside the state.
    Spice,
}

impl fmt::Display for Unsavable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, what, why } = self;
        match why {
            WhyUnsavable::NoState => write!(f, "{key}: QEMU does not save the state of {what}"),
            WhyUnsavable::OfHost => write!(f, "{key}: {what} belongs to the host and is not saved"),
            WhyUnsavable::Spice => write!(f, "{key}: what {what} shows is not saved"),
        }
    }
}

/// Devices without a state, of QEMU 7.2 to 10.0 (`unmigratable = 1`, or no `vmsd`).
const NO_STATE: [&str; 15] = [
    "adlib",
    "amd-iommu",
    "nvme",
    "nvme-ns",
    "nvme-subsys",
    "rocker",
    "usb-audio",
    "usb-braille",
    "usb-mtp",
    "usb-net",
    "usb-serial",
    "usb-uas",
    "usb-wacom-tablet",
    "virtio-crypto-device",
    "virtio-crypto-pci",
];
/// Devices that hand something of the host to the guest.
const OF_HOST: [&str; 8] = [
    "ccid-card-passthru",
    "u2f-passthru",
    "usb-host",
    "usb-redir",
    "virtio-input-host",
    "virtio-input-host-pci",
    "xen-pci-passthrough",
    "xen-igd-passthrough",
];
/// What names of devices of the host begin with.
const OF_HOST_PREFIXES: [&str; 6] = ["ivshmem", "scsi-block", "scsi-generic", "vfio-", "vhost-", "virtio-9p"];
/// What names of devices of Spice begin with.
const SPICE_PREFIXES: [&str; 2] = ["qxl", "spice"];
/// `-usbdevice` names devices in a way of its own.
const USB: [(&str, &str); 5] = [
    ("audio", "usb-audio"),
    ("braille", "usb-braille"),
    ("net", "usb-net"),
    ("serial", "usb-serial"),
    ("wacom-tablet", "usb-wacom-tablet"),
];
const EXTRA: &str = "device_model_args";

/// What of a configuration makes the state of its QEMU impossible to save, or incomplete; empty: nothing does.
///
/// It knows what the configuration's own keys ask for, and what is named in `device_model_args`. What was plugged in
/// later is not part of it.
#[must_use]
pub fn unsavable(config: &GuestConfig) -> Vec<Unsavable> {
    let usb = config.usb.devices.iter().filter_map(|name| usb("usbdevice", name));
    let sound = config.sound.iter().filter_map(|card| device("soundhw", card));
    let nics = config.nics.iter().filter_map(|nic| device("vif", &nic.model));
    usb.chain(sound).chain(nics).chain(in_args(&config.device_model.extra_args)).collect()
}

fn in_args(args: &[String]) -> Vec<Unsavable> {
    let mut found = Vec::new();
    for (place, arg) in args.iter().enumerate() {
        let Some(option) = arg.strip_prefix("--").or(arg.strip_prefix('-')) else { continue };
        let value = args.get(place + 1).map_or("", String::as_str);
        found.extend(match option {
            "device" => driver(value).and_then(|name| device(EXTRA, name)),
            "usbdevice" => usb(EXTRA, value),
            // A NIC's model.
            "nic" | "net" => field(value, "model").and_then(|name| device(EXTRA, name)),
            "drive" if field(value, "if") == Some("nvme") => device(EXTRA, "nvme"),
            "virtfs" => Some(Unsavable { key: EXTRA, what: arg.clone(), why: WhyUnsavable::OfHost }),
            "spice" => Some(Unsavable { key: EXTRA, what: arg.clone(), why: WhyUnsavable::Spice }),
            _ => None,
        });
    }
    found
}

fn device(key: &'static str, name: &str) -> Option<Unsavable> {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let why = if NO_STATE.contains(&name) {
        WhyUnsavable::NoState
    } else if OF_HOST.contains(&name) || begins(&OF_HOST_PREFIXES) {
        WhyUnsavable::OfHost
    } else if begins(&SPICE_PREFIXES) {
        WhyUnsavable::Spice
    } else {
        return None;
    };
    Some(Unsavable { key, what: name.to_owned(), why })
}

fn usb(key: &'static str, name: &str) -> Option<Unsavable> {
    let kind = name.split(':').next().unwrap_or(name);
    if kind == "host" {
        return device(key, "usb-host");
    }
    let (_, driver) = USB.iter().find(|(known, _)| *known == kind)?;
    device(key, driver)
}

/// The device of a `-device`, in either notation.
fn driver(value: &str) -> Option<&str> {
    if value.starts_with('{') {
        let (_, behind) = value.split_once("\"driver\"")?;
        return behind.split('"').nth(1);
    }
    let first = value.split(',').next().unwrap_or(value);
    if first.contains('=') { field(value, "driver") } else { Some(first) }
}

fn field<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    value.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn found(settings: &str, expected: &[(&str, &str, WhyUnsavable)]) {
        let text = format!("type = 'hvm'\nname = 'g'\nmemory = 256\n{settings}\n");
        let loaded = config::load_str("test.cfg", &text);
        let rendered = loaded.render(false);
        let config = loaded.config.unwrap_or_else(|| panic!("{rendered}"));
        let found = unsavable(&config);
        let found: Vec<_> = found.iter().map(|each| (each.key, each.what.as_str(), each.why)).collect();
        assert_eq!(found, expected, "{settings}");
    }

    #[test]
    fn a_usual_guest_can_be_saved() {
        found(
            "usb = 1\nusbdevice = ['tablet', 'mouse', 'keyboard']\nsoundhw = 'hda'\nvif = ['', 'model=e1000']\n\
             disk = ['/a,,hda', '/b,,sda', ',,hdc,cdrom']\nvga = 'stdvga'",
            &[],
        );
        found(
            "device_model_args = ['-device', 'virtio-rng-pci', '-trace', 'nvme', '-name', '-spice-like']",
            &[],
        );
    }

    #[test]
    fn devices_without_a_state_are_named_with_their_keys() {
        use WhyUnsavable::NoState;
        found(
            "usb = 1\nusbdevice = ['tablet', 'wacom-tablet']",
            &[("usbdevice", "usb-wacom-tablet", NoState)],
        );
        found("soundhw = 'adlib'", &[("soundhw", "adlib", NoState)]);
        found("vif = ['model=rocker']", &[("vif", "rocker", NoState)]);
        found(
            "device_model_args = ['-drive', 'if=none,id=x,file=/dev/xvdz', '-device', 'nvme,drive=x,serial=1', \
             '--device', 'id=a,driver=usb-mtp', '-device', '{\"id\": \"b\", \"driver\": \"usb-uas\"}', \
             '-usbdevice', 'serial', '-nic', 'tap,model=usb-net', '-device']",
            &[
                (EXTRA, "nvme", NoState),
                (EXTRA, "usb-mtp", NoState),
                (EXTRA, "usb-uas", NoState),
                (EXTRA, "usb-serial", NoState),
                (EXTRA, "usb-net", NoState),
            ],
        );
    }

    #[test]
    fn what_is_the_hosts_or_spices_is_named() {
        use WhyUnsavable::{OfHost, Spice};
        found(
            "device_model_args = ['-usbdevice', 'host:046d:c016', '-device', 'xen-pci-passthrough,hostaddr=3:0.0', \
             '-device', 'vfio-pci,host=3:0.0', '-device', 'qxl-vga', '-spice', 'port=5930']",
            &[
                (EXTRA, "usb-host", OfHost),
                (EXTRA, "xen-pci-passthrough", OfHost),
                (EXTRA, "vfio-pci", OfHost),
                (EXTRA, "qxl-vga", Spice),
                (EXTRA, "-spice", Spice),
            ],
        );
    }

    #[test]
    fn words_say_key_device_and_reason() {
        let unsavable = device("soundhw", "adlib").unwrap();
        assert_eq!(unsavable.to_string(), "soundhw: QEMU does not save the state of adlib");
    }
}
