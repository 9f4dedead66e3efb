//! Sets of a domain's pages.

use nix::errno::Errno;

/// A set of page numbers below a bound, one bit each.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Pages {
    words: Vec<u64>,
    size: u64,
}

impl Pages {
    /// Makes an empty set of numbers below `size`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(in super::super) fn new(size: u64) -> Result<Self, Errno> {
        let mut pages = Self { words: Vec::new(), size: 0 };
        pages.grow(size)?;
        Ok(pages)
    }

    /// The bound.
    pub(in super::super) const fn size(&self) -> u64 {
        self.size
    }

    /// Raises the bound.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(in super::super) fn grow(&mut self, size: u64) -> Result<(), Errno> {
        let count = usize::try_from(size.div_ceil(64)).map_err(|_| Errno::ENOMEM)?;
        let more = count.saturating_sub(self.words.len());
        self.words.try_reserve_exact(more).map_err(|_| Errno::ENOMEM)?;
        self.words.resize(self.words.len() + more, 0);
        self.size = self.size.max(size);
        Ok(())
    }

    /// Adds a page; one at or above the bound is left out.
    pub(in super::super) fn insert(&mut self, page: u64) {
        if let Some((word, bit)) = self.place(page) {
            *word |= bit;
        }
    }

    /// Takes a page out.
    pub(in super::super) fn remove(&mut self, page: u64) {
        if let Some((word, bit)) = self.place(page) {
            *word &= !bit;
        }
    }

    /// Adds the pages of a bitmap.
    pub(in super::super) fn add_all(&mut self, bitmap: impl Iterator<Item = u64>) {
        for (word, more) in self.words.iter_mut().zip(bitmap) {
            *word |= more;
        }
    }

    pub(in super::super) fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|index| self.words.get(index));
        word.is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    pub(in super::super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The lowest pages from `first` on, at most `most` of them.
    pub(in super::super) fn batch(&self, first: u64, most: usize) -> Vec<u64> {
        let start = usize::try_from(first / 64).unwrap_or(usize::MAX);
        let mut batch = Vec::new();
        let mut base = first - first % 64;
        let mut mask = u64::MAX << (first % 64);
        for word in self.words.iter().skip(start) {
            let mut word = word & mask;
            while word != 0 {
                if batch.len() == most {
                    return batch;
                }
                batch.push(base + u64::from(word.trailing_zeros()));
                // Clears the lowest bit.
                word &= word - 1;
            }
            base += 64;
            mask = u64::MAX;
        }
        batch
    }

    fn place(&mut self, page: u64) -> Option<(&mut u64, u64)> {
        if page >= self.size {
            return None;
        }
        let word = self.words.get_mut(usize::try_from(page / 64).ok()?)?;
        Some((word, 1 << (page % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_out_in_order_and_in_batches() {
        let mut pages = Pages::new(200).expect("a small set");
        for page in [199, 0, 63, 64, 65, 130, 130] {
            pages.insert(page);
        }
        // Beyond the bound and its last word.
        pages.insert(200);
        pages.insert(u64::MAX);
        pages.remove(u64::MAX);
        assert_eq!(pages.count(), 6);
        assert_eq!(pages.batch(0, 1024), [0, 63, 64, 65, 130, 199]);
        assert_eq!(pages.batch(0, 2), [0, 63]);
        assert_eq!(pages.batch(64, 2), [64, 65]);
        assert_eq!(pages.batch(66, 1024), [130, 199]);
        for first in [200, 300, u64::MAX] {
            assert_eq!(pages.batch(first, 1024), [0; 0], "{first}");
        }
        pages.remove(64);
        assert!(!pages.contains(64) && pages.contains(65) && !pages.contains(u64::MAX));
        assert_eq!(pages.batch(63, 2), [63, 65]);
    }

    #[test]
    fn a_set_that_grows_keeps_its_pages() {
        let mut pages = Pages::new(10).expect("a small set");
        pages.insert(9);
        pages.grow(100).expect("a small set");
        pages.insert(99);
        pages.grow(64).expect("as it is");
        assert_eq!((pages.batch(0, 9), pages.size()), (vec![9, 99], 100));
    }

    #[test]
    fn a_bitmap_is_added() {
        let mut pages = Pages::new(128).expect("a small set");
        pages.insert(1);
        pages.add_all([0b101, 1 << 63, u64::MAX].into_iter());
        assert_eq!(pages.batch(0, 9), [0, 1, 2, 127]);
    }
}
