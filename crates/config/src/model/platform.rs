use serde::{Deserialize, Serialize};
use xen_types::KiB;

use super::{CpuidPolicy, SmbiosString};

/// What Xen and hvmloader, rather than QEMU, give an HVM guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of xl.cfg(5) of its own")]
pub struct Platform {
    /// `hap`: hardware-assisted paging; absent: used where the host has it. `Some(false)` asks for shadow paging.
    pub hap: Option<bool>,
    /// `oos`: out-of-sync shadow pages; absent: Xen's default (on).
    pub oos: Option<bool>,
    /// `acpi`: default true.
    pub acpi: bool,
    /// `acpi_s3`: default true.
    pub acpi_s3: bool,
    /// `acpi_s4`: default true.
    pub acpi_s4: bool,
    /// `acpi_laptop_slate`: default false.
    pub acpi_laptop_slate: bool,
    /// `apic`: default true.
    pub apic: bool,
    /// `pae`: default true.
    pub pae: bool,
    /// `hpet`: default true.
    pub hpet: bool,
    /// `vpt_align`: default true.
    pub vpt_align: bool,
    /// `nestedhvm`: default false; excludes `altp2m`.
    pub nested_hvm: bool,
    /// `altp2m`, and the older `altp2mhvm` which means mixed: default disabled.
    pub altp2m: Altp2m,
    /// `hvm_pirq`: absent: what xl of the running release does, on before 4.19 and off from then on.
    pub hvm_pirq: Option<bool>,
    /// `viridian`: default none.
    pub viridian: Viridian,
    /// `tsc_mode`: default `default`.
    pub tsc_mode: TscMode,
    /// `timer_mode`: default `no_delay_for_missed_ticks`.
    pub timer_mode: TimerMode,
    /// The guest's clock.
    pub clock: Clock,
    /// `cpuid`: changes to what the guest sees of the host's CPU.
    pub cpuid: CpuidPolicy,
    /// `xen_platform_pci`: default true.
    pub xen_platform_pci: bool,
    /// `mmio_hole` in KiB, 256 MiB to 3840 MiB; absent: hvmloader chooses.
    pub mmio_hole: Option<KiB>,
    /// `ms_vm_genid = "generate"`: the guest gets a fresh VM generation ID.
    pub vm_generation_id: bool,
    /// `vpmu`: default false.
    pub vpmu: bool,
    /// `msr_relaxed`: default false.
    pub msr_relaxed: bool,
    /// `mca_caps = [ "lmce" ]`.
    pub mca_lmce: bool,
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            hap: None,
            oos: None,
            acpi: true,
            acpi_s3: true,
            acpi_s4: true,
            acpi_laptop_slate: false,
            apic: true,
            pae: true,
            hpet: true,
            vpt_align: true,
            nested_hvm: false,
            altp2m: Altp2m::Disabled,
            hvm_pirq: None,
            viridian: Viridian::default(),
            tsc_mode: TscMode::Default,
            timer_mode: TimerMode::NoDelayForMissedTicks,
            clock: Clock::default(),
            cpuid: CpuidPolicy::default(),
            xen_platform_pci: true,
            mmio_hole: None,
            vm_generation_id: false,
            vpmu: false,
            msr_relaxed: false,
            mca_lmce: false,
        }
    }
}

/// The guest's real-time clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// `localtime`: the clock shows dom0's local time instead of UTC.
    pub localtime: bool,
    /// `rtc_timeoffset`: seconds added to the clock.
    pub offset_seconds: i32,
}

/// Multiple page-table views (`altp2m`); values are those of `XEN_ALTP2M_*`
/// (`xen/include/public/hvm/params.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Altp2m {
    /// Off.
    Disabled = 0,
    /// The guest and others.
    Mixed = 1,
    /// Others only.
    External = 2,
    /// Others, and the guest for a few operations.
    Limited = 3,
}

/// How the guest's TSC is kept (`tsc_mode`); values are those of `XEN_CPUID_TSC_MODE`'s owner,
/// `xen/arch/x86/include/asm/time.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TscMode {
    /// Emulated only where it must be.
    Default = 0,
    /// Always emulated.
    AlwaysEmulate = 1,
    /// Never emulated.
    Native = 2,
}

/// What happens to timer ticks that were missed (`timer_mode`); values are those of `HVM_PARAM_TIMER_MODE`
/// (`xen/include/public/hvm/params.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimerMode {
    /// Guest time stops meanwhile.
    DelayForMissedTicks = 0,
    /// Ticks are delivered late, guest time goes on.
    NoDelayForMissedTicks = 1,
    /// Missed ticks are dropped.
    NoMissedTicksPending = 2,
    /// Missed ticks become one.
    OneMissedTickPending = 3,
}

/// What the guest's first instruction belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// `bios` or `firmware`: default SeaBIOS.
    pub kind: FirmwareKind,
    /// `bios_path_override`: path in dom0 of the BIOS image; absent: the distribution's for `kind`.
    pub bios_path: Option<String>,
    /// `firmware_override`, or a path in `firmware`: what replaces hvmloader; an absolute path in dom0, or the name of
    /// a file in Xen's firmware directory.
    pub hvmloader: Option<String>,
    /// `smbios_firmware`: path in dom0 of SMBIOS structures for hvmloader.
    pub smbios: Option<String>,
    /// `smbios`: strings in hvmloader's own SMBIOS structures; each field but [`SmbiosField::Oem`] once.
    ///
    /// [`SmbiosField::Oem`]: super::SmbiosField::Oem
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub smbios_strings: Vec<SmbiosString>,
    /// `acpi_firmware`: path in dom0 of ACPI tables for hvmloader.
    pub acpi: Option<String>,
}

impl Default for Firmware {
    fn default() -> Self {
        Self {
            kind: FirmwareKind::SeaBios,
            bios_path: None,
            hvmloader: None,
            smbios: None,
            smbios_strings: Vec::new(),
            acpi: None,
        }
    }
}

/// The BIOS that hvmloader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareKind {
    /// `seabios` (also `bios`).
    SeaBios,
    /// `ovmf` (also `uefi`).
    Ovmf,
}

impl FirmwareKind {
    /// The name that libxl writes at `hvmloader/bios` in xenstore.
    #[must_use]
    pub const fn xenstore_name(self) -> &'static str {
        match self {
            Self::SeaBios => "seabios",
            Self::Ovmf => "ovmf",
        }
    }
}

/// Limits on the guest's grant table; absent ones are the host's (xl.conf(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantLimits {
    /// `max_grant_frames`: pages of its grant table.
    pub max_grant_frames: Option<u32>,
    /// `max_maptrack_frames`: pages of its map-tracking table.
    pub max_maptrack_frames: Option<u32>,
    /// `max_grant_version`: 0, 1 or 2.
    pub max_version: Option<u8>,
}

/// The Viridian (Hyper-V) enlightenments offered to the guest.
///
/// libxl's order of evaluation (`hvm_set_viridian_features`, `tools/libs/light/libxl_x86.c`): the default set if
/// `defaults`, plus `enable` (or every group if `all`), minus `disable`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Viridian {
    /// `viridian = 1` or the word `defaults`.
    pub defaults: bool,
    /// The word `all`.
    pub all: bool,
    /// Groups asked for by name, each once.
    pub enable: Vec<ViridianGroup>,
    /// Groups named with a leading `!`, each once.
    pub disable: Vec<ViridianGroup>,
}

/// A group of Viridian enlightenments; values are the bit numbers of libxl's `viridian_enlightenment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are xl.cfg(5)'s own, which describes them")]
pub enum ViridianGroup {
    Base = 0,
    Freq = 1,
    TimeRefCount = 2,
    ReferenceTsc = 3,
    HcallRemoteTlbFlush = 4,
    ApicAssist = 5,
    CrashCtl = 6,
    Synic = 7,
    Stimer = 8,
    HcallIpi = 9,
    ExProcessorMasks = 10,
    NoVpLimit = 11,
    CpuHotplug = 12,
}

impl ViridianGroup {
    /// Every group, by number.
    pub const ALL: [Self; 13] = [
        Self::Base,
        Self::Freq,
        Self::TimeRefCount,
        Self::ReferenceTsc,
        Self::HcallRemoteTlbFlush,
        Self::ApicAssist,
        Self::CrashCtl,
        Self::Synic,
        Self::Stimer,
        Self::HcallIpi,
        Self::ExProcessorMasks,
        Self::NoVpLimit,
        Self::CpuHotplug,
    ];

    /// The word of xl.cfg(5).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Freq => "freq",
            Self::TimeRefCount => "time_ref_count",
            Self::ReferenceTsc => "reference_tsc",
            Self::HcallRemoteTlbFlush => "hcall_remote_tlb_flush",
            Self::ApicAssist => "apic_assist",
            Self::CrashCtl => "crash_ctl",
            Self::Synic => "synic",
            Self::Stimer => "stimer",
            Self::HcallIpi => "hcall_ipi",
            Self::ExProcessorMasks => "ex_processor_masks",
            Self::NoVpLimit => "no_vp_limit",
            Self::CpuHotplug => "cpu_hotplug",
        }
    }
}
