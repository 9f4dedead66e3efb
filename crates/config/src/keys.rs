//! Every key of xl.cfg(5) as of Xen 4.22, with the release that it came with, and what becomes of it.

use xen_types::Release;

use crate::document::Value;
use crate::number;

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It is read into the [`crate::GuestConfig`].
    Used,
    /// It is accepted with a warning that says why it changes nothing.
    NoEffect {
        /// Values that need no warning.
        harmless: Harmless,
        /// Why.
        why: &'static str,
    },
    /// It is refused: a guest that ignores it would not be the guest that was asked for.
    Refused {
        /// Values that may stand there nevertheless.
        harmless: Harmless,
        /// Why.
        why: &'static str,
    },
}

impl Treatment {
    /// Whether the guest is the same without the key.
    #[must_use]
    pub const fn is_idle(self) -> bool {
        matches!(self, Self::NoEffect { .. })
    }

    const fn rank(self) -> u8 {
        match self {
            Self::Used => 0,
            Self::Refused { .. } => 1,
            Self::NoEffect { .. } => 2,
        }
    }
}

/// Values that say the same as leaving the key out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harmless {
    /// No value does.
    Never,
    /// The number 0.
    Zero,
    /// The empty list or the empty string.
    Empty,
    /// One of these words.
    Words(&'static [&'static str]),
}

impl Harmless {
    /// Whether the value is one of them.
    #[must_use]
    pub fn covers(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Empty, Value::List(list)) => list.items.is_empty(),
            (Self::Empty, Value::Atom(atom)) => atom.text.as_str().is_empty(),
            (Self::Zero, Value::Atom(atom)) => number::parse(atom.text.as_str()) == Ok(0),
            (Self::Words(words), Value::Atom(atom)) => words.contains(&atom.text.as_str()),
            _ => false,
        }
    }
}

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What becomes of it.
    pub treatment: Treatment,
    /// The release of Xen whose xl was the first to know it; `None` for all that 4.17 knows.
    pub since: Option<Release>,
}

impl Key {
    /// The same key, which xl knows from Xen 4.`minor` on.
    const fn since(self, minor: u16) -> Self {
        Self { since: Some(Release::new(4, minor)), ..self }
    }
}

/// Finds a key of the language.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.binary_search_by(|key| key.name.cmp(name)).ok().and_then(|at| KEYS.get(at))
}

/// The longest name that is compared with the known keys, in bytes: no misspelt key is longer.
const MAX_COMPARED: usize = 64;

/// The known keys whose names are near to a wrong one, the nearest first, and of equally near ones those first that
/// matter most.
#[must_use]
pub fn near(name: &str) -> Vec<&'static Key> {
    if name.len() > MAX_COMPARED {
        return Vec::new();
    }
    let length = name.chars().count();
    let limit = (length / 3).clamp(1, 3);
    let mut near: Vec<(usize, &Key)> = KEYS
        .iter()
        // The distance is at least the difference of the lengths.
        .filter(|key| key.name.len().abs_diff(length) <= limit)
        .map(|key| (strsim::damerau_levenshtein(name, key.name), key))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    near.sort_by_key(|(distance, key)| (*distance, key.treatment.rank()));
    near.into_iter().map(|(_, key)| key).collect()
}

const fn used(name: &'static str) -> Key {
    Key { name, treatment: Treatment::Used, since: None }
}

const fn no_effect(name: &'static str, harmless: Harmless, why: &'static str) -> Key {
    Key { name, treatment: Treatment::NoEffect { harmless, why }, since: None }
}

const fn refused(name: &'static str, harmless: Harmless, why: &'static str) -> Key {
    Key { name, treatment: Treatment::Refused { harmless, why }, since: None }
}

use Harmless::{Empty, Never, Words, Zero};

const SPICE: &str = "the stubdomain's QEMU offers no SPICE";
const VNC: &str = "the stubdomain's QEMU offers no VNC yet";
const KEYBOARD: &str =
    "the backend of a PV keyboard is a QEMU in dom0; the guest has the emulated keyboard and mouse";
const SDL: &str = "a QEMU in a stubdomain has no display to open a window on";
const SCHEDULER: &str = "scheduler parameters are not supported yet; the guest gets the scheduler's defaults";
const SOFT_AFFINITY: &str = "soft affinity is not supported yet; `cpus` sets where the guest may run at all";
const ARM: &str = "it belongs to Arm";
const PV_ONLY: &str = "it belongs to PV and PVH guests; xl ignores it for an HVM guest too";
const PVH_ONLY: &str = "it belongs to PVH guests; xl ignores it for an HVM guest too";
const PCI_OPTION: &str = "it qualifies PCI passthrough, which no device of this guest uses";
const PCI: &str = "PCI passthrough is not supported yet, and the guest would lack the device";
const DIRECT_BOOT: &str = "direct kernel boot of an HVM guest is not supported yet, and the guest would boot something \
                           else; install the kernel on the guest's disk";
const HARDWARE: &str =
    "passing parts of the host to a guest is not supported yet, and the guest would lack them";
const PV_DEVICE: &str = "there is no backend for this kind of PV device, and the guest would lack it";
const PLATFORM_BAR: &str = "the memory of the Xen platform device is uncacheable, as it is by default";
const XENSTORED: &str = "xenstored's own limits hold";
const DOM0_QEMU: &str = "its backend is a QEMU in dom0, which this toolstack never runs";

/// The table, in order of the names.
pub static KEYS: &[Key] = &[
    used("acpi"),
    used("acpi_firmware"),
    used("acpi_laptop_slate"),
    used("acpi_s3"),
    used("acpi_s4"),
    used("altp2m"),
    no_effect(
        "altp2m_count",
        Words(&["10"]),
        "a guest with `altp2m` has as many tables as xl gives by default",
    )
    .since(21),
    used("altp2mhvm"),
    used("apic"),
    no_effect("arm_sci", Empty, ARM).since(21),
    used("bios"),
    used("bios_path_override"),
    used("boot"),
    no_effect("bootloader", Empty, PV_ONLY),
    no_effect("bootloader_args", Empty, PV_ONLY),
    no_effect("bootloader_restrict", Zero, PV_ONLY).since(18),
    no_effect("bootloader_user", Empty, PV_ONLY).since(18),
    used("builder"),
    no_effect("cap", Zero, SCHEDULER),
    used("channel"),
    refused("cmdline", Empty, DIRECT_BOOT),
    no_effect("cpu_weight", Never, SCHEDULER),
    used("cpuid"),
    used("cpus"),
    no_effect("cpus_soft", Words(&["all"]), SOFT_AFFINITY),
    no_effect("device_model", Empty, "xl ignores it too; a stubdomain is always used"),
    used("device_model_args"),
    used("device_model_args_hvm"),
    no_effect("device_model_args_pv", Empty, "it belongs to PV guests"),
    no_effect(
        "device_model_override",
        Empty,
        "it names a QEMU in dom0, and the stubdomain has its own; to use another one, build an image with it and set \
         `stubdomain_ramdisk`",
    ),
    used("device_model_qmp"),
    used("device_model_stubdomain_override"),
    used("device_model_stubdomain_seclabel"),
    no_effect("device_model_user", Empty, "QEMU runs in a separate domain, where dom0's users do not exist"),
    used("device_model_version"),
    no_effect("device_tree", Empty, ARM),
    used("disk"),
    no_effect("display", Empty, SDL),
    no_effect("dm_restrict", Never, "the stubdomain confines QEMU more strictly than `dm_restrict` does"),
    refused("driver_domain", Zero, "driver domains are not supported yet"),
    refused("dtdev", Empty, HARDWARE),
    no_effect("e820_host", Zero, PV_ONLY),
    refused("extra", Empty, DIRECT_BOOT),
    no_effect("extratime", Zero, SCHEDULER),
    used("firmware"),
    used("firmware_override"),
    refused("gfx_passthru", Zero, PCI),
    no_effect("gic_version", Never, ARM),
    used("hap"),
    used("hdtype"),
    used("hpet"),
    used("hvm_pirq").since(19),
    used("init_seclabel"),
    refused("iomem", Empty, HARDWARE),
    refused("ioports", Empty, HARDWARE),
    refused("irqs", Empty, HARDWARE),
    used("kernel"),
    used("keymap"),
    no_effect("latency", Zero, SCHEDULER),
    no_effect("llc_colors", Empty, ARM).since(20),
    used("localtime"),
    used("max_event_channels"),
    used("max_grant_frames"),
    used("max_grant_version"),
    used("max_maptrack_frames"),
    used("maxmem"),
    used("maxvcpus"),
    used("mca_caps"),
    used("memory"),
    used("mmio_hole"),
    used("ms_vm_genid"),
    used("msr_relaxed"),
    used("name"),
    used("nestedhvm"),
    no_effect("nographic", Zero, "a QEMU in a stubdomain displays nothing by itself"),
    used("nomigrate"),
    no_effect("nr_spis", Never, ARM).since(19),
    no_effect("nx", Words(&["1"]), "xl ignores it too; hide the bit with `cpuid` if need be"),
    used("on_crash"),
    used("on_device_model_crash"),
    used("on_poweroff"),
    used("on_reboot"),
    used("on_soft_reset"),
    used("on_watchdog"),
    used("oos"),
    no_effect("opengl", Zero, SDL),
    refused("p9", Empty, DOM0_QEMU),
    used("pae"),
    no_effect(
        "passthrough",
        Words(&["default", "disabled"]),
        "no device can be passed through to this guest, so the IOMMU is not set up for it",
    ),
    refused("pci", Empty, PCI),
    no_effect("pci_msitranslate", Zero, PCI_OPTION),
    no_effect("pci_permissive", Zero, PCI_OPTION),
    no_effect("pci_power_mgmt", Zero, PCI_OPTION),
    no_effect("pci_seize", Zero, PCI_OPTION),
    no_effect("period", Zero, SCHEDULER),
    refused(
        "pool",
        Words(&["Pool-0", ""]),
        "CPU pools are not supported yet, and the guest would run on the CPUs of another pool",
    ),
    refused("pvcalls", Empty, PV_DEVICE),
    no_effect("pvshim", Zero, PVH_ONLY),
    no_effect("pvshim_cmdline", Empty, PVH_ONLY),
    no_effect("pvshim_extra", Empty, PVH_ONLY),
    no_effect("pvshim_path", Empty, PVH_ONLY),
    refused("ramdisk", Empty, DIRECT_BOOT),
    no_effect("rdm", Empty, PCI_OPTION),
    no_effect("rdm_mem_boundary", Never, PCI_OPTION),
    refused("root", Empty, DIRECT_BOOT),
    used("rtc_timeoffset"),
    no_effect("sdl", Zero, SDL),
    used("seclabel"),
    used("serial"),
    used("shadow_memory"),
    no_effect("slice", Zero, SCHEDULER),
    used("smbios").since(18),
    used("smbios_firmware"),
    used("soundhw"),
    no_effect("spice", Zero, SPICE),
    no_effect("spice_clipboard_sharing", Zero, SPICE),
    no_effect("spice_image_compression", Empty, SPICE),
    no_effect("spice_streaming_video", Empty, SPICE),
    no_effect("spiceagent_mouse", Zero, SPICE),
    no_effect("spicedisable_ticketing", Zero, SPICE),
    no_effect("spicehost", Empty, SPICE),
    no_effect("spicepasswd", Empty, SPICE),
    no_effect("spiceport", Zero, SPICE),
    no_effect("spicetls_port", Zero, SPICE),
    no_effect("spiceusbredirection", Zero, SPICE),
    no_effect("spicevdagent", Zero, SPICE),
    used("stdvga"),
    used("stubdomain_cmdline"),
    used("stubdomain_kernel"),
    used("stubdomain_memory"),
    used("stubdomain_ramdisk"),
    used("stubdomain_type"),
    used("stubdomain_version"),
    no_effect("sve", Never, ARM).since(18),
    no_effect("tee", Words(&["none"]), ARM),
    used("timer_mode"),
    no_effect("trap_unmapped_accesses", Never, ARM).since(21),
    used("tsc_mode"),
    used("type"),
    used("usb"),
    used("usbctrl"),
    refused("usbdev", Empty, HARDWARE),
    used("usbdevice"),
    used("usbversion"),
    used("uuid"),
    used("vcpus"),
    refused("vdispl", Empty, PV_DEVICE),
    used("vendor_device"),
    no_effect("vfb", Empty, VNC),
    used("vga"),
    used("videoram"),
    used("vif"),
    no_effect("vif2", Empty, "netchannel2 no longer exists; xl ignores it too"),
    used("viridian"),
    refused("virtio", Empty, DOM0_QEMU).since(18),
    no_effect("vkb", Empty, KEYBOARD),
    no_effect("vkb_device", Zero, KEYBOARD),
    used("vmtrace_buf_kb"),
    no_effect("vnc", Zero, VNC),
    no_effect("vncdisplay", Never, VNC),
    no_effect("vnclisten", Empty, VNC),
    no_effect("vncpasswd", Empty, VNC),
    no_effect("vncunused", Never, VNC),
    no_effect("vncviewer", Zero, "xl ignores it too"),
    refused(
        "vnuma",
        Empty,
        "virtual NUMA is not supported yet, and the guest would be built with another layout",
    ),
    used("vpmu"),
    used("vpt_align"),
    refused("vsnd", Empty, PV_DEVICE),
    refused("vtpm", Empty, PV_DEVICE),
    no_effect("vuart", Never, ARM),
    no_effect("xauthority", Empty, SDL),
    used("xen_platform_pci"),
    no_effect("xen_platform_pci_bar_uc", Words(&["1"]), PLATFORM_BAR).since(21),
    no_effect(
        "xend_suspend_evtchn_compat",
        Zero,
        "the event channel that it creates is for tools from before Xen 4.0",
    ),
    no_effect("xenstore_feature_mask", Never, XENSTORED).since(21),
    no_effect("xenstore_quota", Empty, XENSTORED).since(22),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_no_key_twice() {
        for pair in KEYS.windows(2) {
            assert!(pair[0].name < pair[1].name, "{} before {}", pair[0].name, pair[1].name);
        }
    }

    #[test]
    fn a_slip_of_the_finger_finds_the_key_that_was_meant() {
        for (wrong, right) in
            [("memmory", "memory"), ("vcpu", "vcpus"), ("on_powerof", "on_poweroff"), ("dsik", "disk")]
        {
            assert_eq!(near(wrong).first().map(|key| key.name), Some(right));
        }
        assert_eq!(near("frobnicate"), Vec::<&Key>::new());
        assert_eq!(near(&"memory".repeat(11)), Vec::<&Key>::new());
    }

    #[test]
    fn of_equally_near_keys_the_one_that_matters_comes_first() {
        for (wrong, right) in
            [("vfi", "vif"), ("vf", "vif"), ("gap", "hap"), ("vsnc", "vsnd"), ("vgb", "vga")]
        {
            assert_eq!(near(wrong).first().map(|key| key.name), Some(right), "{wrong}");
        }
    }

    /// Everything that is one insertion, deletion, replacement or exchange of neighbours away.
    fn slips(name: &str) -> Vec<String> {
        let letters = || ('a'..='z').chain('0'..='9').chain(['_']);
        let mut slips = Vec::new();
        for at in 0..=name.len() {
            let (before, after) = name.split_at(at);
            slips.extend(letters().map(|letter| format!("{before}{letter}{after}")));
            let Some(first) = after.chars().next() else { continue };
            let rest = &after[1..];
            slips.push(format!("{before}{rest}"));
            slips.extend(letters().map(|letter| format!("{before}{letter}{rest}")));
            if let Some(second) = rest.chars().next() {
                slips.push(format!("{before}{second}{first}{}", &rest[1..]));
            }
        }
        slips
    }

    #[test]
    fn every_slip_in_a_used_key_is_an_error_or_another_known_key() {
        for key in KEYS.iter().filter(|key| key.treatment == Treatment::Used) {
            for slip in slips(key.name) {
                if !slip.starts_with(|c: char| c.is_ascii_lowercase())
                    || find(&slip).is_some()
                    || crate::foreign::find(&slip).is_some()
                {
                    continue;
                }
                let loaded = crate::load_str("slip", &format!("{slip} = [ 'x' ]\n"));
                let said = loaded.diagnostics.iter().any(|d| d.is_error() && d.id == "config::unknown-key");
                assert!(said, "{slip} for {}", key.name);
            }
        }
    }
}
