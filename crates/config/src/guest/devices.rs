//! What QEMU emulates, except disks and NICs.

use xen_types::KiB;

use super::basics::{conflict, mib};
use crate::diagnostic::Diagnostic;
use crate::document::Atom;
use crate::model::{
    Boot, DiskController, Display, GuestConfig, SerialOutput, Usb, UsbController, VendorDevice, Vga,
};
use crate::reader::{Reader, choices};

/// QEMU's PC takes no more (`PC_MAX_BOOT_DEVICES`, `hw/i386/pc.c`).
const MAX_BOOT_DEVICES: usize = 3;

pub(super) fn boot(reader: &mut Reader<'_>) -> Boot {
    let Some(order) = reader.text("boot") else { return Boot::default() };
    let span = reader.value_span("boot");
    let twice = order.char_indices().any(|(at, c)| order.chars().take(at).any(|earlier| earlier == c));
    let problem = if let Some(wrong) = order.chars().find(|c| !matches!(c, 'a' | 'c' | 'd' | 'n')) {
        format!("`boot` has no device `{}`", wrong.escape_debug())
    } else if twice {
        "`boot` names a device twice".to_owned()
    } else if order.len() > MAX_BOOT_DEVICES {
        format!("`boot` names more than {MAX_BOOT_DEVICES} devices")
    } else {
        return Boot(order);
    };
    reader.push(Diagnostic::error("config::bad-boot", problem).at(span).help(
        "`a` is the floppy, `c` the first disk, `d` the CD drive, `n` the network; QEMU takes up to three",
    ));
    Boot::default()
}

pub(super) fn disk_controller(reader: &mut Reader<'_>) -> DiskController {
    reader.word("hdtype", &[("ide", DiskController::Ide), ("ahci", DiskController::Ahci)]).unwrap_or_default()
}

pub(super) fn serials(reader: &mut Reader<'_>) -> Vec<SerialOutput> {
    let Some(atoms) = reader.one_or_more("serial") else { return Vec::new() };
    if atoms.len() > GuestConfig::MAX_SERIALS {
        let span = reader.value_span("serial");
        let message = format!("A guest has at most {} serial ports", GuestConfig::MAX_SERIALS);
        reader.push(Diagnostic::error("config::too-many", message).at(span));
    }
    atoms.into_iter().take(GuestConfig::MAX_SERIALS).filter_map(|atom| serial(reader, atom)).collect()
}

fn serial(reader: &mut Reader<'_>, atom: &Atom) -> Option<SerialOutput> {
    let text = atom.text.as_str();
    match text {
        "pty" => return Some(SerialOutput::Pty),
        "null" | "none" => return Some(SerialOutput::Null),
        _ => {}
    }
    if let Some(path) = text.strip_prefix("file:").filter(|path| path.starts_with('/')) {
        return Some(SerialOutput::File(path.to_owned()));
    }
    let message = format!("`serial` cannot go to \"{text}\"");
    reader.push(Diagnostic::error("config::refused", message).at(atom.span).help(
        "the port ends in the stubdomain, and its console takes `pty`, `file:/PATH` and `null`; every port can also be \
         attached to through a socket",
    ));
    None
}

pub(super) fn display(reader: &mut Reader<'_>, memory: KiB) -> Display {
    // Without a card that is known, no size of its memory is wrong.
    let keymap = keymap(reader);
    let Some(vga) = vga(reader) else { return Display::default() };
    let (name, least) = match vga {
        Vga::Cirrus => ("Cirrus", KiB::from_mib(8)),
        Vga::StdVga => ("standard", KiB::from_mib(16)),
        Vga::None => ("missing", KiB(0)),
    };
    let asked = mib(reader, "videoram", 0);
    if let Some(asked) = asked
        && asked < least
    {
        let span = reader.value_span("videoram");
        let message = format!("The {name} VGA needs at least {least} of `videoram`");
        reader.push(Diagnostic::error("config::out-of-range", message).at(span));
    }
    if let Some(asked) = asked
        && vga == Vga::Cirrus
        && asked > least
        && asked != KiB::from_mib(16)
    {
        let span = reader.value_span("videoram");
        let message = "The Cirrus VGA takes 8 or 16 MiB of `videoram`";
        reader.push(
            Diagnostic::error("config::out-of-range", message).at(span).help(
                "QEMU does not start with another size; the standard VGA takes more: `vga = \"stdvga\"`",
            ),
        );
    }
    let video_memory = asked.unwrap_or(least);
    if video_memory >= memory && video_memory.get() > 0 {
        let message = format!("{video_memory} of video memory leaves nothing of the guest's {memory}");
        let mut problem = Diagnostic::error("config::conflict", message).help("give the guest more `memory`");
        if asked.is_some() {
            problem = problem.at(reader.value_span("videoram"));
        } else if reader.entry("memory").is_some() {
            problem = problem.at(reader.value_span("memory"));
        }
        reader.push(problem);
    }
    Display { vga, video_memory, keymap }
}

/// The card; absent when there was something to complain of.
fn vga(reader: &mut Reader<'_>) -> Option<Vga> {
    let old = reader.bool("stdvga").map(|std| if std { Vga::StdVga } else { Vga::Cirrus });
    let words = [
        ("stdvga", Some(Vga::StdVga)),
        ("cirrus", Some(Vga::Cirrus)),
        ("none", Some(Vga::None)),
        ("qxl", None),
    ];
    if reader.entry("vga").is_none() {
        return Some(old.unwrap_or(Vga::Cirrus));
    }
    match reader.word_or_refused("vga", &words, |vga| vga.is_some()) {
        None => None,
        Some(None) => {
            let span = reader.value_span("vga");
            reader.refuse(
                "vga",
                span,
                "the stubdomain's QEMU does not support QXL, which is for SPICE; use `stdvga`",
            );
            None
        }
        Some(vga) => vga,
    }
}

fn keymap(reader: &mut Reader<'_>) -> Option<String> {
    let keymap = reader.text("keymap")?;
    if keymap.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return Some(keymap);
    }
    let span = reader.value_span("keymap");
    reader.push(
        Diagnostic::error("config::unknown-value", format!("`keymap` has no value \"{keymap}\""))
            .at(span)
            .help("it is the name of a keyboard layout, such as `de` or `en-us`"),
    );
    None
}

/// Refuses controllers that QEMU emulates, which `usbversion` gives; PV ones have no device here.
fn usb_controllers(reader: &mut Reader<'_>) {
    let Some(entry) = reader.entry("usbctrl") else { return };
    let atoms = reader.one_or_more("usbctrl").unwrap_or_default();
    let mut others = false;
    for atom in atoms {
        let text = atom.text.as_str();
        let parameters: Vec<(&str, &str)> = text
            .split(',')
            .filter_map(|part| part.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let value = |name| parameters.iter().rev().find(|(n, _)| *n == name).map(|(_, value)| *value);
        if value("type") != Some("devicemodel") {
            others |= !text.is_empty();
            continue;
        }
        // libxl's default is 2.
        let version = value("version").filter(|version| matches!(*version, "1" | "2" | "3")).unwrap_or("2");
        let why = format!("for an emulated controller, write `usbversion = {version}`");
        reader.refuse("usbctrl", atom.span, &why);
    }
    if others {
        reader.push(
            Diagnostic::warning("config::no-effect", "`usbctrl` has no effect")
                .at(entry.key_span)
                .help("PV USB is not supported yet, and no device of this guest is on this controller"),
        );
    }
}

pub(super) fn usb(reader: &mut Reader<'_>) -> Usb {
    usb_controllers(reader);
    let usb = reader.bool("usb").unwrap_or(false);
    let devices = usb_devices(reader);
    let version = reader.u32("usbversion", 0..=3).unwrap_or(0);
    let machine = usb || !devices.is_empty();
    if machine && version != 0 {
        let key = if usb { "usb" } else { "usbdevice" };
        let (at, other) = (reader.value_span("usbversion"), reader.value_span(key));
        let message = format!("`usbversion` excludes `{key}`");
        conflict(reader, &message, at, other, "set here");
    }
    let controller = match version {
        1 => UsbController::Uhci,
        2 => UsbController::Ehci,
        3 => UsbController::Xhci,
        _ if machine => UsbController::Machine,
        _ => UsbController::None,
    };
    Usb { controller, devices }
}

/// What `-usbdevice` of QEMU still knows and needs nothing of dom0's for.
const USB_DEVICES: &[&str] = &["tablet", "mouse", "keyboard", "wacom-tablet"];

fn usb_devices(reader: &mut Reader<'_>) -> Vec<String> {
    let mut devices = Vec::new();
    for atom in reader.one_or_more("usbdevice").unwrap_or_default() {
        let text = atom.text.as_str();
        if text.is_empty() {
            continue;
        }
        if USB_DEVICES.contains(&text) {
            devices.push(text.to_owned());
            continue;
        }
        let message = format!("`usbdevice` has no value \"{text}\"");
        let help = if text.starts_with("host:") {
            "passthrough of host devices is not supported yet".to_owned()
        } else {
            choices(text, USB_DEVICES)
        };
        reader.push(Diagnostic::error("config::unknown-value", message).at(atom.span).help(help));
    }
    devices
}

/// `libxl__qemu_soundhw`, `tools/libs/light/libxl_types_internal.idl`.
const SOUND: &[&str] = &["ac97", "adlib", "cs4231a", "es1370", "gus", "hda", "sb16"];

pub(super) fn sound(reader: &mut Reader<'_>) -> Option<String> {
    let atom = reader.atom("soundhw")?;
    let card = atom.text.as_str();
    if SOUND.contains(&card) {
        return Some(card.to_owned());
    }
    let message = format!("`soundhw` has no value \"{card}\"");
    reader.push(Diagnostic::error("config::unknown-value", message).at(atom.span).help(choices(card, SOUND)));
    None
}

pub(super) fn vendor_device(reader: &mut Reader<'_>) -> VendorDevice {
    reader
        .word("vendor_device", &[("none", VendorDevice::None), ("xenserver", VendorDevice::XenServer)])
        .unwrap_or_default()
}
