//! Dumping a guest's memory to a core file, as `xl dump-core` does. A guest that has ended has a memory too.
//!
//! The file has another name until it is complete and on the disk, so that a part of one is never taken for a whole.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use config::Uuid;
use xen::{Abandoned, DumpCore, XenError};
use xen_types::KiB;

use crate::cancel::Cancellable;
use crate::dom0::{FileKind, HostError};
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::operation::{
    Cursor, ENTRY, Journal, Kind, OnGuest, Operation, Resumed, Step, StepResult, ids, resume, run,
};
use crate::record::GuestRecord;
use crate::saved;
use crate::{Guest, Toolstack, UndoFailure};

/// What the file has besides the guest's memory and the 8 bytes for each page of it that say where it is, at most.
const TABLES: KiB = KiB::from_mib(2);

/// Whether a guest runs while it is dumped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhileDumped {
    /// It is paused, so that all of the file is from one moment.
    #[default]
    Paused,
    /// It runs, as with xl.
    Runs,
}

/// A guest being dumped.
struct Dump<'a, 'e> {
    live: Live<'a>,
    /// What names this dump.
    id: Uuid,
    to: PathBuf,
    /// It is paused for this.
    pauses: bool,
    file: Option<File>,
    tell: &'e dyn Fn(Event),
    cancellable: Cancellable,
}

fn steps<'b, 'e: 'b>() -> Vec<Step<Dump<'b, 'e>>> {
    vec![
        Step::new("check", "check whether it can be dumped there", Dump::check),
        Step::new(ENTRY, "record the dump", |d: &mut Dump<'_, '_>| d.enter(Cursor::back(ENTRY))).entry(),
        Step::new("make-file", "make the file", Dump::make_file).undo(Dump::remove_file),
        Step::new("pause", "pause the guest", Dump::pause).undo(Dump::unpause),
        Step::new("dump-memory", "write its memory", Dump::dump_memory),
        Step::new("unpause", "let the guest go on", Dump::unpause),
        Step::new("sync", "write the file to the disk", Dump::sync),
        Step::new("put-in-place", "give the file its name", Dump::put_in_place),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::dump_core`], in order.
    #[must_use]
    pub fn dump_core_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Dumps the memory of a guest, also of one that has ended, to a core file.
    ///
    /// # Errors
    /// [`Error::Step`]: nothing of the file is left, unless it is complete, and the guest is as it was.
    pub fn dump_core(
        &self,
        id: GuestId,
        to: &Path,
        meanwhile: WhileDumped,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let live = self.dumpable(id, events)?;
        let shared = RefCell::new(events);
        // A step tells how far it is while the engine has the closure.
        let tell = |event| (shared.borrow_mut())(event);
        let state = self.look(live.domain()?)?.map(|info| info.state);
        let runs = state.is_some_and(|state| !state.paused && state.shutdown.is_none());
        let mut dump = Dump {
            live,
            id: self.random_uuid()?,
            to: to.to_owned(),
            pauses: runs && meanwhile == WhileDumped::Paused,
            file: None,
            tell: &tell,
            cancellable: self.cancels.begin(id),
        };
        let left = run(&steps(), &mut dump, &self.faults, &mut |event| tell(event))?;
        dump.live.concluded(left)
    }

    /// A guest that runs, with what an earlier daemon began settled, or one that is only there.
    fn dumpable(&self, id: GuestId, events: &mut dyn FnMut(Event)) -> Result<Live<'_>, Error> {
        if Live::find(self, id).is_ok() {
            return Live::settled(self, id, events);
        }
        let live = Live::present(self, id)?;
        match live.record.operation.clone() {
            None => Ok(live),
            Some(Operation { kind: Kind::DumpCore { id, to, paused }, cursor }) => {
                let (live, resumed) = resume_dump(live, (id, to, paused), &cursor, events);
                match resumed {
                    Ok(_) => Ok(live),
                    Err(_) => Err(live.unfinished().into()),
                }
            }
            Some(_) => Err(live.unfinished().into()),
        }
    }
}

/// Undoes a dump that an earlier process began.
pub(crate) fn resume_dump<'a>(
    live: Live<'a>,
    (id, to, pauses): (Uuid, PathBuf, bool),
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let cancellable = live.ts.cancels.begin(live.id());
    // It is not dumped: there is nothing to give up.
    cancellable.ends();
    let mut dump = Dump { live, id, to, pauses, file: None, tell: &|_| (), cancellable };
    let resumed = resume(&steps(), &mut dump, cursor, events);
    (dump.live, resumed)
}

impl OnGuest for Dump<'_, '_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::DumpCore { id: self.id, to: self.to.clone(), paused: self.pauses }
    }

    /// As long as the guest is paused for it, the next attempt has something to do.
    fn withdraw(&mut self, is_clean: bool) -> StepResult {
        if !is_clean && self.pauses {
            return Ok(());
        }
        self.live.record.operation = None;
        self.live.save()
    }
}

impl Dump<'_, '_> {
    fn check(&mut self) -> StepResult {
        let ts = self.live.ts;
        check_target(ts, &self.to)?;
        let memory = ts.look(self.live.domain()?)?.map_or(KiB(0), |info| info.memory);
        saved::check_room(
            ts,
            &self.to,
            KiB(memory.get().saturating_add(memory.get() / 512).saturating_add(TABLES.get())),
        )
    }

    /// The name that the file has until it is whole.
    fn partial(&self) -> PathBuf {
        saved::partial(&self.to, self.id)
    }

    fn make_file(&mut self) -> StepResult {
        self.file = Some(self.live.ts.host.create_file(&self.partial())?);
        Ok(())
    }

    fn remove_file(&mut self) -> StepResult {
        self.file = None;
        Ok(self.live.ts.host.remove_file(&self.partial())?)
    }

    fn open(&self) -> Result<&File, Cause> {
        self.file.as_ref().ok_or(Cause::TooEarly { what: "file" })
    }

    fn pause(&mut self) -> StepResult {
        if self.pauses {
            self.live.ts.hypervisor.pause_domain(self.live.domain()?.domid())?;
        }
        Ok(())
    }

    /// Lets the guest run, if it was paused for this and is still there.
    fn unpause(&mut self) -> StepResult {
        if !self.pauses {
            return Ok(());
        }
        let (ts, record) = (self.live.ts, &self.live.record);
        let Some(domain) = record.guest_domain(ts)? else { return Ok(()) };
        match ts.look(domain)? {
            Some(info) if info.state.paused => Ok(ts.hypervisor.unpause_domain(domain.domid())?),
            _ => Ok(()),
        }
    }

    fn dump_memory(&mut self) -> StepResult {
        let ts = self.live.ts;
        let how = DumpCore {
            deadline: Instant::now() + ts.deadlines.memory,
            cancel: self.cancellable.cancel.clone(),
        };
        let (domid, file) = (self.live.domain()?.domid(), self.open()?);
        let dumped = ts.hypervisor.dump_core(domid, file.as_fd(), &how, &mut |done, total| {
            (self.tell)(Event::Progress { done, total });
        });
        match dumped {
            Err(XenError::Abandoned { why: Abandoned::Cancelled, .. }) => Err(self.cancelled()),
            dumped => Ok(dumped?),
        }
    }

    fn cancelled(&self) -> Cause {
        Cause::DumpCancelled { name: self.live.record.name.clone() }
    }

    fn sync(&mut self) -> StepResult {
        let (operation, path) = ("write to disk", self.to.clone());
        self.open()?.sync_all().map_err(|source| HostError::File { operation, path, source })?;
        self.file = None;
        Ok(())
    }

    /// The last moment at which the dump can be given up.
    fn put_in_place(&mut self) -> StepResult {
        if self.cancellable.ends() {
            return Err(self.cancelled());
        }
        // Something may be there by now.
        check_target(self.live.ts, &self.to)?;
        Ok(self.live.ts.host.put_in_place(&self.partial(), &self.to)?)
    }
}

/// A core file replaces nothing but an empty file.
fn check_target(ts: &Toolstack, to: &Path) -> StepResult {
    let why = match ts.host.file_kind(to)? {
        FileKind::Missing | FileKind::Regular { bytes: 0 } => return Ok(()),
        FileKind::Regular { .. } => "the file exists and is not empty: remove it, or give another name",
        FileKind::Block { .. } | FileKind::Pipe | FileKind::Other => "it is not a regular file",
    };
    Err(Cause::NotACoreFile { path: to.to_owned(), why })
}
