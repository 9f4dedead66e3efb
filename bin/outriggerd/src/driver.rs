//! One task per guest: owns its state, takes events from a queue, and runs lifecycles on threads of their own.
//!
//! ```text
//!  Busy(create) ──done──▶ Running ──shut down, or device model died──▶ by the configuration:
//!      │ failed            │   ▲                                         destroy  ─▶ Busy(destroy)
//!      ▼                   │   └────────done──── Busy(restart) ◀──────── restart
//!    gone                  │ a client destroys it                        preserve ─▶ Kept
//!      ▲                   ▼                                                          │
//!      └──────done──── Busy(destroy) ◀────────────a client destroys it────────────────┘
//! ```
//!
//! The restart of a guest that ended soon after its start is delayed, see [`crate::backoff`]: the driver is Waiting. A
//! change of a guest is Busy too, and returns to the previous state. A guest whose destroy fails is Kept too. A Kept
//! guest is only checked for whether it was destroyed externally.
//!
//! All of a driver's state can be read back from Xen, xenstore, the guest's state file and, during a restart, a note
//! (see [`crate::restarts`]), so that a new daemon's driver continues where a killed one was.

mod adopt;
mod ended;
mod requests;
mod restart;

use std::time::{Duration, Instant};

use api::types::{Refusal, State as ApiState};
use config::{GuestConfig, Uuid};
use tokio::sync::mpsc;
use toolstack::{CreateOptions, Decision, Guest, GuestEvent, Monitors as _, Toolstack, decide};

use crate::answer::Answer;
use crate::backoff::{Backoff, Turn};
use crate::change::Change;
use crate::convert;
use crate::job::{self, Ended, Job};
use crate::observe;
use crate::pulse::{self, Beat, Pulse};
use crate::qmp::Qmp;
use crate::refusal::chain;
use crate::registry::{Entry, Key, Registry};
use crate::restarts::{Note, Restarts};

pub(crate) use adopt::{adopt, finish};
pub(crate) use requests::Request;
use restart::{Waiting, Way};

/// The first and the longest interval at which a guest is queried again while Xen does not answer.
const FIRST_LOOK_AGAIN: Duration = Duration::from_millis(500);
const LONGEST_LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The channel of a handler's answers.
pub(crate) type Replies = mpsc::Sender<Answer>;

/// What a driver reacts to.
#[derive(Debug)]
pub(crate) enum Event {
    /// Some domain has changed in Xen: query ours.
    Look,
    /// A client wants it destroyed.
    Destroy(Replies),
    /// A client wants it changed while it runs.
    Change(Change, Replies),
    /// A client wants something quick.
    Request(Request, Replies),
    /// The lifecycle that was in progress has ended.
    Ended(Box<Ended>),
    /// The heartbeat of the device model in the stubdomain with this UUID was checked.
    Beat(Uuid, Beat),
    /// The wait for this restart is over.
    Due(Turn),
    /// The stubdomain with this UUID was destroyed externally, and the time for the guest to follow it is over.
    Left(Uuid),
}

/// What a driver is doing.
#[derive(Debug)]
enum State {
    /// Nothing: the guest runs.
    Running,
    /// Nothing: the guest has ended and is preserved until it is destroyed.
    Kept,
    /// Nothing: the guest has ended, and its restart waits for its time.
    Waiting(Waiting),
    /// A lifecycle is in progress; the client that asked for it waits for its end.
    Busy(Job, Option<Replies>),
}

/// What all drivers share.
#[derive(Clone)]
pub(crate) struct Shared {
    /// Does the work.
    pub(crate) toolstack: Toolstack,
    /// Knows all guests.
    pub(crate) registry: Registry,
    /// Records restarts that are in progress.
    pub(crate) restarts: Restarts,
    /// The sessions with device models.
    pub(crate) qmp: Qmp,
}

/// A guest to be made.
pub(crate) struct Wanted {
    /// Of this.
    pub(crate) config: GuestConfig,
    /// In this way.
    pub(crate) options: CreateOptions,
    /// What is done with the end of its create.
    pub(crate) note: Option<Note>,
    /// The restarts of the guest before it.
    pub(crate) backoff: Backoff,
}

/// A guest's driver.
struct Driver {
    shared: Shared,
    key: Key,
    /// The guest's name, also before there is a guest.
    name: String,
    guest: Option<Guest>,
    state: State,
    /// It was preserved before the change that is in progress.
    kept: bool,
    /// Its restarts.
    backoff: Backoff,
    /// A change that the previous daemon began is being completed or undone; requests wait meanwhile.
    settling: bool,
    /// It is destroyed because the previous daemon left it incomplete.
    leftover: bool,
    deferred: Vec<Event>,
    /// The guest that is made when this one is destroyed.
    next: Option<Wanted>,
    /// How long to wait until Xen is queried again.
    patience: Duration,
    /// Why it is being renamed.
    ended_by: Option<GuestEvent>,
    /// The last event that was found and reported: none is reported twice.
    seen: Option<GuestEvent>,
    /// The heartbeat watchdog of its stubdomain's agent.
    pulse: Pulse,
    queue: mpsc::UnboundedReceiver<Event>,
    handle: mpsc::UnboundedSender<Event>,
}

/// Makes a new guest, for a client when there are `replies`.
pub(crate) fn create(shared: &Shared, wanted: Wanted, replies: Option<Replies>) -> Result<(), Refusal> {
    let Wanted { config, options, note, backoff } = wanted;
    let state = State::Busy(Job::Create, replies.clone());
    let mut driver = Driver::enter(shared, config.name.clone(), None, ApiState::Creating, state)?;
    driver.backoff = backoff;
    let toolstack = shared.toolstack.clone();
    job::spawn(Job::Create, &driver.name, &driver.handle, replies, move |events| {
        let created = toolstack.create(&config, options, events);
        if let Some(note) = note {
            note.done();
        }
        Ok(created.map(Some)?)
    });
    tokio::spawn(driver.run());
    Ok(())
}

impl Driver {
    /// Enters a guest into the registry; its driver does not run yet.
    fn enter(
        shared: &Shared,
        name: String,
        guest: Option<Guest>,
        shown: ApiState,
        state: State,
    ) -> Result<Self, Refusal> {
        let (handle, queue) = mpsc::unbounded_channel();
        let events = handle.clone();
        let entry = Entry { name: name.clone(), guest: guest.clone(), state: shown, events };
        let key = shared.registry.enter(entry)?;
        let pulse = Pulse::new(shared.toolstack.deadlines().heartbeat);
        let (shared, kept, ended_by, seen) = (shared.clone(), false, None, None);
        let (backoff, settling, leftover, deferred, next) =
            (Backoff::default(), false, false, Vec::new(), None);
        let patience = FIRST_LOOK_AGAIN;
        Ok(Self {
            shared,
            key,
            name,
            guest,
            state,
            kept,
            backoff,
            settling,
            leftover,
            deferred,
            next,
            patience,
            ended_by,
            seen,
            pulse,
            queue,
            handle,
        })
    }

    async fn run(mut self) {
        let _ = self.handle.send(Event::Look);
        let mut beats = tokio::time::interval(self.pulse.interval());
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = self.queue.recv() => event,
                _ = beats.tick() => {
                    self.feel();
                    continue;
                }
            };
            let Some(event) = event else { break };
            if self.settling && !matches!(event, Event::Ended(_)) {
                self.deferred.push(event);
                continue;
            }
            match event {
                Event::Look => self.look(),
                Event::Destroy(replies) => self.destroy_for(replies),
                Event::Change(change, replies) => self.change_for(change, replies),
                Event::Request(request, replies) => self.request(request, replies),
                Event::Ended(ended) => self.ended(*ended),
                Event::Beat(stub, beat) => self.beat(stub, beat),
                Event::Due(turn) => self.due(turn),
                Event::Left(stub) => self.left(stub),
            }
            if self.guest.is_none() && !matches!(self.state, State::Busy(..)) {
                break;
            }
        }
        self.turn_away();
    }

    /// Answers the clients that waited for the guest while it was ending.
    fn turn_away(&mut self) {
        self.shared.registry.forget(self.key);
        self.queue.close();
        while let Ok(event) = self.queue.try_recv() {
            if let Event::Destroy(replies) | Event::Change(_, replies) | Event::Request(_, replies) = event {
                self.no_guest_answer(&replies);
            }
        }
    }

    /// Checks whether the guest or its stubdomain has ended, and does what the configuration says.
    fn look(&mut self) {
        let (State::Running | State::Kept | State::Waiting(_), Some(guest)) =
            (&self.state, self.guest.clone())
        else {
            return;
        };
        let found = match observe::guest(&self.shared.toolstack, &guest) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(guest = guest.name, error = %chain(&error), "cannot query a guest");
                return self.look_later();
            }
        };
        self.patience = FIRST_LOOK_AGAIN;
        if found == self.seen {
            return;
        }
        self.seen.clone_from(&found);
        let Some(event) = found else { return };
        self.act(&guest, &event);
    }

    /// Xen does not answer: tries again at growing intervals.
    fn look_later(&mut self) {
        let (handle, wait) = (self.handle.clone(), self.patience);
        self.patience = (wait * 2).min(LONGEST_LOOK_AGAIN);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = handle.send(Event::Look);
        });
    }

    /// Checks the device model's heartbeat, on a thread that may block.
    fn feel(&self) {
        let (State::Running, Some(guest)) = (&self.state, self.guest.clone()) else { return };
        let (toolstack, handle) = (self.shared.toolstack.clone(), self.handle.clone());
        tokio::task::spawn_blocking(move || {
            // A failed query does not mean that it is dead; the next check tells.
            if let Ok(beat) = pulse::look(&toolstack, &guest) {
                let _ = handle.send(Event::Beat(guest.stub_uuid, beat));
            }
        });
    }

    fn beat(&mut self, stub: Uuid, beat: Beat) {
        let (State::Running, Some(guest)) = (&self.state, self.guest.clone()) else { return };
        if guest.stub_uuid != stub || self.seen.is_some() {
            return;
        }
        if let Some(still) = self.pulse.take(Instant::now(), beat) {
            // Shows whether a hung device model spins or sleeps.
            let stub = self.shared.toolstack.domain_info(guest.stub_domid, guest.stub_uuid).ok().flatten();
            tracing::error!(
                guest = guest.name,
                seconds = still.as_secs(),
                ran_seconds = stub.as_ref().map(|info| info.cpu_time.as_secs_f32()),
                runs_now = stub.as_ref().map(|info| info.state.running),
                "device model heartbeat lost"
            );
            self.pulse = Pulse::new(self.shared.toolstack.deadlines().heartbeat);
            self.act(&guest, &GuestEvent::DeviceModelDied);
        }
    }

    /// Handles an event as the configuration says.
    fn act(&mut self, guest: &Guest, event: &GuestEvent) {
        if matches!(event, GuestEvent::DeviceModelDied | GuestEvent::DeviceModelTaken | GuestEvent::Gone) {
            // A domain cannot be destroyed completely while we map its pages.
            self.shared.qmp.release(guest.id());
        }
        if matches!(self.state, State::Kept) && *event != GuestEvent::Gone {
            // It is preserved because it has ended.
            self.shared.registry.update(self.key, |entry| entry.state = kept_as(event));
            return;
        }
        self.shared.registry.tell(guest, convert::kind(event), convert::detail(event));
        if *event == GuestEvent::DeviceModelTaken {
            // The program that destroyed the stubdomain destroys the guest next, and should find it as it was.
            let (handle, wait) = (self.handle.clone(), self.shared.toolstack.deadlines().taken);
            let stub = guest.stub_uuid;
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                let _ = handle.send(Event::Left(stub));
            });
        } else {
            self.follow(guest, event);
        }
    }

    /// The guest should be gone by now, like its stubdomain, which was destroyed externally.
    fn left(&mut self, stub: Uuid) {
        let (State::Running, Some(guest)) = (&self.state, self.guest.clone()) else { return };
        if guest.stub_uuid == stub && self.seen == Some(GuestEvent::DeviceModelTaken) {
            self.follow(&guest, &GuestEvent::DeviceModelTaken);
        }
    }

    /// Follows the configuration's decision.
    fn follow(&mut self, guest: &Guest, event: &GuestEvent) {
        match decide(&guest.config, event) {
            Decision::Nothing => {}
            Decision::Destroy => self.destroy(guest, None),
            Decision::Restart => self.again(guest, Way::Restart),
            Decision::RenameRestart => self.again(guest, Way::RenameRestart(event.clone())),
            Decision::Preserve => self.keep(guest, event),
            Decision::PauseAndPreserve => {
                if let Err(error) = self.shared.toolstack.pause_once(guest.id()) {
                    tracing::error!(guest = guest.name, error = %chain(&error), "cannot pause it");
                }
                self.keep(guest, event);
            }
        }
    }

    fn keep(&mut self, guest: &Guest, event: &GuestEvent) {
        self.forget_turn();
        self.state = State::Kept;
        self.shared.registry.update(self.key, |entry| entry.state = kept_as(event));
        self.shared.registry.tell(guest, "preserved", "`outrigger destroy` removes it");
    }

    fn busy(&mut self, job: Job, replies: Option<Replies>) {
        let state = if job == Job::Destroy { ApiState::Destroying } else { ApiState::Restarting };
        self.shared.registry.update(self.key, |entry| entry.state = state);
        self.state = State::Busy(job, replies);
    }
}

/// The state that is shown for a preserved guest.
const fn kept_as(event: &GuestEvent) -> ApiState {
    match event {
        GuestEvent::DeviceModelDied | GuestEvent::DeviceModelTaken => ApiState::DmDead,
        GuestEvent::Shutdown(xen::ShutdownReason::Crash) => ApiState::Crashed,
        GuestEvent::Shutdown(_) | GuestEvent::Gone | GuestEvent::EndedWithHost => ApiState::ShutDown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::world::World;

    #[tokio::test]
    async fn who_asks_for_a_guest_that_has_just_gone_is_told_so() {
        let world = World::new();
        let shared = world.shared();
        let state = State::Running;
        let driver = Driver::enter(&shared, "gone".to_owned(), None, ApiState::Running, state).unwrap();
        let (replies, mut answers) = mpsc::channel(2);
        driver.handle.send(Event::Destroy(replies.clone())).unwrap();
        driver.handle.send(Event::Request(Request::Pause, replies)).unwrap();
        driver.run().await;
        for _ in 0..2 {
            let (reply, last) = answers.recv().await.unwrap().into_reply();
            assert!(last);
            assert_eq!(reply.error.as_deref(), Some("io.outrigger.NoSuchGuest"));
        }
        assert!(shared.registry.find("gone", |_| None).is_err());
    }
}
