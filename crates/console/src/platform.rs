//! What the console server asks of Xen, small enough to be played by a test.

use std::io;
use std::os::fd::BorrowedFd;

use uuid::Uuid;
use xen_types::{DomId, EventPort, Gfn, GrantRef};

use crate::ring::RingMemory;

/// The grant with which the toolstack shares a domain's primary console ring
/// (`GNTTAB_RESERVED_CONSOLE`, `xen/include/public/grant_table.h`).
pub const RESERVED_CONSOLE_GRANT: GrantRef = GrantRef(0);

/// Whether a domain still runs, as far as its consoles are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainState {
    /// The domid, which Xen can give to another domain when this one is gone.
    pub domid: DomId,
    /// The UUID, which identifies the domain.
    pub uuid: Uuid,
    /// Whether it is being destroyed: it will not write any more, and its pages are to be released.
    pub dying: bool,
}

/// Xen's side of serving consoles: which domains there are, their ring pages, and event channels.
///
/// An event of a port comes once and not again before [`unmask`](Self::unmask), whatever the guest does.
pub trait Platform {
    /// A mapped ring page; dropping it unmaps it.
    type Page: RingMemory;

    /// Lists all domains.
    ///
    /// # Errors
    /// When Xen does not answer.
    fn domains(&mut self) -> io::Result<Vec<DomainState>>;

    /// The UUID of the domain that has this domid now, if there is one.
    ///
    /// # Errors
    /// When Xen does not answer.
    fn domain_uuid(&mut self, domid: DomId) -> io::Result<Option<Uuid>>;

    /// Maps a page that the domain granted.
    ///
    /// # Errors
    /// When there is no such grant for this domain.
    fn map_grant(&mut self, domid: DomId, grant: GrantRef) -> io::Result<Self::Page>;

    /// Maps a page by its frame number, with the right that a control domain has.
    ///
    /// # Errors
    /// When the domain has no such page or this domain has no right to it.
    fn map_frame(&mut self, domid: DomId, frame: Gfn) -> io::Result<Self::Page>;

    /// Binds a local port to the domain's unbound one; the new port's event fires at once or later, not masked.
    ///
    /// # Errors
    /// When the port is not offered to this domain, or taken (by another console daemon).
    fn bind(&mut self, domid: DomId, remote: EventPort) -> io::Result<EventPort>;

    /// Closes a local port. An error has no consequence for the caller, so that none is given.
    fn unbind(&mut self, port: EventPort);

    /// Sends an event to the other end of a local port. An error means that the other end is gone.
    fn notify(&mut self, port: EventPort);

    /// Allows the next event of a local port.
    fn unmask(&mut self, port: EventPort);

    /// Takes the next event that has come, without waiting.
    ///
    /// # Errors
    /// When events can no longer be received.
    fn next_event(&mut self) -> io::Result<Option<EventPort>>;

    /// Binds a local port to the event that tells of new bytes in Xen's own console.
    ///
    /// # Errors
    /// When another process has it.
    fn watch_hypervisor_log(&mut self) -> io::Result<EventPort>;

    /// Reads what was written to Xen's own console from `index` on and gives the index behind it.
    ///
    /// # Errors
    /// When Xen does not answer.
    fn hypervisor_log(&mut self, index: u32) -> io::Result<(Vec<u8>, u32)>;

    /// The descriptor that is readable when there is an event.
    fn event_fd(&self) -> BorrowedFd<'_>;
}
