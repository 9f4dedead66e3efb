//! What the writer asks of the domain that it saves.

use core::ffi::c_int;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use xen_types::DomId;

use super::pages::Pages;
use super::records::{CpuPolicy, Tsc};
use crate::error::Result;
use crate::param::HvmParam;

/// The most pages that are asked for or mapped at a time: Xen refuses more (`XEN_DOMCTL_getpageframeinfo3`).
pub(in super::super) const BATCH: usize = 1024;

/// A domain that is saved.
pub(in super::super) trait Source {
    type Mapped: Mapped;

    fn domid(&self) -> DomId;

    /// Xen's version.
    fn version(&self) -> Result<(u16, u16)>;

    /// One more than the highest page.
    fn size(&self) -> Result<u64>;

    /// What the domain has at this moment.
    fn holding(&self) -> Result<Holding>;

    /// Replaces the numbers of at most [`BATCH`] pages by their types (`XEN_DOMCTL_PFINFO_*`).
    fn ask_types(&self, pages: &mut [u64]) -> Result<()>;

    /// Maps at most [`BATCH`] pages. Single ones may fail.
    fn map(&self, pages: &[u64]) -> Result<Self::Mapped>;

    /// Has Xen record which pages are written.
    fn start_log_dirty(&self) -> Result<()>;

    /// Ends that, if it was begun.
    fn stop_log_dirty(&self);

    /// Adds the pages that were written since the recording began or since the last call. `last` says that the domain
    /// does not run any more.
    fn take_dirty(&mut self, last: bool, into: &mut Pages) -> Result<()>;

    fn cpu_policy(&self) -> Result<CpuPolicy>;
    fn tsc(&self) -> Result<Tsc>;
    fn hvm_context(&self) -> Result<Vec<u8>>;
    fn hvm_param(&self, param: HvmParam) -> Result<u64>;
}

/// What a domain has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Holding {
    /// How many pages it has (`tot_pages`): those that are its own memory. Pages that Xen keeps for it do not count,
    /// and have no type that is saved: its shared information page, the frames of its grant table, the pages that a
    /// device model shares with Xen, the page of the virtual APIC.
    pub(in super::super) pages: u64,
    /// Each of these pages is one of the p2m: nothing is shared with other domains or paged out, and nothing is
    /// populated on demand, of which Xen keeps a stock that counts.
    pub(in super::super) countable: bool,
    /// It has shut down to be suspended.
    pub(in super::super) suspended: bool,
}

/// Pages that are mapped, in the order in which they were asked for.
pub(in super::super) trait Mapped {
    /// Zero for each page that is there, and otherwise an `errno`, which libxenforeignmemory writes as a negative number.
    fn errors(&self) -> &[c_int];

    /// Writes `head`, and then the pages that are there.
    fn write(&self, to: BorrowedFd<'_>, head: &[u8]) -> Result<(), Errno>;
}
