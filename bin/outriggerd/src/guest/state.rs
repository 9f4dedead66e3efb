//! What a guest's driver does, as a state machine without I/O.
//!
//! [`State::step`] takes an event and returns the effects that the driver runs. All that a driver knows of its guest is
//! in one [`State`]; what others see of it is its [`View`].
//!
//! ```text
//!   create                  adopt                       adopt, incomplete
//!     │                       │ unfinished change             │ (a restart goes on:
//!     ▼                       ▼                               ▼  Busy(restart))
//!  Busy(create)          Busy(settle)                   Busy(clean up)
//!     │   │ failed            │                               │
//!     │   ▼                   │                               │
//!     │  Gone, or incomplete  │                               │
//!     ▼                       ▼                               │
//!  ┌───────────────────── Running ◀──▶ Busy(change, screenshot)◀──▶ Preserved
//!  │ a client destroys it     │ it ended, or its device model died:         │
//!  │                          │ its configuration decides                   │
//!  │      ┌─────────┬─────────┼───────────────┬──────────────┐              │
//!  │      │ destroy │ preserve│ pause and     │ restart      │ rename and   │
//!  │      │         ▼         ▼ preserve      │              │ restart      │
//!  │      │     Preserved ◀─ Busy(pause)      ▼              ▼              │
//!  │      │                            [Delayed, if it lived briefly]       │
//!  │      │                                   │              │              │
//!  │      │                                   ▼              ▼              │
//!  │      │                            Busy(restart)   Busy(preserve as)    │
//!  │      │                              │      │             │             │
//!  │      │                              ▼      ▼ failed      ▼             │
//!  │      │                           Running  Gone       Preserved, and a  │
//!  ▼      ▼                                            new guest is created │
//!  Busy(destroy) ◀──────────── a client destroys it, or it is gone ─────────┘
//!     │    │ something is left of it
//!     ▼    ▼
//!   Gone  Preserved
//! ```
//!
//! A migration, or an earlier daemon's, may end with a guest that is Held: it is suspended, and another host has to say
//! whether it has the guest. Nothing is done with it but Busy(resolve), after which it is gone, runs, or is still Held.
//!
//! A create that fails and cannot be undone completely leaves an incomplete guest, which is Preserved until a client
//! destroys it. A restart that fails before anything was destroyed leaves the guest Preserved. While a job is in progress the guest
//! is not looked at; it is looked at when the job has ended. Requests are refused while a job is in progress, and the
//! refusal names it; quick requests (pause, shut down and others) are executed during a screenshot too. While an
//! earlier daemon's change is settled, the driver takes no requests: they wait in its queue.

mod step;
#[cfg(test)]
mod tests;

use std::time::Duration;

use api::types::{self, Refusal, State as Shown};
use config::Uuid;
use toolstack::{Guest, GuestEvent, GuestId, Turn};

use super::heartbeat::{Beat, Heartbeat};
use super::request::MIGRATE;
use super::view::{Incomplete, View};
use crate::backoff::Backoff;
use step::Step;

/// The first interval at which a guest is queried again while Xen does not answer.
const FIRST_LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Names a client's request until it is answered.
pub(crate) type RequestId = u64;

/// Work on a thread of its own. At most one is in progress for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Makes the guest.
    Create,
    /// Destroys it.
    Destroy,
    /// Destroys what an earlier daemon left incomplete.
    CleanUp,
    /// Destroys the guest and creates it again.
    Restart(Turn),
    /// Renames the ended guest, so that a new one gets its name. It is shown in this state then.
    PreserveAs(Turn, Shown),
    /// Pauses the guest before it is preserved.
    Pause,
    /// Changes it while it runs; with the change's name.
    Change(&'static str),
    /// Settles a migration of it.
    Resolve,
    /// Completes or undoes a change that an earlier daemon began, or that was given up too early.
    Settle,
    /// Takes a screenshot: a query that needs the guest's devices for itself.
    Screenshot,
}

impl Job {
    /// Its name, as steps and errors carry it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Destroy | Self::CleanUp => "destroy",
            Self::Restart(_) | Self::PreserveAs(..) => "restart",
            Self::Pause => "preserve",
            Self::Change(name) => name,
            Self::Resolve => "resolve",
            Self::Settle => "settle",
            Self::Screenshot => "screenshot",
        }
    }
}

/// What a driver reacts to.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A client wants it destroyed.
    Destroy(RequestId),
    /// A client wants a change of it, which has this name.
    Change(RequestId, &'static str),
    /// A client wants a screenshot.
    Screenshot(RequestId),
    /// A client wants a migration of it settled.
    Resolve(RequestId),
    /// A client wants something that needs no job.
    Quick(RequestId),
    /// Some domain has changed in Xen.
    Look,
    /// The guest with this stubdomain was looked at: what has ended, or nothing; `None` when Xen did not answer.
    Observed(Uuid, Option<Option<GuestEvent>>),
    /// It is time to check the device model's heartbeat.
    Tick,
    /// The heartbeat of this stubdomain was checked; `None` when Xen or xenstore did not answer.
    Heartbeat(Uuid, Option<Beat>),
    /// The job in progress has ended, with the guest that exists now.
    Ended(Box<Result<Option<Guest>, Failed>>),
    /// A timer has expired.
    Expired(Timer),
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Xen is asked again.
    Look,
    /// The guest is looked at as if for the first time.
    Afresh,
    /// A delayed restart begins.
    Restart(Turn),
    /// This stubdomain was destroyed externally; by now the guest should be too.
    Orphaned(Uuid),
}

/// The failure of a job.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    /// What remains of the guest.
    pub(crate) remains: Remains,
    /// The guest, if its state file says that a part of it remains.
    pub(crate) recorded: Option<GuestId>,
    /// The host that has to decide about the guest, which is suspended.
    pub(crate) held: Option<String>,
    /// If it was held: the other host has decided, and what follows from that is not complete.
    pub(crate) decided: bool,
    /// For the client.
    pub(crate) refusal: Refusal,
    /// For the event.
    pub(crate) detail: String,
}

/// What remains of the guest after a failed job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remains {
    /// Nothing.
    Nothing,
    /// All of it: the job failed before anything was destroyed.
    Unchanged,
    /// Some of it, or it is not known what.
    Something,
}

/// What the driver does.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Look at the guest and its stubdomain in Xen.
    Observe,
    /// Check the heartbeat of its stubdomain.
    CheckHeartbeat,
    /// Log that the device model's heartbeat was lost, so long ago.
    HeartbeatLost(Duration),
    /// Set a timer.
    Timer(Duration, Timer),
    /// Start a job, for a client if there is a request.
    Start(Job, Option<RequestId>),
    /// Execute a quick request and answer it.
    Perform(RequestId),
    /// Answer a request.
    Reply(RequestId, Reply),
    /// Tell subscribers.
    Publish(types::Event),
    /// End the session with the device model, which has ended.
    ReleaseMonitor,
    /// Record a delayed restart, so that the next daemon waits only for the rest.
    RecordRestart(Turn),
    /// Remove the record of a delayed restart that will not be.
    ForgetRestart,
    /// Create the guest that follows this one, which is preserved under another name.
    CreateSuccessor(Box<Guest>, Turn),
    /// Log that a guest was removed that an earlier daemon left incomplete.
    CleanedUp,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It was done.
    Done,
    /// The guest was created.
    Created,
    /// It was not done.
    Refused(Refusal),
}

/// The deadlines that a driver keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long a device model may be without a heartbeat.
    pub(crate) heartbeat: Duration,
    /// How long a guest may be without its stubdomain after that was destroyed externally.
    pub(crate) orphaned: Duration,
}

/// How a guest is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It is destroyed first.
    Restart,
    /// It is preserved under another name, and shown in this state.
    PreserveAs(Shown),
}

/// What is being done with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing: it runs.
    Running,
    /// Nothing: it has ended, and is preserved until it is destroyed.
    Preserved(Shown),
    /// Nothing: it has ended, and its restart waits for its time.
    Delayed(Way, Turn),
    /// Nothing: it is suspended, and another host has to decide about it.
    Held,
    /// A job is in progress. If it leaves the guest as it was, the guest is preserved as this, or runs.
    Busy { job: Job, request: Option<RequestId>, preserved: Option<Shown> },
    /// It does not exist any more.
    Gone,
}

impl Phase {
    /// Of a guest of an earlier daemon. One with another name than in its configuration was preserved under that name:
    /// its end has been handled.
    fn adopted(guest: &Guest) -> Self {
        if guest.name == guest.config.name { Self::Running } else { Self::Preserved(Shown::ShutDown) }
    }
}

/// Whether the guest is being looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Look {
    #[default]
    No,
    InProgress,
    /// Something has happened since it began.
    Again,
}

/// All that is known of a guest.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Its name, also before there is a guest.
    name: String,
    guest: Option<Guest>,
    /// What is left of a guest that was not created.
    incomplete: Option<Incomplete>,
    phase: Phase,
    /// The host that has to decide about it, while it is held and while that is being resolved; empty if not known.
    held: Option<String>,
    /// The last event that was found and reported: none is reported twice.
    found: Option<GuestEvent>,
    backoff: Backoff,
    heartbeat: Heartbeat,
    /// Whether the heartbeat is being checked.
    checking: bool,
    look: Look,
    /// How long to wait until Xen is queried again.
    patience: Duration,
    limits: Limits,
}

impl State {
    fn new(name: String, guest: Option<Guest>, phase: Phase, backoff: Backoff, limits: Limits) -> Self {
        Self {
            name,
            guest,
            incomplete: None,
            phase,
            held: None,
            found: None,
            backoff,
            heartbeat: Heartbeat::new(limits.heartbeat),
            checking: false,
            look: Look::No,
            patience: FIRST_LOOK_AGAIN,
            limits,
        }
    }

    /// A guest that is being created, for a client if there is a request.
    pub(crate) fn creating(
        name: String,
        request: Option<RequestId>,
        backoff: Backoff,
        limits: Limits,
    ) -> Self {
        let phase = Phase::Busy { job: Job::Create, request, preserved: None };
        Self::new(name, None, phase, backoff, limits)
    }

    /// A guest of an earlier daemon; with `settling`, a change of it is being settled.
    pub(crate) fn adopted(guest: Guest, settling: bool, backoff: Backoff, limits: Limits) -> Self {
        let phase = match Phase::adopted(&guest) {
            Phase::Preserved(shown) if settling => {
                Phase::Busy { job: Job::Settle, request: None, preserved: Some(shown) }
            }
            _ if settling => Phase::Busy { job: Job::Settle, request: None, preserved: None },
            phase => phase,
        };
        Self::new(guest.name.clone(), Some(guest), phase, backoff, limits)
    }

    /// A guest of an earlier daemon about which another host has to decide.
    pub(crate) fn held(guest: Guest, host: String, limits: Limits) -> Self {
        let state = Self::new(guest.name.clone(), Some(guest), Phase::Held, Backoff::default(), limits);
        Self { held: Some(host), ..state }
    }

    /// A guest that an earlier daemon left incomplete, and that is being destroyed.
    pub(crate) fn cleaning_up(name: String, guest: Option<Guest>, limits: Limits) -> Self {
        let phase = Phase::Busy { job: Job::CleanUp, request: None, preserved: None };
        Self::new(name, guest, phase, Backoff::default(), limits)
    }

    /// A guest whose restart goes on, with what there is of it.
    pub(crate) fn restarting(name: String, guest: Option<Guest>, turn: Turn, limits: Limits) -> Self {
        let phase = Phase::Busy { job: Job::Restart(turn), request: None, preserved: None };
        Self::new(name, guest, phase, Backoff::after(turn), limits)
    }

    /// What others see of the guest.
    pub(crate) fn view(&self) -> View {
        let (state, job) = match self.phase {
            Phase::Running | Phase::Gone => (Shown::Running, None),
            Phase::Preserved(shown) => (shown, None),
            Phase::Held => (Shown::Unresolved, None),
            Phase::Delayed(_, turn) => (Shown::Restarting, Some(Job::Restart(turn))),
            Phase::Busy { job, preserved, .. } => {
                let state = match job {
                    Job::Create => Shown::Creating,
                    Job::Destroy | Job::CleanUp => Shown::Destroying,
                    Job::Restart(_) | Job::PreserveAs(..) => Shown::Restarting,
                    Job::Change(MIGRATE) => Shown::Migrating,
                    Job::Resolve if self.held.is_some() => Shown::Unresolved,
                    Job::Pause | Job::Change(_) | Job::Resolve | Job::Settle | Job::Screenshot => {
                        preserved.unwrap_or(Shown::Running)
                    }
                };
                (state, Some(job))
            }
        };
        let (guest, incomplete) = (self.guest.clone(), self.incomplete.clone());
        View { name: self.name.clone(), guest, incomplete, state, job: job.map(Job::name) }
    }

    /// The identity of the guest, or of what is left of it.
    pub(crate) fn id(&self) -> Option<GuestId> {
        let guest = self.guest.as_ref().map(Guest::id);
        guest.or_else(|| self.incomplete.as_ref().map(|incomplete| incomplete.id))
    }

    /// The guest, if it exists.
    pub(crate) fn guest(&self) -> Option<&Guest> {
        self.guest.as_ref()
    }

    /// Whether requests are taken now, or wait.
    pub(crate) fn takes_requests(&self) -> bool {
        !matches!(self.phase, Phase::Busy { job: Job::Settle, .. })
    }

    /// The guest, if another program has destroyed it.
    pub(crate) fn vanished(&self) -> Option<Guest> {
        self.guest.clone().filter(|_| self.found == Some(GuestEvent::Gone))
    }

    /// Whether the guest does not exist any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    /// Reacts to an event. `now` is [`crate::backoff::now`].
    pub(crate) fn step(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let mut step = Step::new(self, now);
        step.take(event);
        step.into_effects()
    }
}
