//! Taking a guest from another host: a restore whose last steps wait for the two hosts to agree.
//!
//! The stubdomain boots while memory comes. When all of it is loaded, both domains are paused and the sender is told.
//! If it gives the guest up, COMMITTED is written, and from then on the guest is this host's (`migration`).

mod taking;

use std::rc::Rc;
use std::time::Instant;

use migration::receiver::Event as Told;
use migration::record::Record;
use migration::{Ended, MigrationId, Reason};

use super::create::{Creation, START};
use super::migrate::unpause;
use super::restore;
use crate::device::removal;
use crate::domain;
use crate::error::{Cause, Failure, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::handover::receiver::{Arrival, Work};
use crate::handover::{Identity, JournalFile, MigrationRole, disks};
use crate::operation::{ENTRY, Resumed, Step, StepResult, ids, run};
use crate::{Guest, Toolstack, UndoFailure, stubdomain};
pub use taking::IncomingGuest;
pub(super) use taking::Taking;

/// The steps. Those that a restore has too have its ids and undo. At the end of `receive-memory` the guest stands still,
/// so what can be done before is done before: interfaces, backends, and QEMU's start.
fn steps<'a, 'b>() -> Vec<Step<Creation<'b>>>
where
    'b: 'a,
{
    let mut steps = vec![
        Step::new("check", "check the guest", check),
        Step::new(ENTRY, "write the state file", Creation::write_record).entry(),
        Step::new("open", "record the incoming guest", open).undo(close),
    ];
    steps.extend(restore::domain_steps());
    steps.extend([
        Step::new("connect-nics", "connect network interfaces", connect_early)
            .undo(|c: &mut Creation<'_>| removal::remove_ports(c.ts, &mut c.record)),
        Step::new("receive-memory", "receive the guest's memory", receive_memory).undo(abort),
        Step::new("run-nic-scripts", "run scripts of network interfaces", connect_late)
            .undo(|c: &mut Creation<'_>| removal::remove_ports(c.ts, &mut c.record)),
        Step::new("introduce", "introduce the guest", restore::introduce),
        Step::new("load-devices", "load the state of QEMU's devices", restore::load_devices).undo(abort),
        Step::new("await-hand-over", "wait until the other host hands the guest over", await_hand_over)
            .undo(abort),
        Step::new("commit", "take the guest over", commit).undo(abort),
        Step::new("take-disks", "take the disks over", take_disks).undo(give_disks_back),
        Step::new(START, "start the guest", start_guest).point_of_no_return(),
    ]);
    steps
}

impl Toolstack {
    /// The ids of the steps of [`Self::receive`], in order.
    #[must_use]
    pub fn receive_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Takes a guest from another host, and returns when it runs here.
    ///
    /// # Errors
    /// As for [`Self::create`]: nothing is left here, and the guest goes on at the other host.
    pub fn receive(&self, guest: IncomingGuest, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let (saved, incoming) = guest.open(self)?;
        let config = saved.config.clone();
        let record = self.new_record(&config, saved.uuid)?;
        let mut reception = Creation::new(self, &config, record);
        reception.saved = Some(saved);
        reception.incoming = Some(Box::new(incoming));
        let failure = reception.incoming.as_ref().map(|incoming| Rc::clone(&incoming.failure));
        let ran = run(&steps(), &mut reception, &self.faults, &mut |event| {
            // The other host is told why before what was done is undone.
            if let (Event::StepFailed { error, .. }, Some(failure)) = (&event, &failure) {
                *failure.borrow_mut() = Some(error.clone());
            }
            events(event);
        });
        settle(&mut reception, &ran);
        let name = reception.record.name.clone();
        let (ran, left) = match ran {
            Ok(left) => (Ok(()), left),
            Err(failure) => (Err(failure), Vec::new()),
        };
        let guest = reception.conclude(ran, events)?;
        for failure in left {
            let why = failure.cause.chain();
            let text = format!(
                "Guest {name} was taken over, but does not run yet ({why}); remove the cause, then restart outriggerd, which \
                 continues this"
            );
            events(Event::Warning { text });
        }
        Ok(guest)
    }
}

/// Tells the machine and the other host how it ended.
fn settle(c: &mut Creation<'_>, ran: &Result<Vec<UndoFailure>, Failure>) {
    let Some(incoming) = &mut c.incoming else { return };
    match ran {
        Ok(left) if left.is_empty() => incoming.taken_over(c.ts),
        // The next change of the guest, or the next daemon, goes on with it.
        Ok(_) => {}
        Err(_) => incoming.refuse(c.ts),
    }
}

/// The context of a reception always has one.
fn incoming<'c, 'b>(c: &'c mut Creation<'b>) -> Result<&'c mut Taking<'b>, Cause> {
    c.incoming.as_deref_mut().ok_or(Cause::TooEarly { what: "connection to the other host" })
}

fn check(c: &mut Creation<'_>) -> StepResult {
    let (ts, config) = (c.ts, c.config);
    c.check().inspect_err(|_| refused_for(c, Reason::Refused))?;
    let incoming = incoming(c)?;
    incoming.check_xen()?;
    let (disks, id) = (incoming.disks().to_vec(), incoming.id());
    disks::check(ts, config, &disks, id).inspect_err(|_| refused_for(c, Reason::DisksDiffer))
}

fn refused_for(c: &mut Creation<'_>, reason: Reason) {
    if let Some(incoming) = &mut c.incoming {
        incoming.reason = reason;
    }
}

/// Writes OPEN.
fn open(c: &mut Creation<'_>) -> StepResult {
    let ts = c.ts;
    incoming(c)?.begin(ts, None)
}

/// The domains are gone.
fn close(c: &mut Creation<'_>) -> StepResult {
    abort(c)?;
    if let Some(arrival) = c.incoming.as_mut().and_then(|incoming| incoming.arrival.as_mut()) {
        arrival.tell(Told::Destroyed);
    }
    Ok(())
}

/// A script may do more than add a port to a bridge: announce the guest's address here while it still runs there.
fn has_scripts(c: &Creation<'_>) -> bool {
    c.config.nics.iter().any(|nic| nic.script.is_some())
}

fn connect_early(c: &mut Creation<'_>) -> StepResult {
    if has_scripts(c) { Ok(()) } else { connect(c) }
}

fn connect_late(c: &mut Creation<'_>) -> StepResult {
    if has_scripts(c) { connect(c) } else { Ok(()) }
}

fn connect(c: &mut Creation<'_>) -> StepResult {
    c.connect_nics()?;
    c.await_backends()
}

/// Says that the domains are built, and receives the memory.
fn receive_memory(c: &mut Creation<'_>) -> StepResult {
    let (patience, first) = (c.ts.deadlines.state, c.ts.deadlines.peer_work);
    let mut taken = c.incoming.take().ok_or(Cause::TooEarly { what: "connection to the other host" })?;
    let received = taken.receive(|| {
        let read = c.saved.as_ref().map_or(Ok(()), |saved| saved.read_begin(first));
        let read = read.and_then(|()| c.build_guest());
        let state = read.and_then(|()| c.saved.as_ref().map(|saved| saved.read_state(patience)).transpose());
        // What is still written into its pipe is not wanted any more.
        c.saved = None;
        state
    });
    c.incoming = Some(taken);
    c.state = received?.unwrap_or_default();
    Ok(())
}

/// Nothing can run or write here until it is unpaused: the guest not even if someone unpauses it once.
fn fence(c: &mut Creation<'_>) -> StepResult {
    domain::pause(c.ts, c.progress.stub_running()?.domain)?;
    domain::pause(c.ts, c.progress.guest_made()?.domain)
}

fn await_hand_over(c: &mut Creation<'_>) -> StepResult {
    fence(c)?;
    let limit = Instant::now() + 2 * c.ts.deadlines.peer_work;
    incoming(c)?.await_hand_over(limit)
}

/// Writes COMMITTED: from here on the guest is this host's.
fn commit(c: &mut Creation<'_>) -> StepResult {
    let is_paused = match c.record.guest_domain(c.ts)? {
        Some(domain) => {
            c.ts.look(domain)?.is_some_and(|info| info.state.paused && info.state.shutdown.is_none())
        }
        None => false,
    };
    let event = if is_paused { Told::StillPaused } else { Told::CopyGone(Ended::Destroyed) };
    incoming(c)?.expect(event, Work::Arm)
}

fn take_disks(c: &mut Creation<'_>) -> StepResult {
    disks::forget_cached(c.ts, c.config)?;
    unpause(c.ts, c.progress.stub_running()?.domain)?;
    restore::run_device_model(c)
}

/// Nothing here can write to the disks any more when the sender is told that they are its own.
fn give_disks_back(c: &mut Creation<'_>) -> StepResult {
    c.stop_stub()?;
    abort(c)
}

/// From here on there is no way back. The guest was paused more than once.
fn start_guest(c: &mut Creation<'_>) -> StepResult {
    incoming(c)?.armed();
    match c.record.guest_domain(c.ts)? {
        Some(domain) => run_guest(c.ts, domain),
        None => Err(Cause::NotRunning { name: c.record.name.clone(), reason: None }),
    }
}

/// Unpauses a guest that was paused for its fence too.
pub(super) fn run_guest(ts: &Toolstack, guest: crate::Domain) -> StepResult {
    // A domain is made paused, and was paused for the fence; a user may have paused it too.
    const MOST: usize = 8;
    for _ in 0..MOST {
        if !ts.look(guest)?.is_some_and(|info| info.state.paused && info.state.shutdown.is_none()) {
            return Ok(());
        }
        ts.hypervisor.unpause_domain(guest.domid())?;
    }
    Ok(())
}

/// Records that the guest is not taken over, and says so; only then it may be destroyed.
fn abort(c: &mut Creation<'_>) -> StepResult {
    if let Some(incoming) = &mut c.incoming {
        incoming.abort();
    }
    Ok(())
}

/// Goes on with a guest that an earlier process committed to: its disks are taken over, and it runs.
pub(super) fn resume_reception<'a>(
    live: Live<'a>,
    id: MigrationId,
) -> Result<(Live<'a>, Result<Resumed, Vec<UndoFailure>>), Cause> {
    let (ts, own) = (live.ts, Identity::find(live.ts)?.journal);
    let Some((journal, Record::Receiver(record))) = JournalFile::load(ts, MigrationRole::Receiver, id)?
    else {
        let name = live.record.name.clone();
        return Err(Cause::NotNow { name, why: "has lost the journal of its migration".to_owned() });
    };
    let (mut arrival, work) = Arrival::restored(ts, own, (journal, record), None);
    if let Some(cause) = arrival.trouble.take() {
        return Err(cause);
    }
    if work == Some(Work::Inspect) {
        let copy = ts.copy_of(&arrival.journal().about.clone())?;
        arrival.tell(Told::Inspected(copy));
    }
    let live = take_over(live)?;
    arrival.tell(Told::Armed);
    arrival.tell(Told::Unpaused);
    Ok((live, Ok(Resumed::Completed)))
}

/// Takes the disks of a guest over that is this host's already, and lets it run.
pub(super) fn take_over(mut live: Live<'_>) -> Result<Live<'_>, Cause> {
    let ts = live.ts;
    disks::forget_cached(ts, &live.record.config)?;
    if let Some(stub) = live.record.stub_domain(ts)? {
        unpause(ts, stub)?;
    }
    stubdomain::cont(ts, live.id())?;
    run_guest(ts, live.domain()?)?;
    live.record.operation = None;
    live.save()?;
    Ok(live)
}
