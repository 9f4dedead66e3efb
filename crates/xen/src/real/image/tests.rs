use super::*;
use crate::build::GuestMemory;
use xen_types::EventPort;

fn build(target: u64, max: u64, video: u64) -> HvmBuild {
    let channel = Channel { port: EventPort(1), peer: DomId::DOM0 };
    HvmBuild {
        hvmloader: Blob::Bytes(vec![0x7f]),
        firmware: Blob::Bytes(vec![1]),
        smbios: None,
        acpi: None,
        memory: GuestMemory {
            target: KiB::from_mib(target),
            max: KiB::from_mib(max),
            video: KiB::from_mib(video),
        },
        max_vcpus: 1,
        online_vcpus: 1,
        apic: true,
        mmio_hole: None,
        claim: false,
        store: channel,
        console: channel,
    }
}

fn fields(map: &[e820entry]) -> Vec<(u64, u64, u32)> {
    map.iter().map(|entry| (entry.addr, entry.size, entry.type_)).collect()
}

#[test]
fn a_small_guest_lies_below_the_hole() {
    let layout = Layout::of(&build(64, 64, 16)).expect("a small guest");
    assert_eq!(layout.lowmem_end, 48 << 20);
    assert_eq!(layout.highmem_end, 0);
    assert_eq!(fields(&layout.memory_map()), [(1 << 20, 47 << 20, 1)]);
}

#[test]
fn what_does_not_fit_below_the_hole_is_above_4_gib() {
    let layout = Layout::of(&build(8192 + 16, 8192 + 16, 16)).expect("a large guest");
    assert_eq!(layout.lowmem_end, 0xf000_0000);
    assert_eq!(layout.highmem_end, (8192 << 20) + 0x1000_0000);
    let expected = [(1 << 20, 0xeff0_0000, 1), (GIB_4, layout.highmem_end - GIB_4, 1)];
    assert_eq!(fields(&layout.memory_map()), expected);
}

#[test]
fn the_hole_only_grows() {
    let mut large = build(4096, 4096, 16);
    large.mmio_hole = Some(KiB::from_mib(64));
    assert_eq!(Layout::of(&large).expect("a small hole").mmio_size, MMIO_HOLE);
    large.mmio_hole = Some(KiB::from_mib(1024));
    assert_eq!(Layout::of(&large).expect("a large hole").lowmem_end, 3 << 30);
    large.mmio_hole = Some(KiB::from_mib(4096));
    assert!(Layout::of(&large).is_err());
}

#[test]
fn memory_that_makes_no_sense_is_refused() {
    for (target, max, video) in [(16, 16, 16), (64, 32, 8), (0, 0, 0), (u64::MAX, u64::MAX, 0)] {
        assert!(Layout::of(&build(target, max, video)).is_err(), "{target} {max} {video}");
    }
}

#[test]
fn hvm_info_adds_up_to_zero_and_tells_of_the_cpus() {
    let page = SharedPages::anonymous(1).expect("a page");
    let mut guest = build(64, 64, 8);
    (guest.max_vcpus, guest.online_vcpus) = (16, 11);
    page.write(0x800, b"HVM INFO");
    write_hvm_info(&page, 0x800, &guest);
    let mut table = [0; size_of::<hvm_info_table>()];
    page.read(0x800, &mut table);
    assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    let online = offset_of!(hvm_info_table, vcpu_online);
    assert_eq!(table[online..online + 3], [0xff, 0x07, 0]);
    assert_eq!(page.load_u32(0x800 + offset_of!(hvm_info_table, nr_vcpus), Ordering::Relaxed), 16);
}
