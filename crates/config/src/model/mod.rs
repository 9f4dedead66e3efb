//! What a configuration means: the guest as types, with every default of xl and libxl already applied.
//!
//! Field docs name the xl.cfg(5) key that sets the field and its default. The defaults are those of Xen 4.17's
//! `tools/xl/xl_parse.c` and `libxl__domain_build_info_setdefault` (`tools/libs/light/libxl_create.c`); where
//! ours differ, the field says so.

mod affinity;
mod channel;
mod cpuid;
mod disk;
mod display;
mod nic;
mod platform;
mod smbios;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xen_types::KiB;

pub use affinity::{Affinity, CpuSet, CpuSetError};
pub use channel::{Channel, ChannelConnection};
pub use cpuid::{CpuidLeaf, CpuidPolicy};
pub use disk::{Access, Disk, DiskController, DiskFormat, DiskKind, DiskSource, Vdev, VdevBus};
pub use display::{Display, Usb, UsbController, VendorDevice, Vga};
pub use nic::{MacAddr, MacAddrError, Nic, NicKind, Rate};
pub use platform::{
    Altp2m, Clock, Firmware, FirmwareKind, GrantLimits, Platform, TimerMode, TscMode, Viridian, ViridianGroup,
};
pub use smbios::{SmbiosField, SmbiosString};

/// One HVM guest, as its configuration file describes it.
///
/// It is serializable so that a daemon can keep it beside the domain; the format is that of the version that
/// wrote it and is not an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// `name`: 1 to 100 characters, none of them a control character, `/` or a blank at either end.
    pub name: String,
    /// `uuid`; absent: the toolstack makes a random one.
    pub uuid: Option<Uuid>,
    /// `memory`: what the guest is given at its start, in KiB; the default is `max_memory`.
    pub memory: KiB,
    /// `maxmem`: the most that the guest may grow to, in KiB; the default is `memory`. More than `memory` means
    /// populate-on-demand.
    pub max_memory: KiB,
    /// `shadow_memory`, in KiB: the pool for shadow or HAP page tables; absent: derived from memory and vCPUs.
    pub shadow_memory: Option<KiB>,
    /// `vcpus`: how many are online at the start; at least 1, default 1.
    pub vcpus: u32,
    /// `maxvcpus`: how many the guest may have; at least `vcpus` (the default), at most 128
    /// (`HVM_MAX_VCPUS`, `xen/include/public/hvm/hvm_info_table.h`).
    pub max_vcpus: u32,
    /// `cpus`: where the vCPUs may run; the default is on every CPU.
    #[serde(default)]
    pub affinity: Affinity,
    /// CPU, ACPI, timers and what else Xen itself emulates.
    pub platform: Platform,
    /// What the guest's first instruction belongs to.
    pub firmware: Firmware,
    /// `boot`: the order in which the BIOS tries devices.
    pub boot: Boot,
    /// `disk`, in the file's order; no two have the same [`Vdev`].
    pub disks: Vec<Disk>,
    /// `hdtype`: the controller that `hd*` disks are emulated on.
    pub disk_controller: DiskController,
    /// `vif`, in the file's order; no two have the same [`Nic::devid`].
    pub nics: Vec<Nic>,
    /// `serial`: the guest's serial ports, COM1 first; at most [`GuestConfig::MAX_SERIALS`].
    pub serials: Vec<SerialOutput>,
    /// `channel`: PV consoles from number 1 on, in the file's order; at most [`GuestConfig::MAX_CHANNELS`], no two of
    /// one name.
    #[serde(default)]
    pub channels: Vec<Channel>,
    /// Graphics and keyboard.
    pub display: Display,
    /// USB controllers and emulated USB devices.
    pub usb: Usb,
    /// `soundhw`: the emulated sound card (`hda`, `ac97`, `es1370`, `sb16`, …), checked against libxl's list.
    pub sound: Option<String>,
    /// `vendor_device`: an extra emulated device that some vendors' drivers look for.
    pub vendor_device: VendorDevice,
    /// Where QEMU runs and what it is given beyond the rest of this configuration.
    pub device_model: DeviceModel,
    /// What happens when the guest ends.
    pub lifecycle: Lifecycle,
    /// XSM labels. If one of them cannot be applied when the domain is created, the guest must be refused.
    pub labels: SecurityLabels,
    /// `max_event_channels`: default 1023.
    pub max_event_channels: u32,
    /// `max_grant_frames`, `max_maptrack_frames`, `max_grant_version`.
    pub grants: GrantLimits,
    /// `nomigrate`: the guest may be neither saved nor migrated.
    pub no_migrate: bool,
    /// `vmtrace_buf_kb`: size of each vCPU's trace buffer in KiB; 0: none.
    pub vmtrace_buffer: KiB,
}

impl GuestConfig {
    /// Serial ports that a stubdomain can carry: Linux numbers a domain's secondary consoles 1 to 9, the first two
    /// of which carry the device model's state, and QEMU's PC has four ports.
    pub const MAX_SERIALS: usize = 4;

    /// Channels that a Linux guest can find: it numbers consoles beside the first 1 to 9.
    pub const MAX_CHANNELS: usize = 9;
}

/// What of the guest's devices the BIOS may boot from, and in which order (`boot`, default `cda`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Boot(pub(crate) String);

impl Boot {
    /// The order as QEMU takes it: letters of `a` (floppy), `c` (first disk), `d` (CD), `n` (network), each at
    /// most once.
    #[must_use]
    pub fn order(&self) -> &str {
        &self.0
    }
}

impl Default for Boot {
    fn default() -> Self {
        Self("cda".to_owned())
    }
}

/// Where the configuration sends a serial port.
///
/// The guest's port is QEMU's `/dev/hvc<3+k>` in the stubdomain in every case; this says what the toolstack does
/// with that console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SerialOutput {
    /// `pty`: a terminal that can be attached to; also logged.
    Pty,
    /// `file:PATH`: bytes are appended to the file at the path.
    File(String),
    /// `null` or `none`: the port exists, without a listener.
    Null,
}

/// Where QEMU runs: always in a Linux stubdomain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceModel {
    /// `stubdomain_type` (this project's own key): the kind of domain that the stubdomain is.
    #[serde(default)]
    pub kind: StubdomainKind,
    /// `stubdomain_kernel`: an absolute path in dom0, or the name of a file in Xen's firmware directory; absent: the
    /// installed image's.
    pub kernel: Option<String>,
    /// `stubdomain_ramdisk`: like `kernel`.
    pub ramdisk: Option<String>,
    /// `stubdomain_cmdline`: appended to the stubdomain kernel's command line.
    pub cmdline: Option<String>,
    /// `stubdomain_memory` in KiB; absent: what the image's manifest says. Video memory is not included.
    pub memory: Option<KiB>,
    /// `device_model_args` then `device_model_args_hvm`: QEMU arguments, appended to ours.
    pub extra_args: Vec<String>,
    /// `on_device_model_crash` (this project's own key): what happens to the guest when its device model dies.
    pub on_crash: DeviceModelCrashAction,
    /// `device_model_qmp` (this project's own key): how the toolstack reaches QEMU's monitor.
    #[serde(default)]
    pub qmp: QmpTransport,
}

/// The kinds of domains that a stubdomain can be (`stubdomain_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StubdomainKind {
    /// A PV domain.
    #[default]
    Pv,
    /// A PVH domain. Only Xen from 4.19 on lets one map its guest's memory.
    Pvh,
}

/// How QMP comes from a stubdomain (`device_model_qmp`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QmpTransport {
    /// The stubdomain serves it by vchan.
    #[default]
    Vchan,
    /// QEMU has a monitor on a PV console of the stubdomain, which need not know of it.
    Console,
}

/// What happens to a guest whose stubdomain or QEMU has died (`on_device_model_crash`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceModelCrashAction {
    /// The guest is destroyed after its device model's log was kept.
    #[default]
    Destroy,
    /// The guest is destroyed and created again from its configuration.
    Restart,
    /// The guest is paused and left for someone to look at.
    Preserve,
}

/// What is done with a domain that has ended (xl.cfg(5), "Event Actions").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is destroyed.
    Destroy,
    /// It is destroyed and created again.
    Restart,
    /// It is renamed and kept, and a new one is created.
    RenameRestart,
    /// It is kept as it is.
    Preserve,
}

/// The action for each way in which a guest can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// `on_poweroff`: default destroy.
    pub on_poweroff: Action,
    /// `on_reboot`: default restart.
    pub on_reboot: Action,
    /// `on_crash`: default destroy.
    pub on_crash: Action,
    /// `on_watchdog`: default destroy.
    pub on_watchdog: Action,
    /// `on_soft_reset`: xl's default is to reset the guest in place, which this project does not do; the default
    /// here is destroy, the action for every other unexpected end.
    pub on_soft_reset: Action,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            on_poweroff: Action::Destroy,
            on_reboot: Action::Restart,
            on_crash: Action::Destroy,
            on_watchdog: Action::Destroy,
            on_soft_reset: Action::Destroy,
        }
    }
}

/// XSM (FLASK) labels of the guest and its stubdomain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityLabels {
    /// `seclabel`: the guest's, while it runs.
    pub guest: Option<String>,
    /// `init_seclabel`: the guest's, while it is built.
    pub guest_init: Option<String>,
    /// `device_model_stubdomain_seclabel`: the stubdomain's.
    pub device_model: Option<String>,
}

impl SecurityLabels {
    /// Whether the configuration names no label at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
