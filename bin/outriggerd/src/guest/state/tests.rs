//! Each transition of the state machine.

mod held;
mod random;

use std::time::Duration;

use api::types::{Refusal, State as Shown};
use config::{GuestConfig, Uuid};
use toolstack::{Guest, GuestEvent, GuestId, Turn};
use xen::ShutdownReason;
use xen_types::DomId;

use super::super::heartbeat::Beat;
use super::{Effect, Event, Failed, Job, Limits, Phase, Remains, Reply, State, Timer};
use crate::backoff::Backoff;

const LIMITS: Limits = Limits { heartbeat: Duration::from_secs(30), orphaned: Duration::from_secs(5) };
const START: Duration = Duration::from_secs(1000);
const OFF: GuestEvent = GuestEvent::Shutdown(ShutdownReason::PowerOff);
const REBOOT: GuestEvent = GuestEvent::Shutdown(ShutdownReason::Reboot);
const SUSPEND: GuestEvent = GuestEvent::Shutdown(ShutdownReason::Suspend);

fn config(more: &str) -> GuestConfig {
    let text = format!("type=\"hvm\"\nname=\"hello\"\nmemory=64\n{more}\n");
    config::load_str("c", &text).config.unwrap()
}

/// A guest with this stubdomain.
fn guest(stub: u128, more: &str) -> Guest {
    Guest {
        uuid: Uuid::from_u128(1),
        stub_uuid: Uuid::from_u128(stub),
        name: "hello".to_owned(),
        domid: DomId::new(1).unwrap(),
        stub_domid: DomId::new(2).unwrap(),
        config: config(more),
    }
}

fn failed(remains: Remains) -> Failed {
    let refusal = Refusal::Failed { message: "x".to_owned(), causes: Vec::new(), hint: None };
    Failed {
        remains,
        recorded: Some(GuestId(Uuid::from_u128(1))),
        held: None,
        decided: false,
        refusal,
        detail: "x".to_owned(),
    }
}

/// A machine, with a clock and the guest's configuration.
struct Machine {
    state: State,
    now: Duration,
    more: &'static str,
}

impl Machine {
    /// Of a guest that runs.
    fn running(more: &'static str) -> Self {
        let state = State::adopted(guest(10, more), false, Backoff::default(), LIMITS);
        Self { state, now: START, more }
    }

    fn step(&mut self, event: Event) -> Vec<String> {
        let effects = self.state.step(self.now, event);
        effects.iter().map(word).collect()
    }

    /// Looks at the guest, which shows this.
    fn finds(&mut self, found: GuestEvent) -> Vec<String> {
        assert_eq!(self.step(Event::Look), ["observe"]);
        let stub = self.state.guest().unwrap().stub_uuid;
        self.step(Event::Observed(stub, Some(Some(found))))
    }

    fn ends(&mut self, result: Result<Option<Guest>, Failed>) -> Vec<String> {
        self.step(Event::Ended(Box::new(result)))
    }

    fn fails(&mut self, remains: Remains) -> Vec<String> {
        self.ends(Err(failed(remains)))
    }

    fn shown(&self) -> Shown {
        self.state.view().state
    }

    fn job(&self) -> Option<&'static str> {
        self.state.view().job
    }

    /// One that has rebooted twice at once, so that its restart is delayed.
    fn delayed(more: &'static str) -> (Self, Turn) {
        let mut machine = Self::running(more);
        machine.finds(REBOOT);
        machine.ends(Ok(Some(guest(11, more))));
        machine.step(Event::Observed(Uuid::from_u128(11), Some(None)));
        assert_eq!(machine.step(Event::Look), ["observe"]);
        let effects =
            machine.state.step(machine.now, Event::Observed(Uuid::from_u128(11), Some(Some(REBOOT))));
        let turn = effects.iter().find_map(|effect| match effect {
            Effect::RecordRestart(turn) => Some(*turn),
            _ => None,
        });
        assert_eq!(machine.shown(), Shown::Restarting);
        (machine, turn.unwrap())
    }
}

/// An effect in a few words.
fn word(effect: &Effect) -> String {
    match effect {
        Effect::Observe => "observe".to_owned(),
        Effect::CheckHeartbeat => "check heartbeat".to_owned(),
        Effect::HeartbeatLost(_) => "heartbeat lost".to_owned(),
        Effect::Timer(_, Timer::Look) => "timer look".to_owned(),
        Effect::Timer(_, Timer::Restart(_)) => "timer restart".to_owned(),
        Effect::Timer(_, Timer::Afresh) => "timer afresh".to_owned(),
        Effect::Timer(_, Timer::Orphaned(_)) => "timer orphaned".to_owned(),
        Effect::Start(Job::PreserveAs(..), None) => "start preserve as".to_owned(),
        Effect::Start(job, None) => format!("start {}", job.name()),
        Effect::Start(job, Some(request)) => format!("start {} for {request}", job.name()),
        Effect::Perform(request) => format!("perform {request}"),
        Effect::Reply(request, Reply::Done) => format!("{request} done"),
        Effect::Reply(request, Reply::Created) => format!("{request} created"),
        Effect::Reply(request, Reply::Refused(Refusal::Busy { lifecycle, .. })) => {
            format!("{request} busy {lifecycle}")
        }
        Effect::Reply(request, Reply::Refused(refusal)) => format!("{request} {}", refusal.name()),
        Effect::Publish(event) => event.kind.clone(),
        Effect::ReleaseMonitor => "release monitor".to_owned(),
        Effect::RecordRestart(_) => "record restart".to_owned(),
        Effect::ForgetRestart => "forget restart".to_owned(),
        Effect::CreateSuccessor(guest, _) => format!("create successor of {}", guest.name),
        Effect::CleanedUp => "cleaned up".to_owned(),
    }
}

#[test]
fn create_answers_with_the_guest_or_its_failure() {
    let creating = || State::creating("hello".to_owned(), Some(7), Backoff::default(), LIMITS);
    let mut machine = Machine { state: creating(), now: START, more: "" };
    assert_eq!((machine.shown(), machine.job()), (Shown::Creating, Some("create")));
    assert_eq!(machine.step(Event::Destroy(8)), ["8 busy create"]);
    assert_eq!(machine.step(Event::Look), [""; 0]);
    assert_eq!(machine.ends(Ok(Some(guest(10, "")))), ["created", "7 created", "observe"]);
    assert_eq!((machine.shown(), machine.job()), (Shown::Running, None));
    machine.state = creating();
    assert_eq!(machine.fails(Remains::Nothing), ["7 Failed"]);
    assert!(machine.state.is_gone());
    assert_eq!(machine.step(Event::Destroy(9)), ["9 NoSuchGuest"]);
    assert_eq!(machine.step(Event::Quick(10)), ["10 NoSuchGuest"]);
}

#[test]
fn create_that_is_not_undone_completely_leaves_something_to_destroy() {
    let creating = State::creating("hello".to_owned(), Some(7), Backoff::default(), LIMITS);
    let restarting = State::restarting("hello".to_owned(), None, Turn::default(), LIMITS);
    for (state, answers) in [(creating, vec!["7 Failed"]), (restarting, vec![])] {
        let mut machine = Machine { state, now: START, more: "" };
        assert_eq!(machine.fails(Remains::Something), answers);
        let view = machine.state.view();
        assert_eq!(view.incomplete.unwrap().problem, "x");
        assert!(view.guest.is_none() && !machine.state.is_gone());
        for event in [Event::Change(8, "mem-set"), Event::Screenshot(8), Event::Quick(8)] {
            assert_eq!(machine.step(event), ["8 NotRunning"]);
        }
        assert_eq!(machine.step(Event::Look), [""; 0]);
        assert_eq!(machine.step(Event::Destroy(9)), ["start destroy for 9"]);
        assert_eq!((machine.shown(), machine.job()), (Shown::Destroying, Some("destroy")));
        assert_eq!(machine.fails(Remains::Something), ["9 Failed"]);
        assert_eq!(machine.step(Event::Destroy(10)), ["start destroy for 10"]);
        assert_eq!(machine.ends(Ok(None)), ["10 done"]);
        assert!(machine.state.is_gone());
    }
}

#[test]
fn configuration_decides_what_follows_an_end() {
    let mut machine = Machine::running("on_poweroff=\"destroy\"");
    assert_eq!(machine.finds(OFF), ["powered-off", "start destroy"]);
    assert_eq!(machine.ends(Ok(None)), ["destroyed"]);
    assert!(machine.state.is_gone());

    let mut machine = Machine::running("on_poweroff=\"preserve\"");
    assert_eq!(machine.finds(OFF), ["powered-off", "preserved"]);
    assert_eq!(machine.shown(), Shown::ShutDown);
    // Once is enough, and its device model may end later.
    assert_eq!(machine.finds(OFF), [""; 0]);
    assert_eq!(machine.finds(GuestEvent::DeviceModelDied), ["release monitor"]);
    assert_eq!(machine.shown(), Shown::DmDead);
    assert_eq!(machine.finds(GuestEvent::Gone), ["release monitor", "gone", "start destroy"]);

    let mut machine = Machine::running("on_reboot=\"restart\"");
    assert_eq!(machine.finds(REBOOT), ["rebooted", "start restart"]);
    assert_eq!(machine.shown(), Shown::Restarting);
    assert_eq!(machine.ends(Ok(Some(guest(11, "")))), ["created", "observe"]);

    let mut machine = Machine::running("");
    assert_eq!(machine.finds(SUSPEND), ["suspended"]);
    assert_eq!(machine.shown(), Shown::Running);
    assert_eq!(machine.finds(GuestEvent::SuspendedLate), ["suspended", "start settle"]);
    assert_eq!(machine.fails(Remains::Unchanged), ["timer afresh", "observe"]);
    let late = || Event::Observed(Uuid::from_u128(10), Some(Some(GuestEvent::SuspendedLate)));
    assert_eq!(machine.step(late()), [""; 0], "not before its time");
    assert_eq!(machine.step(Event::Expired(Timer::Afresh)), ["observe"]);
    assert_eq!(machine.step(late()), ["suspended", "start settle"]);
}

#[test]
fn guest_without_a_device_model_is_paused_before_it_is_preserved() {
    let mut machine = Machine::running("on_device_model_crash=\"preserve\"");
    let effects = machine.finds(GuestEvent::DeviceModelDied);
    assert_eq!(effects, ["release monitor", "dm-died", "start preserve"]);
    assert_eq!(machine.step(Event::Destroy(1)), ["1 busy preserve"]);
    assert_eq!(machine.fails(Remains::Something), ["preserved", "observe"]);
    assert_eq!(machine.shown(), Shown::DmDead);
}

#[test]
fn rename_restart_preserves_the_old_and_creates_a_new_guest() {
    let more = "on_reboot=\"rename-restart\"";
    let mut machine = Machine::running(more);
    assert_eq!(machine.finds(REBOOT), ["rebooted", "start preserve as"]);
    let renamed = Guest { name: "hello-1".to_owned(), ..guest(10, more) };
    let effects = machine.ends(Ok(Some(renamed)));
    assert_eq!(effects, ["preserved", "create successor of hello-1", "observe"]);
    assert_eq!((machine.state.view().name.as_str(), machine.shown()), ("hello-1", Shown::ShutDown));
    let mut machine = Machine::running(more);
    machine.finds(REBOOT);
    assert_eq!(machine.fails(Remains::Something), ["forget restart", "preserved", "observe"]);
    assert_eq!((machine.state.view().name.as_str(), machine.shown()), ("hello", Shown::ShutDown));
}

#[test]
fn restart_soon_after_the_start_is_delayed() {
    let (mut machine, turn) = Machine::delayed("");
    assert_eq!(machine.job(), Some("restart"));
    assert_eq!(machine.step(Event::Change(1, "mem-set")), ["1 busy restart"]);
    assert_eq!(machine.step(Event::Screenshot(2)), ["2 busy restart"]);
    assert_eq!(machine.step(Event::Quick(3)), ["perform 3"]);
    assert_eq!(machine.step(Event::Expired(Timer::Restart(Turn::default()))), [""; 0]);
    assert_eq!(machine.step(Event::Expired(Timer::Restart(turn))), ["start restart"]);
    // And not again.
    assert_eq!(machine.step(Event::Expired(Timer::Restart(turn))), [""; 0]);
}

#[test]
fn delayed_restart_ends_with_the_guest() {
    let (mut machine, turn) = Machine::delayed("");
    assert_eq!(machine.step(Event::Destroy(1)), ["start destroy for 1"]);
    assert_eq!(machine.step(Event::Expired(Timer::Restart(turn))), [""; 0]);
    assert_eq!(machine.ends(Ok(None)), ["destroyed", "1 done"]);

    let (mut machine, turn) = Machine::delayed("on_device_model_crash=\"preserve\"");
    let effects = machine.finds(GuestEvent::DeviceModelDied);
    assert_eq!(effects, ["release monitor", "dm-died", "forget restart", "start preserve"]);
    assert_eq!(machine.step(Event::Expired(Timer::Restart(turn))), [""; 0]);
}

#[test]
fn failed_restart_leaves_what_its_failure_says() {
    let restarting = || {
        let mut machine = Machine::running("");
        machine.finds(REBOOT);
        machine
    };
    let mut machine = restarting();
    assert_eq!(
        machine.fails(Remains::Unchanged),
        ["forget restart", "create-failed", "preserved", "observe"]
    );
    assert_eq!(machine.shown(), Shown::ShutDown);
    let mut machine = restarting();
    assert_eq!(machine.fails(Remains::Nothing), ["create-failed", "destroyed"]);
    assert!(machine.state.is_gone());
    let mut machine = restarting();
    assert_eq!(machine.fails(Remains::Something), ["destroy-failed", "observe"]);
    assert_eq!(machine.shown(), Shown::ShutDown);
    // That it is gone is no reason to destroy it once more; a client is.
    machine.step(Event::Observed(Uuid::from_u128(10), Some(Some(GuestEvent::Gone))));
    assert_eq!(machine.step(Event::Destroy(1)), ["start destroy for 1"]);
    assert_eq!(machine.fails(Remains::Something), ["destroy-failed", "1 Failed", "observe"]);
}

#[test]
fn clean_up_that_did_not_begin_leaves_something_to_destroy() {
    let mut machine = Machine::running("on_reboot=\"restart\"");
    machine.state.phase = Phase::Busy { job: Job::CleanUp, request: None, preserved: None };
    assert_eq!(machine.fails(Remains::Unchanged), ["destroy-failed", "observe"]);
    assert_eq!(machine.shown(), Shown::ShutDown);
}

#[test]
fn destroy_that_did_not_begin_leaves_the_guest_as_it_was() {
    let mut machine = Machine::running("on_poweroff=\"destroy\"");
    assert_eq!(machine.step(Event::Destroy(1)), ["start destroy for 1"]);
    assert_eq!(machine.fails(Remains::Unchanged), ["destroy-failed", "1 Failed", "observe"]);
    assert_eq!(machine.shown(), Shown::Running);
    // One that has ended is not forgotten.
    machine.step(Event::Observed(Uuid::from_u128(10), Some(Some(OFF))));
    assert_eq!(machine.fails(Remains::Unchanged), ["destroy-failed", "preserved", "observe"]);
    assert_eq!(machine.step(Event::Destroy(2)), ["start destroy for 2"]);
    assert_eq!(machine.fails(Remains::Unchanged), ["destroy-failed", "2 Failed"]);
    assert_eq!(machine.shown(), Shown::ShutDown);
}

#[test]
fn change_ends_where_it_began() {
    let mut machine = Machine::running("on_poweroff=\"preserve\"");
    assert_eq!(machine.step(Event::Change(1, "rename")), ["start rename for 1"]);
    assert_eq!((machine.shown(), machine.job()), (Shown::Running, Some("rename")));
    assert_eq!(machine.step(Event::Change(2, "mem-set")), ["2 busy rename"]);
    assert_eq!(machine.step(Event::Quick(3)), ["3 busy rename"]);
    let renamed = Guest { name: "other".to_owned(), ..guest(10, "on_poweroff=\"preserve\"") };
    assert_eq!(machine.ends(Ok(Some(renamed))), ["changed", "1 done", "observe"]);
    assert_eq!(machine.state.view().name, "other");
    machine.step(Event::Observed(Uuid::from_u128(10), Some(Some(OFF))));
    assert_eq!(machine.step(Event::Change(4, "mem-set")), ["start mem-set for 4"]);
    assert_eq!(machine.fails(Remains::Something), ["4 Failed", "observe"]);
    assert_eq!(machine.shown(), Shown::ShutDown);
}

#[test]
fn change_that_leaves_no_guest_ends_it_and_a_failed_one_does_not() {
    let mut machine = Machine::running("");
    assert_eq!(machine.step(Event::Change(1, "save")), ["start save for 1"]);
    assert_eq!((machine.shown(), machine.job()), (Shown::Running, Some("save")));
    // Its suspension is the save's, and is not looked at.
    assert_eq!(machine.step(Event::Look), [""; 0]);
    assert_eq!(machine.fails(Remains::Nothing), ["1 Failed", "observe"]);
    assert_eq!((machine.shown(), machine.job()), (Shown::Running, None));
    machine.step(Event::Observed(Uuid::from_u128(10), Some(None)));
    assert_eq!(machine.step(Event::Change(2, "save")), ["start save for 2"]);
    assert_eq!(machine.ends(Ok(None)), ["changed", "destroyed", "2 done"]);
    assert!(machine.state.is_gone() && machine.state.guest().is_none());
    assert_eq!(machine.step(Event::Change(3, "save")), ["3 NoSuchGuest"]);
    assert_eq!(machine.step(Event::Look), [""; 0]);
}

#[test]
fn saved_guest_of_which_something_is_left_is_destroyed() {
    let mut machine = Machine::running("");
    machine.step(Event::Change(1, "save"));
    assert_eq!(machine.fails(Remains::Something), ["1 Failed", "observe"]);
    let effects = machine.step(Event::Observed(Uuid::from_u128(10), Some(Some(GuestEvent::Gone))));
    assert_eq!(effects, ["release monitor", "gone", "start destroy"]);
    assert_eq!(machine.ends(Ok(None)), ["destroyed"]);
}

#[test]
fn screenshot_is_a_query() {
    let mut machine = Machine::running("");
    assert_eq!(machine.step(Event::Screenshot(1)), ["start screenshot for 1"]);
    assert_eq!(machine.step(Event::Quick(2)), ["perform 2"]);
    assert_eq!(machine.step(Event::Destroy(3)), ["3 busy screenshot"]);
    assert_eq!(machine.ends(Ok(None)), ["1 done", "observe"]);
    assert_eq!(machine.shown(), Shown::Running);
    assert!(machine.state.guest().is_some());
}

#[test]
fn settling_comes_before_requests() {
    let state = State::adopted(guest(10, ""), true, Backoff::default(), LIMITS);
    let mut machine = Machine { state, now: START, more: "" };
    assert!(!machine.state.takes_requests());
    assert_eq!(machine.ends(Ok(None)), ["observe"]);
    assert!(machine.state.takes_requests());
    assert_eq!(machine.shown(), Shown::Running);
    // One whose renaming is undone has ended, and what its configuration says was not done yet.
    let preserved = Guest { name: "hello-1".to_owned(), ..guest(10, "") };
    let state = State::adopted(preserved, true, Backoff::default(), LIMITS);
    let mut machine = Machine { state, now: START, more: "" };
    assert_eq!(machine.ends(Ok(Some(guest(10, "")))), ["observe"]);
    assert_eq!((machine.state.view().name.as_str(), machine.shown()), ("hello", Shown::Running));
}

#[test]
fn incomplete_guest_is_removed() {
    let state = State::cleaning_up("hello".to_owned(), None, LIMITS);
    let mut machine = Machine { state, now: START, more: "" };
    assert_eq!((machine.shown(), machine.job()), (Shown::Destroying, Some("destroy")));
    assert_eq!(machine.ends(Ok(None)), ["cleaned up"]);
    // Or created again, where it was being restarted.
    let state = State::restarting("hello".to_owned(), None, Turn::default(), LIMITS);
    let mut machine = Machine { state, now: START, more: "" };
    assert_eq!((machine.shown(), machine.job()), (Shown::Restarting, Some("restart")));
    assert_eq!(machine.ends(Ok(Some(guest(10, "")))), ["created", "observe"]);
    assert_eq!(machine.shown(), Shown::Running);
    let mut state = State::cleaning_up("hello".to_owned(), Some(guest(10, "")), LIMITS);
    let effects = state.step(START, Event::Ended(Box::new(Err(failed(Remains::Something)))));
    assert_eq!(effects.iter().map(word).collect::<Vec<_>>(), ["destroy-failed", "observe"]);
}

#[test]
fn stubdomain_destroyed_externally_gives_the_guest_time() {
    let mut machine = Machine::running("");
    let effects = machine.finds(GuestEvent::StubdomainDestroyed);
    assert_eq!(effects, ["release monitor", "dm-died", "timer orphaned"]);
    let other = Timer::Orphaned(Uuid::from_u128(99));
    assert_eq!(machine.step(Event::Expired(other)), [""; 0]);
    let orphaned = Timer::Orphaned(Uuid::from_u128(10));
    assert_eq!(machine.step(Event::Expired(orphaned)), ["start destroy"]);
    let mut machine = Machine::running("");
    machine.finds(GuestEvent::StubdomainDestroyed);
    assert_eq!(machine.finds(GuestEvent::Gone), ["release monitor", "gone", "start destroy"]);
    assert_eq!(machine.step(Event::Expired(orphaned)), [""; 0]);
}

#[test]
fn guest_is_looked_at_once_at_a_time_and_again_if_something_happens_meanwhile() {
    let mut machine = Machine::running("");
    let stub = Uuid::from_u128(10);
    assert_eq!(machine.step(Event::Look), ["observe"]);
    assert_eq!(machine.step(Event::Look), [""; 0]);
    assert_eq!(machine.step(Event::Observed(stub, Some(None))), ["observe"]);
    assert_eq!(machine.step(Event::Observed(stub, Some(None))), [""; 0]);
    // Xen does not answer.
    assert_eq!(machine.step(Event::Look), ["observe"]);
    assert_eq!(machine.step(Event::Observed(stub, None)), ["timer look"]);
    assert_eq!(machine.step(Event::Expired(Timer::Look)), ["observe"]);
    // What was seen of an earlier stubdomain does not count.
    let late = Event::Observed(Uuid::from_u128(9), Some(Some(OFF)));
    assert_eq!(machine.step(late), [""; 0]);
}

#[test]
fn heartbeat_that_is_lost_is_a_dead_device_model() {
    let mut machine = Machine::running("");
    let beat = || Event::Heartbeat(Uuid::from_u128(10), Some(Beat::Value(None)));
    assert_eq!(machine.step(Event::Tick), ["check heartbeat"]);
    assert_eq!(machine.step(Event::Tick), [""; 0], "one check at a time");
    assert_eq!(machine.step(beat()), [""; 0]);
    machine.now += LIMITS.heartbeat / 2;
    assert_eq!(machine.step(Event::Tick), ["check heartbeat"]);
    assert_eq!(machine.step(beat()), [""; 0]);
    machine.now += LIMITS.heartbeat / 2;
    assert_eq!(machine.step(Event::Tick), ["check heartbeat"]);
    assert_eq!(machine.step(beat()), ["heartbeat lost", "release monitor", "dm-died", "start destroy"]);
    assert_eq!(machine.step(Event::Tick), [""; 0]);
}
