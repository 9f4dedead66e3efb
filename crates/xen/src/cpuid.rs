use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// What a domain sees of the processor, as differences from Xen's default policy for its kind
/// (`xc_cpuid_apply_policy` in `xenctrl.h`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuidPolicy {
    /// Whether the domain is being restored from a stream of a Xen before 4.14, which has no CPU policy in it: then Xen's
    /// defaults are those of that time. `libxl` sets it there and nowhere else (`static_data_done` in `libxl_create.c`,
    /// 4.17 to 4.22). Newer streams bring the policy along, and `Hypervisor::restore_memory` sets it.
    pub restore: bool,
    /// Whether PAE is shown. For PV domains always true.
    pub pae: bool,
    /// Whether the time stamp counter is announced as invariant. True only for a domain that never migrates, or
    /// whose counter is always emulated.
    pub invariant_tsc: bool,
    /// Whether the virtualisation extensions are shown.
    pub nested: bool,
    /// Leaves that differ.
    pub leaves: Vec<CpuidLeaf>,
}

impl Default for CpuidPolicy {
    fn default() -> Self {
        Self { restore: false, pae: true, invariant_tsc: false, nested: false, leaves: Vec::new() }
    }
}

/// One leaf of CPUID that differs from the default (`struct xc_xend_cpuid`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// The leaf: EAX when CPUID is executed.
    pub leaf: u32,
    /// The sub-leaf: ECX when CPUID is executed; `None` where it has none.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX; `None` for a register that stays as it is.
    pub registers: [Option<CpuidBits>; 4],
}

/// How the 32 bits of a register are made, highest bit first, one letter each: `0` and `1` force it, `x` keeps the
/// default, `k` and `s` take the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuidBits(String);

impl CpuidBits {
    /// The 32 letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CpuidBits {
    type Err = CpuidBitsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(letter) = text.chars().find(|letter| !matches!(letter, '0' | '1' | 'x' | 'k' | 's')) {
            return Err(CpuidBitsError::Letter(letter));
        }
        if text.len() == 32 { Ok(Self(text.to_owned())) } else { Err(CpuidBitsError::Length(text.len())) }
    }
}

impl fmt::Display for CpuidBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text does not say how a register is made.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CpuidBitsError {
    /// A letter that has no meaning.
    #[error("'{0}' is not a CPUID bit setting (use 0, 1, x, k or s)")]
    Letter(char),
    /// Not one letter for each bit.
    #[error("A CPUID register has 32 bits, but {0} letters were given")]
    Length(usize),
}
