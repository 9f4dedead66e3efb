//! Saving a guest to a file, as stock xl does, and destroying it or letting it go on.
//!
//! The guest is suspended first, then its QEMU is stopped: after that nothing writes to its memory or its disks. Its
//! memory and vCPUs are written by a helper process (`xen`), and the state of QEMU's devices follows. The file has another name until
//! it is complete and on the disk, so that a part of one is never taken for a whole.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use config::Uuid;
use migration_stream::header::Header;
use migration_stream::libxl;
use xen::{Abandoned, Cancel, Precopy, SaveEvents, SaveMemory, Verdict, XenError};
use xen_types::KiB;

use super::suspend::{go_on, withdraw};
use crate::cancel::Cancellable;
use crate::dom0::{FileKind, HostError};
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::{Live, suspend};
use crate::monitors::Left;
use crate::operation::{
    AfterSave, Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, resume, run,
};
use crate::record::GuestRecord;
use crate::saved;
use crate::stubdomain::{self, DeviceModel};
use crate::{Guest, Toolstack, UndoFailure};

/// The id of the step from which on the file is whole and the guest is destroyed.
const GIVE_UP: &str = "give-up-guest";

/// A guest being saved.
struct Save<'a, 'e> {
    live: Live<'a>,
    /// What names this save.
    id: Uuid,
    to: PathBuf,
    after: AfterSave,
    file: Option<File>,
    /// What the file begins with.
    header: Vec<u8>,
    /// The state of QEMU's devices.
    state: Vec<u8>,
    tell: &'e dyn Fn(Event),
    cancellable: Cancellable,
    /// It is saved into a named pipe.
    is_pipe: bool,
}

/// The steps. A guest that goes on does so before its file is on the disk, to be away for a shorter time.
fn steps<'b, 'e: 'b>(after: AfterSave) -> Vec<Step<Save<'b, 'e>>> {
    let mut steps: Vec<Step<Save<'_, '_>>> = vec![
        Step::new("check", "check whether the guest can be saved", Save::check),
        Step::new(ENTRY, "record the save", |s: &mut Save<'_, '_>| s.enter(Cursor::back(ENTRY))).entry(),
        Step::new("make-file", "make the file", Save::make_file).undo(Save::remove_file),
        Step::new("save-memory", "suspend it and write its memory", Save::save_memory).undo(Save::go_on),
        Step::new("save-devices", "write the state of QEMU's devices", Save::save_devices),
    ];
    let sync = Step::new("sync", "write the file to the disk", Save::sync);
    let put = Step::new("put-in-place", "give the file its name", Save::put_in_place).undo(Save::take_away);
    let resume = Step::new("resume", "let the guest go on", Save::go_on);
    let pause = Step::new("resume", "keep the guest, paused", Save::go_on_paused).undo(Save::unpause);
    let give_up = Step::new(GIVE_UP, "commit to the saved copy", |_: &mut Save<'_, '_>| Ok(()));
    steps.extend(match after {
        AfterSave::Destroy => [sync, put, give_up.point_of_no_return()],
        AfterSave::Run => [resume, sync, put],
        AfterSave::Pause => [sync, put, pause],
    });
    steps
}

impl Toolstack {
    /// The ids of the steps of [`Self::save`], in order.
    #[must_use]
    pub fn save_steps(after: AfterSave) -> Vec<&'static str> {
        ids(&steps(after))
    }

    /// Saves a guest to a file or into a named pipe, in the format of stock xl. A guest that is destroyed then is not
    /// returned.
    ///
    /// # Errors
    /// [`Error::Step`]: the guest runs on, and nothing of the file is left. [`Error::NotClean`] when it is saved and not
    /// completely destroyed.
    pub fn save(
        &self,
        id: GuestId,
        to: &Path,
        after: AfterSave,
        events: &mut dyn FnMut(Event),
    ) -> Result<Option<Guest>, Error> {
        let live = Live::settled(self, id, events)?;
        let shared = RefCell::new(events);
        // A step tells how far it is while the engine has the closure.
        let tell = |event| (shared.borrow_mut())(event);
        let mut save = Save {
            live,
            id: self.random_uuid()?,
            to: to.to_owned(),
            after,
            file: None,
            header: Vec::new(),
            state: Vec::new(),
            tell: &tell,
            cancellable: self.cancels.begin(id),
            is_pipe: false,
        };
        let left = run(&steps(after), &mut save, &self.faults, &mut |event| tell(event))?;
        let Save { live, .. } = save;
        match after {
            AfterSave::Destroy => {
                let name = live.record.name.clone();
                self.monitors.left(live.id(), Left::Saved);
                let removed = self.remove(live.record, None, &mut |event| tell(event));
                removed.map(|_| None).map_err(|left| Error::NotClean { name, left })
            }
            AfterSave::Run | AfterSave::Pause => live.concluded(left).map(Some),
        }
    }
}

/// Undoes a save that an earlier process began. One whose file is whole and whose guest was given up is the driver's to
/// complete.
pub(crate) fn resume_save<'a>(
    live: Live<'a>,
    (id, to, after): (Uuid, PathBuf, AfterSave),
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let (file, header, state) = (None, Vec::new(), Vec::new());
    let cancellable = live.ts.cancels.begin(live.id());
    // It is not saved: there is nothing to give up.
    cancellable.ends();
    let is_pipe = false;
    let mut save = Save { live, id, to, after, file, header, state, tell: &|_| (), cancellable, is_pipe };
    let resumed = resume(&steps(after), &mut save, cursor, events);
    (save.live, resumed)
}

impl OnGuest for Save<'_, '_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::Save { id: self.id, to: self.to.clone(), after: self.after }
    }

    /// As long as the guest is suspended, the next attempt has something to do.
    fn withdraw(&mut self, is_clean: bool) -> StepResult {
        withdraw(&mut self.live, is_clean)
    }

    /// The entry of a guest that is given up stays, until that of its destruction takes its place.
    fn complete(&mut self) -> StepResult {
        if self.after == AfterSave::Destroy {
            return Ok(());
        }
        self.live.record.operation = None;
        self.live.save()
    }
}

/// The device model of a guest that runs.
pub(super) fn device_model(live: &Live<'_>) -> Result<DeviceModel, Cause> {
    let lost = || Cause::DeviceModelDead { name: live.record.name.clone() };
    let stub = live.record.stub_domain(live.ts)?.ok_or_else(lost)?;
    Ok(DeviceModel { guest: live.id(), stub, target: live.domain()? })
}

/// Refuses a guest that cannot be saved, or could not go on elsewhere: before anything is done.
pub(super) fn check_savable(live: &Live<'_>) -> StepResult {
    let (ts, name) = (live.ts, &live.record.name);
    suspend::check(ts, live.domain()?, name)?;
    if let Some(device) = qemu_args::unsavable(&live.record.config).into_iter().next() {
        return Err(Cause::Unsavable { name: name.clone(), device });
    }
    if live.record.config.no_migrate {
        let why = "its configuration says nomigrate=1, so it is told that its time stamp counter never jumps";
        return Err(Cause::Unsupported { what: format!("Saving guest {name}"), why: why.to_owned() });
    }
    stubdomain::check_state(ts, device_model(live)?, name)?;
    saved::check_places(ts, &live.record)
}

impl Save<'_, '_> {
    fn check(&mut self) -> StepResult {
        let (ts, live) = (self.live.ts, &self.live);
        check_savable(live)?;
        saved::check_target(ts, &self.to, live.record.uuid)?;
        let memory = ts.look(live.domain()?)?.map_or(KiB(0), |info| info.memory);
        saved::check_room(ts, &self.to, memory)?;
        let processors = stubdomain::processors(ts, live.id(), &live.record.config)?;
        let tail = saved::describe(ts, &live.record, self.id, processors)?.encode()?;
        let json = saved::json(ts, &live.record, processors)?;
        self.is_pipe = ts.host.file_kind(&self.to)? == FileKind::Pipe;
        self.header = Header { json, tail }.encode().map_err(Cause::from)?;
        self.header.extend(libxl::begin());
        Ok(())
    }

    /// The name that the file has until it is whole.
    fn partial(&self) -> PathBuf {
        saved::partial(&self.to, self.id)
    }

    fn make_file(&mut self) -> StepResult {
        let host = &self.live.ts.host;
        let file = if self.is_pipe { host.open_pipe(&self.to)? } else { host.create_file(&self.partial())? };
        self.file = Some(file);
        self.write(&self.header)
    }

    /// A pipe may have a reader that does not read.
    fn write(&self, bytes: &[u8]) -> StepResult {
        let deadline = Instant::now() + self.live.ts.deadlines.state;
        let written = saved::write_within(self.open()?, bytes, deadline, &self.cancellable.cancel);
        written.map_err(|source| match self.cancellable.cancel.is_cancelled() {
            true => Cause::Cancelled { name: self.live.record.name.clone() },
            false => self.failed("write", source),
        })
    }

    fn failed(&self, operation: &'static str, source: std::io::Error) -> Cause {
        HostError::File { operation, path: self.to.clone(), source }.into()
    }

    fn remove_file(&mut self) -> StepResult {
        self.file = None;
        Ok(self.live.ts.host.remove_file(&self.partial())?)
    }

    fn open(&self) -> Result<&File, Cause> {
        self.file.as_ref().ok_or(Cause::TooEarly { what: "file" })
    }

    fn save_memory(&mut self) -> StepResult {
        let (ts, of) = (self.live.ts, device_model(&self.live)?);
        let name = self.live.record.name.clone();
        let mut suspending = Suspending {
            ts,
            of,
            name: &name,
            state: None,
            failure: None,
            tell: self.tell,
            cancel: &self.cancellable.cancel,
        };
        let how = SaveMemory {
            live: false,
            deadline: Instant::now() + ts.deadlines.memory,
            cancel: self.cancellable.cancel.clone(),
        };
        let saved = ts.hypervisor.save_memory(of.target.domid(), self.open()?.as_fd(), &how, &mut suspending);
        let Suspending { state, failure, .. } = suspending;
        // Why the guest could not be suspended says more than that it was not saved.
        if let Some(cause) = failure {
            return Err(cause);
        }
        match saved {
            Err(XenError::Abandoned { why: Abandoned::Cancelled, .. }) => {
                return Err(Cause::Cancelled { name });
            }
            saved => saved?,
        }
        self.state = state.ok_or(Cause::TooEarly { what: "state of its devices" })?;
        Ok(())
    }

    /// Lets QEMU run, and then the guest.
    fn go_on(&mut self) -> StepResult {
        suspend::withdraw_request(self.live.ts, self.live.domain()?)?;
        go_on(&self.live)
    }

    /// The same, but the guest does not run: it stays as it was saved.
    fn go_on_paused(&mut self) -> StepResult {
        let (ts, domain) = (self.live.ts, self.live.domain()?);
        ts.hypervisor.pause_domain(domain.domid())?;
        self.go_on()
    }

    /// It was not paused before.
    fn unpause(&mut self) -> StepResult {
        let (ts, domain) = (self.live.ts, self.live.domain()?);
        match ts.look(domain)? {
            Some(info) if info.state.paused => Ok(ts.hypervisor.unpause_domain(domain.domid())?),
            _ => Ok(()),
        }
    }

    fn save_devices(&mut self) -> StepResult {
        migration_stream::qemu::check(&self.state)?;
        let mut rest = libxl::emulator_context(&self.state)?;
        rest.extend(libxl::end());
        self.write(&rest)
    }

    fn sync(&mut self) -> StepResult {
        if !self.is_pipe {
            self.open()?.sync_all().map_err(|source| self.failed("write to disk", source))?;
        }
        self.file = None;
        Ok(())
    }

    /// The last moment at which the save can be given up.
    fn put_in_place(&mut self) -> StepResult {
        if self.cancellable.ends() {
            return Err(Cause::Cancelled { name: self.live.record.name.clone() });
        }
        if self.is_pipe {
            return Ok(());
        }
        // Something may be there by now.
        saved::check_target(self.live.ts, &self.to, self.live.record.uuid)?;
        Ok(self.live.ts.host.put_in_place(&self.partial(), &self.to)?)
    }

    /// Removes the whole file of a guest that runs on after all; another's of that name stays.
    fn take_away(&mut self) -> StepResult {
        if saved::is_of(self.live.ts, &self.to, self.id)? {
            self.live.ts.host.remove_file(&self.to)?;
        }
        Ok(())
    }
}

/// What is done at the points where the writer of the memory asks for it.
struct Suspending<'a> {
    ts: &'a Toolstack,
    of: DeviceModel,
    name: &'a str,
    state: Option<Vec<u8>>,
    failure: Option<Cause>,
    tell: &'a dyn Fn(Event),
    cancel: &'a Cancel,
}

impl SaveEvents for Suspending<'_> {
    fn suspend(&mut self) -> bool {
        let done = suspend::suspend(self.ts, self.of.target, self.name, self.cancel)
            .and_then(|()| stubdomain::take_state(self.ts, self.of));
        match done {
            Ok(state) => self.state = Some(state),
            Err(cause) => self.failure = Some(cause),
        }
        self.failure.is_none()
    }

    /// QEMU is stopped before the first page is written, so it has nothing to log.
    fn log_dirty(&mut self, _on: bool) -> bool {
        true
    }

    fn precopy(&mut self, _stats: Precopy) -> Verdict {
        Verdict::StopAndCopy
    }

    fn progress(&mut self, done: u64, total: u64) {
        (self.tell)(Event::Progress { done, total });
    }
}
