use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the agent finds in the image at [`ImageConfig::PATH`], as JSON: where QEMU is and what to load before it.
///
/// Every field may be absent; an unknown one is passed over, so that an older agent boots in a newer image.
///
/// ```json
/// {
///   "qemu": "/usr/libexec/xen-qemu-system-i386",
///   "data": ["/usr/share/seabios", "/usr/share/qemu"],
///   "modules": ["/lib/modules/xen-privcmd.ko", "/lib/modules/xen-evtchn.ko"],
///   "module_options": {"xen-privcmd": "unrestricted=1"},
///   "qemu_args": []
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// QEMU's absolute path.
    pub qemu: String,
    /// Folders with QEMU's firmware and key maps, each given to QEMU as `-L`.
    pub data: Vec<String>,
    /// Absolute paths of kernel modules (uncompressed `.ko`), loaded in this order.
    pub modules: Vec<String>,
    /// Options of modules, by the module file's name without `.ko`.
    pub module_options: BTreeMap<String, String>,
    /// Arguments that come before the toolstack's, such as a sandbox that this QEMU is known to have.
    pub qemu_args: Vec<String>,
}

impl ImageConfig {
    /// Where the file is in the image.
    pub const PATH: &str = "/etc/outrigger/stubdom.json";

    /// Where QEMU's monitor listens inside the stubdomain.
    pub const QMP_SOCKET: &str = "/run/qmp.sock";

    /// The other names of the agent, under which QEMU and the kernel start it.
    pub const HELPERS: [&str; 5] =
        ["/etc/qemu-ifup", "/etc/qemu-ifdown", "/sbin/poweroff", "/sbin/reboot", "/sbin/halt"];

    /// The value of `-sandbox` for a QEMU that has it: everything off that a device model can do without, which is old
    /// system calls, rising privileges, new processes, scheduling.
    pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
}

impl Default for ImageConfig {
    /// What holds in an image without the file: Debian's QEMU, and no module.
    fn default() -> Self {
        Self {
            qemu: "/usr/libexec/xen-qemu-system-i386".to_owned(),
            data: Vec::new(),
            modules: Vec::new(),
            // Kernels since 2026 let a guest's privcmd do only what concerns its target unless told so (XSA-482),
            // which leaves out the hypercalls of QEMU's memory mapping. Kernels that do not know the option ignore it.
            module_options: BTreeMap::from([("xen-privcmd".to_owned(), "unrestricted=1".to_owned())]),
            qemu_args: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_fields_have_defaults_and_unknown_ones_are_passed_over() {
        let config: ImageConfig =
            serde_json::from_str(r#"{"qemu": "/bin/qemu", "colour": "green"}"#).unwrap();
        assert_eq!(config, ImageConfig { qemu: "/bin/qemu".to_owned(), ..ImageConfig::default() });
    }

    #[test]
    fn what_is_written_reads_back() {
        let config =
            ImageConfig { modules: vec!["/lib/modules/tun.ko".to_owned()], ..ImageConfig::default() };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImageConfig>(&text).unwrap(), config);
    }
}
