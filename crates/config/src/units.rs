//! Keys whose values are numbers, and numbers that were written with a unit, which the language does not have.

/// Keys whose numbers are MiB.
const MIB: &[&str] = &["maxmem", "memory", "mmio_hole", "shadow_memory", "stubdomain_memory", "videoram"];
/// Keys whose numbers are KiB.
const KIB: &[&str] = &["vmtrace_buf_kb"];

/// Keys whose values are numbers; a string in their place would be refused.
const NUMBERS: &[&str] = &[
    "acpi",
    "acpi_laptop_slate",
    "acpi_s3",
    "acpi_s4",
    "altp2mhvm",
    "apic",
    "device_model_stubdomain_override",
    "hap",
    "hpet",
    "hvm_pirq",
    "localtime",
    "max_event_channels",
    "max_grant_frames",
    "max_grant_version",
    "max_maptrack_frames",
    "maxmem",
    "maxvcpus",
    "memory",
    "mmio_hole",
    "msr_relaxed",
    "nestedhvm",
    "nomigrate",
    "oos",
    "pae",
    "shadow_memory",
    "stdvga",
    "stubdomain_memory",
    "usb",
    "usbversion",
    "vcpus",
    "videoram",
    "vmtrace_buf_kb",
    "vpmu",
    "vpt_align",
    "xen_platform_pci",
];

/// What to write for one of these.
pub(crate) const NUMBER_HELP: &str = "write a number of digits alone; for a switch, `0` is no and `1` is yes";

/// Whether the value of a key is a number from 0 on.
pub(crate) fn is_number(key: &str) -> bool {
    NUMBERS.binary_search(&key).is_ok()
}

/// What to write instead of a number with a unit, if it is one.
pub(crate) fn help(key: &str, text: &str) -> Option<String> {
    let (number, bytes) = split(text)?;
    let (name, unit) = if MIB.contains(&key) {
        ("MiB", 1_u64 << 20)
    } else if KIB.contains(&key) {
        ("KiB", 1 << 10)
    } else {
        return None;
    };
    let value = number.checked_mul(bytes).filter(|value| value % unit == 0)? / unit;
    Some(format!("`{key}` is a number of {name} without a unit: `{key} = {value}`"))
}

/// A number and its unit in bytes: `2048M`, `4 GiB`.
fn split(text: &str) -> Option<(u64, u64)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = unit.trim().to_ascii_lowercase();
    let prefix = ["ib", "b", ""].iter().find_map(|end| unit.strip_suffix(end))?;
    let bytes = match prefix {
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    Some((number.parse().ok()?, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_take_numbers_are_listed() {
        use crate::keys::{KEYS, Treatment};
        for key in KEYS.iter().filter(|key| key.treatment == Treatment::Used) {
            let text = format!("type = 'hvm'\nname = 'n'\nmemory = 64\n{} = 'word'\n", key.name);
            let loaded = crate::load_str("n", &text);
            let wants_number = loaded.diagnostics.iter().any(|d| d.id == "config::not-a-number");
            // The one number that may be negative, and the list that may be a switch.
            let other = matches!(key.name, "rtc_timeoffset" | "viridian");
            assert_eq!(is_number(key.name), wants_number && !other, "{}", key.name);
        }
    }

    #[test]
    fn a_unit_becomes_a_number_of_the_key() {
        for (key, text, number) in [
            ("memory", "2048M", "2048"),
            ("maxmem", "4G", "4096"),
            ("maxmem", "4 GiB", "4096"),
            ("memory", "1048576k", "1024"),
            ("vmtrace_buf_kb", "1mb", "1024"),
        ] {
            let help = help(key, text).unwrap();
            assert!(help.ends_with(&format!("`{key} = {number}`")), "{help}");
        }
        for (key, text) in
            [("memory", "many"), ("memory", "512"), ("vcpus", "2k"), ("memory", "3k"), ("memory", "M")]
        {
            assert_eq!(help(key, text), None, "{text}");
        }
        assert_eq!(help("memory", "99999999999999999G"), None);
    }
}
