//! One task a guest: owns what is known of it, takes events from a queue, starts lifecycles on threads of their own.
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
//! A change of a guest is Busy too, and comes back to where it was. A guest whose destroy fails is Kept too. One that is Kept is looked at only for whether another toolstack has
//! destroyed it.
//!
//! All that a driver knows can be read back from Xen, xenstore, the guest's state file and, while it is made again, a
//! note (see [`crate::restarts`]), so that a new daemon's driver goes on where a killed one was.

use std::time::Instant;

use api::types::{Failure, Progress, State as ApiState, Via};
use config::{GuestConfig, Uuid};
use tokio::sync::mpsc;
use toolstack::{
    CreateOptions, Decision, Guest, GuestEvent, Monitors as _, ShutdownWay, Signal, Toolstack, decide,
};

use crate::answer::Answer;
use crate::change::{self, Change};
use crate::convert;
use crate::job::{self, Ended, Job};
use crate::observe;
use crate::pulse::{self, Beat, Pulse};
use crate::qmp::Qmp;
use crate::registry::{Entry, Key, Registry};
use crate::restarts::{Note, Restarts};

/// Where a handler's answers go.
pub(crate) type Replies = mpsc::Sender<Answer>;

/// What a driver reacts to.
#[derive(Debug)]
pub(crate) enum Event {
    /// Xen has news of some domain: look at ours.
    Look,
    /// A client wants it destroyed.
    Destroy(Replies),
    /// A client wants it changed while it runs.
    Change(Change, Replies),
    /// A client wants something quick.
    Request(Request, Replies),
    /// The lifecycle that was under way has ended.
    Ended(Box<Ended>),
    /// The heartbeat of the device model in the stubdomain with this UUID was checked.
    Beat(Uuid, Beat),
    /// The stubdomain with this UUID was destroyed externally, and the time for the guest to follow it is over.
    Left(Uuid),
}

/// Requests that need no lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Stop its processors.
    Pause,
    /// Let them run.
    Unpause,
    /// Ask it to power off.
    Shutdown,
    /// Ask it to reboot.
    Reboot,
    /// Signal to its virtual hardware, at this processor.
    Trigger(Signal, u32),
    /// Press a magic key.
    Sysrq(char),
}

/// What a driver is doing.
#[derive(Debug)]
enum State {
    /// Nothing: the guest runs.
    Running,
    /// Nothing: the guest has ended and is kept until someone destroys it.
    Kept,
    /// A lifecycle is under way; who asked for it waits for its end.
    Busy(Job, Option<Replies>),
}

/// What all drivers share.
#[derive(Clone)]
pub(crate) struct Shared {
    /// Does the work.
    pub(crate) toolstack: Toolstack,
    /// Knows all guests.
    pub(crate) registry: Registry,
    /// Remembers restarts that are under way.
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
}

/// A guest's driver.
struct Driver {
    shared: Shared,
    key: Key,
    /// The guest's name, also before there is a guest.
    name: String,
    guest: Option<Guest>,
    state: State,
    /// It was kept before the change that is under way.
    kept: bool,
    /// What was found at the last look and told: nothing is told twice.
    seen: Option<GuestEvent>,
    /// The heart of its device model's agent.
    pulse: Pulse,
    queue: mpsc::UnboundedReceiver<Event>,
    handle: mpsc::UnboundedSender<Event>,
}

/// Takes up a guest that is there.
pub(crate) fn adopt(shared: &Shared, guest: Guest) -> Result<(), Failure> {
    // One with another name than its configuration's was kept beside its successor: its end is an old story.
    let state = if guest.name == guest.config.name { State::Running } else { State::Kept };
    let driver = Driver::enter(shared, guest.name.clone(), Some(guest), ApiState::Running, state)?;
    tokio::spawn(driver.run());
    Ok(())
}

/// Makes a new guest, for a client when there are `replies`.
pub(crate) fn create(shared: &Shared, wanted: Wanted, replies: Option<Replies>) -> Result<(), Failure> {
    let Wanted { config, options, note } = wanted;
    let state = State::Busy(Job::Create, replies.clone());
    let driver = Driver::enter(shared, config.name.clone(), None, ApiState::Creating, state)?;
    let toolstack = shared.toolstack.clone();
    job::spawn(Job::Create, &driver.name, &driver.handle, replies, move |events| {
        let created = toolstack.create(&config, options, events);
        if let Some(note) = note {
            note.done();
        }
        created.map(Some)
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
    ) -> Result<Self, Failure> {
        let (handle, queue) = mpsc::unbounded_channel();
        let events = handle.clone();
        let entry = Entry { name: name.clone(), guest: guest.clone(), state: shown, events };
        let key = shared.registry.enter(entry)?;
        let pulse = Pulse::new(shared.toolstack.deadlines().heartbeat);
        let (shared, kept, seen) = (shared.clone(), false, None);
        Ok(Self { shared, key, name, guest, state, kept, seen, pulse, queue, handle })
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
            match event {
                Event::Look => self.look(),
                Event::Destroy(replies) => self.destroy_for(replies),
                Event::Change(change, replies) => self.change_for(change, replies),
                Event::Request(request, replies) => self.request(request, replies),
                Event::Ended(ended) => self.ended(*ended),
                Event::Beat(stub, beat) => self.beat(stub, beat),
                Event::Left(stub) => self.left(stub),
            }
            if self.guest.is_none() && !matches!(self.state, State::Busy(..)) {
                break;
            }
        }
        self.turn_away();
    }

    /// Answers those who asked for the guest when it was about to be gone.
    fn turn_away(&mut self) {
        self.shared.registry.forget(self.key);
        self.queue.close();
        while let Ok(event) = self.queue.try_recv() {
            if let Event::Destroy(replies) | Event::Change(_, replies) | Event::Request(_, replies) = event {
                self.no_guest_answer(&replies);
            }
        }
    }

    /// Looks whether the guest or its stubdomain has ended, and does what the configuration says.
    fn look(&mut self) {
        let (State::Running | State::Kept, Some(guest)) = (&self.state, self.guest.clone()) else { return };
        let found = match observe::guest(&self.shared.toolstack, &guest) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(guest = guest.name, error = %convert::chain(&error), "cannot look at a guest");
                return;
            }
        };
        if found == self.seen {
            return;
        }
        self.seen.clone_from(&found);
        let Some(event) = found else { return };
        self.act(guest, &event);
    }

    /// Looks, on a thread that may wait, whether the device model's heart beats.
    fn feel(&self) {
        let (State::Running, Some(guest)) = (&self.state, self.guest.clone()) else { return };
        let (toolstack, handle) = (self.shared.toolstack.clone(), self.handle.clone());
        tokio::task::spawn_blocking(move || {
            // What cannot be looked at is not dead; the next look tells.
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
            // Whether it spins or sleeps is the first question about one that hangs.
            let stub = self.shared.toolstack.domain_info(guest.stub_domid, guest.stub_uuid).ok().flatten();
            tracing::error!(
                guest = guest.name,
                seconds = still.as_secs(),
                ran_seconds = stub.as_ref().map(|info| info.cpu_time.as_secs_f32()),
                runs_now = stub.as_ref().map(|info| info.state.running),
                "the device model's heart stands still"
            );
            self.pulse = Pulse::new(self.shared.toolstack.deadlines().heartbeat);
            self.act(guest, &GuestEvent::DeviceModelDied);
        }
    }

    /// Does what the configuration says when this has happened.
    fn act(&mut self, guest: Guest, event: &GuestEvent) {
        if matches!(event, GuestEvent::DeviceModelDied | GuestEvent::DeviceModelTaken | GuestEvent::Gone) {
            // Whoever destroys its domain would wait for our pages of it.
            self.shared.qmp.release(guest.id());
        }
        if matches!(self.state, State::Kept) && *event != GuestEvent::Gone {
            // It is kept because it has ended.
            self.shared.registry.update(self.key, |entry| entry.state = kept_as(event));
            return;
        }
        self.shared.registry.tell(&guest, convert::kind(event), convert::detail(event));
        if *event == GuestEvent::DeviceModelTaken {
            // Whoever took the stubdomain takes the guest next, and would find it destroyed, or restarted.
            let (handle, wait) = (self.handle.clone(), self.shared.toolstack.deadlines().taken);
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                let _ = handle.send(Event::Left(guest.stub_uuid));
            });
        } else {
            self.follow(guest, event);
        }
    }

    /// The guest should be gone by now as its stubdomain is; whoever took that did not want the guest.
    fn left(&mut self, stub: Uuid) {
        let (State::Running, Some(guest)) = (&self.state, self.guest.clone()) else { return };
        if guest.stub_uuid == stub && self.seen == Some(GuestEvent::DeviceModelTaken) {
            self.follow(guest, &GuestEvent::DeviceModelTaken);
        }
    }

    /// Follows the configuration's decision.
    fn follow(&mut self, guest: Guest, event: &GuestEvent) {
        match decide(&guest.config, event) {
            Decision::Nothing => {}
            Decision::Destroy => self.destroy(&guest, None),
            Decision::Restart => self.restart(&guest),
            Decision::RenameRestart => self.rename_restart(guest, event),
            Decision::Preserve => self.keep(&guest, event),
            Decision::PauseAndPreserve => {
                if let Err(error) = self.shared.toolstack.pause_once(guest.id()) {
                    tracing::error!(guest = guest.name, error = %convert::chain(&error), "cannot pause");
                }
                self.keep(&guest, event);
            }
        }
    }

    fn keep(&mut self, guest: &Guest, event: &GuestEvent) {
        self.state = State::Kept;
        self.shared.registry.update(self.key, |entry| entry.state = kept_as(event));
        self.shared.registry.tell(guest, "preserved", "outrigger destroy ends it");
    }

    fn busy(&mut self, job: Job, replies: Option<Replies>) {
        let state = if job == Job::Destroy { ApiState::Destroying } else { ApiState::ShutDown };
        self.shared.registry.update(self.key, |entry| entry.state = state);
        self.state = State::Busy(job, replies);
    }

    fn destroy_for(&mut self, replies: Replies) {
        match (&self.state, self.guest.clone()) {
            (State::Running | State::Kept, Some(guest)) => self.destroy(&guest, Some(replies)),
            (State::Busy(job, _), _) => self.busy_answer(*job, &replies),
            (_, None) => self.no_guest_answer(&replies),
        }
    }

    fn change_for(&mut self, change: Change, replies: Replies) {
        let guest = match (&self.state, self.guest.clone()) {
            (State::Busy(job, _), _) => return self.busy_answer(*job, &replies),
            (_, None) => return self.no_guest_answer(&replies),
            (state, Some(guest)) => {
                self.kept = matches!(state, State::Kept);
                guest
            }
        };
        // From now on nobody else can take the name.
        if let Some(name) = &change.new_name
            && let Err(failure) = self.shared.registry.rename(self.key, name)
        {
            let _ = replies.try_send(Answer::failure(&failure));
            return;
        }
        let toolstack = self.shared.toolstack.clone();
        let (job, id) = (Job::Change(change.name), guest.id());
        job::spawn(job, &guest.name, &self.handle, Some(replies.clone()), move |events| {
            (change.work)(&toolstack, id, events).map(Some)
        });
        self.state = State::Busy(job, Some(replies));
    }

    /// A change has ended: the guest is as before or as it was asked for.
    fn changed(&mut self, name: &'static str, before: Option<Guest>, ended: Ended) -> Answer {
        let job = Job::Change(name);
        self.state = if self.kept { State::Kept } else { State::Running };
        let answer = match ended {
            Ok(guest) => {
                self.guest = guest.or(before);
                if let Some(guest) = self.guest.as_ref().filter(|_| name != change::SCREENSHOT) {
                    self.shared.registry.tell(guest, "changed", name);
                }
                Answer::last(&Progress::default())
            }
            Err(error) => {
                tracing::error!(lifecycle = name, error = error.report(), "lifecycle failed");
                self.guest = before;
                Answer::failure(&convert::failure(job, &error))
            }
        };
        if let Some(guest) = self.guest.clone() {
            self.name.clone_from(&guest.name);
            self.shared.registry.update(self.key, |entry| {
                entry.name.clone_from(&guest.name);
                entry.guest = Some(guest);
            });
        }
        // What happened while nobody looked.
        let _ = self.handle.send(Event::Look);
        answer
    }

    fn no_guest_answer(&self, replies: &Replies) {
        let _ = replies.try_send(Answer::failure(&Failure::NoSuchGuest { guest: self.name.clone() }));
    }

    fn busy_answer(&self, job: Job, replies: &Replies) {
        let failure = Failure::Busy { guest: self.name.clone(), lifecycle: job.name().to_owned() };
        let _ = replies.try_send(Answer::failure(&failure));
    }

    fn destroy(&mut self, guest: &Guest, replies: Option<Replies>) {
        let toolstack = self.shared.toolstack.clone();
        let id = guest.id();
        job::spawn(Job::Destroy, &guest.name, &self.handle, replies.clone(), move |events| {
            toolstack.destroy(id, events).map(|()| None)
        });
        self.busy(Job::Destroy, replies);
    }

    fn restart(&mut self, guest: &Guest) {
        let toolstack = self.shared.toolstack.clone();
        let id = guest.id();
        let note = self.shared.restarts.note(guest.uuid, &guest.config, Some(guest.uuid));
        job::spawn(Job::Restart, &guest.name, &self.handle, None, move |events| {
            let restarted = toolstack.restart(id, events);
            if let Some(note) = note {
                note.done();
            }
            restarted.map(Some)
        });
        self.busy(Job::Restart, None);
    }

    /// Keeps the ended guest under another name and makes a new one of its configuration.
    fn rename_restart(&mut self, guest: Guest, event: &GuestEvent) {
        let mut config = guest.config.clone();
        // Two guests cannot have one UUID.
        config.uuid = None;
        let note = self.shared.restarts.note(guest.uuid, &config, None);
        // As xl names what it preserves, but with the domid, which no other guest has.
        let name = format!("{}-{}", guest.name, guest.domid);
        if let Err(error) = self.shared.toolstack.set_aside(guest.id(), &name) {
            tracing::error!(guest = guest.name, error = error.report(), "cannot rename; it is kept as it is");
            if let Some(note) = note {
                note.done();
            }
            return self.keep(&guest, event);
        }
        let old = Guest { name: name.clone(), ..guest };
        self.name.clone_from(&name);
        self.guest = Some(old.clone());
        self.shared.registry.update(self.key, |entry| {
            entry.name = name;
            entry.guest = Some(old.clone());
        });
        self.keep(&old, event);
        let wanted = Wanted { config, options: CreateOptions::default(), note };
        if let Err(failure) = create(&self.shared, wanted, None) {
            self.shared.registry.tell(&old, "create-failed", format!("{failure:?}"));
        }
    }

    fn ended(&mut self, ended: Ended) {
        let State::Busy(job, replies) = std::mem::replace(&mut self.state, State::Running) else {
            return;
        };
        let before = self.guest.take();
        if let Job::Change(name) = job {
            let answer = self.changed(name, before, ended);
            return answer_later(replies, answer);
        }
        let answer = match ended {
            Ok(Some(guest)) => self.has_guest(guest),
            Ok(None) => {
                // Whoever hears of its end or gets the answer finds its name free.
                self.shared.registry.forget(self.key);
                if let Some(guest) = &before {
                    self.shared.registry.tell(guest, "destroyed", "");
                }
                Answer::last(&Progress::default())
            }
            Err(error) => {
                tracing::error!(lifecycle = job.name(), error = error.report(), "lifecycle failed");
                self.failed(job, before, &error);
                Answer::failure(&convert::failure(job, &error))
            }
        };
        answer_later(replies, answer);
    }

    fn has_guest(&mut self, guest: Guest) -> Answer {
        self.shared.registry.update(self.key, |entry| {
            entry.guest = Some(guest.clone());
            entry.state = ApiState::Running;
        });
        self.shared.registry.tell(&guest, "created", "");
        // What happened while nobody looked.
        self.seen = None;
        let _ = self.handle.send(Event::Look);
        self.guest = Some(guest);
        let entry = self.shared.registry.entry(self.key);
        let shown = entry.and_then(|entry| convert::guest(&self.shared.toolstack, &entry));
        Answer::last(&Progress { guest: shown, ..Progress::default() })
    }

    fn failed(&mut self, job: Job, before: Option<Guest>, error: &toolstack::Error) {
        let Some(guest) = before else { return self.shared.registry.forget(self.key) };
        let gone = match error {
            // A restart's create: its destroy was complete.
            toolstack::Error::Step(_) => true,
            // Someone else has cleared it away.
            toolstack::Error::Cause(toolstack::Cause::NoGuest(_)) => true,
            toolstack::Error::NotRestarted { .. } => {
                self.shared.registry.tell(&guest, "create-failed", convert::chain(error));
                self.guest = Some(guest.clone());
                let ended = self.seen.clone().unwrap_or(GuestEvent::Gone);
                return self.keep(&guest, &ended);
            }
            toolstack::Error::NotClean { .. }
            | toolstack::Error::NotDetached { .. }
            | toolstack::Error::Cause(_) => false,
        };
        if gone {
            self.shared.registry.forget(self.key);
            if job == Job::Restart {
                self.shared.registry.tell(&guest, "create-failed", convert::chain(error));
            }
            self.shared.registry.tell(&guest, "destroyed", "");
            return;
        }
        // What is left of it is destroyed again when a client asks or the daemon starts anew.
        self.shared.registry.update(self.key, |entry| entry.state = ApiState::ShutDown);
        self.shared.registry.tell(&guest, "destroy-failed", convert::chain(error));
        self.seen = Some(GuestEvent::Gone);
        self.state = State::Kept;
        self.guest = Some(guest);
    }

    fn request(&mut self, request: Request, replies: Replies) {
        let guest = match (&self.state, &self.guest) {
            (State::Busy(job, _), _) => return self.busy_answer(*job, &replies),
            (_, Some(guest)) => guest.clone(),
            (_, None) => return self.no_guest_answer(&replies),
        };
        let toolstack = self.shared.toolstack.clone();
        tokio::task::spawn_blocking(move || {
            let answer = match perform(&toolstack, &guest, request) {
                Ok(Some(via)) => Answer::last(&Via { via }),
                Ok(None) => Answer::last(&serde_json::json!({})),
                Err(error) => Answer::failure(&convert::refused(&error)),
            };
            let _ = replies.blocking_send(answer);
        });
    }
}

/// Gives an answer to whoever waits for it. The client may be slow; nothing here waits for it.
fn answer_later(replies: Option<Replies>, answer: Answer) {
    if let Some(replies) = replies {
        tokio::spawn(async move { replies.send(answer).await });
    }
}

/// What a guest that is kept is shown as.
const fn kept_as(event: &GuestEvent) -> ApiState {
    match event {
        GuestEvent::DeviceModelDied | GuestEvent::DeviceModelTaken => ApiState::DmDead,
        GuestEvent::Shutdown(xen::ShutdownReason::Crash) => ApiState::Crashed,
        GuestEvent::Shutdown(_) | GuestEvent::Gone | GuestEvent::EndedWithHost => ApiState::ShutDown,
    }
}

/// Does a quick request; the answer says how a guest was asked.
fn perform(
    toolstack: &Toolstack,
    guest: &Guest,
    request: Request,
) -> Result<Option<String>, toolstack::Error> {
    let way = match request {
        Request::Pause => return toolstack.pause(guest.id()).map(|()| None),
        Request::Unpause => return toolstack.unpause(guest.id()).map(|()| None),
        Request::Trigger(signal, vcpu) => {
            return toolstack.trigger(guest.id(), signal, vcpu).map(|()| None);
        }
        Request::Sysrq(key) => return toolstack.sysrq(guest.id(), key).map(|()| None),
        Request::Shutdown => toolstack.shutdown(guest.id())?,
        Request::Reboot => toolstack.reboot(guest.id())?,
    };
    Ok(Some(match way {
        ShutdownWay::PvDrivers => "pv".to_owned(),
        ShutdownWay::PowerButton => "acpi".to_owned(),
    }))
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
