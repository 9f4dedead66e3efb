//! The headers and records of a libxc migration stream, version 3 (`docs/specs/libxc-migration-stream.pandoc` of Xen).

/// The size of a page in a stream, in bytes.
pub(in super::super) const PAGE_SIZE: usize = 4096;

/// The types of records.
pub(super) mod kind {
    pub(in super::super) const END: u32 = 0;
    pub(in super::super) const PAGE_DATA: u32 = 1;
    pub(in super::super) const TSC_INFO: u32 = 8;
    pub(in super::super) const HVM_CONTEXT: u32 = 9;
    pub(in super::super) const HVM_PARAMS: u32 = 10;
    pub(in super::super) const STATIC_DATA_END: u32 = 16;
    pub(in super::super) const CPUID_POLICY: u32 = 17;
    pub(in super::super) const MSR_POLICY: u32 = 18;
}

/// Eight bytes that no other format of a saved domain begins with.
const MARKER: u64 = u64::MAX;
/// `XENF`.
const ID: u32 = 0x5845_4e46;
const VERSION: u32 = 3;
/// The type of an HVM domain.
const HVM: u32 = 2;
/// A page's size as a power of two.
const PAGE_SHIFT: u16 = 12;

/// What CPUID and the registers of a domain's CPUs say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct CpuPolicy {
    /// Of each: leaf, subleaf, EAX, EBX, ECX, EDX.
    pub(in super::super) leaves: Vec<[u32; 6]>,
    /// Of each: index, flags, value.
    pub(in super::super) registers: Vec<(u32, u32, u64)>,
}

/// A domain's time stamp counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Tsc {
    pub(in super::super) mode: u32,
    pub(in super::super) khz: u32,
    pub(in super::super) nanoseconds: u64,
    pub(in super::super) incarnation: u32,
}

/// The image header, whose numbers are big-endian but for the options, and the domain header. The stream is
/// little-endian.
pub(super) fn headers((major, minor): (u16, u16)) -> Vec<u8> {
    let image = [&MARKER.to_be_bytes()[..], &ID.to_be_bytes(), &VERSION.to_be_bytes(), &[0; 8]].concat();
    let versions = [u32::from(major).to_le_bytes(), u32::from(minor).to_le_bytes()].concat();
    let domain = [&HVM.to_le_bytes()[..], &PAGE_SHIFT.to_le_bytes(), &[0; 2], &versions].concat();
    [image, domain].concat()
}

/// A record. `None` when its body is longer than its length can say.
pub(super) fn record(kind: u32, body: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(body.len()).ok()?;
    let mut record = Vec::with_capacity(body.len() + 16);
    record.extend(kind.to_le_bytes());
    record.extend(length.to_le_bytes());
    record.extend(body);
    record.resize(record.len().next_multiple_of(8), 0);
    Some(record)
}

/// What stands before the contents of some pages: all of ordinary memory, which has the type 0.
pub(super) fn page_data(pages: &[u64]) -> Option<Vec<u8>> {
    let count = u32::try_from(pages.len()).ok()?;
    let length = u32::try_from(8 + pages.len() * (8 + PAGE_SIZE)).ok()?;
    let mut head = Vec::with_capacity(16 + pages.len() * 8);
    for number in [kind::PAGE_DATA, length, count, 0] {
        head.extend(number.to_le_bytes());
    }
    head.extend(pages.iter().flat_map(|page| page.to_le_bytes()));
    Some(head)
}

/// The bodies of the records with the CPUID policy and the MSR policy.
pub(super) fn cpu_policy(policy: &CpuPolicy) -> (Vec<u8>, Vec<u8>) {
    let leaves = policy.leaves.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
    let mut registers = Vec::with_capacity(policy.registers.len() * 16);
    for (index, flags, value) in &policy.registers {
        registers.extend(index.to_le_bytes());
        registers.extend(flags.to_le_bytes());
        registers.extend(value.to_le_bytes());
    }
    (leaves, registers)
}

pub(super) fn tsc(tsc: Tsc) -> Vec<u8> {
    let numbers = |numbers: [u32; 2]| numbers.into_iter().flat_map(u32::to_le_bytes);
    numbers([tsc.mode, tsc.khz])
        .chain(tsc.nanoseconds.to_le_bytes())
        .chain(numbers([tsc.incarnation, 0]))
        .collect()
}

/// The body of the record with the parameters, each an index and a value.
pub(super) fn hvm_params(params: &[(u32, u64)]) -> Vec<u8> {
    let count = u64::try_from(params.len()).unwrap_or(u64::MAX);
    let numbers = params.iter().flat_map(|(index, value)| [u64::from(*index), *value]);
    // The count has four bytes, and four that are zero follow.
    std::iter::once(count).chain(numbers).flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_those_of_version_three() {
        let expected = [
            &[0xff; 8][..],
            b"XENF",
            &[0, 0, 0, 3],
            &[0; 8],
            &[2, 0, 0, 0],
            &[12, 0, 0, 0],
            &[4, 0, 0, 0],
            &[17, 0, 0, 0],
        ];
        assert_eq!(headers((4, 17)), expected.concat());
    }

    #[test]
    fn records_end_at_a_multiple_of_eight() {
        assert_eq!(record(kind::END, &[]), Some(vec![0; 8]));
        let expected = [&[9, 0, 0, 0, 3, 0, 0, 0][..], b"abc", &[0; 5]].concat();
        assert_eq!(record(kind::HVM_CONTEXT, b"abc"), Some(expected));
        assert_eq!(record(kind::HVM_CONTEXT, &[1; 8]).map(|record| record.len()), Some(16));
    }

    #[test]
    fn pages_have_a_length_that_counts_their_contents() {
        let head = page_data(&[5, 0x10_0000]).expect("short");
        let expected = [1_u32, 8 + 2 * (8 + 4096), 2, 0].map(u32::to_le_bytes).concat();
        assert_eq!(head, [expected, [5_u64, 0x10_0000].map(u64::to_le_bytes).concat()].concat());
        assert_eq!(head.len() % 8, 0);
    }

    #[test]
    fn the_states_bodies_are_laid_out_as_xens_structures() {
        let policy =
            CpuPolicy { leaves: vec![[1, u32::MAX, 2, 3, 4, 5]], registers: vec![(0xce, 0, 1 << 31)] };
        let (leaves, registers) = cpu_policy(&policy);
        assert_eq!(leaves, [1, u32::MAX, 2, 3, 4, 5].map(u32::to_le_bytes).concat());
        assert_eq!(registers, [0xce, 0, 1 << 31, 0].map(u32::to_le_bytes).concat());
        let counter = Tsc { mode: 1, khz: 2, nanoseconds: 3 << 32, incarnation: 4 };
        assert_eq!(tsc(counter), [1, 2, 0, 3, 4, 0].map(u32::to_le_bytes).concat());
        assert_eq!(hvm_params(&[(9, 7)]), [1, 0, 9, 0, 7, 0].map(u32::to_le_bytes).concat());
    }
}
