//! A guest's way into the channel: the rounds, the suspend, and what follows.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use config::GuestConfig;
use migration::message::Limits;
use migration::sender::Event as Told;
use migration_stream::libxl;
use nix::fcntl::{FcntlArg, fcntl};
use qmp::QmpError;
use qmp::commands::XenSetGlobalDirtyLog;
use xen::{Cancel, Precopy, SaveEvents, SaveMemory, Verdict};

use super::MigrateOptions;
use crate::Toolstack;
use crate::domain::GuestId;
use crate::error::Cause;
use crate::event::Event;
use crate::guest::{Live, suspend};
use crate::handover::sender::{Departure, Work};
use crate::handover::stream::{self, Sending, Transferred};
use crate::handover::{HandoverError, Missed, Policy, Round, disks};
use crate::operation::StepResult;
use crate::stubdomain::{self, DeviceModel};

/// What the pipe between the helper process and the channel holds, in bytes: neither waits for the other at once.
const PIPE: i32 = 1 << 20;

/// A guest whose memory is being sent.
pub(super) struct Leaving<'b, 'a> {
    ts: &'b Toolstack,
    name: &'b str,
    of: DeviceModel,
    departure: &'b mut Departure<'a>,
    options: &'b MigrateOptions,
    policy: Policy,
    tell: &'b dyn Fn(Event),
    config: &'b GuestConfig,
    /// The other host's QEMU was started before the guest's memory was there.
    pub(super) starts_early: bool,
    /// Gives the save up: a user has, or the other host.
    cancel: Cancel,
    /// What the machine wants done.
    pub(super) work: Option<Work>,
    /// Tells [`Behind`] that the guest is suspended and its QEMU stopped.
    stopped: Rc<Cell<Option<Sender<()>>>>,
    failure: Option<Cause>,
}

/// What is done beside the last pages, because the guest stands still meanwhile: the state of QEMU's devices is taken, and
/// everything that both domains wrote comes to the disks.
struct Behind<'b> {
    ts: &'b Toolstack,
    name: &'b str,
    of: DeviceModel,
    config: &'b GuestConfig,
    starts_early: bool,
}

/// Ends the wait of [`Behind`], whatever ends the save.
struct Ends(Rc<Cell<Option<Sender<()>>>>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.take();
    }
}

impl Behind<'_> {
    /// Returns the state of QEMU's devices, once QEMU is stopped; nothing if that never happens.
    fn work(&self, stopped: &Receiver<()>) -> Option<Result<Vec<u8>, Cause>> {
        stopped.recv().ok().map(|()| self.take())
    }

    fn take(&self) -> Result<Vec<u8>, Cause> {
        let Self { ts, of, .. } = *self;
        let state = stubdomain::take_stopped_state(ts, of)?;
        if self.starts_early && !stubdomain::can_start_early(ts, of.guest)? {
            // The other host's QEMU would not find the display's memory. The next attempt has it start later.
            let why = "has just taken its display's memory away: try again".to_owned();
            return Err(Cause::NotNow { name: self.name.to_owned(), why });
        }
        disks::settle(ts, self.config, &[of.target.domid(), of.stub.domid()])?;
        Ok(state)
    }
}

impl<'b, 'a> Leaving<'b, 'a> {
    pub(super) fn new(
        live: &'b Live<'_>,
        of: DeviceModel,
        departure: &'b mut Departure<'a>,
        options: &'b MigrateOptions,
        tell: &'b dyn Fn(Event),
    ) -> Self {
        Self {
            ts: live.ts,
            name: &live.record.name,
            of,
            departure,
            options,
            policy: Policy::new(options.max_downtime),
            tell,
            config: &live.record.config,
            starts_early: false,
            cancel: Cancel::new(),
            work: None,
            stopped: Rc::default(),
            failure: None,
        }
    }

    /// Sends all of the guest. Fails without a cause when the machine has been told why it ends.
    pub(super) fn send(&mut self, limits: Limits, user: &Cancel) -> Result<Transferred, Option<Cause>> {
        let failed = |source| Some(HandoverError::Io { operation: "make a pipe for it", source }.into());
        let (mut from, to) = io::pipe().map_err(failed)?;
        // A smaller one does too.
        let _ = fcntl(&to, FcntlArg::F_SETPIPE_SZ(PIPE));
        let to = File::from(OwnedFd::from(to));
        self.cancel = user.clone();
        let about = &self.departure.journal().about;
        let how = Sending {
            id: about.id,
            journal: about.peer_journal,
            data: usize::try_from(limits.data).unwrap_or(usize::MAX),
            packing: self.options.packing(),
            bandwidth: self.options.bandwidth,
            cancel: self.cancel.clone(),
        };
        let closed = || Some(Cause::from(HandoverError::Closed));
        let talker = self.departure.channel().ok_or_else(closed)?.talker();
        let talker = talker.map_err(|error| Some(error.into()))?;
        let (saved, sent) = std::thread::scope(|scope| {
            let sending = move || stream::send(&mut from, &talker, &how);
            let thread = std::thread::Builder::new().name("send memory".to_owned());
            let pump = match thread.spawn_scoped(scope, sending) {
                Ok(pump) => pump,
                // Nothing was sent, so the other host has nothing to say about it.
                Err(source) => {
                    let operation = "start a thread for it";
                    self.failure = Some(HandoverError::Io { operation, source }.into());
                    return (Ok(()), Err(HandoverError::Closed));
                }
            };
            let (stopped, waits) = channel();
            self.stopped.set(Some(stopped));
            let _ends = Ends(Rc::clone(&self.stopped));
            let behind = self.behind();
            let behind = scope.spawn(move || behind.work(&waits));
            let saved = self.save(to, behind);
            (saved, pump.join().unwrap_or(Err(HandoverError::Closed)))
        });
        match (saved, sent) {
            (Ok(()), Ok(sent)) => Ok(sent),
            (saved, sent) => Err(self.why(saved, sent.is_err())),
        }
    }

    fn behind(&self) -> Behind<'b> {
        let Self { ts, name, of, config, starts_early, .. } = *self;
        Behind { ts, name, of, config, starts_early }
    }

    /// Has the helper process write the memory, and writes the state of QEMU's devices behind it.
    fn save(
        &mut self,
        mut to: File,
        behind: ScopedJoinHandle<'_, Option<Result<Vec<u8>, Cause>>>,
    ) -> StepResult {
        to.write_all(&libxl::begin()).map_err(HandoverError::io("write to it"))?;
        let how = SaveMemory {
            live: self.options.live,
            deadline: Instant::now() + self.ts.deadlines.memory,
            cancel: self.cancel.clone(),
        };
        let (ts, domid) = (self.ts, self.of.target.domid());
        let saved = ts.hypervisor.save_memory(domid, to.as_fd(), &how, self);
        self.stopped.take();
        let state = behind.join().unwrap_or_else(|panic| resume_unwind(panic));
        saved?;
        let early = || Cause::TooEarly { what: "state of its devices" };
        let state = match state.ok_or_else(early)? {
            Ok(state) => state,
            Err(cause) => {
                self.work = self.departure.tell(Self::told(&cause));
                // It says more than that the state is missing.
                self.failure = Some(cause);
                return Err(early());
            }
        };
        migration_stream::qemu::check(&state)?;
        let mut rest = libxl::emulator_context(&state)?;
        rest.extend(libxl::end());
        Ok(to.write_all(&rest).map_err(HandoverError::io("write to it"))?)
    }

    /// Why the guest was not sent: what has ended it says more than that it ended.
    fn why(&mut self, saved: StepResult, is_cut: bool) -> Option<Cause> {
        if let Some(Missed { rounds, allowed, expected }) = self.policy.missed() {
            let name = self.name.to_owned();
            return Some(HandoverError::NotConverged { name, rounds, expected, allowed }.into());
        }
        if let Some(cause) = self.failure.take() {
            return Some(cause);
        }
        if self.work != Some(Work::Resume) && is_cut {
            // What the other host has said is behind what it did not take.
            self.work = self.departure.wait(&Cancel::new());
        }
        if self.work == Some(Work::Resume) { None } else { saved.err() }
    }

    /// Whether the migration has been given up, by the other host or a user.
    fn is_given_up(&mut self) -> bool {
        if self.work != Some(Work::Resume)
            && let Some(work) = self.departure.poll(&self.cancel)
        {
            self.work = Some(work);
        }
        let given_up = self.work == Some(Work::Resume);
        if given_up {
            // The helper process may be waiting for the other host.
            self.cancel.cancel();
        }
        given_up
    }

    fn try_suspend(&mut self) -> StepResult {
        if self.departure.tell(Told::Converged) != Some(Work::Suspend) {
            return Err(Cause::TooEarly { what: "other host's answer" });
        }
        let (ts, of) = (self.ts, self.of);
        self.departure.stands_still();
        suspend::suspend(ts, of.target, self.name, &self.cancel)?;
        self.work = self.departure.tell(Told::Suspended);
        stubdomain::stop(ts, of.guest)?;
        // It waits for this.
        let _ = self.stopped.take().map(|stopped| stopped.send(()));
        Ok(())
    }

    /// What the machine is told of a guest that could not be suspended or saved.
    fn told(cause: &Cause) -> Told {
        match cause {
            Cause::NotRunning { .. } => Told::GuestEnded,
            Cause::NotSuspended { .. } | Cause::NotAcknowledged { .. } => Told::SuspendFailed,
            Cause::Cancelled { .. } => Told::Cancel,
            _ => Told::SaveFailed,
        }
    }
}

/// Ends QEMU's record of what it writes, which a killed daemon may have left on.
pub(super) fn stop_log(ts: &Toolstack, guest: GuestId) {
    // QEMU aborts when it is to end a record that it does not keep (`memory_global_dirty_log_do_stop`); beginning twice
    // does nothing. Without an answer there is nothing to be ended.
    let _ = set_log(ts, guest, true).and_then(|()| set_log(ts, guest, false));
}

fn set_log(ts: &Toolstack, guest: GuestId, enable: bool) -> Result<(), QmpError> {
    let monitor = ts.monitors.monitor(guest)?;
    qmp::run(&*monitor, &XenSetGlobalDirtyLog { enable }, Instant::now() + ts.deadlines.qmp).map(drop)
}

impl SaveEvents for Leaving<'_, '_> {
    fn suspend(&mut self) -> bool {
        if self.is_given_up() {
            return false;
        }
        let Err(cause) = self.try_suspend() else { return true };
        self.work = self.departure.tell(Self::told(&cause));
        self.failure = Some(cause);
        false
    }

    /// QEMU tells Xen what it writes only where it is asked to; one that is stopped writes nothing.
    fn log_dirty(&mut self, on: bool) -> bool {
        if !self.options.live {
            return true;
        }
        match set_log(self.ts, self.of.guest, on) {
            Err(error) if on => {
                self.failure = Some(error.into());
                false
            }
            _ => true,
        }
    }

    fn precopy(&mut self, stats: Precopy) -> Verdict {
        if self.is_given_up() {
            return Verdict::Abort;
        }
        let (verdict, round) = self.policy.decide(stats);
        if let Some(Round { round, dirty, rate, downtime }) = round {
            (self.tell)(Event::Round { round, dirty, rate, downtime });
        }
        verdict
    }

    fn progress(&mut self, done: u64, total: u64) {
        self.is_given_up();
        (self.tell)(Event::Progress { done, total });
    }
}
