//! What dom0 is made of, by name.

use xen_types::Release;

/// Packages of every host.
pub(crate) fn packages(xen: Release) -> Vec<String> {
    let (hypervisor, utils) = (xen.hypervisor_package(), xen.utils_package());
    owned(&[
        &hypervisor,
        "linux-image-amd64",
        &utils,
        "xen-utils-common",
        "xenstore-utils",
        "busybox-static",
        "seabios",
        "ovmf",
    ])
}

/// Packages of a host with Xen's own tools.
pub(crate) const TOOLS_PACKAGES: [&str; 10] = [
    "qemu-system-xen",
    "qemu-system-data",
    "ipxe-qemu",
    "bash",
    "bc",
    "coreutils",
    "mount",
    "util-linux",
    "iproute2",
    "strace",
];

/// Programs of every host.
pub(crate) fn programs(xen: Release) -> Vec<String> {
    let mut programs = owned(&[
        "/bin/busybox",
        "/usr/bin/xenstore-list",
        "/usr/bin/xenstore-ls",
        "/usr/bin/xenstore-read",
        "/usr/bin/xenstore-rm",
        "/usr/bin/xenstore-watch",
        "/usr/bin/xenstore-write",
    ]);
    programs.extend(["oxenstored", "xen-init-dom0", "xenstored"].map(|name| xen.tool(name)));
    programs
}

/// Files and folders of every host: oxenstored's settings, and the firmware of guests.
pub(crate) fn files(xen: Release) -> Vec<String> {
    let mut files = owned(&[
        "/etc/xen/oxenstored.conf",
        &xen.hvmloader(),
        "/usr/share/seabios/bios-256k.bin",
        "/usr/share/ovmf/OVMF.fd",
    ]);
    files.extend(xen.oxenstored_plugins());
    files
}

/// Programs of a host with Xen's own tools. The hotplug scripts want the real bash, losetup, stat and flock.
pub(crate) fn tools_programs(xen: Release) -> Vec<String> {
    let mut programs = owned(&[
        "/bin/bash",
        "/sbin/losetup",
        "/sbin/ip",
        "/usr/bin/bc",
        "/usr/bin/flock",
        "/usr/bin/stat",
        "/usr/bin/strace",
    ]);
    let tools = [
        "libxl-save-helper",
        "vchan-socket-proxy",
        "xenconsole",
        "xenconsoled",
        "xenstore-control",
        "xentop",
        "xl",
    ];
    programs.extend(tools.map(|name| xen.tool(name)));
    programs.push("/usr/libexec/xen-qemu-system-i386".to_owned());
    programs
}

/// Files and folders of a host with Xen's own tools.
pub(crate) const TOOLS_FILES: [&str; 10] = [
    "/etc/xen/scripts",
    "/etc/xen/xl.conf",
    "/etc/xen/xlexample.hvm",
    "/etc/xen/xlexample.pvhlinux",
    "/etc/xen/xlexample.pvlinux",
    "/usr/share/qemu/keymaps",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/seabios/vgabios-cirrus.bin",
    "/usr/share/seabios/vgabios-stdvga.bin",
];

/// Modules that dom0 loads when it boots.
pub(crate) const MODULES: [&str; 13] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "xen-privcmd",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xenfs",
    "xen-blkback",
    "xen-netback",
    "loop",
    "bridge",
];

/// Modules that are in `/modules` for a script to load.
pub(crate) const MORE_MODULES: [&str; 2] = ["tun", "xen-pciback"];

/// Modules for the machine's disk and a file system on it. ext4 asks for its checksum by name, so no dependency of the
/// module names it.
pub(crate) const DISK_MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];

/// Modules for the network between a pair of hosts.
pub(crate) const PAIR_MODULES: [&str; 1] = ["virtio_net"];

/// Folders that are there from the start.
pub(crate) const FOLDERS: [&str; 14] = [
    "/dev",
    "/etc/xen",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/share",
    "/sys",
    "/usr/bin",
    "/usr/sbin",
    "/var/lib/outrigger",
    "/var/lib/xen",
    "/var/log/outrigger",
    "/var/log/xen",
];

/// What a login shell reads.
pub(crate) const PROFILE: &str = "PS1='dom0:\\w\\$ '\nstty sane 2>/dev/null\n";

/// All of the above that decides what a host is, for its hash.
pub(crate) fn all(xen: Release) -> impl std::fmt::Debug {
    let always = (
        packages(xen),
        programs(xen),
        files(xen),
        MODULES,
        MORE_MODULES,
        DISK_MODULES,
        PAIR_MODULES,
        FOLDERS,
    );
    (always, TOOLS_PACKAGES, tools_programs(xen), TOOLS_FILES)
}

/// dom0's `/init`, with the folder of Xen's programs in its search path.
pub(crate) fn init(xen: Release) -> String {
    include_str!("dom0-init.sh").replace("@XEN_TOOLS@", &xen.tools_dir())
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
