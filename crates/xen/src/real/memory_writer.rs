//! Saving an HVM domain's memory and CPU state as libxc's migration stream, version 3.
//!
//! The order and the contents are those of `xc_domain_save`, and `xc_domain_restore` reads it. What differs is how the
//! pages are found ([`survey`]), and that pages which are not there are not in the stream.
//!
//! While a live save runs, its domain may give pages back and be given others. Before Xen 4.22 nothing records that
//! ([`Release::log_dirty_has_added_pages`]), so once the domain is suspended, the writer checks that what it has written is
//! what the domain has ([`Writer::rest`]).
//!
//! - A page that the domain was given is always in the stream.
//! - A page that was written and then given back stays in the stream, as in libxc's: no record takes a page away, and
//!   libxc's reader ignores an entry without contents for a page that is there. The restored domain has the page, which
//!   its kernel believes to be given back and does not use until it is given it anew. It counts as the domain's memory; if
//!   there are so many that the limit is exceeded, the restore fails.
//! - Before Xen 4.22, a page that was given back and came again under the same number may be in the stream with its old
//!   contents: nothing tells it from one that was always there. libxc has the same gap. A caller closes it with a limit
//!   below the domain's memory (`Hypervisor::set_max_memory`) while the save is live: Xen then gives it no page at all.

mod domain;
mod mapping;
mod pages;
mod records;
mod source;
mod survey;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::errno::Errno;
use xen_types::Release;

use self::pages::Pages;
use self::records::kind;
use self::source::{BATCH, Holding, Mapped as _, Source};
use self::survey::{STEP, has_contents, survey};
use crate::error::{Result, XenError};
use crate::memory::{Precopy, SaveEvents, Verdict};
use crate::param::HvmParam;

pub(super) use self::domain::Domain;
pub(super) use self::records::PAGE_SIZE;

/// Saves a domain. `given_up` tells, between two steps, that nobody wants the stream any more.
pub(super) fn save<S: Source>(
    source: &mut S,
    to: BorrowedFd<'_>,
    live: bool,
    events: &mut dyn SaveEvents,
    given_up: &dyn Fn() -> bool,
) -> Result<()> {
    let domid = source.domid();
    let size = source.size()?;
    let none = || Pages::new(size).map_err(|errno| XenError::refused("save_memory", Some(domid), errno));
    let (left, written) = (none()?, none()?);
    if !events.log_dirty(true) {
        return Err(XenError::refused("save_memory", Some(domid), Errno::ECANCELED));
    }
    let mut writer = Writer { source, to, events, given_up, size, left, written };
    let result = writer.stream(live);
    writer.source.stop_log_dirty();
    // What is saved is complete without it.
    writer.events.log_dirty(false);
    result
}

/// What is done about a page that cannot be mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unmapped {
    /// It stays to be written: the domain runs and may just have given it back.
    Left,
    /// The save fails.
    Fatal,
}

struct Writer<'a, S> {
    source: &'a mut S,
    to: BorrowedFd<'a>,
    events: &'a mut dyn SaveEvents,
    given_up: &'a dyn Fn() -> bool,
    /// One more than the domain's highest page.
    size: u64,
    /// The pages that have to be written, again or for the first time.
    left: Pages,
    /// The pages that were written and that were still there when they were last asked for.
    written: Pages,
}

impl<S: Source> Writer<'_, S> {
    fn stream(&mut self, live: bool) -> Result<()> {
        self.write(&records::headers(self.source.version()?))?;
        let (leaves, registers) = records::cpu_policy(&self.source.cpu_policy()?);
        for (kind, body) in [(kind::CPUID_POLICY, leaves), (kind::MSR_POLICY, registers)] {
            // An empty one would be refused.
            if !body.is_empty() {
                self.record(kind, &body)?;
            }
        }
        self.record(kind::STATIC_DATA_END, &[])?;
        if live {
            self.source.start_log_dirty()?;
            self.survey()?;
            self.rounds()?;
            self.suspend()?;
            self.rest()?;
        } else {
            self.suspend()?;
            self.survey()?;
            self.round(true, Unmapped::Fatal)?;
        }
        self.record(kind::TSC_INFO, &records::tsc(self.source.tsc()?))?;
        self.record(kind::HVM_CONTEXT, &self.source.hvm_context()?)?;
        let params = self.params()?;
        if !params.is_empty() {
            self.record(kind::HVM_PARAMS, &records::hvm_params(&params))?;
        }
        self.record(kind::END, &[])
    }

    /// Suspends the domain.
    fn suspend(&mut self) -> Result<()> {
        if self.events.suspend() && self.source.holding()?.suspended {
            Ok(())
        } else {
            Err(self.refused("save_memory", Errno::EINVAL))
        }
    }

    /// Has the pages be written that the domain has and that were not written yet.
    fn survey(&mut self) -> Result<()> {
        let Self { source, size, left, written, given_up, .. } = self;
        let domid = source.domid();
        survey(&**source, *size, written, left, || {
            if given_up() {
                Err(XenError::refused("save_memory", Some(domid), Errno::ECANCELED))
            } else {
                Ok(())
            }
        })
    }

    /// The rounds of a live save, until the domain is to be suspended.
    fn rounds(&mut self) -> Result<()> {
        let mut dirty = self.left.count();
        let mut stats = Precopy { dirty_pages: Some(dirty), ..Precopy::default() };
        loop {
            let verdict = self.events.precopy(stats);
            let began = Instant::now();
            if verdict != Verdict::Abort {
                self.round(stats.round == 0, Unmapped::Left)?;
            }
            if verdict != Verdict::Continue {
                return self.decided(verdict);
            }
            stats.round = stats.round.saturating_add(1);
            stats.written_pages = stats.written_pages.saturating_add(dirty);
            stats.dirty_pages = None;
            stats.elapsed = began.elapsed();
            let verdict = self.events.precopy(stats);
            if verdict != Verdict::Continue {
                return self.decided(verdict);
            }
            self.source.take_dirty(false, &mut self.left)?;
            dirty = self.left.count();
            stats.dirty_pages = Some(dirty);
        }
    }

    fn decided(&self, verdict: Verdict) -> Result<()> {
        if verdict == Verdict::Abort { Err(self.refused("save_memory", Errno::ECANCELED)) } else { Ok(()) }
    }

    /// What is left of a live save once the domain is suspended: the pages that it wrote, and those that were never written
    /// to the stream because it was given them meanwhile.
    fn rest(&mut self) -> Result<()> {
        self.source.take_dirty(true, &mut self.left)?;
        self.round(false, Unmapped::Fatal)?;
        let size = self.source.size()?;
        if size <= self.size && self.is_complete()? {
            return Ok(());
        }
        for pages in [&mut self.left, &mut self.written] {
            pages
                .grow(size)
                .map_err(|errno| XenError::refused("save_memory", Some(self.source.domid()), errno))?;
        }
        self.size = self.size.max(size);
        self.survey()?;
        self.round(true, Unmapped::Fatal)
    }

    /// Whether each page of the suspended domain was written.
    ///
    /// That as many were written as it has says nothing: it may have given one back and been given another. Only if those
    /// that were written are still there too, they are all. Asking for that takes one call for each [`BATCH`] of pages, while
    /// the domain stands still.
    fn is_complete(&mut self) -> Result<bool> {
        let Holding { pages, countable, .. } = self.source.holding()?;
        if !countable {
            return Ok(false);
        }
        let (major, minor) = self.source.version()?;
        if Release::new(major, minor).log_dirty_has_added_pages() {
            return Ok(true);
        }
        Ok(pages == self.written.count() && self.all_there()?)
    }

    /// Whether the domain still has each page that was written. Forgets those that it does not have.
    fn all_there(&mut self) -> Result<bool> {
        let mut next = 0;
        loop {
            let batch = self.written.batch(next, BATCH);
            let Some(last) = batch.last() else { return Ok(true) };
            next = last + 1;
            let asked = batch.len();
            if self.still_there(batch)?.len() != asked {
                return Ok(false);
            }
        }
    }

    /// Writes all pages that are left. `known` says that they were there a moment ago, as a survey has found.
    fn round(&mut self, known: bool, unmapped: Unmapped) -> Result<()> {
        let total = self.left.count();
        let (mut done, mut next) = (0, 0);
        loop {
            let mut batch = self.left.batch(next, BATCH);
            if known {
                // From 4.21 on, libxc gives the new domain superpages where it finds 2 MiB in one record.
                batch = aligned(batch);
            }
            let Some(last) = batch.last() else { return Ok(()) };
            next = last + 1;
            done += u64::try_from(batch.len()).unwrap_or_default();
            if !known {
                batch = self.still_there(batch)?;
            }
            self.pages(&batch, unmapped)?;
            self.events.progress(done, total);
        }
    }

    /// Asks which pages have contents, and forgets the others.
    fn still_there(&mut self, batch: Vec<u64>) -> Result<Vec<u64>> {
        if (self.given_up)() {
            return Err(self.refused("save_memory", Errno::ECANCELED));
        }
        let mut types = batch.clone();
        self.source.ask_types(&mut types)?;
        let mut there = Vec::with_capacity(batch.len());
        for (page, kind) in batch.into_iter().zip(types) {
            if has_contents(self.source, kind)? {
                there.push(page);
            } else {
                self.left.remove(page);
                self.written.remove(page);
            }
        }
        Ok(there)
    }

    /// Writes a batch of pages.
    fn pages(&mut self, batch: &[u64], unmapped: Unmapped) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let mapped = self.source.map(batch)?;
        let mut good = Vec::with_capacity(batch.len());
        for (page, error) in batch.iter().zip(mapped.errors()) {
            match error {
                0 => good.push(*page),
                _ if unmapped == Unmapped::Left => {}
                errno => {
                    let errno = Errno::from_raw(errno.saturating_abs());
                    return Err(self.refused("xenforeignmemory_map", errno));
                }
            }
        }
        if good.is_empty() {
            return Ok(());
        }
        let head = records::page_data(&good).ok_or_else(|| self.too_long())?;
        mapped.write(self.to, &head).map_err(|errno| self.refused("write", errno))?;
        for page in good {
            self.left.remove(page);
            self.written.insert(page);
        }
        Ok(())
    }

    /// The parameters that have a value.
    fn params(&self) -> Result<Vec<(u32, u64)>> {
        let mut params = Vec::new();
        for param in HvmParam::SAVED {
            let value = self.source.hvm_param(param)?;
            if value != 0 {
                params.push((param.number(), value));
            }
        }
        Ok(params)
    }

    fn record(&self, kind: u32, body: &[u8]) -> Result<()> {
        self.write(&records::record(kind, body).ok_or_else(|| self.too_long())?)
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        write_all(self.to, bytes).map_err(|errno| self.refused("write", errno))
    }

    fn too_long(&self) -> XenError {
        self.refused("save_memory", Errno::EOVERFLOW)
    }

    fn refused(&self, operation: &'static str, errno: Errno) -> XenError {
        XenError::refused(operation, Some(self.source.domid()), errno)
    }
}

/// Those at the beginning of a batch that are in the same 4 MiB.
fn aligned(mut batch: Vec<u64>) -> Vec<u64> {
    let unit = |page: &u64| page / STEP;
    let first = batch.first().map(unit);
    batch.retain(|page| Some(unit(page)) == first);
    batch
}

/// Writes bytes, whatever signals come: after the one that gives the save up the descriptor takes nothing.
pub(super) fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
