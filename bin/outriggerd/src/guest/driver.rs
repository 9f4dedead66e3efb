//! A guest's driver: the task that takes events from queues and runs the effects of the state machine.
//!
//! All decisions are in [`super::state`]. Effects that can block run on threads: jobs on one each, the others in the
//! runtime's pool; their results come back as events. All of a driver's state can be read back from Xen, xenstore and
//! the guest's state file, so that a new daemon's driver continues where a killed one was.

mod jobs;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api::types::{Progress, Refusal, Resolved};
use config::Uuid;
use tokio::sync::mpsc;
use toolstack::{Cause, Error, Guest, GuestId, Monitors as _, Turn, Unfinished};

use super::handle::{Handle, Inbox};
use super::heartbeat::{self, Check};
use super::job::Ended;
use super::names::Reservation;
use super::registry::Key;
use super::request::{Asked, Change, Quick, Request, perform};
use super::resolve::Resolving;
use super::restart::PendingWrite;
use super::shared::{NewGuest, Shared};
use super::show;
use super::state::{Effect, Event, Failed, Job, Limits, Remains, Reply, RequestId, State};
use super::watch;
use crate::backoff::{self, Backoff};
use crate::refusal::{self, JobError, chain};
use crate::reply::{Answer, Replies};

/// What comes back to a driver from its threads and timers. There is at most one of each kind at a time, and a timer for
/// each end of the guest.
enum Message {
    /// An event, as the state machine takes it.
    Event(Event),
    /// The heartbeat was checked.
    Heartbeat(Uuid, Option<Check>),
    /// The job in progress has ended; the name that it gave the guest is reserved until that is published. After a
    /// failure, with the guest if its state file says that a part of it remains.
    Ended(Box<Ended>, Option<Reservation>, Option<GuestId>),
    /// The guest that is created when this one is preserved.
    Successor(GuestId),
}

/// A request that is not answered yet.
struct Pending {
    /// What is to be done; taken when it begins.
    work: Work,
    replies: Replies,
}

/// What a request needs when it begins.
enum Work {
    Change(Change),
    Quick(Quick),
    Resolve(Resolving),
    /// What becomes of the migration that is being settled.
    Resolving(Arc<OnceLock<Resolved>>),
    Nothing,
}

/// A guest's driver.
struct Driver {
    shared: Shared,
    key: Key,
    state: State,
    /// The guest's identity, once it has one. A create chooses it on its thread.
    id: Arc<OnceLock<GuestId>>,
    pending: BTreeMap<RequestId, Pending>,
    next_request: RequestId,
    /// What is being written about the delayed restart.
    write: PendingWrite,
    /// The guest that is created when this one is preserved.
    successor: Option<GuestId>,
    /// The last check of the heartbeat, for the log.
    last_check: Option<Check>,
    inbox: Inbox,
    messages: mpsc::UnboundedReceiver<Message>,
    sender: mpsc::UnboundedSender<Message>,
}

/// Creates a new guest, for a client when there are `replies`.
pub(crate) fn create(shared: &Shared, new: NewGuest, replies: Option<Replies>) -> Result<(), Refusal> {
    let name = new.name().to_owned();
    let request = replies.as_ref().map(|_| 0);
    let state = State::creating(name, request, Backoff::default(), limits(shared));
    let mut driver = Driver::enter(shared, state)?;
    if let Some(replies) = &replies {
        driver.add(Work::Nothing, replies.clone());
    }
    let (toolstack, known) = (shared.toolstack.clone(), Arc::clone(&driver.id));
    driver.spawn(Job::Create, replies, None, move |events| new.make(&toolstack, &known, events));
    tokio::spawn(driver.run());
    Ok(())
}

/// Adopts an existing guest, whose restart the previous daemon may have delayed. An interrupted change of it is
/// completed or undone first.
pub(crate) fn adopt(
    shared: &Shared,
    guest: Guest,
    turn: Option<Turn>,
    changing: bool,
) -> Result<(), Refusal> {
    let backoff = turn.map(Backoff::resumed).unwrap_or_default();
    let id = guest.id();
    let state = State::adopted(guest, changing, backoff, limits(shared));
    let driver = Driver::enter(shared, state)?;
    if changing {
        let toolstack = shared.toolstack.clone();
        driver.spawn(Job::Settle, None, None, move |events| Ok(toolstack.settle_change(id, events)?));
    }
    tokio::spawn(driver.run());
    Ok(())
}

/// Adopts a guest about which another host has to decide.
pub(crate) fn adopt_held(shared: &Shared, guest: Guest, host: String) -> Result<(), Refusal> {
    let driver = Driver::enter(shared, State::held(guest, host, limits(shared)))?;
    tokio::spawn(driver.run());
    Ok(())
}

/// Ends what was interrupted of a guest: a create is undone, a destroy completed, and a restart goes on.
pub(crate) fn finish(shared: &Shared, unfinished: Unfinished) -> Result<(), Refusal> {
    let Unfinished { id, name, guest, restart } = unfinished;
    let (state, job) = match restart {
        Some(turn) => (State::restarting(name, guest, turn, limits(shared)), Job::Restart(turn)),
        None => (State::cleaning_up(name, guest, limits(shared)), Job::CleanUp),
    };
    let driver = Driver::enter(shared, state)?;
    let _ = driver.id.set(id);
    let toolstack = shared.toolstack.clone();
    driver.spawn(job, None, None, move |events| Ok(toolstack.finish(id, events)?));
    tokio::spawn(driver.run());
    Ok(())
}

fn limits(shared: &Shared) -> Limits {
    let deadlines = shared.toolstack.deadlines();
    Limits { heartbeat: deadlines.heartbeat, orphaned: deadlines.orphaned }
}

impl Driver {
    /// Enters a guest into the registry; its driver does not run yet.
    fn enter(shared: &Shared, state: State) -> Result<Self, Refusal> {
        let (handle, inbox) = Handle::new();
        let key = shared.registry.enter(state.view(), handle)?;
        let (sender, messages) = mpsc::unbounded_channel();
        Ok(Self {
            shared: shared.clone(),
            key,
            id: state.id().map(OnceLock::from).unwrap_or_default().into(),
            state,
            pending: BTreeMap::new(),
            next_request: 0,
            write: PendingWrite::default(),
            successor: None,
            last_check: None,
            inbox,
            messages,
            sender,
        })
    }

    async fn run(mut self) {
        let look = Arc::clone(&self.inbox.look);
        let mut ticks = tokio::time::interval(heartbeat::interval(limits(&self.shared).heartbeat));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.step(Event::Look);
        while !self.state.is_gone() {
            tokio::select! {
                // What has happened first: requests are answered by it.
                biased;
                Some(message) = self.messages.recv() => self.receive(message),
                () = look.notified() => self.step(Event::Look),
                Some(asked) = self.inbox.requests.recv(), if self.state.takes_requests() => self.asked(asked),
                _ = ticks.tick() => self.step(Event::Tick),
            }
        }
        // Clients that waited for the guest while it was ending.
        self.inbox.requests.close();
        while let Ok(asked) = self.inbox.requests.try_recv() {
            self.asked(asked);
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.step(event),
            Message::Heartbeat(stub, check) => {
                let beat = check.as_ref().map(|check| check.beat.clone());
                self.last_check = check;
                self.step(Event::Heartbeat(stub, beat));
            }
            Message::Ended(ended, reservation, recorded) => {
                let result = (*ended).map_err(|error| self.failed(error, recorded));
                self.step(Event::Ended(Box::new(result)));
                // The guest has its new name by now.
                drop(reservation);
            }
            Message::Successor(id) => self.successor = Some(id),
        }
    }

    /// What the failure of the job in progress means.
    fn failed(&self, error: JobError, recorded: Option<GuestId>) -> Failed {
        let view = self.state.view();
        let job = view.job.unwrap_or_default();
        tracing::error!(guest = view.name, lifecycle = job, error = error.report(), "lifecycle failed");
        let remains = match &error {
            // A restart's create: its destroy was complete.
            JobError::Toolstack(Error::Step(failure)) if failure.undo.is_empty() => Remains::Nothing,
            // It was destroyed externally.
            JobError::Toolstack(Error::Cause(Cause::NoGuest(_))) => Remains::Nothing,
            JobError::Toolstack(Error::NotRestarted { .. })
            | JobError::DiskHangs { .. }
            | JobError::NoThread { .. } => Remains::Unchanged,
            _ => Remains::Something,
        };
        let (detail, held) = (chain(&error), refusal::decider(&error));
        let decided = matches!(error, JobError::Toolstack(Error::NotClean { .. }));
        Failed { remains, recorded, held, decided, refusal: refusal::of_job(&view.name, job, error), detail }
    }

    fn add(&mut self, work: Work, replies: Replies) -> RequestId {
        let id = self.next_request;
        self.next_request += 1;
        self.pending.insert(id, Pending { work, replies });
        id
    }

    fn asked(&mut self, asked: Asked) {
        let Asked { request, replies } = asked;
        let event = match request {
            Request::Destroy => Event::Destroy(self.add(Work::Nothing, replies)),
            Request::Screenshot => Event::Screenshot(self.add(Work::Nothing, replies)),
            Request::Change(change) => {
                let name = change.name;
                Event::Change(self.add(Work::Change(change), replies), name)
            }
            Request::Resolve(resolving) => Event::Resolve(self.add(Work::Resolve(resolving), replies)),
            Request::Quick(quick) => Event::Quick(self.add(Work::Quick(quick), replies)),
        };
        self.step(event);
    }

    fn step(&mut self, event: Event) {
        let effects = self.state.step(backoff::now(), event);
        // Before the events are published, so that a subscriber finds the state that an event reports.
        if self.state.is_gone() {
            self.shared.registry.forget(self.key);
        } else {
            self.shared.registry.update(self.key, self.state.view());
        }
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Observe => self.observe(),
            Effect::CheckHeartbeat => self.check_heartbeat(),
            Effect::HeartbeatLost(since) => self.log_lost_heartbeat(since),
            Effect::Timer(after, timer) => {
                let sender = self.sender.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    let _ = sender.send(Message::Event(Event::Expired(timer)));
                });
            }
            Effect::Start(job, request) => self.start(job, request),
            Effect::Perform(request) => self.quick(request),
            Effect::Reply(request, reply) => self.reply(request, reply),
            Effect::Publish(event) => self.shared.registry.publish(event),
            Effect::ReleaseMonitor => {
                if let Some(guest) = self.state.guest() {
                    self.shared.qmp.release(guest.id());
                }
            }
            Effect::RecordRestart(turn) => {
                let write = std::mem::take(&mut self.write);
                if let Some(guest) = self.state.guest() {
                    self.write = write.delay(&self.shared.toolstack, guest, turn);
                }
            }
            Effect::ForgetRestart => {
                let write = std::mem::take(&mut self.write);
                if let Some(guest) = self.state.guest() {
                    self.write = write.cancel(&self.shared.toolstack, guest);
                }
            }
            Effect::CreateSuccessor(guest, turn) => self.create_successor(&guest, turn),
            Effect::CleanedUp => {
                let guest = self.state.view().name;
                tracing::warn!(guest, "removed a guest that a previous daemon left incomplete");
            }
        }
    }

    fn observe(&self) {
        let Some(guest) = self.state.guest().cloned() else { return };
        let (toolstack, sender) = (self.shared.toolstack.clone(), self.sender.clone());
        tokio::task::spawn_blocking(move || {
            let found = watch::guest(&toolstack, &guest);
            if let Err(error) = &found {
                tracing::warn!(guest = guest.name, error = chain(error), "cannot query a guest");
            }
            let _ = sender.send(Message::Event(Event::Observed(guest.stub_uuid, found.ok())));
        });
    }

    fn check_heartbeat(&self) {
        let Some(guest) = self.state.guest().cloned() else { return };
        let (toolstack, sender) = (self.shared.toolstack.clone(), self.sender.clone());
        tokio::task::spawn_blocking(move || {
            let check = heartbeat::check(&toolstack, &guest).ok();
            let _ = sender.send(Message::Heartbeat(guest.stub_uuid, check));
        });
    }

    fn log_lost_heartbeat(&self, since: Duration) {
        // Shows whether a hung device model spins or sleeps.
        let stub = self.last_check.as_ref().and_then(|check| check.stub.as_ref());
        tracing::error!(
            guest = self.state.view().name,
            seconds = since.as_secs(),
            ran_seconds = stub.map(|info| info.cpu_time.as_secs_f32()),
            runs_now = stub.map(|info| info.state.running),
            "device model heartbeat lost"
        );
    }

    fn quick(&mut self, request: RequestId) {
        let Some(Pending { work, replies }) = self.pending.remove(&request) else { return };
        let (Work::Quick(quick), Some(guest)) = (work, self.state.guest().cloned()) else { return };
        let toolstack = self.shared.toolstack.clone();
        tokio::task::spawn_blocking(move || {
            let _ = replies.blocking_send(perform(&toolstack, &guest, quick));
        });
    }

    fn reply(&mut self, request: RequestId, reply: Reply) {
        let Some(Pending { replies, work }) = self.pending.remove(&request) else { return };
        let resolved = match work {
            Work::Resolving(outcome) => outcome.get().cloned(),
            _ => None,
        };
        match reply {
            Reply::Done if resolved.is_none() => send(&replies, Answer::last(&Progress::default())),
            Reply::Refused(refusal) => send(&replies, Answer::refusal(&refusal)),
            Reply::Done | Reply::Created => {
                let (toolstack, view) = (self.shared.toolstack.clone(), self.state.view());
                let socket = self.state.guest().and_then(|guest| self.shared.qmp.socket(guest.id()));
                tokio::spawn(async move {
                    // Clients may connect to it as soon as the guest is created.
                    if let Some(socket) = socket {
                        socket.ready().await;
                    }
                    tokio::task::spawn_blocking(move || {
                        let guest = show::guest(&toolstack, &view);
                        let answer = Answer::last(&Progress { guest, resolved, ..Progress::default() });
                        let _ = replies.blocking_send(answer);
                    });
                });
            }
        }
    }

    /// In the same turn of the event loop in which the name became free.
    fn create_successor(&mut self, old: &Guest, turn: Turn) {
        let Some(id) = self.successor.take() else { return };
        let name = old.config.name.clone();
        let unfinished = Unfinished { id, name, guest: None, restart: Some(turn) };
        if let Err(refusal) = finish(&self.shared, unfinished) {
            self.shared.registry.publish(super::events::event(old, "create-failed", &format!("{refusal:?}")));
        }
    }
}

/// Sends an answer without waiting for a slow client.
fn send(replies: &Replies, answer: Answer) {
    if let Err(mpsc::error::TrySendError::Full(answer)) = replies.try_send(answer) {
        let replies = replies.clone();
        tokio::spawn(async move { replies.send(answer).await });
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
        let state = State::creating("gone".to_owned(), None, Backoff::default(), limits(&shared));
        let driver = Driver::enter(&shared, state).unwrap();
        let (replies, mut answers) = mpsc::channel(2);
        let handle = shared.registry.find("gone", None).unwrap().handle;
        // Its create fails before the driver takes a request.
        let failed = Err(Cause::NoGuest("x".to_owned()).into());
        assert!(driver.sender.send(Message::Ended(Box::new(failed), None, None)).is_ok());
        handle.ask(Request::Destroy, &replies).unwrap();
        handle.ask(Request::Quick(Quick::Pause), &replies).unwrap();
        driver.run().await;
        for _ in 0..2 {
            let (reply, last) = answers.recv().await.unwrap().into_reply();
            assert!(last);
            assert_eq!(reply.error.as_deref(), Some("io.outrigger.NoSuchGuest"));
        }
        assert!(shared.registry.find("gone", None).is_err());
    }
}
