//! The real Xen behind the console server.

use core::sync::atomic::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use uuid::Uuid;
use xen::{
    Access, DomainInfo, EventChannels, ForeignMemory, GrantTable, Hypervisor, RealHypervisor, SharedPages,
    Virq, XenError,
};
use xen_types::{DomId, EventPort, Gfn, GrantRef};

use crate::platform::{DomainState, Platform};
use crate::ring::{CONNECTED, CONNECTION_OFFSET, IN_SIZE, Index, OUT_SIZE, RingMemory};

/// Event channels, grants and foreign pages of the host that this process runs on.
pub struct XenPlatform {
    hypervisor: RealHypervisor,
    events: EventChannels,
    grants: GrantTable,
    foreign: ForeignMemory,
    bound: BTreeSet<EventPort>,
    /// Ports that have fired, or that may have when the driver had no room to say which.
    fired: VecDeque<EventPort>,
    /// The driver had no more than those.
    drained: bool,
}

impl XenPlatform {
    /// Opens the hypervisor and the drivers.
    ///
    /// # Errors
    /// When this is no control domain of Xen, this process may not, or another release of Xen runs than this program
    /// was built for.
    pub fn open() -> Result<Self, XenError> {
        let hypervisor = RealHypervisor::open()?;
        xen::release::check(&hypervisor)?;
        Ok(Self {
            hypervisor,
            events: EventChannels::open()?,
            grants: GrantTable::open()?,
            foreign: ForeignMemory::open()?,
            bound: BTreeSet::new(),
            fired: VecDeque::new(),
            drained: false,
        })
    }
}

impl Platform for XenPlatform {
    type Page = RingPage;

    fn domains(&mut self) -> io::Result<Vec<DomainState>> {
        let listed = self.hypervisor.list_domains().map_err(io::Error::other)?;
        let state = |info: &DomainInfo| DomainState {
            domid: info.domid,
            uuid: Uuid::from_bytes(info.uuid),
            dying: info.state.dying,
        };
        Ok(listed.iter().map(state).collect())
    }

    fn domain_uuid(&mut self, domid: DomId) -> io::Result<Option<Uuid>> {
        let info = self.hypervisor.domain_info(domid).map_err(io::Error::other)?;
        Ok(info.map(|info| Uuid::from_bytes(info.uuid)))
    }

    fn map_grant(&mut self, domid: DomId, grant: GrantRef) -> io::Result<RingPage> {
        let mapping = self.grants.map(domid, &[grant], Access::ReadWrite).map_err(io::Error::other)?;
        Ok(RingPage(mapping.into_pages()))
    }

    fn map_frame(&mut self, domid: DomId, frame: Gfn) -> io::Result<RingPage> {
        self.foreign.map(domid, &[frame], Access::ReadWrite).map(RingPage).map_err(io::Error::other)
    }

    fn bind(&mut self, domid: DomId, remote: EventPort) -> io::Result<EventPort> {
        let port = self.events.bind_interdomain(domid, remote).map_err(io::Error::other)?;
        self.bound.insert(port);
        Ok(port)
    }

    fn unbind(&mut self, port: EventPort) {
        self.bound.remove(&port);
        if let Err(error) = self.events.unbind(port) {
            tracing::debug!(%port, %error, "cannot unbind an event channel");
        }
    }

    fn notify(&mut self, port: EventPort) {
        if let Err(error) = self.events.notify(port) {
            tracing::debug!(%port, %error, "cannot send an event");
        }
    }

    fn unmask(&mut self, port: EventPort) {
        if let Err(error) = self.events.unmask(port) {
            tracing::debug!(%port, %error, "cannot unmask an event channel");
        }
    }

    fn next_event(&mut self) -> io::Result<Option<EventPort>> {
        if let Some(port) = self.fired.pop_front() {
            return Ok(Some(port));
        }
        // A system call less for each wake-up: those that come meanwhile make the descriptor readable again.
        if core::mem::take(&mut self.drained) {
            return Ok(None);
        }
        match self.events.all_pending() {
            Ok(ports) => {
                self.drained = !ports.is_empty() && ports.len() < EventChannels::PENDING_MAX;
                self.fired.extend(ports);
            }
            Err(error) if error.errno() == Some(Errno::EFBIG) => self.fired.extend(&self.bound),
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(self.fired.pop_front())
    }

    fn watch_hypervisor_log(&mut self) -> io::Result<EventPort> {
        let port = self.events.bind_virq(Virq::ConRing).map_err(io::Error::other)?;
        self.bound.insert(port);
        Ok(port)
    }

    fn hypervisor_log(&mut self, index: u32) -> io::Result<(Vec<u8>, u32)> {
        self.hypervisor.console_ring_from(index).map_err(io::Error::other)
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// A console ring in another domain's page.
#[derive(Debug)]
pub struct RingPage(SharedPages);

/// Offset of `out` in `struct xencons_interface`; `in` is first.
const OUT_OFFSET: usize = IN_SIZE;

const fn offset_of(index: Index) -> usize {
    IN_SIZE
        + OUT_SIZE
        + match index {
            Index::InCons => 0,
            Index::InProd => 4,
            Index::OutCons => 8,
            Index::OutProd => 12,
        }
}

impl RingMemory for RingPage {
    fn load(&self, index: Index) -> u32 {
        self.0.load_u32(offset_of(index), Ordering::Acquire)
    }

    fn store(&self, index: Index, value: u32) {
        self.0.store_u32(offset_of(index), value, Ordering::Release);
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) {
        self.0.read(OUT_OFFSET + offset, to);
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        self.0.write(offset, from);
    }

    fn mark_connected(&self) {
        self.0.store_u8(CONNECTION_OFFSET, CONNECTED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{BackendRing, XenconsInterface};

    #[test]
    fn a_mapped_page_has_the_layout_of_the_header() {
        let page = RingPage(SharedPages::anonymous(1).unwrap());
        // The guest's part as Xen's header lays it out: in[1024], out[2048], in_cons, in_prod, out_cons, out_prod.
        page.0.write(1024 + 2046, b"ab");
        page.0.write(1024, b"c");
        page.0.store_u32(3080, 2046, Ordering::Release);
        page.0.store_u32(3084, 2049, Ordering::Release);
        page.0.store_u8(3088, 1, Ordering::Release);
        let mut ring = BackendRing::new(page);
        ring.mark_connected();
        let mut buffer = [0; 8];
        assert_eq!(ring.take(&mut buffer), Ok(3));
        assert_eq!(&buffer[..3], b"abc");
        assert_eq!(ring.put(b"xyz"), Ok(3));
        let page = ring.into_memory();
        assert_eq!(page.0.load_u32(3080, Ordering::Acquire), 2049);
        assert_eq!(page.0.load_u32(3076, Ordering::Acquire), 3);
        let mut input = [0; 3];
        page.0.read(0, &mut input);
        assert_eq!(&input, b"xyz");
        assert_eq!(page.0.load_u8(3088, Ordering::Acquire), 0);
        assert_eq!(size_of::<XenconsInterface>(), 3092);
    }
}
