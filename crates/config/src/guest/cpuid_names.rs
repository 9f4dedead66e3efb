//! The names that `cpuid = "host,…"` takes, as libxl of Xen 4.17 to 4.22 knows them.

/// A field of a CPUID leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) leaf: u32,
    pub(super) subleaf: Option<u32>,
    /// 0 to 3: EAX, EBX, ECX, EDX.
    pub(super) register: usize,
    /// The lowest bit.
    pub(super) bit: usize,
    /// How many bits.
    pub(super) length: usize,
}

const fn field(
    name: &'static str,
    leaf: u32,
    subleaf: Option<u32>,
    register: usize,
    bits: (usize, usize),
) -> Field {
    Field { name, leaf, subleaf, register, bit: bits.0, length: bits.1 }
}

/// The register that holds a word of the feature set: leaf, subleaf, register
/// (`xen/include/public/arch-x86/cpufeatureset.h`, `feature_to_policy` in `tools/libs/light/libxl_cpuid.c`). `None` for
/// words that are in model-specific registers.
pub(super) static WORDS: &[Option<(u32, Option<u32>, usize)>] = &[
    Some((0x1, None, 3)),
    Some((0x1, None, 2)),
    Some((0x8000_0001, None, 3)),
    Some((0x8000_0001, None, 2)),
    Some((0xd, Some(1), 0)),
    Some((0x7, Some(0), 1)),
    Some((0x7, Some(0), 2)),
    Some((0x8000_0007, None, 3)),
    Some((0x8000_0008, None, 1)),
    Some((0x7, Some(0), 3)),
    Some((0x7, Some(1), 0)),
    Some((0x8000_0021, None, 0)),
    Some((0x7, Some(1), 1)),
    Some((0x7, Some(2), 3)),
    Some((0x7, Some(1), 2)),
    Some((0x7, Some(1), 3)),
    None,
    None,
    Some((0x8000_0021, None, 2)),
];

/// Names that libxl has beside the feature set's (`libxl_cpuid_parse_config`, `tools/libs/light/libxl_cpuid.c`); they
/// come first.
#[rustfmt::skip]
pub(super) static FIELDS: &[Field] = &[
    field("maxleaf", 0x0, None, 0, (0, 32)),
    field("stepping", 0x1, None, 0, (0, 4)),
    field("model", 0x1, None, 0, (4, 8)),
    field("family", 0x1, None, 0, (8, 8)),
    field("brandid", 0x1, None, 1, (0, 8)),
    field("clflush", 0x1, None, 1, (8, 8)),
    field("proccount", 0x1, None, 1, (16, 8)),
    field("localapicid", 0x1, None, 1, (24, 8)),
    field("est", 0x1, None, 2, (7, 1)),
    field("cntxid", 0x1, None, 2, (10, 1)),
    field("cmpxchg16", 0x1, None, 2, (13, 1)),
    field("sse4_1", 0x1, None, 2, (19, 1)),
    field("sse4.1", 0x1, None, 2, (19, 1)),
    field("sse4_2", 0x1, None, 2, (20, 1)),
    field("sse4.2", 0x1, None, 2, (20, 1)),
    field("aes", 0x1, None, 2, (25, 1)),
    field("cmpxchg8", 0x1, None, 3, (8, 1)),
    field("sysenter", 0x1, None, 3, (11, 1)),
    field("psn", 0x1, None, 3, (18, 1)),
    field("clfsh", 0x1, None, 3, (19, 1)),
    field("tm", 0x1, None, 3, (29, 1)),
    field("ia64", 0x1, None, 3, (30, 1)),
    field("pbe", 0x1, None, 3, (31, 1)),
    field("arat", 0x6, None, 0, (2, 1)),
    field("tsc_adjust", 0x7, Some(0), 1, (1, 1)),
    field("cmt", 0x7, Some(0), 1, (12, 1)),
    field("lahfsahf", 0x8000_0001, None, 2, (0, 1)),
    field("cmplegacy", 0x8000_0001, None, 2, (1, 1)),
    field("altmovcr8", 0x8000_0001, None, 2, (4, 1)),
    field("nodeid", 0x8000_0001, None, 2, (19, 1)),
    field("perfctr_core", 0x8000_0001, None, 2, (23, 1)),
    field("perfctr_nb", 0x8000_0001, None, 2, (24, 1)),
    field("procpkg", 0x4, Some(0), 0, (26, 6)),
    field("invtsc", 0x8000_0007, None, 3, (8, 1)),
    field("ppin", 0x8000_0008, None, 1, (23, 1)),
    field("btc-no", 0x8000_0008, None, 1, (29, 1)),
    field("nc", 0x8000_0008, None, 2, (0, 8)),
    field("apicidsize", 0x8000_0008, None, 2, (12, 4)),
    field("svm_npt", 0x8000_000a, None, 3, (0, 1)),
    field("svm_lbrv", 0x8000_000a, None, 3, (1, 1)),
    field("svm_nrips", 0x8000_000a, None, 3, (3, 1)),
    field("svm_tscrate", 0x8000_000a, None, 3, (4, 1)),
    field("svm_vmcbclean", 0x8000_000a, None, 3, (5, 1)),
    field("svm_decode", 0x8000_000a, None, 3, (7, 1)),
    field("svm_pausefilt", 0x8000_000a, None, 3, (10, 1)),
    field("lfence+", 0x8000_0021, None, 0, (2, 1)),
    field("maxhvleaf", 0x4000_0000, None, 0, (0, 8)),
];

/// The feature set's names in lower case, sorted: name, word, bit (`xen/include/public/arch-x86/cpufeatureset.h`).
#[rustfmt::skip]
pub(super) static FEATURES: &[(&str, u8, u8)] = &[
    ("3dnow", 2, 31), ("3dnowext", 2, 30), ("3dnowprefetch", 3, 8), ("abm", 3, 5), ("acpi", 0, 22),
    ("adx", 5, 19), ("aesni", 1, 25), ("amd-ppin", 8, 23), ("amd-ssbd", 8, 24), ("amd-stibp", 8, 15),
    ("apic", 0, 9), ("arch-caps", 9, 29), ("auto-ibrs", 11, 8), ("avx", 1, 28), ("avx-vnni", 10, 4),
    ("avx2", 5, 5), ("avx512-4fmaps", 9, 3), ("avx512-4vnniw", 9, 2), ("avx512-bf16", 10, 5),
    ("avx512-bitalg", 6, 12), ("avx512-fp16", 9, 23), ("avx512-ifma", 5, 21), ("avx512-vbmi", 6, 1),
    ("avx512-vbmi2", 6, 6), ("avx512-vnni", 6, 11), ("avx512-vp2intersect", 9, 8),
    ("avx512-vpopcntdq", 6, 14), ("avx512bw", 5, 30), ("avx512cd", 5, 28), ("avx512dq", 5, 17),
    ("avx512er", 5, 27), ("avx512f", 5, 16), ("avx512pf", 5, 26), ("avx512vl", 5, 31), ("bhi-ctrl", 13, 4),
    ("bhi-no", 16, 20), ("bmi1", 5, 3), ("bmi2", 5, 8), ("btc-no", 8, 29), ("cet-ibt", 9, 20),
    ("cet-ss", 6, 7), ("cet-sss", 15, 18), ("cldemote", 6, 25), ("clflush", 0, 19), ("clflushopt", 5, 23),
    ("clwb", 5, 24), ("clzero", 8, 0), ("cmov", 0, 15), ("cmp-legacy", 3, 1), ("core-caps", 9, 30),
    ("cpb", 7, 9), ("cr8-legacy", 3, 4), ("cx16", 1, 13), ("cx8", 0, 8), ("dbext", 3, 26), ("dca", 1, 18),
    ("de", 0, 2), ("doitm", 16, 12), ("ds", 0, 21), ("dscpl", 1, 4), ("dtes64", 1, 2), ("efro", 7, 10),
    ("eibrs", 16, 1), ("eist", 1, 7), ("energy-filtering", 16, 11), ("enqcmd", 6, 29), ("erms", 5, 9),
    ("extapic", 3, 3), ("f16c", 1, 29), ("fb-clear", 16, 17), ("fb-clear-ctrl", 16, 18),
    ("fbsdp-no", 16, 14), ("fdp-excp-only", 5, 6), ("ffxsr", 2, 25), ("fma", 1, 12), ("fma4", 3, 16),
    ("fpu", 0, 0), ("fsgsbase", 5, 0), ("fsrcs", 10, 12), ("fsrm", 9, 4), ("fsrs", 10, 11), ("fxsr", 0, 24),
    ("fzrm", 10, 10), ("gds-ctrl", 16, 25), ("gds-no", 16, 26), ("gfni", 6, 8), ("hle", 5, 4),
    ("htt", 0, 28), ("hw-pstate", 7, 7), ("hybrid", 9, 15), ("hypervisor", 1, 31), ("ibpb", 8, 12),
    ("ibpb-brtype", 11, 28), ("ibpb-ret", 8, 30), ("ibrs", 8, 14), ("ibrs-always", 8, 16),
    ("ibrs-fast", 8, 18), ("ibrs-same-mode", 8, 19), ("ibrsb", 9, 26), ("ibs", 3, 10),
    ("if-pschange-mc-no", 16, 6), ("intel-ppin", 12, 0), ("intel-psfd", 13, 0), ("intel-ssb-no", 16, 4),
    ("invpcid", 5, 10), ("ipred-ctrl", 13, 1), ("its-no", 16, 62), ("itsc", 7, 8), ("l1d-flush", 9, 28),
    ("lahf-lm", 3, 0), ("lfence-dispatch", 11, 2), ("lm", 2, 29), ("lwp", 3, 15), ("mca", 0, 14),
    ("mcdt-no", 13, 5), ("mce", 0, 7), ("mcu-ctrl", 16, 9), ("md-clear", 9, 10), ("mds-no", 16, 5),
    ("misalignsse", 3, 7), ("misc-pkg-ctrl", 16, 10), ("mmx", 0, 23), ("mmxext", 2, 22), ("monitor", 1, 3),
    ("monitorx", 3, 29), ("movbe", 1, 22), ("movdir64b", 6, 28), ("movdiri", 6, 27), ("mpx", 5, 14),
    ("msr", 0, 5), ("mtrr", 0, 12), ("no-fpu-sel", 5, 13), ("no-lmsl", 8, 20), ("nodeid-msr", 3, 19),
    ("nscb", 11, 6), ("nx", 2, 20), ("ospke", 6, 4), ("osvw", 3, 9), ("osxsave", 1, 27),
    ("ovrclk-status", 16, 23), ("pae", 0, 6), ("page1gb", 2, 26), ("pat", 0, 16), ("pbe", 0, 31),
    ("pbrsb-no", 16, 24), ("pcid", 1, 17), ("pclmulqdq", 1, 1), ("pdcm", 1, 15), ("pge", 0, 13),
    ("pku", 6, 3), ("popcnt", 1, 23), ("pqe", 5, 15), ("pqm", 5, 12), ("prefetchwt1", 6, 0),
    ("proc-trace", 5, 25), ("psdp-no", 16, 15), ("pse", 0, 3), ("pse36", 0, 17), ("psfd", 8, 28),
    ("rdcl-no", 16, 0), ("rdpid", 6, 22), ("rdrand", 1, 30), ("rdseed", 5, 18), ("rdtscp", 2, 27),
    ("rfds-clear", 16, 28), ("rfds-no", 16, 27), ("rrsba", 16, 19), ("rrsba-ctrl", 13, 2), ("rsba", 16, 2),
    ("rstr-fp-err-ptrs", 8, 2), ("rtm", 5, 11), ("rtm-always-abort", 9, 11), ("sbdr-ssdp-no", 16, 13),
    ("sbpb", 11, 27), ("sep", 0, 11), ("serialize", 9, 14), ("sgx", 5, 2), ("sha", 5, 29),
    ("skinit", 3, 12), ("skip-l1dfl", 16, 3), ("smap", 5, 20), ("smep", 5, 7), ("smx", 1, 6),
    ("srbds-ctrl", 9, 9), ("srso-msr-fix", 11, 31), ("srso-no", 11, 29), ("srso-us-no", 11, 30),
    ("ss", 0, 27), ("ssb-no", 8, 26), ("ssbd", 9, 31), ("sse", 0, 25), ("sse2", 0, 26), ("sse3", 1, 0),
    ("sse4-1", 1, 19), ("sse4-2", 1, 20), ("sse4a", 3, 6), ("ssse3", 1, 9), ("stibp", 9, 27),
    ("stibp-always", 8, 17), ("svm", 3, 2), ("syscall", 2, 11), ("taa-no", 16, 8), ("tbm", 3, 21),
    ("tm1", 0, 29), ("tm2", 1, 8), ("topoext", 3, 22), ("tsa-l1-no", 18, 2), ("tsa-sq-no", 18, 1),
    ("tsc", 0, 4), ("tsc-adjust", 5, 1), ("tsc-deadline", 1, 24), ("tsx-ctrl", 16, 7),
    ("tsx-force-abort", 9, 13), ("tsxldtrk", 9, 16), ("umip", 6, 2), ("vaes", 6, 9), ("verw-clear", 11, 5),
    ("virt-ssbd", 8, 25), ("vme", 0, 1), ("vmx", 1, 5), ("vpclmulqdq", 6, 10), ("wbnoinvd", 8, 9),
    ("wdt", 3, 13), ("x2apic", 1, 21), ("xapic-status", 16, 21), ("xgetbv1", 4, 2), ("xop", 3, 11),
    ("xsave", 1, 26), ("xsavec", 4, 1), ("xsaveopt", 4, 0), ("xsaves", 4, 3), ("xtpr", 1, 14),
];

/// The names that came later, sorted: name, word, bit, and the minor number of the release of Xen 4 that has it first. What
/// a release got after it was first published counts.
#[rustfmt::skip]
pub(super) static NEWER: &[(&str, u8, u8, u16)] = &[
    ("addr-msk-ext", 3, 30, 19), ("amd-fsrc", 11, 11, 19), ("amd-fsrs", 11, 10, 19),
    ("amd-prefetchi", 11, 20, 19), ("amx-bf16", 9, 22, 20), ("amx-complex", 15, 8, 20),
    ("amx-fp16", 10, 21, 20), ("amx-int8", 9, 25, 20), ("amx-tile", 9, 24, 19), ("arch-lbr", 9, 19, 19),
    ("arch-perf-mon", 10, 8, 21), ("avx-ifma", 10, 23, 18), ("avx-ne-convert", 15, 5, 18),
    ("avx-vnni-int16", 15, 10, 19), ("avx-vnni-int8", 15, 4, 18), ("avx512-bmm", 11, 23, 22),
    ("bld", 6, 24, 18), ("cmpccxadd", 10, 7, 20), ("cppc", 8, 27, 21), ("cpuid-user-dis", 11, 17, 18),
    ("ddp-ctrl", 13, 3, 18), ("epsf", 11, 18, 19), ("fred", 10, 17, 19), ("fs-gs-ns", 11, 1, 19),
    ("fsrsc", 11, 19, 19), ("ign-umonitor", 16, 29, 21), ("la57", 6, 16, 20), ("lam", 10, 26, 21),
    ("lass", 10, 6, 21), ("lkgs", 10, 18, 21), ("mcu-ext", 16, 16, 21), ("mon-umon-mitg", 16, 30, 21),
    ("msrlist", 10, 27, 21), ("nmi-src", 10, 20, 21), ("no-invd", 10, 30, 21), ("no-nest-bp", 11, 0, 19),
    ("pb-opt-ctrl", 16, 32, 18), ("pconfig", 9, 18, 20), ("pks", 6, 31, 18), ("prefetchi", 15, 14, 19),
    ("sdbg", 1, 11, 20), ("sgx-keys", 9, 1, 20), ("sgx-lc", 6, 30, 20), ("sha512", 10, 0, 19),
    ("slsm", 15, 24, 21), ("sm3", 10, 1, 19), ("sm4", 10, 2, 19), ("tme", 6, 13, 20),
    ("uc-lock-dis", 13, 6, 21), ("uintr", 9, 5, 19), ("uiret-uif", 15, 17, 21), ("waitpkg", 6, 5, 20),
    ("wrmsrns", 10, 19, 18), ("xfd", 4, 4, 20),
];
