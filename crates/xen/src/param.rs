/// A parameter of an HVM domain (`HVM_PARAM_*` in `xen/include/public/hvm/params.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum HvmParam {
    /// How event channels interrupt the guest.
    CallbackIrq = 0,
    /// GFN of the xenstore ring.
    StorePfn = 1,
    /// Guest's port of the xenstore ring.
    StoreEvtchn = 2,
    /// GFN of the synchronous I/O request page.
    IoreqPfn = 5,
    /// GFN of the buffered I/O request page.
    BufioreqPfn = 6,
    /// Which Viridian enlightenments the guest sees; see [`Viridian`].
    Viridian = 9,
    /// How missed timer ticks are delivered: 0 to 3 (`HVMPTM_*`); `libxl`'s default is 1.
    TimerMode = 10,
    /// Whether there is an HPET.
    HpetEnabled = 11,
    /// Guest-physical address of the identity page table.
    IdentPt = 12,
    /// The ACPI sleep state: 0 or 3.
    AcpiSState = 14,
    /// Guest-physical address of the TSS for real mode.
    Vm86Tss = 15,
    /// Whether virtual timers are aligned to each other.
    VptAlign = 16,
    /// GFN of the console ring.
    ConsolePfn = 17,
    /// Guest's port of the console ring.
    ConsoleEvtchn = 18,
    /// Which ACPI I/O ports are used: 0 or 1.
    AcpiIoportsLocation = 19,
    /// GFN of the paging ring.
    PagingRingPfn = 27,
    /// GFN of the monitor ring.
    MonitorRingPfn = 28,
    /// GFN of the sharing ring.
    SharingRingPfn = 29,
    /// What a triple fault does: a shutdown reason.
    TripleFaultReason = 31,
    /// First GFN of the I/O request server pages.
    IoreqServerPfn = 32,
    /// How many I/O request server pages there are.
    NrIoreqServerPages = 33,
    /// Guest-physical address of the VM generation identifier.
    VmGenerationIdAddr = 34,
    /// Alternate page tables: 0 to 3 (`XEN_ALTP2M_*`).
    Altp2m = 35,
    /// Width of the x87 instruction pointer that is saved: 0, 4 or 8.
    X87FipWidth = 36,
    /// Address and size of the TSS for real mode.
    Vm86TssSized = 37,
    /// Machine check features.
    McaCap = 38,
}

impl HvmParam {
    /// The parameters that are in a saved domain's memory stream, in the order of libxc.
    pub(crate) const SAVED: [Self; 16] = [
        Self::StorePfn,
        Self::IoreqPfn,
        Self::BufioreqPfn,
        Self::PagingRingPfn,
        Self::MonitorRingPfn,
        Self::SharingRingPfn,
        Self::Vm86TssSized,
        Self::ConsolePfn,
        Self::AcpiIoportsLocation,
        Self::Viridian,
        Self::IdentPt,
        Self::VmGenerationIdAddr,
        Self::IoreqServerPfn,
        Self::NrIoreqServerPages,
        Self::X87FipWidth,
        Self::McaCap,
    ];

    /// The parameter's number in Xen's interface.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }
}

/// Sets of Viridian enlightenments, the value of [`HvmParam::Viridian`] (`HVMPV_*`). Combine them with `|`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Viridian(u64);

impl Viridian {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// The base set, which all others need, with frequencies.
    pub const BASE: Self = Self(1);
    /// Hides the frequency registers of the base set; `libxl`'s group `freq` left out.
    pub const NO_FREQ: Self = Self(1 << 1);
    /// `libxl`'s group `time_ref_count`.
    pub const TIME_REF_COUNT: Self = Self(1 << 2);
    /// `libxl`'s group `reference_tsc`.
    pub const REFERENCE_TSC: Self = Self(1 << 3);
    /// `libxl`'s group `hcall_remote_tlb_flush`.
    pub const HCALL_REMOTE_TLB_FLUSH: Self = Self(1 << 4);
    /// `libxl`'s group `apic_assist`.
    pub const APIC_ASSIST: Self = Self(1 << 5);
    /// `libxl`'s group `crash_ctl`.
    pub const CRASH_CTL: Self = Self(1 << 6);
    /// `libxl`'s group `synic`.
    pub const SYNIC: Self = Self(1 << 7);
    /// `libxl`'s group `stimer`, which needs [`Self::TIME_REF_COUNT`] and [`Self::SYNIC`] too.
    pub const STIMER: Self = Self(1 << 8);
    /// `libxl`'s group `hcall_ipi`.
    pub const HCALL_IPI: Self = Self(1 << 9);
    /// `libxl`'s group `ex_processor_masks`.
    pub const EX_PROCESSOR_MASKS: Self = Self(1 << 10);
    /// `libxl`'s group `no_vp_limit`.
    pub const NO_VP_LIMIT: Self = Self(1 << 11);
    /// `libxl`'s group `cpu_hotplug`.
    pub const CPU_HOTPLUG: Self = Self(1 << 12);

    /// The value of the parameter.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

impl core::ops::BitOr for Viridian {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
