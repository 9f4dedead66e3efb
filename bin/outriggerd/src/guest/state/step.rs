//! The transitions of the state machine.

use std::time::Duration;

use api::types::{Refusal, State as Shown};
use config::Uuid;
use toolstack::{Decision, Guest, GuestEvent, Turn, decide};

use super::super::events;
use super::super::heartbeat::{Beat, Heartbeat};
use super::super::view::Incomplete;
use super::{
    Effect, Event, FIRST_LOOK_AGAIN, Failed, Job, Look, Phase, Remains, Reply, RequestId, State, Timer, Way,
};
use crate::{backoff, refusal};

/// The longest interval at which a guest is queried again while Xen does not answer.
const LONGEST_LOOK_AGAIN: Duration = Duration::from_secs(30);

/// One step, whose effects are being collected.
pub(super) struct Step<'a> {
    state: &'a mut State,
    now: Duration,
    effects: Vec<Effect>,
}

impl<'a> Step<'a> {
    pub(super) fn new(state: &'a mut State, now: Duration) -> Self {
        Self { state, now, effects: Vec::new() }
    }

    pub(super) fn into_effects(self) -> Vec<Effect> {
        self.effects
    }

    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Destroy(request) => self.destroy_for(request),
            Event::Change(request, name) => self.start_for(request, Job::Change(name)),
            Event::Screenshot(request) => self.start_for(request, Job::Screenshot),
            Event::Resolve(request) => self.resolve_for(request),
            Event::Quick(request) => self.quick(request),
            Event::Look | Event::Expired(Timer::Look) => self.look(),
            Event::Expired(Timer::Afresh) => {
                self.state.found.take_if(|found| *found == GuestEvent::SuspendedLate);
                self.look();
            }
            Event::Observed(stub, found) => self.observed(stub, found),
            Event::Tick => self.tick(),
            Event::Heartbeat(stub, beat) => self.heartbeat(stub, beat),
            Event::Ended(result) => self.ended(*result),
            Event::Expired(Timer::Restart(turn)) => self.restart_due(turn),
            Event::Expired(Timer::Orphaned(stub)) => self.orphaned(stub),
        }
    }

    fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn refuse(&mut self, request: RequestId, refusal: Refusal) {
        self.push(Effect::Reply(request, Reply::Refused(refusal)));
    }

    fn publish(&mut self, kind: &str, detail: &str) {
        if let Some(guest) = &self.state.guest {
            let event = events::event(guest, kind, detail);
            self.push(Effect::Publish(event));
        }
    }

    /// Why a request is not taken now, unless it is.
    fn refusal(&self) -> Option<Refusal> {
        match self.state.phase {
            Phase::Gone => Some(Refusal::NoSuchGuest { guest: self.state.name.clone() }),
            Phase::Busy { .. } => Some(self.state.view().busy()),
            Phase::Held => Some(self.unresolved()),
            Phase::Running | Phase::Preserved(_) | Phase::Delayed(..) => None,
        }
    }

    fn unresolved(&self) -> Refusal {
        refusal::unresolved(&self.state.name, self.state.held.as_deref().unwrap_or_default())
    }

    fn destroy_for(&mut self, request: RequestId) {
        match self.refusal() {
            Some(refusal) => self.refuse(request, refusal),
            None => self.start(Job::Destroy, Some(request)),
        }
    }

    fn start_for(&mut self, request: RequestId, job: Job) {
        let is_none = self.state.guest.is_none() || matches!(self.state.phase, Phase::Delayed(..));
        match self.refusal().or_else(|| is_none.then(|| self.state.view().busy())) {
            Some(refusal) => self.refuse(request, refusal),
            None => self.start(job, Some(request)),
        }
    }

    /// What another host has to decide is the only thing that is asked of a guest that is held.
    fn resolve_for(&mut self, request: RequestId) {
        if self.state.phase == Phase::Held {
            self.start(Job::Resolve, Some(request));
        } else {
            self.start_for(request, Job::Resolve);
        }
    }

    fn quick(&mut self, request: RequestId) {
        let during_query = matches!(self.state.phase, Phase::Busy { job: Job::Screenshot, .. });
        let is_none = self.state.guest.is_none().then(|| self.state.view().busy());
        match self.refusal().filter(|_| !during_query).or(is_none) {
            Some(refusal) => self.refuse(request, refusal),
            None => self.push(Effect::Perform(request)),
        }
    }

    fn start(&mut self, job: Job, request: Option<RequestId>) {
        let preserved = match self.state.phase {
            Phase::Preserved(shown) => Some(shown),
            _ => None,
        };
        self.state.phase = Phase::Busy { job, request, preserved };
        self.push(Effect::Start(job, request));
    }

    /// What happens to it now is its job's, or for another host to decide.
    fn is_left_alone(&self) -> bool {
        matches!(self.state.phase, Phase::Busy { .. } | Phase::Held | Phase::Gone)
    }

    /// Has the guest looked at, unless a job is in progress.
    fn look(&mut self) {
        if self.is_left_alone() || self.state.guest.is_none() {
            return;
        }
        if self.state.look == Look::No {
            self.state.look = Look::InProgress;
            self.push(Effect::Observe);
        } else {
            self.state.look = Look::Again;
        }
    }

    fn observed(&mut self, stub: Uuid, found: Option<Option<GuestEvent>>) {
        let again = std::mem::take(&mut self.state.look) == Look::Again;
        if again {
            self.look();
        }
        // A job has begun since, or has replaced the guest: it is looked at when that has ended.
        let is_same = self.state.guest.as_ref().is_some_and(|guest| guest.stub_uuid == stub);
        if !is_same || self.is_left_alone() {
            return;
        }
        let Some(found) = found else {
            if !again {
                let wait = self.state.patience;
                self.state.patience = (wait * 2).min(LONGEST_LOOK_AGAIN);
                self.push(Effect::Timer(wait, Timer::Look));
            }
            return;
        };
        self.state.patience = FIRST_LOOK_AGAIN;
        if found == self.state.found {
            return;
        }
        self.state.found.clone_from(&found);
        if let Some(event) = found {
            self.act(&event);
        }
    }

    fn tick(&mut self) {
        if self.state.phase == Phase::Running && !self.state.checking {
            self.state.checking = true;
            self.push(Effect::CheckHeartbeat);
        }
    }

    fn heartbeat(&mut self, stub: Uuid, beat: Option<Beat>) {
        self.state.checking = false;
        let is_same = self.state.guest.as_ref().is_some_and(|guest| guest.stub_uuid == stub);
        // A failed query does not mean that it is dead; the next check tells.
        let Some(beat) = beat else { return };
        if !is_same || self.state.phase != Phase::Running || self.state.found.is_some() {
            return;
        }
        if let Some(since) = self.state.heartbeat.take(self.now, beat) {
            self.push(Effect::HeartbeatLost(since));
            self.state.heartbeat = Heartbeat::new(self.state.limits.heartbeat);
            self.act(&GuestEvent::DeviceModelDied);
        }
    }

    /// Handles an event as the configuration says.
    fn act(&mut self, event: &GuestEvent) {
        if matches!(event, GuestEvent::DeviceModelDied | GuestEvent::StubdomainDestroyed | GuestEvent::Gone) {
            // A domain cannot be destroyed completely while we map its pages.
            self.push(Effect::ReleaseMonitor);
        }
        if matches!(self.state.phase, Phase::Preserved(_)) && *event != GuestEvent::Gone {
            // It is preserved because it has ended.
            self.state.phase = Phase::Preserved(events::shown(event));
            return;
        }
        self.publish(events::kind(event), events::detail(event));
        match (event, &self.state.guest) {
            // The program that destroyed the stubdomain destroys the guest next, and should find it as it was.
            (GuestEvent::StubdomainDestroyed, Some(guest)) => {
                let timer = Timer::Orphaned(guest.stub_uuid);
                self.push(Effect::Timer(self.state.limits.orphaned, timer));
            }
            _ => self.follow(event),
        }
    }

    /// The guest should be gone by now, like its stubdomain, which was destroyed externally.
    fn orphaned(&mut self, stub: Uuid) {
        let is_same = self.state.guest.as_ref().is_some_and(|guest| guest.stub_uuid == stub);
        let found = GuestEvent::StubdomainDestroyed;
        if is_same && self.state.phase == Phase::Running && self.state.found.as_ref() == Some(&found) {
            self.follow(&found);
        }
    }

    /// Follows the configuration's decision.
    fn follow(&mut self, event: &GuestEvent) {
        let Some(guest) = &self.state.guest else { return };
        let shown = events::shown(event);
        match decide(&guest.config, event) {
            Decision::Nothing => {}
            Decision::GoOn => self.start(Job::Settle, None),
            Decision::Destroy => self.start(Job::Destroy, None),
            Decision::Restart => self.again(Way::Restart),
            Decision::RenameRestart => self.again(Way::PreserveAs(shown)),
            Decision::Preserve => self.preserve(shown),
            Decision::PauseAndPreserve => {
                self.forget_restart();
                self.state.phase = Phase::Preserved(shown);
                self.start(Job::Pause, None);
            }
        }
    }

    fn preserve(&mut self, shown: Shown) {
        self.forget_restart();
        self.state.phase = Phase::Preserved(shown);
        self.publish("preserved", "`outrigger destroy` removes it");
    }

    fn forget_restart(&mut self) {
        if matches!(self.state.phase, Phase::Delayed(..)) {
            self.push(Effect::ForgetRestart);
        }
    }

    /// Restarts the guest, now or when its time has come.
    fn again(&mut self, way: Way) {
        if let Phase::Delayed(before, _) = &mut self.state.phase {
            // It has ended in another way meanwhile.
            *before = way;
            return;
        }
        let turn = self.state.backoff.next(self.now);
        let left = backoff::left(turn, self.now);
        if left.is_zero() {
            return self.restart(way, turn);
        }
        self.state.phase = Phase::Delayed(way, turn);
        self.push(Effect::RecordRestart(turn));
        self.push(Effect::Timer(left, Timer::Restart(turn)));
        let (seconds, row) = (left.as_secs_f64().ceil(), turn.row);
        let detail =
            format!("in {seconds} s, because the guest ended soon after its start ({row} times in a row)");
        self.publish("restart-delayed", &detail);
    }

    /// The time of a restart has come.
    fn restart_due(&mut self, due: Turn) {
        if let Phase::Delayed(way, turn) = self.state.phase
            && turn == due
        {
            self.restart(way, turn);
        }
    }

    fn restart(&mut self, way: Way, turn: Turn) {
        match way {
            Way::Restart => self.start(Job::Restart(turn), None),
            Way::PreserveAs(shown) => self.start(Job::PreserveAs(turn, shown), None),
        }
    }

    fn ended(&mut self, result: Result<Option<Guest>, Failed>) {
        let Phase::Busy { job, request, preserved } = self.state.phase else { return };
        self.state.phase = preserved.map_or(Phase::Running, Phase::Preserved);
        let reply = match job {
            Job::Change(_) | Job::Settle | Job::Screenshot => self.changed(job, result),
            Job::Resolve => self.resolved(result),
            Job::Pause => {
                self.preserve(preserved.unwrap_or(Shown::DmDead));
                Reply::Done
            }
            Job::PreserveAs(turn, shown) => {
                self.preserved_as(turn, shown, result.ok().flatten());
                Reply::Done
            }
            Job::Create | Job::Restart(_) | Job::Destroy | Job::CleanUp => match result {
                Ok(Some(guest)) => self.created(guest),
                Ok(None) => self.destroyed(job),
                Err(failed) => self.failed(job, failed),
            },
        };
        if let Some(request) = request {
            self.push(Effect::Reply(request, reply));
        }
        // Events that occurred meanwhile.
        self.look();
    }

    /// A change has ended: it was either undone or completed.
    fn changed(&mut self, job: Job, result: Result<Option<Guest>, Failed>) -> Reply {
        match result {
            // It was saved, or is at another host.
            Ok(None) if matches!(job, Job::Change(_)) => {
                if let Job::Change(name) = job {
                    self.publish("changed", name);
                }
                self.destroyed(job)
            }
            Ok(guest) => {
                if let Some(guest) = guest {
                    if job == Job::Settle {
                        // It may have its earlier name again.
                        self.state.phase = Phase::adopted(&guest);
                    }
                    self.state.name.clone_from(&guest.name);
                    self.state.guest = Some(guest);
                }
                if let Job::Change(name) = job {
                    self.publish("changed", name);
                }
                Reply::Done
            }
            Err(failed) => {
                if self.state.found == Some(GuestEvent::SuspendedLate) {
                    self.push(Effect::Timer(LONGEST_LOOK_AGAIN, Timer::Afresh));
                }
                self.refused(failed)
            }
        }
    }

    /// The change was undone, or has left the decision to another host.
    fn refused(&mut self, failed: Failed) -> Reply {
        let Failed { held, decided, refusal, .. } = failed;
        if let Some(host) = &held
            && self.state.held.is_none()
        {
            self.publish("unresolved", host);
        }
        self.state.held = held.or(self.state.held.take().filter(|_| !decided));
        if self.state.held.is_some() {
            self.state.phase = Phase::Held;
        }
        Reply::Refused(refusal)
    }

    /// A migration was settled, or could not be.
    fn resolved(&mut self, result: Result<Option<Guest>, Failed>) -> Reply {
        let guest = match result {
            Ok(guest) => guest,
            Err(failed) => return self.refused(failed),
        };
        self.state.held = None;
        let stub = self.state.guest.as_ref().map(|guest| guest.stub_uuid);
        match guest {
            None => self.destroyed(Job::Resolve),
            Some(guest) if Some(guest.stub_uuid) == stub => {
                self.state.guest = Some(guest);
                self.publish("changed", Job::Resolve.name());
                Reply::Done
            }
            // It was started anew.
            Some(guest) => self.created(guest),
        }
    }

    /// The ended guest has another name now, or could not get it.
    fn preserved_as(&mut self, turn: Turn, shown: Shown, renamed: Option<Guest>) {
        if let Some(guest) = renamed {
            self.state.name.clone_from(&guest.name);
            self.state.guest = Some(guest.clone());
            self.preserve(shown);
            self.push(Effect::CreateSuccessor(Box::new(guest), turn));
        } else {
            // Else a later daemon would do it to a guest that is shown as preserved.
            self.push(Effect::ForgetRestart);
            self.preserve(shown);
        }
    }

    fn created(&mut self, guest: Guest) -> Reply {
        (self.state.guest, self.state.incomplete) = (Some(guest), None);
        self.state.phase = Phase::Running;
        self.state.backoff.started(self.now);
        self.state.heartbeat = Heartbeat::new(self.state.limits.heartbeat);
        self.state.found = None;
        self.publish("created", "");
        Reply::Created
    }

    fn destroyed(&mut self, job: Job) -> Reply {
        if job == Job::CleanUp {
            self.push(Effect::CleanedUp);
        } else {
            self.publish("destroyed", "");
        }
        self.gone();
        Reply::Done
    }

    fn gone(&mut self) {
        self.state.phase = Phase::Gone;
        (self.state.guest, self.state.incomplete) = (None, None);
    }

    fn failed(&mut self, job: Job, failed: Failed) -> Reply {
        let Failed { remains, recorded, refusal, detail, .. } = failed;
        match remains {
            _ if self.state.guest.is_none() => match recorded.filter(|_| remains != Remains::Nothing) {
                // A client can destroy it, as can the next daemon.
                Some(id) => {
                    self.state.incomplete = Some(Incomplete { id, problem: detail });
                    self.state.phase = Phase::Preserved(Shown::ShutDown);
                }
                None => self.gone(),
            },
            // A clean-up that did not begin leaves a guest that was to be destroyed.
            Remains::Unchanged if job != Job::CleanUp => {
                let is_restart = matches!(job, Job::Restart(_));
                if is_restart {
                    // Else a later daemon would restart a guest that is shown as preserved.
                    self.push(Effect::ForgetRestart);
                }
                self.publish(if is_restart { "create-failed" } else { "destroy-failed" }, &detail);
                let has_run = self.state.phase == Phase::Running;
                let ended = self.state.found.as_ref().filter(|_| has_run).map(events::shown);
                // A guest that a client wanted destroyed may run.
                if let Some(shown) = ended.or(is_restart.then_some(Shown::ShutDown)) {
                    self.preserve(shown);
                }
            }
            Remains::Nothing => {
                if matches!(job, Job::Restart(_)) {
                    self.publish("create-failed", &detail);
                }
                self.publish("destroyed", "");
                self.gone();
            }
            // What is left of it is destroyed when a client asks again or the daemon restarts.
            Remains::Unchanged | Remains::Something => {
                self.publish("destroy-failed", &detail);
                self.state.found = Some(GuestEvent::Gone);
                self.state.phase = Phase::Preserved(Shown::ShutDown);
            }
        }
        Reply::Refused(refusal)
    }
}
