//! Makes an ELF kernel as small as its own headers allow, and reads what its notes say to Xen.
//!
//! A kernel's ELF file aligns its segments to 2 MiB and spells out tens of megabytes of zeros. A loader reads the
//! program headers only, and fills what a segment has in memory but not in the file with zeros. So a file that has
//! neither the padding, the zeros nor the section headers is the same kernel.

use elf::{ElfBytes, abi, endian::LittleEndian, file::Class, segment::ProgramHeader};

/// Size of an ELF64 header.
const HEADER: usize = 64;
/// Size of an ELF64 program header.
const PROGRAM_HEADER: usize = 56;
/// Segments begin at multiples of this.
const ALIGN: usize = 4096;

/// Writes the same kernel anew, small. Says what is wrong with a kernel that it does not understand.
pub(crate) fn slim(kernel: &[u8]) -> Result<Vec<u8>, String> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(kernel).map_err(|error| error.to_string())?;
    if file.ehdr.class != Class::ELF64 || file.ehdr.e_machine != abi::EM_X86_64 {
        return Err("it is not an ELF kernel for x86-64".to_owned());
    }
    let segments: Vec<ProgramHeader> = file.segments().ok_or("it has no program headers")?.iter().collect();
    let mut output = kernel.get(..HEADER).ok_or("it is too short")?.to_vec();
    output.resize(HEADER + segments.len() * PROGRAM_HEADER, 0);
    let mut loads: Vec<(ProgramHeader, u64)> = Vec::new();
    for segment in segments.iter().filter(|segment| segment.p_type == abi::PT_LOAD) {
        let data = file.segment_data(segment).map_err(|error| error.to_string())?;
        let used = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        output.resize(output.len().next_multiple_of(ALIGN), 0);
        loads.push((*segment, as_u64(output.len())?));
        output.extend_from_slice(&data[..used]);
    }
    let mut next_load = 0;
    for (number, segment) in segments.iter().enumerate() {
        let mut new = *segment;
        if segment.p_type == abi::PT_LOAD {
            let (_, offset) = loads[next_load];
            let end = loads.get(next_load + 1).map_or(as_u64(output.len())?, |(_, next)| *next);
            next_load += 1;
            new.p_offset = offset;
            new.p_filesz = segment.p_filesz.min(end - offset);
        } else if segment.p_filesz > 0 {
            new.p_offset = moved(segment, &loads, as_u64(output.len())?)?;
        }
        write_program_header(&mut output, HEADER + number * PROGRAM_HEADER, &new);
    }
    // e_phoff, then e_shoff; e_shentsize stays, e_shnum and e_shstrndx are none.
    put(&mut output, 0x20, &as_u64(HEADER)?.to_le_bytes());
    put(&mut output, 0x28, &0_u64.to_le_bytes());
    put(&mut output, 0x3c, &0_u32.to_le_bytes());
    Ok(output)
}

/// Whether a kernel can start in a PVH domain: its notes for Xen name an entry for that.
pub(crate) fn has_pvh_entry(kernel: &[u8]) -> bool {
    let Ok(file) = ElfBytes::<LittleEndian>::minimal_parse(kernel) else { return false };
    let segments = file.segments().into_iter().flatten();
    segments.filter(|segment| segment.p_type == abi::PT_NOTE).any(|segment| {
        let notes = file.segment_data(&segment).unwrap_or_default();
        Notes { left: notes }.any(|note| note == (XEN_NOTE, PVH_ENTRY))
    })
}

/// Whose notes are Xen's.
const XEN_NOTE: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY` (`xen/include/public/elfnote.h`).
const PVH_ENTRY: u32 = 18;

/// The notes of a segment: whose each is, and its kind. Xen takes them to be aligned to 4 bytes, whatever the segment
/// says; the walk ends where one does not fit.
struct Notes<'a> {
    left: &'a [u8],
}

impl<'a> Iterator for Notes<'a> {
    type Item = (&'a [u8], u32);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, rest) = self.left.split_first_chunk::<12>()?;
        let number = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let size = |at: usize| usize::try_from(number(at)?).ok();
        let (name, contents) = (size(0)?, size(4)?);
        let behind = name.checked_next_multiple_of(4)?.checked_add(contents.checked_next_multiple_of(4)?)?;
        // The padding of the last one may be missing.
        self.left = rest.get(behind..).unwrap_or_default();
        Some((rest.get(..name)?, number(8)?))
    }
}

/// The new offset of a segment that lies within a loaded one, such as the notes.
fn moved(segment: &ProgramHeader, loads: &[(ProgramHeader, u64)], end: u64) -> Result<u64, String> {
    loads
        .iter()
        .find_map(|(load, offset)| {
            let inside = segment.p_offset.checked_sub(load.p_offset)?;
            let fits = inside.checked_add(segment.p_filesz)? <= load.p_filesz;
            let new = offset.checked_add(inside)?;
            (fits && new.checked_add(segment.p_filesz)? <= end).then_some(new)
        })
        .ok_or_else(|| "a segment is outside the loaded segments".to_owned())
}

fn write_program_header(output: &mut [u8], at: usize, header: &ProgramHeader) {
    put(output, at, &header.p_type.to_le_bytes());
    put(output, at + 4, &header.p_flags.to_le_bytes());
    let words = [
        header.p_offset,
        header.p_vaddr,
        header.p_paddr,
        header.p_filesz,
        header.p_memsz,
        header.p_align.min(0x1000),
    ];
    for (number, word) in words.into_iter().enumerate() {
        put(output, at + 8 + 8 * number, &word.to_le_bytes());
    }
}

fn put(output: &mut [u8], at: usize, bytes: &[u8]) {
    output[at..at + bytes.len()].copy_from_slice(bytes);
}

fn as_u64(number: usize) -> Result<u64, String> {
    u64::try_from(number).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel with text (its middle is a note), data that ends in zeros, and nothing but zeros.
    fn kernel() -> Vec<u8> {
        let mut bytes = vec![0; 0x10000];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        bytes[6] = 1;
        put(&mut bytes, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
        put(&mut bytes, 0x18, &0x1000_u64.to_le_bytes());
        put(&mut bytes, 0x20, &64_u64.to_le_bytes());
        put(&mut bytes, 0x34, &[64, 0, 56, 0, 4, 0, 64, 0]);
        let header = |p_type, p_offset, p_vaddr, p_filesz, p_memsz| ProgramHeader {
            p_type,
            p_offset,
            p_vaddr,
            p_paddr: p_vaddr,
            p_filesz,
            p_memsz,
            p_flags: 5,
            p_align: 0x20_0000,
        };
        for (number, segment) in [
            header(abi::PT_LOAD, 0x4000, 0x1000, 0x100, 0x100),
            header(abi::PT_LOAD, 0x8000, 0x2000, 0x1000, 0x3000),
            header(abi::PT_NOTE, 0x4040, 0x1040, 0x10, 0),
            header(abi::PT_LOAD, 0xa000, 0x8000, 0x1000, 0x1000),
        ]
        .iter()
        .enumerate()
        {
            write_program_header(&mut bytes, 64 + 56 * number, segment);
        }
        bytes[0x4000..0x4100].fill(0xaa);
        bytes[0x4040..0x4050].fill(0xbb);
        bytes[0x8000..0x8010].fill(0xcc);
        bytes
    }

    #[test]
    fn test_slim_keeps_what_is_loaded() {
        let (old, new) = (kernel(), slim(&kernel()).unwrap());
        assert!(new.len() <= 0x3000, "{:#x}", new.len());
        let (a, b) = (ElfBytes::<LittleEndian>::minimal_parse(&old).unwrap(), {
            ElfBytes::<LittleEndian>::minimal_parse(&new).unwrap()
        });
        assert_eq!(a.ehdr.e_entry, b.ehdr.e_entry);
        assert!(b.section_headers().is_none_or(|headers| headers.is_empty()));
        let load = |file: &ElfBytes<'_, LittleEndian>, number: usize| {
            let segment = file.segments().unwrap().get(number).unwrap();
            let mut data = file.segment_data(&segment).unwrap().to_vec();
            data.resize(usize::try_from(segment.p_memsz.max(segment.p_filesz)).unwrap(), 0);
            (segment.p_vaddr, segment.p_paddr, segment.p_type, data)
        };
        for number in 0..4 {
            assert!(load(&a, number) == load(&b, number), "segment {number} differs");
        }
    }

    #[test]
    fn test_pvh_entry_is_found_behind_other_notes() {
        let with_notes = |notes: &[u8]| {
            let mut bytes = kernel();
            bytes[0x4000..0x4100].fill(0);
            put(&mut bytes, 0x4000, notes);
            put(&mut bytes, 64 + 2 * 56 + 8, &0x4000_u64.to_le_bytes());
            put(&mut bytes, 64 + 2 * 56 + 32, &(notes.len() as u64).to_le_bytes());
            bytes
        };
        let note = |name: &[u8], contents: &[u8], kind: u32| {
            let mut note = Vec::new();
            for number in [name.len(), contents.len(), usize::try_from(kind).unwrap()] {
                note.extend_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
            }
            for part in [name, contents] {
                note.extend_from_slice(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let first = note(b"GNU\0", b"12345", 18);
        let entry = note(b"Xen\0", &[0; 8], 18);
        let good = with_notes(&[first.clone(), entry.clone()].concat());
        assert!(has_pvh_entry(&good) && has_pvh_entry(&slim(&good).unwrap()));
        let huge = note(b"Xen\0", &[0; 8], 18).into_iter().enumerate();
        let huge: Vec<u8> = huge.map(|(at, byte)| if at < 8 { 0xff } else { byte }).collect();
        for notes in [&first[..], &note(b"Xen\0", &[0; 8], 17), &huge, &entry[..10], &[]] {
            assert!(!has_pvh_entry(&with_notes(notes)), "{notes:?}");
        }
        assert!(!has_pvh_entry(b"no kernel"));
    }

    #[test]
    fn test_slim_damaged_kernel_is_refused() {
        let good = kernel();
        let mut far = good.clone();
        put(&mut far, 64 + 8, &0xffff_ffff_u64.to_le_bytes());
        let mut note = good.clone();
        put(&mut note, 64 + 2 * 56 + 8, &0x9000_u64.to_le_bytes());
        put(&mut note, 64 + 2 * 56 + 32, &0x1000_u64.to_le_bytes());
        for bytes in [&far, &note, &good[..0x60].to_vec()] {
            assert!(slim(bytes).is_err());
        }
    }
}
