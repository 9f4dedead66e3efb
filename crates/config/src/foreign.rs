//! Keys that are not xl's and that files in use nevertheless have: those of `xm`, which read the same files until
//! Xen 4.4, and those that other programs write for themselves. xl ignores them all.

/// The programs that read or write keys of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `xm`, the toolstack before xl.
    Xm,
    /// libvirt's export (`virsh domxml-to-native xen-xl`).
    Libvirt,
    /// `xen-create-image` of xen-tools.
    XenTools,
    /// Ganeti.
    Ganeti,
    /// Oracle VM, which Apache CloudStack drives.
    OracleVm,
    /// The examples of DRAKVUF and LibVMI.
    Drakvuf,
}

impl Program {
    /// Why a key of this program has no effect.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::Xm => "it is a key of the old `xm`; xl ignores it too, so the line can be removed",
            Self::Libvirt => "libvirt writes it, and xl ignores it too; the line can be removed",
            Self::XenTools => "xen-tools keeps it for itself, and xl ignores it too",
            Self::Ganeti => "Ganeti writes it, and xl ignores it too",
            Self::OracleVm => "Oracle VM keeps it for itself, and xl ignores it too",
            Self::Drakvuf => {
                "the examples of DRAKVUF contain it, but xl ignores it too; the line can be removed"
            }
        }
    }
}

/// The program that a key belongs to, if it is one of these.
#[must_use]
pub fn find(name: &str) -> Option<Program> {
    KEYS.iter().find(|(_, names)| names.contains(&name)).map(|(program, _)| *program)
}

/// Whether a value of such a key is its default and needs no word.
#[must_use]
pub(crate) fn is_default(name: &str, value: &str) -> bool {
    name == "parallel" && matches!(value, "none" | "")
}

/// Keys by program, each once.
pub(crate) const KEYS: &[(Program, &[&str])] = &[
    (
        Program::Xm,
        &[
            "access_control",
            "allow_mem_overcommit",
            "blkif",
            "bootargs",
            "bootentry",
            "cdrom",
            "change_home_server",
            "console_autoconnect",
            "cpu",
            "cpuid_check",
            "dtb",
            "fda",
            "fdb",
            "features",
            "gateway",
            "hostname",
            "interface",
            "ip",
            "irq",
            "isa",
            "loader",
            "machine_address_size",
            "memory_sharing",
            "monitor",
            "ne2000",
            "netif",
            "netmask",
            "nfs_root",
            "nfs_server",
            "nics",
            "on_xend_start",
            "on_xend_stop",
            "oprofile",
            "restart",
            "s3_integrity",
            "start_time",
            "superpages",
            "suppress_spurious_page_faults",
            "target",
            "tpmif",
            "vcpu_avail",
            "vcpus_avail",
            "vhpt",
            "vncconsole",
            "vscsi",
        ],
    ),
    (Program::Libvirt, &["parallel"]),
    (Program::XenTools, &["dhcp", "xen_shell"]),
    (Program::Ganeti, &["cpu_cap"]),
    (Program::OracleVm, &["disk_other_config", "expose_host_uuid", "guest_os_type", "vif_other_config"]),
    (Program::Drakvuf, &["arch", "audio"]),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::keys;

    #[test]
    fn no_key_is_of_two_programs_or_of_xl() {
        let mut seen = HashSet::new();
        for name in KEYS.iter().flat_map(|(_, names)| names.iter().copied()) {
            assert!(seen.insert(name), "{name} is listed twice");
            assert!(keys::find(name).is_none(), "{name} is a key of xl");
        }
    }
}
