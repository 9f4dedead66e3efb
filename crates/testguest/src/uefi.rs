//! A disk from which UEFI firmware starts an application: FAT12 without partitions, one file.

use std::io::Write as _;
use std::path::Path;

use crate::assemble::{Machine, assemble};
use crate::{Result, write_atomically};

/// Bytes in a sector, and in a cluster.
const SECTOR: usize = 512;
/// Sectors of the disk: 1 MiB.
const SECTORS: u16 = 2048;
/// Sectors of the one table of clusters, 12 bits for each.
const TABLE: usize = 6;
/// Sectors of the root directory: 64 entries.
const ROOT: usize = 4;
/// The sector of cluster 2, the first one.
const DATA: usize = 1 + TABLE + ROOT;
/// Attribute of a directory's entry.
const DIRECTORY: u8 = 0x10;
/// Attribute of a file's entry.
const FILE: u8 = 0x20;
/// The mark of a chain's last cluster.
const LAST: u16 = 0xfff;

/// Makes a disk of 1 MiB that UEFI firmware boots: an application that says `Hello from a UEFI application on COM1`,
/// then the firmware's vendor.
///
/// # Errors
/// That binutils are missing, or the file cannot be written; nothing is left at `output`.
pub fn uefi_disk(output: &Path) -> Result<()> {
    let application = assemble(include_str!("uefi.S"), Machine::Flat64)?;
    let disk = file_system(&application);
    write_atomically(output, |mut file| file.write_all(&disk))
}

/// The whole disk with `\EFI\BOOT\BOOTX64.EFI`, which firmware starts from a disk that it does not know.
fn file_system(application: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; SECTOR * usize::from(SECTORS)];
    disk[..SECTOR].copy_from_slice(&boot_sector());
    // Clusters: 2 and 3 are the two directories, the file follows.
    let clusters = u16::try_from(application.len().div_ceil(SECTOR)).unwrap_or(u16::MAX);
    let mut chain = vec![0xff8, LAST, LAST, LAST];
    chain.extend((5..4 + clusters).chain([LAST]));
    for (cluster, next) in chain.iter().enumerate() {
        set_next(&mut disk[SECTOR..], cluster, *next);
    }
    let mut put = |sector: usize, bytes: &[u8]| disk[sector * SECTOR..][..bytes.len()].copy_from_slice(bytes);
    let length = u32::try_from(application.len()).unwrap_or(u32::MAX);
    put(1 + TABLE, &entry(b"EFI        ", DIRECTORY, 2, 0));
    let up = [entry(b".          ", DIRECTORY, 2, 0), entry(b"..         ", DIRECTORY, 0, 0)];
    put(DATA, &[up[0], up[1], entry(b"BOOT       ", DIRECTORY, 3, 0)].concat());
    let up = [entry(b".          ", DIRECTORY, 3, 0), entry(b"..         ", DIRECTORY, 2, 0)];
    put(DATA + 1, &[up[0], up[1], entry(b"BOOTX64 EFI", FILE, 4, length)].concat());
    put(DATA + 2, application);
    disk
}

fn boot_sector() -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\xeb\x3c\x90TESTDISK");
    put(11, &512_u16.to_le_bytes());
    // Sectors a cluster, reserved sectors, tables.
    put(13, &[1, 1, 0, 1]);
    put(17, &64_u16.to_le_bytes());
    put(19, &SECTORS.to_le_bytes());
    // A hard disk; sectors of a table; sectors a track; heads.
    put(21, &[0xf8, 6, 0, 32, 0, 2, 0]);
    put(36, b"\x80\x00\x29\x01\x02\x03\x04TESTGUEST  FAT12   ");
    put(510, &[0x55, 0xaa]);
    sector
}

/// Writes the 12 bits of a cluster: two clusters share three bytes.
fn set_next(table: &mut [u8], cluster: usize, next: u16) {
    let at = cluster * 3 / 2;
    let [low, high] = next.to_le_bytes();
    if cluster.is_multiple_of(2) {
        table[at] = low;
        table[at + 1] = table[at + 1] & 0xf0 | high;
    } else {
        table[at] = table[at] & 0x0f | low << 4;
        table[at + 1] = low >> 4 | high << 4;
    }
}

fn entry(name: &[u8; 11], attribute: u8, cluster: u16, length: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name);
    entry[11] = attribute;
    entry[26..28].copy_from_slice(&cluster.to_le_bytes());
    entry[28..].copy_from_slice(&length.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn application_is_where_firmware_looks_for_it() {
        let application = assemble(include_str!("uefi.S"), Machine::Flat64).unwrap();
        assert_eq!(application.len(), 0x2000);
        assert!(application.starts_with(b"MZ"));
        let disk = file_system(&application);
        assert_eq!(disk.len(), 1 << 20);
        assert_eq!(disk[(1 + TABLE) * SECTOR..][..11], *b"EFI        ");
        assert_eq!(disk[(DATA + 2) * SECTOR..][..0x2000], application);
        // The chain: cluster 4 is followed by 5, which is odd and written into half a byte of 4's.
        let table = &disk[SECTOR..];
        let next = |cluster: usize| {
            let pair = u16::from_le_bytes([table[cluster * 3 / 2], table[cluster * 3 / 2 + 1]]);
            if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }
        };
        assert_eq!((next(2), next(3), next(4), next(5), next(19)), (LAST, LAST, 5, 6, LAST));
    }
}
