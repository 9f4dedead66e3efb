//! Which pages a domain has, found without asking for all that it could have.
//!
//! A small domain's highest page is just below 4 GiB, because its special pages are there, and asking Xen for the type of
//! a million pages takes longer than all else that a save does. So pages are asked for where they are known to be, and no
//! more when as many were found as the domain has. Where they are is only a guess about the order: until the number is
//! complete, everything is asked for.

use std::ops::Range;

use nix::errno::Errno;

use super::pages::Pages;
use super::source::{BATCH, Holding, Source};
use crate::error::{Result, XenError};

/// The first page of 4 GiB.
const FOUR_GIB: u64 = 1 << 20;
/// The first page that is no memory below 4 GiB (`HVM_BELOW_4G_MMIO_START`), unless the hole is larger: that is where
/// hvmloader places devices' memory, the display's among it.
const HOLE: u64 = 0xf_0000;
/// How many pages of the hole are asked for first: the display's memory is there.
const DISPLAY: u64 = 32 << 8;
/// What hvmloader takes for tables (`RESERVED_MEMORY_DYNAMIC_START`).
const TABLES: u64 = 0xf_c000;
/// The end of the special pages (`X86_HVM_END_SPECIAL_REGION`).
const SPECIAL_END: u64 = 0xf_f000;
/// How far behind the memory QEMU puts the ROMs of its devices.
const BEHIND: u64 = 8 << 8;
/// How many pages are asked for at once: 4 MiB.
pub(super) const STEP: u64 = BATCH as u64;

/// All pages below `size` in the order in which they are asked for, when the domain has so many.
fn order(size: u64, pages: u64) -> impl Iterator<Item = Range<u64>> {
    let reach = pages.saturating_add(BEHIND);
    let low = reach.min(HOLE);
    let high = reach.saturating_add(FOUR_GIB);
    let ranges = [
        0..low,
        FOUR_GIB..high,
        SPECIAL_END - STEP..SPECIAL_END,
        TABLES..TABLES + STEP,
        HOLE..HOLE + DISPLAY,
        HOLE + DISPLAY..TABLES,
        TABLES + STEP..SPECIAL_END - STEP,
        low..HOLE,
        SPECIAL_END..FOUR_GIB,
        high..u64::MAX,
    ];
    let ranges = ranges.into_iter().map(move |range| range.start.min(size)..range.end.min(size));
    ranges.flat_map(|Range { start, end }| {
        let starts = (0..(end - start).div_ceil(STEP)).map(move |step| start + step * STEP);
        starts.map(move |start| start..end.min(start.saturating_add(STEP)))
    })
}

/// Adds to `found` the pages that the domain has and that are not in `known`. `wanted` is asked before each step.
pub(super) fn survey<S: Source>(
    source: &S,
    size: u64,
    known: &Pages,
    found: &mut Pages,
    wanted: impl Fn() -> Result<()>,
) -> Result<()> {
    let before = source.holding()?;
    let (mut counted, mut steady) = (0, before.countable);
    for range in order(size, before.pages) {
        wanted()?;
        let mut types: Vec<u64> = range.clone().collect();
        source.ask_types(&mut types)?;
        for (page, kind) in range.zip(types) {
            if has_contents(source, kind)? {
                counted += 1;
                if !known.contains(page) {
                    found.insert(page);
                }
            }
        }
        if steady && counted == before.pages {
            // A domain that changes what it has meanwhile is not known by a number.
            let Holding { pages, countable, .. } = source.holding()?;
            if countable && pages == before.pages {
                break;
            }
            steady = false;
        }
    }
    Ok(())
}

/// Whether a page of this type is saved.
pub(super) fn has_contents<S: Source>(source: &S, kind: u64) -> Result<bool> {
    match kind >> xen_sys::XEN_DOMCTL_PFINFO_LTAB_SHIFT {
        // Ordinary memory. A page table, pinned or not, is one only of a domain that Xen does not translate for.
        0..=4 | 9..=12 => Ok(true),
        // Broken, only reserved, or not there.
        13..=15 => Ok(false),
        _ => Err(XenError::refused("xc_get_pfn_type_batch", Some(source.domid()), Errno::EPROTO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything is asked for, and nothing twice.
    fn complete(size: u64, pages: u64) -> Vec<Range<u64>> {
        let ranges: Vec<Range<u64>> = order(size, pages).collect();
        assert!(ranges.iter().all(|range| !range.is_empty() && range.end - range.start <= STEP));
        let mut sorted = ranges.clone();
        sorted.sort_by_key(|range| range.start);
        let mut end = 0;
        for range in sorted {
            assert_eq!(range.start, end, "{size:#x} {pages:#x}");
            end = range.end;
        }
        assert_eq!(end, size);
        ranges
    }

    #[test]
    fn every_page_is_asked_for_once_whatever_the_domain() {
        for size in [0, 1, 1000, 0x2000, HOLE, SPECIAL_END - 1, SPECIAL_END, FOUR_GIB, FOUR_GIB + 77, 1 << 22]
        {
            for pages in [0, 1, 0x2000, 0x3000, HOLE - 1, HOLE, HOLE + 1, 1 << 21] {
                complete(size, pages);
            }
        }
        assert_eq!(order(1 << 21, u64::MAX).count(), 2048 - 1024 + order(FOUR_GIB, u64::MAX).count());
    }

    #[test]
    fn a_small_domains_memory_comes_first_then_its_special_pages_and_the_displays() {
        // 32 MiB, and 16 MiB for the display.
        let pages = 0x3000;
        let ranges = complete(SPECIAL_END, pages);
        let place = |page| ranges.iter().position(|range| range.contains(&page)).expect("asked for");
        assert_eq!(place(0), 0);
        assert_eq!(place(0x2fff), 11);
        assert!(place(SPECIAL_END - 1) < 15 && place(TABLES) < 16);
        assert!(place(HOLE) < 20 && place(HOLE + 0x1fff) < 24);
        assert!(ranges.len() > 1000);
    }

    #[test]
    fn memory_from_four_gib_on_comes_second() {
        let pages = (8 << 18) + 0x1000;
        let ranges = complete(FOUR_GIB + (5 << 18), pages);
        let place = |page| ranges.iter().position(|range| range.contains(&page)).expect("asked for");
        assert_eq!(place(HOLE - 1) + 1, place(FOUR_GIB));
        assert!(place(FOUR_GIB + (5 << 18) - 1) < place(SPECIAL_END - 1));
    }
}
