use core::fmt;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use xen_types::PAGE_SIZE;

/// What may be done with mapped pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only. Writing to such pages panics.
    Read,
    /// Read and write.
    ReadWrite,
}

/// What happens when pages are released, besides their unmapping.
pub(crate) trait Release: Send + Sync {
    /// Releases what is behind the mapping that has just been unmapped.
    fn release(&self);

    /// Unmaps `pages` pages at `start` by other means than `munmap`; `false` when `munmap` is to be used.
    ///
    /// # Safety
    /// `start` is the mapping that this object was made for, and nobody uses it any more.
    unsafe fn unmap(&self, _start: NonNull<u8>, _pages: usize) -> bool {
        false
    }
}

/// Pages whose bytes another domain may change at any moment.
///
/// No reference to the memory is ever given out: bytes are copied with volatile accesses, and single numbers are read
/// and written atomically. What has been read once may be something else when it is read again, so copy first and
/// check the copy.
///
/// Dropping it unmaps the pages.
pub struct SharedPages {
    start: NonNull<u8>,
    length: usize,
    access: Access,
    release: Option<Arc<dyn Release>>,
}

// SAFETY: the memory is mapped for the life of the value and every access to it is volatile or atomic, so which
// thread makes the access does not matter; `Release` is `Send` and `Sync` itself.
unsafe impl Send for SharedPages {}
// SAFETY: as for `Send`: no method gives out a reference to the memory.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// Maps pages of this process's own, filled with zeroes: the stand-in for another domain's in tests.
    ///
    /// # Errors
    /// When there is no memory.
    ///
    /// # Panics
    /// When `pages` is zero.
    pub fn anonymous(pages: usize) -> Result<Self, Errno> {
        let length = mapping_length(pages);
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice touches no memory of anyone.
        let start = unsafe { mmap_anonymous(None, length, prot, MapFlags::MAP_PRIVATE)? };
        Ok(Self { start: start.cast(), length: length.get(), access: Access::ReadWrite, release: None })
    }

    /// Maps the first pages of a file, shared with everyone who maps or writes it: what is written is in the file at
    /// once, and stays there when this process is killed.
    ///
    /// The file must have so many pages for as long as they are used, and memory or disk behind each before it is
    /// touched (`posix_fallocate`): the kernel answers any other access with SIGBUS.
    ///
    /// # Errors
    /// When the file cannot be mapped.
    ///
    /// # Panics
    /// When `pages` is zero.
    pub fn of_file(file: &File, pages: usize) -> Result<Self, Errno> {
        let length = mapping_length(pages);
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of anyone.
        let start = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, file, 0)? };
        Ok(Self { start: start.cast(), length: length.get(), access: Access::ReadWrite, release: None })
    }

    /// Maps pages that a driver offers at an offset of its device file.
    pub(crate) fn of_device(
        device: impl AsFd,
        offset: i64,
        pages: usize,
        access: Access,
        release: Arc<dyn Release>,
    ) -> Result<Self, Errno> {
        let length = mapping_length(pages);
        let prot = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of anyone.
        let start = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, device, offset)? };
        Ok(Self { start: start.cast(), length: length.get(), access, release: Some(release) })
    }

    /// Takes over a mapping that a library made.
    ///
    /// # Safety
    /// `start` is the start of a mapping of `pages` pages with this access, nobody else uses or unmaps it, and
    /// `release` unmaps it.
    #[cfg(feature = "libxenctrl")]
    pub(crate) unsafe fn of_library(
        start: NonNull<u8>,
        pages: usize,
        access: Access,
        release: Arc<dyn Release>,
    ) -> Self {
        Self { start, length: mapping_length(pages).get(), access, release: Some(release) }
    }

    /// Size in bytes, a multiple of 4096.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.length
    }

    /// Copies bytes out of the pages.
    ///
    /// # Panics
    /// When the range is not within the pages.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len(), 1);
        let (head, words) = split_at_words(from, into.len());
        let (first, rest) = into.split_at_mut(head);
        let (middle, last) = rest.split_at_mut(words * WORD);
        for (index, byte) in first.iter_mut().enumerate() {
            // SAFETY: `at` checked that the whole range is mapped; the access is volatile because another domain
            // writes here too.
            *byte = unsafe { from.add(index).read_volatile() };
        }
        for (index, bytes) in middle.chunks_exact_mut(WORD).enumerate() {
            // SAFETY: as above, and the word is aligned because `head` bytes come before the first.
            let word = unsafe { from.add(head).cast::<u64>().add(index).read_volatile() };
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        for (index, byte) in last.iter_mut().enumerate() {
            // SAFETY: as for the first bytes.
            *byte = unsafe { from.add(head + words * WORD + index).read_volatile() };
        }
    }

    /// Copies bytes into the pages.
    ///
    /// # Panics
    /// When the range is not within the pages, or they were mapped for reading only.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let into = self.at_writable(offset, from.len(), 1);
        let (head, words) = split_at_words(into, from.len());
        let (first, rest) = from.split_at(head);
        let (middle, last) = rest.split_at(words * WORD);
        for (index, byte) in first.iter().enumerate() {
            // SAFETY: `at_writable` checked that the whole range is mapped and writable; the access is volatile
            // because another domain reads here too.
            unsafe { into.add(index).write_volatile(*byte) };
        }
        for (index, bytes) in middle.chunks_exact(WORD).enumerate() {
            let word = bytes.try_into().map_or(0, u64::from_ne_bytes);
            // SAFETY: as above, and the word is aligned because `head` bytes come before the first.
            unsafe { into.add(head).cast::<u64>().add(index).write_volatile(word) };
        }
        for (index, byte) in last.iter().enumerate() {
            // SAFETY: as for the first bytes.
            unsafe { into.add(head + words * WORD + index).write_volatile(*byte) };
        }
    }

    /// Reads a number of 32 bits.
    ///
    /// # Panics
    /// When `offset` is not within the pages or not a multiple of 4, or `order` is a releasing one.
    #[must_use]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        // SAFETY: `at` checked that the number is mapped and aligned.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4, 4).cast().as_ptr()) }.load(order)
    }

    /// Writes a number of 32 bits.
    ///
    /// # Panics
    /// When `offset` is not within the pages or not a multiple of 4, `order` is an acquiring one, or the pages were
    /// mapped for reading only.
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        // SAFETY: `at_writable` checked that the number is mapped, aligned and writable.
        unsafe { AtomicU32::from_ptr(self.at_writable(offset, 4, 4).cast().as_ptr()) }.store(value, order);
    }

    /// Reads a number of 16 bits.
    ///
    /// # Panics
    /// As [`Self::load_u32`], for a multiple of 2.
    #[must_use]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        // SAFETY: `at` checked that the number is mapped and aligned.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2, 2).cast().as_ptr()) }.load(order)
    }

    /// Writes a number of 16 bits.
    ///
    /// # Panics
    /// As [`Self::store_u32`], for a multiple of 2.
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        // SAFETY: `at_writable` checked that the number is mapped, aligned and writable.
        unsafe { AtomicU16::from_ptr(self.at_writable(offset, 2, 2).cast().as_ptr()) }.store(value, order);
    }

    /// Reads a byte.
    ///
    /// # Panics
    /// As [`Self::load_u32`], for any offset.
    #[must_use]
    pub fn load_u8(&self, offset: usize, order: Ordering) -> u8 {
        // SAFETY: `at` checked that the byte is mapped.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1, 1).as_ptr()) }.load(order)
    }

    /// Writes a byte.
    ///
    /// # Panics
    /// As [`Self::store_u32`], for any offset.
    pub fn store_u8(&self, offset: usize, value: u8, order: Ordering) {
        // SAFETY: `at_writable` checked that the byte is mapped and writable.
        unsafe { AtomicU8::from_ptr(self.at_writable(offset, 1, 1).as_ptr()) }.store(value, order);
    }

    /// Sets bits of a byte and returns what it was before.
    ///
    /// # Panics
    /// As [`Self::store_u8`].
    pub fn fetch_or_u8(&self, offset: usize, bits: u8, order: Ordering) -> u8 {
        // SAFETY: `at_writable` checked that the byte is mapped and writable.
        unsafe { AtomicU8::from_ptr(self.at_writable(offset, 1, 1).as_ptr()) }.fetch_or(bits, order)
    }

    /// Clears the bits of a byte that are not in `bits` and returns what it was before.
    ///
    /// # Panics
    /// As [`Self::store_u8`].
    pub fn fetch_and_u8(&self, offset: usize, bits: u8, order: Ordering) -> u8 {
        // SAFETY: `at_writable` checked that the byte is mapped and writable.
        unsafe { AtomicU8::from_ptr(self.at_writable(offset, 1, 1).as_ptr()) }.fetch_and(bits, order)
    }

    /// Sets a byte to `new` if it is `current`; gives whether it was.
    ///
    /// # Panics
    /// As [`Self::store_u8`].
    #[must_use]
    pub fn compare_exchange_u8(&self, offset: usize, current: u8, new: u8) -> bool {
        // SAFETY: `at_writable` checked that the byte is mapped and writable.
        let byte = unsafe { AtomicU8::from_ptr(self.at_writable(offset, 1, 1).as_ptr()) };
        byte.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn at_writable(&self, offset: usize, length: usize, alignment: usize) -> NonNull<u8> {
        assert!(self.access == Access::ReadWrite, "pages mapped for reading only were written to");
        self.at(offset, length, alignment)
    }

    fn at(&self, offset: usize, length: usize, alignment: usize) -> NonNull<u8> {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.length) && offset.is_multiple_of(alignment),
            "{length} bytes at {offset} are not within shared pages of {} bytes",
            self.length
        );
        // SAFETY: the assertion above holds `offset` within the mapping, or at its end for an empty range.
        unsafe { self.start.add(offset) }
    }
}

impl fmt::Debug for SharedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPages").field("length", &self.length).field("access", &self.access).finish()
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        let pages = self.length / PAGE_SIZE;
        // SAFETY: the mapping is this value's own, and with the value goes the last way to reach it.
        let done = self.release.as_ref().is_some_and(|release| unsafe { release.unmap(self.start, pages) });
        if !done {
            // SAFETY: as above.
            if let Err(errno) = unsafe { munmap(self.start.cast(), self.length) } {
                tracing::warn!(%errno, "cannot unmap shared pages");
            }
        }
        if let Some(release) = &self.release {
            release.release();
        }
    }
}

/// Bytes that are copied with one access where the address is a multiple of it.
const WORD: usize = 8;

/// How many bytes lie before the first word of a range, and how many words follow.
fn split_at_words(start: NonNull<u8>, length: usize) -> (usize, usize) {
    let head = start.addr().get().wrapping_neg() % WORD;
    if head >= length { (length, 0) } else { (head, (length - head) / WORD) }
}

fn mapping_length(pages: usize) -> NonZeroUsize {
    let length = pages.checked_mul(PAGE_SIZE).and_then(NonZeroUsize::new);
    length.expect("a mapping has at least one page and fits the address space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let pages = SharedPages::anonymous(2).expect("two pages can be mapped");
        pages.write(4094, b"ring");
        let mut back = [0; 4];
        pages.read(4094, &mut back);
        assert_eq!(&back, b"ring");
        pages.store_u32(8, 0xdead_beef, Ordering::Release);
        assert_eq!(pages.load_u32(8, Ordering::Acquire), 0xdead_beef);
        assert_eq!(pages.load_u16(10, Ordering::Acquire), 0xdead);
        assert_eq!(pages.fetch_or_u8(0, 3, Ordering::SeqCst), 0);
        assert_eq!(pages.fetch_and_u8(0, !1, Ordering::SeqCst), 3);
        assert_eq!(pages.load_u8(0, Ordering::SeqCst), 2);
        assert!(pages.compare_exchange_u8(0, 2, 5) && !pages.compare_exchange_u8(0, 2, 6));
        assert_eq!(pages.load_u8(0, Ordering::SeqCst), 5);
    }

    #[test]
    fn what_is_written_to_a_file_s_pages_is_in_the_file() {
        use std::os::unix::fs::FileExt as _;

        let name = std::env::temp_dir().join(format!("shared-pages-{}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&name).expect("a file can be made");
        std::fs::remove_file(&name).expect("it can be removed");
        file.set_len(PAGE_SIZE as u64).expect("it can grow");
        let pages = SharedPages::of_file(&file, 1).expect("a file can be mapped");
        pages.write(100, b"kept");
        drop(pages);
        let mut back = [0; 4];
        file.read_exact_at(&mut back, 100).expect("it can be read");
        assert_eq!(&back, b"kept");
    }

    #[test]
    fn ranges_are_copied_whole_wherever_they_begin_and_end() {
        let pages = SharedPages::anonymous(1).expect("a page can be mapped");
        let bytes: Vec<u8> = (1..=40).collect();
        for offset in 0..16 {
            for length in 0..=bytes.len() {
                pages.write(0, &[0; 64]);
                pages.write(offset, &bytes[..length]);
                let mut whole = [0xee; 64];
                pages.read(0, &mut whole);
                assert_eq!(&whole[offset..offset + length], &bytes[..length]);
                assert!(whole[..offset].iter().chain(&whole[offset + length..]).all(|byte| *byte == 0));
                let mut part = vec![0; length];
                pages.read(offset, &mut part);
                assert_eq!(part, &bytes[..length]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "not within shared pages")]
    fn beyond_the_end_is_refused() {
        let pages = SharedPages::anonymous(1).expect("a page can be mapped");
        pages.read(4090, &mut [0; 7]);
    }

    #[test]
    #[should_panic(expected = "not within shared pages")]
    fn an_unaligned_number_is_refused() {
        let pages = SharedPages::anonymous(1).expect("a page can be mapped");
        let _ = pages.load_u32(2, Ordering::Relaxed);
    }
}
