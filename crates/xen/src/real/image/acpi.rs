//! The ACPI tables of a PVH domain with one virtual CPU.
//!
//! Its kernel learns from them that there is a local APIC, and that there is neither a VGA adapter nor a CMOS clock, by
//! which Linux recognises such a domain. Registers that no such domain has are named as libacpi names them
//! (`tools/libacpi/static_tables.c`): kernels have long been used to reading nothing from them. The definition block is
//! empty, because all other devices are found in xenstore.

/// Where the tables are: the page that libxl begins with, too (`ACPI_INFO_PHYSICAL_ADDRESS`).
pub(super) const TABLES: u64 = 0xfc00_0000;
/// Where the root pointer is: the page behind the tables.
pub(super) const ROOT: u64 = TABLES + PAGE;
/// What the memory map keeps for both.
pub(super) const SIZE: u64 = 2 * PAGE;

const PAGE: u64 = 4096;
/// `LAPIC_BASE_ADDRESS` of libxl, and the processors' own default.
const LOCAL_APIC: u32 = 0xfee0_0000;
/// Signature, length, revision, checksum, who made it.
const HEADER: usize = 36;
const LENGTH_AT: usize = 4;
const CHECKSUM_AT: usize = 9;
/// Who made the tables: name, table's name, its revision, and the name and revision of the program.
const MAKER: &[u8; 26] = b"OUTRIGSTUBDOM\0\0\x01\0\0\0OUTR\x01\0\0";
/// What is covered by the root pointer's first checksum, which is all that it had in ACPI 1.0.
const ROOT_FIRST: usize = 20;

/// Both parts of the tables.
pub(super) struct Acpi {
    pub(super) root: Vec<u8>,
    pub(super) tables: Vec<u8>,
}

/// Makes the tables.
pub(super) fn tables() -> Acpi {
    let mut page = Page { bytes: Vec::new() };
    let facs = page.add(facs());
    let dsdt = page.add(table(b"DSDT", 2, &[]));
    let fadt = page.add(table(b"FACP", 5, &fixed(facs, dsdt)));
    let madt = page.add(table(b"APIC", 2, &processors()));
    let mut entries = Vec::new();
    for address in [fadt, madt] {
        entries.extend_from_slice(&u64::from(address).to_le_bytes());
    }
    let xsdt = page.add(table(b"XSDT", 1, &entries));
    Acpi { root: root(xsdt), tables: page.bytes }
}

/// Tables that lie behind each other in the guest.
struct Page {
    bytes: Vec<u8>,
}

impl Page {
    /// Adds a table, and gives its address in the guest. Each begins at a multiple of 64, as the FACS must.
    fn add(&mut self, table: Vec<u8>) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = TABLES + self.bytes.len() as u64;
        self.bytes.extend(table);
        u32::try_from(address).expect("the tables end below 4 GiB")
    }
}

fn root(xsdt: u32) -> Vec<u8> {
    let mut root = b"RSD PTR \0OUTRIG\x02".to_vec();
    // No table for 32-bit readers.
    root.extend_from_slice(&0_u32.to_le_bytes());
    root.extend_from_slice(&36_u32.to_le_bytes());
    root.extend_from_slice(&u64::from(xsdt).to_le_bytes());
    root.extend_from_slice(&[0; 4]);
    root[8] = checksum(&root[..ROOT_FIRST]);
    root[32] = checksum(&root);
    root
}

fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    let length = u32::try_from(HEADER + body.len()).expect("a table of some hundred bytes");
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[revision, 0]);
    table.extend_from_slice(MAKER);
    table.extend_from_slice(body);
    table[CHECKSUM_AT] = checksum(&table);
    table
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

/// The control structure that firmware and system share. It has no checksum.
fn facs() -> Vec<u8> {
    let mut facs = vec![0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[LENGTH_AT] = 64;
    // Version.
    facs[32] = 1;
    facs
}

/// The body of the fixed description table; offsets are those of the ACPI specification, 5.2.9.
fn fixed(facs: u32, dsdt: u32) -> Vec<u8> {
    /// Revision 5.
    const SIZE: usize = 268;
    /// WBINVD works, C1 works, neither button nor real-time clock is a fixed one, the timer has 32 bits, and the
    /// platform's clock is the one to trust.
    const FLAGS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 15;
    /// Neither VGA nor a CMOS clock.
    const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;
    let (event, control, general) = (0xb000_u32, 0xb004_u32, 0xafe0_u32);
    let mut body = vec![0; SIZE - HEADER];
    let mut put =
        |at: usize, bytes: &[u8]| body[at - HEADER..at - HEADER + bytes.len()].copy_from_slice(bytes);
    put(36, &facs.to_le_bytes());
    put(40, &dsdt.to_le_bytes());
    // The interrupt of ACPI.
    put(46, &9_u16.to_le_bytes());
    put(56, &event.to_le_bytes());
    put(64, &control.to_le_bytes());
    put(80, &general.to_le_bytes());
    // The lengths of these registers.
    put(88, &[4, 2]);
    put(92, &[4]);
    // Too slow to be used: there are no deeper sleeping states.
    put(96, &0xfff_u16.to_le_bytes());
    put(98, &0xfff_u16.to_le_bytes());
    put(109, &BOOT_ARCHITECTURE.to_le_bytes());
    put(112, &FLAGS.to_le_bytes());
    put(132, &u64::from(facs).to_le_bytes());
    put(140, &u64::from(dsdt).to_le_bytes());
    put(148, &port(event, 32));
    put(172, &port(control, 16));
    body
}

/// A register in the I/O ports, in the form that has the kind of address and the width in bits.
fn port(number: u32, bits: u8) -> Vec<u8> {
    const IO_PORTS: u8 = 1;
    let mut register = vec![IO_PORTS, bits, 0, 0];
    register.extend_from_slice(&u64::from(number).to_le_bytes());
    register
}

/// The body of the table of interrupt controllers: the local APIC of the only CPU. No legacy controller is there.
fn processors() -> Vec<u8> {
    const NO_LEGACY_CONTROLLER: u32 = 0;
    const ENABLED: u32 = 1;
    let mut body = LOCAL_APIC.to_le_bytes().to_vec();
    body.extend_from_slice(&NO_LEGACY_CONTROLLER.to_le_bytes());
    // Kind, length, the CPU's number and its APIC's.
    body.extend_from_slice(&[0, 8, 0, 0]);
    body.extend_from_slice(&ENABLED.to_le_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
        bytes[at..at + size].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// The table at this address in the guest: it must be whole.
    fn at(tables: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - TABLES).unwrap();
        let length = usize::try_from(number(tables, start + LENGTH_AT, 4)).unwrap();
        let table = &tables[start..start + length];
        assert_eq!(checksum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
        table
    }

    #[test]
    fn a_kernel_finds_each_table_from_the_root_pointer() {
        let Acpi { root, tables } = tables();
        assert!(tables.len() as u64 <= PAGE);
        assert_eq!((checksum(&root[..ROOT_FIRST]), checksum(&root), root.len()), (0, 0, 36));
        let xsdt = at(&tables, number(&root, 24, 8));
        assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], HEADER + 16));
        let fadt = at(&tables, number(xsdt, HEADER, 8));
        let madt = at(&tables, number(xsdt, HEADER + 8, 8));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        // Both addresses of each agree.
        for (short, long, signature) in [(36, 132, b"FACS"), (40, 140, b"DSDT")] {
            let address = number(fadt, short, 4);
            assert_eq!(address, number(fadt, long, 8));
            let start = usize::try_from(address - TABLES).unwrap();
            assert_eq!(&tables[start..start + 4], signature);
        }
        assert_eq!(number(fadt, 36, 4) % 64, 0);
        assert_eq!(at(&tables, number(fadt, 40, 4)).len(), HEADER);
    }

    #[test]
    fn the_tables_say_what_there_is_not() {
        let tables = tables().tables;
        let find = |name: &[u8]| tables.windows(4).position(|part| part == name).unwrap() as u64 + TABLES;
        let fadt = at(&tables, find(b"FACP"));
        assert_eq!((fadt.len(), fadt[8]), (268, 5));
        assert_eq!(number(fadt, 109, 2), 0x24);
        let madt = at(&tables, find(b"APIC"));
        assert_eq!(madt[HEADER..], [0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0]);
    }
}
