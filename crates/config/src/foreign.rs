//! Keys that are not xl's and that files in use nevertheless have: those of `xm`, which read the same files until
//! Xen 4.4, and those that other programs write for themselves. xl ignores them all.

use crate::document::Value;

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

/// Which key of xl does what the name of one of these promises, if one may be taken for it.
#[must_use]
pub(crate) fn instead(name: &str) -> Option<&'static str> {
    match name {
        "cpu" => Some("to pin vCPUs, write `cpus`"),
        "irq" => Some("if `irqs` was meant, it is not supported, and the guest would lack them"),
        _ => None,
    }
}

/// The key of xl that is meant by a name that other programs have for the same thing. Devices are lists: a single
/// value is something else, such as the number of interfaces in `nics` of `xm`.
#[must_use]
pub(crate) fn synonym(name: &str, value: &Value) -> Option<&'static str> {
    match (name, value) {
        ("security_label", _) => Some("seclabel"),
        (_, Value::Atom(_)) => None,
        ("disks", _) => Some("disk"),
        ("network" | "networks" | "nic" | "nics", _) => Some("vif"),
        ("pci_devices" | "hostdev", _) => Some("pci"),
        _ => None,
    }
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
    use crate::document::List;
    use crate::keys;
    use crate::source::Span;

    #[test]
    fn no_key_is_of_two_programs_or_of_xl() {
        let mut seen = HashSet::new();
        for name in KEYS.iter().flat_map(|(_, names)| names.iter().copied()) {
            assert!(seen.insert(name), "{name} is listed twice");
            assert!(keys::find(name).is_none(), "{name} is a key of xl");
        }
    }

    #[test]
    fn what_may_be_a_misspelt_key_of_xl_is_said_to_be() {
        for name in KEYS.iter().flat_map(|(_, names)| names.iter().copied()) {
            let near = keys::near(name).into_iter().find(|key| !key.treatment.is_idle());
            let help = instead(name).or_else(|| synonym(name, &list())).unwrap_or_default();
            assert!(near.is_none_or(|key| help.contains(key.name)), "{name}: {near:?}");
        }
    }

    fn list() -> Value {
        Value::List(List { items: Vec::new(), span: Span::default() })
    }

    #[test]
    fn devices_by_other_names_are_errors_that_name_the_key() {
        for (line, help) in [
            ("pci_devices = [ '00:1f.0' ]", "if `pci` was meant, it is not supported"),
            ("hostdev = [ '00:1f.0' ]", "if `pci` was meant, it is not supported"),
            ("networks = [ '' ]", "did you mean `vif`?"),
            ("nics = [ '' ]", "did you mean `vif`?"),
            ("disks = [ '/a,,hda' ]", "did you mean `disk`?"),
            ("security_label = 'a'", "did you mean `seclabel`?"),
        ] {
            let loaded = crate::load_str("g", &format!("type = 'hvm'\nname = 'g'\nmemory = 64\n{line}\n"));
            assert!(loaded.config.is_none(), "{line}");
            assert!(loaded.diagnostics[0].help[0].starts_with(help), "{line}: {:?}", loaded.diagnostics);
        }
        let loaded = crate::load_str("g", "type = 'hvm'\nname = 'g'\nmemory = 64\nnics = 1\ncpu = '2-3'\n");
        assert!(loaded.config.is_some());
        assert_eq!(loaded.diagnostics[1].help[1], "to pin vCPUs, write `cpus`");
    }
}
