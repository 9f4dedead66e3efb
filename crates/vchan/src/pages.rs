use core::sync::atomic::{Ordering, fence};

use xen::SharedPages;
use xen_types::GrantRef;

use crate::layout::{self, RingSizes, RingSizesError};
use crate::ring::{Index, RingMemory, Side, Stream, Wish};

/// `srv_live` of a server that is there, and `cli_live` of a client that has connected.
pub(crate) const LIVE: u8 = 1;
/// `cli_live` after its end, `srv_live` after its.
pub(crate) const GONE: u8 = 0;
/// `cli_live` before the first client.
pub(crate) const AWAITED: u8 = 2;
/// `cli_live` of a client that this crate's server has noticed. No client reads the byte; a later client's [`LIVE`]
/// shows that the one noticed is gone.
pub(crate) const NOTICED: u8 = 3;

/// A vchan's memory in shared pages: the first page, and those of rings that are too large for it.
#[derive(Debug)]
pub struct RingPages {
    shared: SharedPages,
    left: Option<SharedPages>,
    right: Option<SharedPages>,
    sizes: RingSizes,
}

impl RingPages {
    /// Puts the pages together. A ring that is not in the shared page needs pages of its own.
    ///
    /// # Panics
    /// When a ring's pages are absent or of another size: the caller maps them by the same sizes.
    #[must_use]
    pub fn new(
        shared: SharedPages,
        left: Option<SharedPages>,
        right: Option<SharedPages>,
        sizes: RingSizes,
    ) -> Self {
        for (stream, pages) in [(Stream::Left, &left), (Stream::Right, &right)] {
            let size = pages.as_ref().map_or(0, |pages| pages.size() / xen_types::PAGE_SIZE);
            assert!(
                size == sizes.pages(stream),
                "the {stream} ring of a vchan has other pages than its size needs"
            );
        }
        Self { shared, left, right, sizes }
    }

    /// Makes the memory as a server offers it: no client yet, the server there and asking to be woken.
    pub(crate) fn offer(&self, grants: impl Iterator<Item = GrantRef>) {
        for stream in [Stream::Left, Stream::Right] {
            self.shared.store_u16(layout::order(stream), self.sizes.order(stream), Ordering::Relaxed);
        }
        for (n, grant) in grants.enumerate() {
            self.shared.store_u32(layout::grant(n), grant.get(), Ordering::Relaxed);
        }
        self.set_live(Side::Client, AWAITED);
        self.set_live(Side::Server, LIVE);
        self.ask(Side::Client, Wish::Written);
    }

    /// Reads the sizes that the server says, once.
    pub(crate) fn read_sizes(shared: &SharedPages) -> Result<RingSizes, RingSizesError> {
        let order = |stream| shared.load_u16(layout::order(stream), Ordering::Acquire);
        RingSizes::of_orders(order(Stream::Left), order(Stream::Right))
    }

    /// Copies the grants of a ring's pages, once.
    pub(crate) fn read_grants(shared: &SharedPages, sizes: RingSizes, stream: Stream) -> Vec<GrantRef> {
        let first = match stream {
            Stream::Left => 0,
            Stream::Right => sizes.pages(Stream::Left),
        };
        let grant = |n| GrantRef(shared.load_u32(layout::grant(n), Ordering::Relaxed));
        (first..first + sizes.pages(stream)).map(grant).collect()
    }

    pub(crate) const fn sizes(&self) -> RingSizes {
        self.sizes
    }

    pub(crate) fn live(&self, side: Side) -> u8 {
        self.shared.load_u8(layout::live(side), Ordering::SeqCst)
    }

    pub(crate) fn set_live(&self, side: Side, value: u8) {
        self.shared.store_u8(layout::live(side), value, Ordering::SeqCst);
    }

    /// Sets `cli_live` to `new` if it is `current`; gives whether it was.
    pub(crate) fn change_client(&self, current: u8, new: u8) -> bool {
        self.shared.compare_exchange_u8(layout::live(Side::Client), current, new)
    }

    /// Where a ring is: its pages, and the offset in them.
    fn ring(&self, stream: Stream) -> (&SharedPages, usize) {
        let own = match stream {
            Stream::Left => &self.left,
            Stream::Right => &self.right,
        };
        match own {
            Some(pages) => (pages, 0),
            None => (&self.shared, self.sizes.offset(stream).unwrap_or(0)),
        }
    }
}

impl RingMemory for RingPages {
    fn size(&self, stream: Stream) -> usize {
        1 << self.sizes.order(stream)
    }

    fn load(&self, index: Index) -> u32 {
        self.shared.load_u32(layout::index(index), Ordering::Acquire)
    }

    fn store(&self, index: Index, value: u32) {
        self.shared.store_u32(layout::index(index), value, Ordering::Release);
    }

    fn ask(&self, side: Side, wish: Wish) {
        self.shared.fetch_or_u8(layout::notify(side), wish.bit(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn take_ask(&self, side: Side, wish: Wish) -> bool {
        fence(Ordering::SeqCst);
        let before = self.shared.fetch_and_u8(layout::notify(side), !wish.bit(), Ordering::SeqCst);
        before & wish.bit() != 0
    }

    fn copy_out(&self, stream: Stream, offset: usize, to: &mut [u8]) {
        let (pages, start) = self.ring(stream);
        pages.read(start + offset, to);
    }

    fn copy_in(&self, stream: Stream, offset: usize, from: &[u8]) {
        let (pages, start) = self.ring(stream);
        pages.write(start + offset, from);
    }
}
