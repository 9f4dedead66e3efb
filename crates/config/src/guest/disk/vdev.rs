//! Names and numbers of virtual devices (`docs/man/xen-vbd-interface.7.pandoc`; `libxl__device_disk_dev_number`,
//! `tools/libs/light/libxl_device.c`).

use crate::model::{Vdev, VdevBus};
use crate::number;

const HELP: &str = "is not a virtual device (`xvda`, `hda`, `sda`, `d0p0`, …, or a number)";

pub(super) fn parse(text: &str) -> Result<Vdev, String> {
    let (bus, rest) = match text.get(..2) {
        Some("hd") => (VdevBus::Hd, text.get(2..)),
        Some("sd") => (VdevBus::Sd, text.get(2..)),
        _ if text.starts_with("xvd") => (VdevBus::Xvd, text.get(3..)),
        _ if text.starts_with('d') => return numbered(text),
        _ => return raw(text),
    };
    let rest = rest.unwrap_or_default();
    let letters: &str = rest.split(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default();
    let digits = rest.get(letters.len()..).unwrap_or_default();
    let disk = number_of_letters(letters).ok_or_else(|| format!("\"{text}\" {HELP}"))?;
    let partition = decimal(digits, true).ok_or_else(|| format!("\"{text}\" {HELP}"))?;
    Vdev::new(bus, disk, partition)
        .ok_or_else(|| format!("There is no virtual device \"{text}\"; {}", limits(bus)))
}

fn limits(bus: VdevBus) -> &'static str {
    match bus {
        VdevBus::Xvd => "disks go up to number 1048575, partitions to 255",
        VdevBus::Hd => "`hd` has `hda` to `hdd` and partitions up to 63; use `xvd` for more",
        VdevBus::Sd => "`sd` has `sda` to `sdp` and partitions up to 15; use `xvd` for more",
    }
}

/// a is 0, z 25, aa 26.
fn number_of_letters(letters: &str) -> Option<u32> {
    let mut number = 0_u32;
    for letter in letters.bytes() {
        number = number.checked_mul(26)?.checked_add(u32::from(letter - b'a') + 1)?;
    }
    number.checked_sub(1)
}

/// Digits without a leading 0. After letters, no digits at all are 0 and a 0 itself is not written.
fn decimal(digits: &str, may_be_absent: bool) -> Option<u32> {
    if digits.is_empty() {
        return may_be_absent.then_some(0);
    }
    let leading_zero = digits.starts_with('0') && (may_be_absent || digits.len() > 1);
    if leading_zero || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// `d<disk>p<partition>`, and `d<disk>` for the whole one.
fn numbered(text: &str) -> Result<Vdev, String> {
    let rest = text.strip_prefix('d').unwrap_or_default();
    let (disk, partition) = rest.split_once('p').unwrap_or((rest, "0"));
    let parts = decimal(disk, false).zip(decimal(partition, false));
    let (disk, partition) = parts.ok_or_else(|| format!("\"{text}\" {HELP}"))?;
    Vdev::new(VdevBus::Xvd, disk, partition)
        .ok_or_else(|| format!("There is no virtual device \"{text}\"; {}", limits(VdevBus::Xvd)))
}

/// The number as xenstore has it. Those that the interface calls deprecated or reserved are refused: nothing says
/// what a guest would make of them.
fn raw(text: &str) -> Result<Vdev, String> {
    let number = number::parse(text).ok().and_then(|n| u32::try_from(n).ok());
    let number = number.ok_or_else(|| format!("\"{text}\" {HELP}"))?;
    let (major, minor) = (number >> 8, number & 0xff);
    let vdev = match major {
        3 => Vdev::new(VdevBus::Hd, minor >> 6, minor & 63).filter(|v| v.disk() < 2),
        22 => Vdev::new(VdevBus::Hd, 2 + (minor >> 6), minor & 63),
        8 => Vdev::new(VdevBus::Sd, minor >> 4, minor & 15),
        202 => Vdev::new(VdevBus::Xvd, minor >> 4, minor & 15),
        _ if number >> 28 == 1 => Vdev::new(VdevBus::Xvd, number >> 8 & 0xf_ffff, minor),
        _ => None,
    };
    // A number in the long form for a device that has a short one is not what the interface would write.
    vdev.filter(|v| v.devid() == number)
        .ok_or_else(|| format!("{number} is not the number of a virtual device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_the_interface() {
        for (name, devid, canonical) in [
            ("xvda", 51712, "xvda"),
            ("xvdb2", 51730, "xvdb2"),
            ("d1p2", 51730, "xvdb2"),
            ("d0", 51712, "xvda"),
            ("xvdq", 1 << 28 | 16 << 8, "xvdq"),
            ("d536p37", 1 << 28 | 536 << 8 | 37, "xvdtq37"),
            ("xvdtq37", 1 << 28 | 536 << 8 | 37, "xvdtq37"),
            ("hda", 768, "hda"),
            ("hdb", 832, "hdb"),
            ("hdc", 5632, "hdc"),
            ("hdc2", 5634, "hdc2"),
            ("hdd", 5696, "hdd"),
            ("sdb3", 2067, "sdb3"),
            ("sdp15", 2303, "sdp15"),
            ("768", 768, "hda"),
            ("0xca10", 51728, "xvdb"),
            ("01400", 768, "hda"),
        ] {
            let vdev = parse(name).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!((vdev.devid(), vdev.to_string().as_str()), (devid, canonical), "{name}");
        }
    }

    #[test]
    fn what_the_interface_has_no_number_for_is_refused() {
        for name in [
            "",
            "hd",
            "hde",
            "hda64",
            "hda01",
            "hda0",
            "sdq",
            "sda16",
            "xvd",
            "xvda256",
            "xvda-1",
            "xvdA",
            "d",
            "dp1",
            "d1p",
            "d01",
            "d1p2p3",
            "d1048576",
            "vda",
            "0",
            "1",
            "999999999999",
            "-768",
            "896",
            "xvdaaaaaaaaaaaa",
            "hdé",
        ] {
            assert!(parse(name).is_err(), "{name:?} was accepted");
        }
    }
}
