use core::fmt;
use core::time::Duration;

use xen_types::{DomId, KiB, Release};

/// What a new domain is to be (`struct xen_domctl_createdomain` in `xen/include/public/domctl.h`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainSpec {
    /// Which kind of domain.
    pub kind: DomainKind,
    /// The domain's UUID, which Xen keeps as its handle.
    pub uuid: [u8; 16],
    /// The largest number of virtual CPUs that it can ever have.
    pub max_vcpus: u32,
    /// The highest event channel port that it may use.
    pub max_event_port: u32,
    /// How many pages its grant table may have; `None` for Xen's default.
    pub max_grant_frames: Option<u32>,
    /// How many pages Xen may use to track grants that it maps; `None` for Xen's default.
    pub max_maptrack_frames: Option<u32>,
    /// The highest grant table version that it may use: 1 or 2.
    pub max_grant_version: u8,
    /// Whether it may be given devices that go through an IOMMU.
    pub passthrough: bool,
    /// Whether shadow page tables may be out of sync for a while, which is quicker.
    pub out_of_sync_shadow: bool,
    /// Whether it has virtual performance counters.
    pub vpmu: bool,
    /// Whether reads of unknown model-specific registers give 0 and writes are dropped, rather than a fault.
    pub msr_relaxed: bool,
    /// Which alternate page tables it may have; needs `hap`, and excludes `nested`.
    pub altp2m: Altp2m,
    /// Whether emulated interrupts may reach it as event channels (`XEN_X86_EMU_USE_PIRQ`); `None` for what libxl of
    /// the running release does: all HVM domains before 4.19, none from then on.
    pub hvm_pirq: Option<bool>,
    /// Memory for the processor's trace of each of its virtual CPUs; a power of two, 0 for none.
    pub vmtrace: KiB,
    /// The security identifier of its XSM label, 0 without one (see `Hypervisor::security_id`).
    pub ssidref: u32,
    /// The CPU pool that it starts in.
    pub cpupool: u32,
    /// The number that it must have; `None` lets Xen choose.
    pub domid: Option<DomId>,
}

impl DomainSpec {
    /// Makes a description with `libxl`'s defaults: 1023 event channels, Xen's default grant limits, grant table
    /// version 2, shadow pages out of sync, everything else off.
    #[must_use]
    pub const fn new(kind: DomainKind, uuid: [u8; 16], max_vcpus: u32) -> Self {
        Self {
            kind,
            uuid,
            max_vcpus,
            max_event_port: 1023,
            max_grant_frames: None,
            max_maptrack_frames: None,
            max_grant_version: 2,
            passthrough: false,
            out_of_sync_shadow: true,
            vpmu: false,
            msr_relaxed: false,
            altp2m: Altp2m::Disabled,
            hvm_pirq: None,
            vmtrace: KiB(0),
            ssidref: 0,
            cpupool: 0,
            domid: None,
        }
    }
}

/// Who may use a domain's alternate page tables; values are those of `XEN_ALTP2M_*`
/// (`xen/include/public/hvm/params.h`) and of `XEN_DOMCTL_ALTP2M_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Altp2m {
    /// There are none.
    #[default]
    Disabled = 0,
    /// The domain itself and other domains.
    Mixed = 1,
    /// Other domains only.
    External = 2,
    /// The domain itself, for some operations, and other domains.
    Limited = 3,
}

/// The kinds of domains that are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainKind {
    /// A paravirtualised domain: a stubdomain.
    Pv,
    /// A fully virtualised domain with the whole set of emulated devices (`XEN_X86_EMU_ALL` without vPCI).
    Hvm {
        /// Whether the processor translates its addresses (hardware-assisted paging); otherwise shadow paging.
        hap: bool,
        /// Whether it may run a hypervisor itself.
        nested: bool,
    },
    /// A domain whose addresses the processor translates, with a local APIC and no other emulated device: a stubdomain.
    Pvh,
}

impl DomainKind {
    /// Whether Xen counts this as an HVM domain: its addresses are translated, and it has HVM parameters.
    #[must_use]
    pub const fn is_hvm(self) -> bool {
        matches!(self, Self::Hvm { .. } | Self::Pvh)
    }
}

/// What Xen knows about a domain (`struct xen_domctl_getdomaininfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// The domain's number.
    pub domid: DomId,
    /// The handle that it was made with.
    pub uuid: [u8; 16],
    /// Whether it is an HVM domain, or a PVH one.
    pub hvm: bool,
    /// Whether its addresses are translated by the processor.
    pub hap: bool,
    /// What it is doing.
    pub state: DomainState,
    /// Memory that it holds.
    pub memory: KiB,
    /// Memory that it may hold.
    pub max_memory: KiB,
    /// Virtual CPUs that are online.
    pub online_vcpus: u32,
    /// Virtual CPUs that it can have; 0 when it has been made and its CPUs not yet.
    pub max_vcpus: u32,
    /// Processor time that it has used.
    pub cpu_time: Duration,
    /// The security identifier of its XSM label.
    pub ssidref: u32,
    /// The CPU pool that it is in.
    pub cpupool: u32,
}

/// A domain's state flags (`XEN_DOMINF_*`). Several may be set at once: a domain that has shut down is also paused
/// when someone paused it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainState {
    /// One of its CPUs is running just now.
    pub running: bool,
    /// All of its CPUs wait for something.
    pub blocked: bool,
    /// It was paused by a toolstack, or never unpaused.
    pub paused: bool,
    /// It is being destroyed: it holds memory that Xen or another domain has not released.
    pub dying: bool,
    /// It has shut down, and why.
    pub shutdown: Option<ShutdownReason>,
}

impl fmt::Display for DomainState {
    /// Writes the flags as `xl list` does: `r`, `b`, `p`, `s`, `c`, `d`, each its letter or `-`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crashed = self.shutdown == Some(ShutdownReason::Crash);
        let flags = [
            (self.running, 'r'),
            (self.blocked, 'b'),
            (self.paused, 'p'),
            (self.shutdown.is_some() && !crashed, 's'),
            (crashed, 'c'),
            (self.dying, 'd'),
        ];
        let text: String = flags.into_iter().map(|(set, letter)| if set { letter } else { '-' }).collect();
        f.write_str(&text)
    }
}

/// Why a domain shut down (`SHUTDOWN_*` in `xen/include/public/sched.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShutdownReason {
    /// It powered itself off.
    PowerOff,
    /// It wants to be started again.
    Reboot,
    /// It has suspended itself, to be saved or migrated.
    Suspend,
    /// It has crashed.
    Crash,
    /// Its watchdog ran out.
    Watchdog,
    /// It wants to be started again with its memory kept.
    SoftReset,
    /// A number that Xen's headers of this version do not name.
    Other(u8),
}

impl ShutdownReason {
    /// The reason behind a number of Xen's interface.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            0 => Self::PowerOff,
            1 => Self::Reboot,
            2 => Self::Suspend,
            3 => Self::Crash,
            4 => Self::Watchdog,
            5 => Self::SoftReset,
            other => Self::Other(other),
        }
    }

    /// The number in Xen's interface.
    #[must_use]
    pub const fn raw(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reboot => 1,
            Self::Suspend => 2,
            Self::Crash => 3,
            Self::Watchdog => 4,
            Self::SoftReset => 5,
            Self::Other(other) => other,
        }
    }
}

impl fmt::Display for ShutdownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("poweroff"),
            Self::Reboot => f.write_str("reboot"),
            Self::Suspend => f.write_str("suspend"),
            Self::Crash => f.write_str("crash"),
            Self::Watchdog => f.write_str("watchdog"),
            Self::SoftReset => f.write_str("soft reset"),
            Self::Other(raw) => write!(f, "shutdown reason {raw}"),
        }
    }
}

/// How a domain that has suspended goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeWay {
    /// The guest has called suspend itself, and is told by the call's result that it goes on where it was and not in a
    /// new domain. Right only for a guest that did: another one finds a register of its first virtual CPU changed.
    Cooperative,
    /// The domain was shut down from outside and does not know of it. Nothing in it is changed.
    Forced,
}

/// A signal to an HVM domain's virtual hardware (`XEN_DOMCTL_SENDTRIGGER_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A non-maskable interrupt.
    Nmi,
    /// A reset of a virtual CPU.
    Reset,
    /// An INIT interrupt.
    Init,
    /// A press of the ACPI power button.
    Power,
    /// A press of the ACPI sleep button.
    Sleep,
}

/// How a domain sees the time stamp counter (`tsc_mode` of xl.cfg(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TscMode {
    /// The processor's, for as long as that is reliable and at the same frequency; emulated otherwise.
    #[default]
    Default,
    /// Always emulated.
    AlwaysEmulate,
    /// Always the processor's.
    Native,
}

/// Physical CPUs, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuMap {
    bits: Vec<u8>,
}

impl CpuMap {
    /// All CPUs that there can be.
    #[must_use]
    pub fn all() -> Self {
        Self { bits: vec![0xff; 64] }
    }

    /// A map of bytes, lowest CPU in the lowest bit of the first byte.
    #[must_use]
    pub const fn from_bytes(bits: Vec<u8>) -> Self {
        Self { bits }
    }

    /// The CPUs, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX)
            .zip(self.bits.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)))
            .filter_map(|(cpu, is_set)| is_set.then_some(cpu))
    }

    /// The map as bytes, lowest CPU in the lowest bit of the first byte.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }
}

impl FromIterator<u16> for CpuMap {
    fn from_iter<I: IntoIterator<Item = u16>>(cpus: I) -> Self {
        let mut bits = Vec::new();
        for cpu in cpus {
            let byte = usize::from(cpu / 8);
            if bits.len() <= byte {
                bits.resize(byte + 1, 0);
            }
            if let Some(slot) = bits.get_mut(byte) {
                *slot |= 1 << (cpu % 8);
            }
        }
        Self { bits }
    }
}

/// Which Xen runs (`xen/include/public/version.h`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// Major version, as in 4.17.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// What follows the minor version, as in `.5`.
    pub extra: String,
    /// What it can run, as in `xen-3.0-x86_64 hvm-3.0-x86_64`.
    pub capabilities: String,
}

impl VersionInfo {
    /// The release that this is a version of.
    #[must_use]
    pub const fn release(&self) -> Release {
        Release::new(self.major, self.minor)
    }
}

/// The machine (`struct xen_sysctl_physinfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// CPUs that are online.
    pub cpus: u32,
    /// CPUs' frequency in kHz.
    pub cpu_khz: u32,
    /// Hardware threads of a core.
    pub threads_per_core: u32,
    /// Cores of a socket.
    pub cores_per_socket: u32,
    /// NUMA nodes that are online.
    pub nodes: u32,
    /// All memory that Xen manages.
    pub total_memory: KiB,
    /// Memory that no domain holds. Memory of destroyed domains that still waits to be scrubbed is in
    /// `scrub_memory` as well.
    pub free_memory: KiB,
    /// Memory that waits to be scrubbed.
    pub scrub_memory: KiB,
    /// Memory promised to domains that are being built.
    pub claimed_memory: KiB,
    /// What it can do.
    pub capabilities: HostCapabilities,
}

/// What a host can do (`XEN_SYSCTL_PHYSCAP_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCapabilities {
    /// HVM domains.
    pub hvm: bool,
    /// PV domains.
    pub pv: bool,
    /// Hardware-assisted paging.
    pub hap: bool,
    /// Shadow paging.
    pub shadow: bool,
    /// Devices can be given to domains through an IOMMU.
    pub iommu: bool,
    /// The IOMMU can use the tables of hardware-assisted paging.
    pub iommu_shares_hap: bool,
    /// Virtual performance counters (Xen's option `vpmu`).
    pub vpmu: bool,
    /// The processor traces what virtual CPUs do.
    pub vmtrace: bool,
}
