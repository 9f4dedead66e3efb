//! The shared page: `struct vchan_interface` of `xen/include/public/io/libxenvchan.h`.

use thiserror::Error;
use xen_types::PAGE_SIZE;

use crate::ring::{Index, Side, Stream};

const LEFT_ORDER: usize = 16;
const RIGHT_ORDER: usize = 18;
const CLI_LIVE: usize = 20;
const SRV_LIVE: usize = 21;
const CLI_NOTIFY: usize = 22;
const SRV_NOTIFY: usize = 23;
const GRANTS: usize = 24;

/// The smallest ring, in the shared page at the offset 1024.
const SMALL: u16 = 10;
/// The other size that fits into the shared page, at the offset 2048.
const LARGE: u16 = 11;
/// From here on a ring has pages of its own.
const PAGE: u16 = 12;
/// The largest ring: with two of them, the grants still fit into the shared page.
const MAX: u16 = 20;

/// Where an index is.
pub(crate) const fn index(index: Index) -> usize {
    match index {
        Index::Consumer(Stream::Left) => 0,
        Index::Producer(Stream::Left) => 4,
        Index::Consumer(Stream::Right) => 8,
        Index::Producer(Stream::Right) => 12,
    }
}

/// Where a ring's order is.
pub(crate) const fn order(stream: Stream) -> usize {
    match stream {
        Stream::Left => LEFT_ORDER,
        Stream::Right => RIGHT_ORDER,
    }
}

/// Where a side says whether it is there.
pub(crate) const fn live(side: Side) -> usize {
    match side {
        Side::Client => CLI_LIVE,
        Side::Server => SRV_LIVE,
    }
}

/// Where the bits are that ask a side for a wake-up. A byte is named after the side that obeys and clears it: the
/// server asks in `cli_notify`, the client in `srv_notify`.
pub(crate) const fn notify(obeyed_by: Side) -> usize {
    match obeyed_by {
        Side::Client => CLI_NOTIFY,
        Side::Server => SRV_NOTIFY,
    }
}

/// Where the n-th grant is, those of the left ring first.
pub(crate) const fn grant(n: usize) -> usize {
    GRANTS + 4 * n
}

/// The sizes of both rings of a vchan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    left: u16,
    right: u16,
}

/// Says that no vchan can have these rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingSizesError {
    /// More was asked for than a ring can have.
    #[error("A vchan's ring has at most 1048576 bytes; {0} are too many")]
    TooLarge(usize),
    /// The orders in a shared page are none that a server may choose.
    #[error(
        "The vchan's server reports the ring orders {left} and {right}; allowed are 10 to 20, \
         and two different ones below 12"
    )]
    Orders {
        /// The binary logarithm of the left ring's size.
        left: u16,
        /// The binary logarithm of the right ring's size.
        right: u16,
    },
}

impl RingSizes {
    /// The smallest rings that hold so many bytes on their way to the server (left) and to the client (right).
    ///
    /// Two small rings (1024 and 2048 bytes) share the first page; larger ones have 4096 bytes to 1 MiB, a power of
    /// two, in pages of their own. The choice is that of `libxenvchan_server_init`.
    ///
    /// # Errors
    /// [`RingSizesError::TooLarge`] above 1 MiB.
    ///
    /// ```
    /// let sizes = vchan::RingSizes::at_least(1000, 5000)?;
    /// assert_eq!((sizes.to_server(), sizes.to_client()), (2048, 8192));
    /// # Ok::<(), vchan::RingSizesError>(())
    /// ```
    pub fn at_least(to_server: usize, to_client: usize) -> Result<Self, RingSizesError> {
        let (left, right) = (order_of(to_server)?, order_of(to_client)?);
        Ok(match (left, right) {
            (SMALL, SMALL | LARGE) => Self { left: SMALL, right: LARGE },
            (LARGE, SMALL) => Self { left: LARGE, right: SMALL },
            (LARGE, LARGE) => Self { left: LARGE, right: PAGE },
            (SMALL | LARGE, _) => Self { left: LARGE, right },
            (_, SMALL | LARGE) => Self { left, right: LARGE },
            _ => Self { left, right },
        })
    }

    /// Takes the orders that a server has chosen.
    ///
    /// # Errors
    /// [`RingSizesError::Orders`] when they cannot be.
    pub fn of_orders(left: u16, right: u16) -> Result<Self, RingSizesError> {
        let allowed = SMALL..=MAX;
        let possible = allowed.contains(&left) && allowed.contains(&right) && (left != right || left >= PAGE);
        if possible { Ok(Self { left, right }) } else { Err(RingSizesError::Orders { left, right }) }
    }

    /// Bytes in the ring from the client to the server.
    #[must_use]
    pub const fn to_server(self) -> usize {
        1 << self.left
    }

    /// Bytes in the ring from the server to the client.
    #[must_use]
    pub const fn to_client(self) -> usize {
        1 << self.right
    }

    /// The binary logarithm of a ring's size.
    pub(crate) const fn order(self, stream: Stream) -> u16 {
        match stream {
            Stream::Left => self.left,
            Stream::Right => self.right,
        }
    }

    /// The pages of its own that a ring has: none when it is in the shared page.
    pub(crate) const fn pages(self, stream: Stream) -> usize {
        let order = self.order(stream);
        if order < PAGE { 0 } else { (1_usize << order) / PAGE_SIZE }
    }

    /// Where a ring begins in the shared page, when it is there.
    pub(crate) const fn offset(self, stream: Stream) -> Option<usize> {
        match self.order(stream) {
            SMALL => Some(1024),
            LARGE => Some(2048),
            _ => None,
        }
    }
}

fn order_of(bytes: usize) -> Result<u16, RingSizesError> {
    (SMALL..=MAX).find(|order| bytes <= 1 << order).ok_or(RingSizesError::TooLarge(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `libxenvchan_server_init` of Xen 4.17 chooses, in its own order of decisions.
    fn stock(left_min: usize, right_min: usize) -> (u16, u16) {
        let min_order = |size: usize| (12..).find(|order| size <= 1 << order).unwrap();
        if left_min <= 1024 && right_min <= 2048 {
            (10, 11)
        } else if left_min <= 2048 && right_min <= 1024 {
            (11, 10)
        } else if left_min <= 2048 {
            (11, min_order(right_min))
        } else if right_min <= 2048 {
            (min_order(left_min), 11)
        } else {
            (min_order(left_min), min_order(right_min))
        }
    }

    #[test]
    fn sizes_are_chosen_as_stock_chooses_them() {
        let edges =
            [0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 4096, 4097, 65_536, 1 << 19, (1 << 19) + 1, 1 << 20];
        for left in edges {
            for right in edges {
                let sizes = RingSizes::at_least(left, right).unwrap();
                assert_eq!((sizes.left, sizes.right), stock(left, right), "for {left} and {right}");
                assert!(sizes.to_server() >= left && sizes.to_client() >= right);
                assert_eq!(RingSizes::of_orders(sizes.left, sizes.right), Ok(sizes));
            }
        }
        assert_eq!(RingSizes::at_least(0, (1 << 20) + 1), Err(RingSizesError::TooLarge((1 << 20) + 1)));
    }

    #[test]
    fn absurd_orders_are_refused() {
        for (left, right) in [(0, 11), (10, 10), (11, 11), (9, 12), (12, 21), (u16::MAX, 12), (10, 64)] {
            assert!(RingSizes::of_orders(left, right).is_err(), "{left} and {right} were accepted");
        }
        assert!(RingSizes::of_orders(12, 12).is_ok());
    }

    #[test]
    fn the_largest_rings_grants_fit_into_the_shared_page() {
        let sizes = RingSizes::at_least(1 << 20, 1 << 20).unwrap();
        let grants = sizes.pages(Stream::Left) + sizes.pages(Stream::Right);
        assert!(grant(grants) <= PAGE_SIZE);
        assert!(grants <= xen::MAX_PAGES);
    }
}
