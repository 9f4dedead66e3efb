use serde::{Deserialize, Serialize};

/// Changes to the CPUID leaves that the guest sees, in the file's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidPolicy {
    /// One entry a leaf and subleaf.
    pub leaves: Vec<CpuidLeaf>,
}

/// The changes to one CPUID leaf: the form of `struct xc_xend_cpuid` (`tools/include/xenctrl.h`).
///
/// A register's policy is 32 characters, the first for bit 31: `1` set, `0` cleared, `x` the default, `k` the
/// host's value kept over a migration, `s` like `k` and the same at the other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// The leaf (EAX before CPUID).
    pub leaf: u32,
    /// The subleaf (ECX before CPUID); absent: the leaf has none.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX; absent: unchanged.
    pub registers: [Option<String>; 4],
}
