//! Which key of libxl's JSON is which key of xl.cfg(5), where both have the same values.

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `"True"` or `"False"`.
    Flag,
    /// A string, or an enumeration's word.
    Text,
    /// A number; -1, also in 32 bits, is libxl's default.
    Number,
}

use Kind::{Flag, Number, Text};

/// A key of the JSON, the one of xl.cfg(5), and how it is written.
pub(super) type Same = (&'static str, &'static str, Kind);

/// Of `c_info`.
pub(super) const CREATE: &[Same] = &[
    ("name", "name", Text),
    ("uuid", "uuid", Text),
    ("hap", "hap", Flag),
    ("oos", "oos", Flag),
    ("pool_name", "pool", Text),
    ("driver_domain", "driver_domain", Flag),
    ("passthrough", "passthrough", Text),
];

/// Of `b_info`.
pub(super) const BUILD: &[Same] = &[
    ("tsc_mode", "tsc_mode", Text),
    ("localtime", "localtime", Flag),
    ("disable_migrate", "nomigrate", Flag),
    ("max_grant_frames", "max_grant_frames", Number),
    ("max_maptrack_frames", "max_maptrack_frames", Number),
    ("max_grant_version", "max_grant_version", Number),
    ("stubdomain_kernel", "stubdomain_kernel", Text),
    ("stubdomain_cmdline", "stubdomain_cmdline", Text),
    ("stubdomain_ramdisk", "stubdomain_ramdisk", Text),
    ("device_model", "device_model_override", Text),
    ("device_model_ssid_label", "device_model_stubdomain_seclabel", Text),
    ("kernel", "kernel", Text),
    ("cmdline", "cmdline", Text),
    ("ramdisk", "ramdisk", Text),
    ("acpi", "acpi", Flag),
    ("apic", "apic", Flag),
    ("timer_mode", "timer_mode", Text),
    ("nested_hvm", "nestedhvm", Flag),
    ("altp2m", "altp2m", Text),
    ("vmtrace_buf_kb", "vmtrace_buf_kb", Number),
    ("vpmu", "vpmu", Flag),
];

/// Of `b_info.type.hvm`; those that it shares with `b_info` are older forms, which count less.
pub(super) const HVM: &[Same] = &[
    ("firmware", "firmware_override", Text),
    ("bios", "bios", Text),
    ("system_firmware", "bios_path_override", Text),
    ("smbios_firmware", "smbios_firmware", Text),
    ("acpi_firmware", "acpi_firmware", Text),
    ("pae", "pae", Flag),
    ("apic", "apic", Flag),
    ("acpi", "acpi", Flag),
    ("acpi_s3", "acpi_s3", Flag),
    ("acpi_s4", "acpi_s4", Flag),
    ("acpi_laptop_slate", "acpi_laptop_slate", Flag),
    ("hpet", "hpet", Flag),
    ("vpt_align", "vpt_align", Flag),
    ("timer_mode", "timer_mode", Text),
    ("nested_hvm", "nestedhvm", Flag),
    ("altp2m", "altp2mhvm", Flag),
    ("hdtype", "hdtype", Text),
    ("keymap", "keymap", Text),
    ("gfx_passthru", "gfx_passthru", Flag),
    ("boot", "boot", Text),
    ("usb", "usb", Flag),
    ("usbversion", "usbversion", Number),
    ("vendor_device", "vendor_device", Text),
    ("soundhw", "soundhw", Text),
    ("xen_platform_pci", "xen_platform_pci", Flag),
    ("xen_platform_pci_bar_uc", "xen_platform_pci_bar_uc", Flag),
];

/// What the guest would lack, by key and reason. An empty array is none of it.
pub(super) const DEVICES: &[(&str, &str)] = &[
    ("pcidevs", "PCI passthrough is not supported yet; detach the device before the guest is saved"),
    ("dtdevs", "devices of the device tree cannot be passed to the guest"),
    ("vfbs", "its backend is a QEMU in dom0, which this toolstack never runs"),
    ("vkbs", "its backend is a QEMU in dom0, which this toolstack never runs"),
    ("vtpms", "there is no backend for virtual TPMs"),
    ("p9s", "its backend is a QEMU in dom0, which this toolstack never runs"),
    ("pvcallsifs", "there is no backend for PV calls"),
    ("vdispls", "there is no backend for PV displays"),
    ("vsnds", "there is no backend for PV sound"),
    ("usbctrls", "there is no backend for PV USB"),
    ("usbdevs", "USB passthrough is not supported yet; detach the device before the guest is saved"),
    ("virtios", "its backend is a QEMU in dom0, which this toolstack never runs"),
];

/// The same of `b_info`.
pub(super) const HARDWARE: &[(&str, &str)] = &[
    ("ioports", "passing parts of the host to a guest is not supported yet"),
    ("irqs", "passing parts of the host to a guest is not supported yet"),
    ("iomem", "passing parts of the host to a guest is not supported yet"),
    ("vnuma_nodes", "virtual NUMA is not supported yet"),
];

/// What is done with a guest that has ended: libxl's word, and xl's.
pub(super) const ACTIONS: &[(&str, &str)] = &[
    ("destroy", "destroy"),
    ("restart", "restart"),
    ("restart_rename", "rename-restart"),
    ("preserve", "preserve"),
    ("coredump_destroy", "coredump-destroy"),
    ("coredump_restart", "coredump-restart"),
    ("soft_reset", "soft-reset"),
];

/// The groups of `viridian_enable` and `viridian_disable`, by the numbers of their bits.
pub(super) const VIRIDIAN: [&str; 13] = [
    "base",
    "freq",
    "time_ref_count",
    "reference_tsc",
    "hcall_remote_tlb_flush",
    "apic_assist",
    "crash_ctl",
    "synic",
    "stimer",
    "hcall_ipi",
    "ex_processor_masks",
    "no_vp_limit",
    "cpu_hotplug",
];
/// The last bit of libxl's bitmaps of groups. It stands for no group, and is set by the word `all` only.
pub(super) const VIRIDIAN_LAST: u16 = 63;
