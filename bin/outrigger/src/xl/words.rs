use super::Here::{Differs, Missing, Same};
use super::{Here, Word};

const fn word(name: &'static str, here: Here) -> Word {
    Word { name, here }
}

// What several commands have in common.
const BY_XL: &str =
    "xl does it, for guests of Outrigger too; nothing records it, so a guest's restart undoes it";
const OF_THE_HOST: &str = "xl does it: it is about Xen itself, not about a guest";
const CPU_POOLS: &str = "xl does it: CPU pools are the host's";
const NO_PCI: &str = "PCI passthrough is not supported yet; a guest with pci= is refused";
const PCI_OF_THE_HOST: &str = "xl does it, but no guest of Outrigger can have the device yet";
const NO_USB: &str =
    "PV USB is not supported; usb= and usbdevice= give a guest emulated devices from its start";
const NO_VTPM: &str = "PV TPMs are not supported";
const NO_PV_DISPLAY: &str = "PV keyboards, displays and sound cards are not supported";
const FLASK: &str = "xl does it: XSM's policy is the host's";
const PSR: &str = "xl does it, for guests of Outrigger too; a guest's restart undoes it";
const QUOTAS: &str = "xl does it, from Xen 4.22 on: quotas are xenstored's";
const UNTIL_IT_WAITS: &str = "-w waits for at most 300 s, or as long as -w=SECONDS says; a guest without PV drivers gets the power button without -F too; -a leaves out guests that have ended";

/// The commands of xl in Xen 4.17 to 4.22, by name.
pub(crate) const WORDS: &[Word] = &[
    word("block-attach", Differs("only raw images and block devices; the guest's PV driver is waited for")),
    word(
        "block-detach",
        Differs("-f is --force; without it, a guest that does not release the disk keeps it"),
    ),
    word("block-list", Differs("has more columns; the first is the guest's name")),
    word("button-press", Same),
    word("cd-eject", Differs("works although QEMU is in a stubdomain; --force opens a locked tray")),
    word("cd-insert", Differs("works although QEMU is in a stubdomain; --force opens a locked tray")),
    word("channel-list", Differs("the first column is the guest's name")),
    word("claims", Missing(OF_THE_HOST)),
    word(
        "config-update",
        Differs(
            "replaces the whole configuration at the guest's next start, also what was changed since; the name must be the guest's; not saved and not migrated",
        ),
    ),
    word(
        "console",
        Differs(
            "without -t, -n is the number of a serial port; -t pv -n N is xl's; -t vuart is refused; Ctrl-] leaves, or the key that -e names",
        ),
    ),
    word("cpupool-cpu-add", Missing(CPU_POOLS)),
    word("cpupool-cpu-remove", Missing(CPU_POOLS)),
    word("cpupool-create", Missing(CPU_POOLS)),
    word("cpupool-destroy", Missing(CPU_POOLS)),
    word("cpupool-list", Missing(CPU_POOLS)),
    word("cpupool-migrate", Missing(BY_XL)),
    word("cpupool-numa-split", Missing(CPU_POOLS)),
    word("cpupool-rename", Missing(CPU_POOLS)),
    word(
        "create",
        Differs(
            "outriggerd waits for the guest's end: -e has no effect, nor has -d; -F only waits, and Ctrl-C leaves the guest; -V and -A are refused, because guests have no VNC display yet, and so is --ignore-global-affinity-masks",
        ),
    ),
    word("debug-keys", Missing(OF_THE_HOST)),
    word("destroy", Differs("takes several guests; -f is refused: it is about dom0")),
    word("devd", Missing("not needed: all backends are in dom0; in a driver domain, xl does it")),
    word("dmesg", Missing("xl does it: it is Xen's own log; `outrigger dm-log` shows that of a stubdomain")),
    word("domid", Same),
    word("domname", Differs("only of guests of Outrigger; xl knows all domains")),
    word("dt-overlay", Missing("only for Arm, which Outrigger does not run on")),
    word(
        "dump-core",
        Differs(
            "pauses the guest meanwhile, unless with --live; an existing file is refused; also for guests that have ended",
        ),
    ),
    word("getenforce", Missing(FLASK)),
    word("info", Differs("shows less, under other names; with a GUEST, shows that")),
    word(
        "list",
        Differs(
            "the first six columns are xl's; lists guests of Outrigger only, without dom0 and stubdomains; -l is a longer table, --json prints JSON",
        ),
    ),
    word("loadpolicy", Missing(FLASK)),
    word(
        "mem-max",
        Differs(
            "at most what the guest was created with (maxmem), because its memory map cannot grow; lasts until it ends",
        ),
    ),
    word("mem-set", Differs("refused if the host has too little memory; dom0 is not shrunk")),
    word(
        "migrate",
        Differs(
            "live by default, with other options: docs/migration.md; -s is xl's; -e, -p, -D and --debug are refused",
        ),
    ),
    word("migrate-receive", Differs("speaks another protocol: xl at the other host cannot take part")),
    word("network-attach", Same),
    word("network-detach", Differs("--force detaches from a guest that does not release it")),
    word("network-list", Differs("has more columns; the first is the guest's name")),
    word("pause", Differs("takes several guests")),
    word("pci-assignable-add", Missing(PCI_OF_THE_HOST)),
    word("pci-assignable-list", Missing(PCI_OF_THE_HOST)),
    word("pci-assignable-remove", Missing(PCI_OF_THE_HOST)),
    word("pci-attach", Missing(NO_PCI)),
    word("pci-detach", Missing(NO_PCI)),
    word("pci-list", Missing(NO_PCI)),
    word("psr-cat-set", Missing(PSR)),
    word("psr-cat-show", Missing(PSR)),
    word("psr-cmt-attach", Missing(PSR)),
    word("psr-cmt-detach", Missing(PSR)),
    word("psr-cmt-show", Missing(PSR)),
    word("psr-hwinfo", Missing(PSR)),
    word("psr-mba-set", Missing(PSR)),
    word("psr-mba-show", Missing(PSR)),
    word(
        "qemu-monitor-command",
        Missing(
            "`outrigger qmp GUEST COMMAND` speaks QMP; `outrigger qmp --unsafe GUEST human-monitor-command command-line=COMMAND` is for the human monitor",
        ),
    ),
    word(
        "reboot",
        Differs(
            "-w waits until the guest runs again, as does -ww; for at most 300 s, or as long as -w=SECONDS says; -F resets a guest without PV drivers, as a reset button does",
        ),
    ),
    word("remus", Missing("not supported: guests are not replicated; `outrigger migrate` moves one")),
    word("rename", Same),
    word(
        "restore",
        Differs(
            "the configuration is the file's own: a second file is refused; --name gives another name; -e and -d have no effect; -V and -A are refused",
        ),
    ),
    word("resume", Same),
    word(
        "save",
        Differs(
            "xl restore reads the file; a configuration file and -D are refused; -p with -c keeps the guest paused",
        ),
    ),
    word("sched-credit", Missing(BY_XL)),
    word("sched-credit2", Missing(BY_XL)),
    word("sched-rtds", Missing(BY_XL)),
    word("set-parameters", Missing(OF_THE_HOST)),
    word("setenforce", Missing(FLASK)),
    word("sharing", Missing(OF_THE_HOST)),
    word("shutdown", Differs(UNTIL_IT_WAITS)),
    word("suspend", Same),
    word("sysrq", Differs("waits until the guest has read the key")),
    word(
        "top",
        Differs("shows guests with their stubdomains, instead of xentop; -b prints tables, --json JSON"),
    ),
    word("trigger", Same),
    word("unpause", Differs("takes several guests")),
    word("uptime", Differs("of dom0 and of guests of Outrigger")),
    word("usb-list", Missing(NO_USB)),
    word("usbctrl-attach", Missing(NO_USB)),
    word("usbctrl-detach", Missing(NO_USB)),
    word("usbdev-attach", Missing(NO_USB)),
    word("usbdev-detach", Missing(NO_USB)),
    word("vcpu-list", Differs("of guests of Outrigger and their stubdomains, without dom0")),
    word("vcpu-pin", Differs("only guests of Outrigger; -f has no effect")),
    word("vcpu-set", Same),
    word("vdispl-attach", Missing(NO_PV_DISPLAY)),
    word("vdispl-detach", Missing(NO_PV_DISPLAY)),
    word("vdispl-list", Missing(NO_PV_DISPLAY)),
    word("vkb-attach", Missing(NO_PV_DISPLAY)),
    word("vkb-detach", Missing(NO_PV_DISPLAY)),
    word("vkb-list", Missing(NO_PV_DISPLAY)),
    word("vm-list", Differs("guests of Outrigger only")),
    word(
        "vncviewer",
        Missing("not supported yet: guests have no VNC display; `outrigger screenshot` shows the screen"),
    ),
    word("vsnd-attach", Missing(NO_PV_DISPLAY)),
    word("vsnd-detach", Missing(NO_PV_DISPLAY)),
    word("vsnd-list", Missing(NO_PV_DISPLAY)),
    word("vtpm-attach", Missing(NO_VTPM)),
    word("vtpm-detach", Missing(NO_VTPM)),
    word("vtpm-list", Missing(NO_VTPM)),
    word("xenstore-quota-get", Missing(QUOTAS)),
    word("xenstore-quota-set", Missing(QUOTAS)),
];
