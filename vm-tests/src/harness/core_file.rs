//! A domain's memory in a file, as `xl dump-core` writes it (docs/misc/dump-core-format.txt of Xen): an ELF file with a
//! section of pages.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

const PAGE: usize = 4096;
/// The section's name.
const PAGES: &[u8] = b".xen_pages\0";
/// Size of a section's header.
const HEADER: usize = 64;

/// KiB of pages that hold anything but zeros. Xen gives a domain pages full of zeros.
pub(crate) fn touched(path: &Path) -> Result<u64> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let (offset, size) = pages(&file).context("no core file")?;
    file.seek(SeekFrom::Start(offset))?;
    let mut reader = BufReader::with_capacity(1 << 20, file).take(size);
    let (mut page, mut count) = ([0; PAGE], 0);
    for _ in 0..size / PAGE as u64 {
        reader.read_exact(&mut page)?;
        count += u64::from(page.iter().any(|byte| *byte != 0));
    }
    Ok(count * (PAGE as u64 / 1024))
}

/// How many pages the files of two dumps have, and how many of them differ.
pub(crate) fn compare(one: &Path, other: &Path) -> Result<(u64, u64)> {
    let open = |path: &Path| {
        let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let (offset, size) = pages(&file).with_context(|| format!("{} is no core file", path.display()))?;
        file.seek(SeekFrom::Start(offset))?;
        Ok::<_, anyhow::Error>((BufReader::with_capacity(1 << 20, file).take(size), size / PAGE as u64))
    };
    let ((mut one, count), (mut other, others)) = (open(one)?, open(other)?);
    ensure!(count == others, "{count} pages, and {others} pages");
    let (mut page, mut same, mut differing) = ([0; PAGE], [0; PAGE], 0);
    for _ in 0..count {
        one.read_exact(&mut page)?;
        other.read_exact(&mut same)?;
        differing += u64::from(page != same);
    }
    Ok((count, differing))
}

/// Where the section of pages is, and its size.
fn pages(file: &File) -> Option<(u64, u64)> {
    let sections = number(file, 0x28, 8)?;
    let (count, names) = (number(file, 0x3c, 2)?, number(file, 0x3e, 2)?);
    let header = |index: u64| sections + index * HEADER as u64;
    let names = number(file, header(names) + 24, 8)?;
    (0..count).map(header).find_map(|header| {
        let mut name = [0; PAGES.len()];
        file.read_exact_at(&mut name, names + number(file, header, 4)?).ok()?;
        if name == *PAGES {
            Some((number(file, header + 24, 8)?, number(file, header + 32, 8)?))
        } else {
            None
        }
    })
}

fn number(file: &File, at: u64, bytes: usize) -> Option<u64> {
    let mut number = [0; 8];
    file.read_exact_at(number.get_mut(..bytes)?, at).ok()?;
    Some(u64::from_le_bytes(number))
}
