//! Guests that are migrated, and those about which another host has to decide.

use super::*;

fn unresolved(host: &str) -> Failed {
    Failed { held: Some(host.to_owned()), ..failed(Remains::Something) }
}

/// One whose migration has left the decision to another host.
fn held() -> Machine {
    let mut machine = Machine::running("");
    machine.step(Event::Change(1, "migrate"));
    assert_eq!(machine.ends(Err(unresolved("beta"))), ["unresolved", "1 Failed"]);
    machine
}

fn is_held(machine: &Machine) -> bool {
    (machine.shown(), machine.job()) == (Shown::Unresolved, None)
}

#[test]
fn migrated_guest_is_shown_as_such_until_it_is_gone_or_stays() {
    let mut machine = Machine::running("");
    assert_eq!(machine.step(Event::Change(1, "migrate")), ["start migrate for 1"]);
    assert_eq!((machine.shown(), machine.job()), (Shown::Migrating, Some("migrate")));
    assert_eq!(machine.step(Event::Resolve(2)), ["2 busy migrate"]);
    assert_eq!(machine.fails(Remains::Something), ["1 Failed", "observe"]);
    assert_eq!((machine.shown(), machine.job()), (Shown::Running, None));
    machine.step(Event::Observed(Uuid::from_u128(10), Some(None)));
    machine.step(Event::Change(3, "migrate"));
    assert_eq!(machine.ends(Ok(None)), ["changed", "destroyed", "3 done"]);
    assert!(machine.state.is_gone());
}

#[test]
fn nothing_but_the_decision_is_asked_of_a_guest_that_is_held() {
    let mut machine = held();
    assert!(is_held(&machine) && machine.state.takes_requests());
    let requests = [Event::Destroy(2), Event::Change(2, "mem-set"), Event::Screenshot(2), Event::Quick(2)];
    for request in requests {
        assert_eq!(machine.step(request), ["2 Unresolved"]);
    }
    // Its suspension is the migration's, and its device model is stopped.
    for event in [Event::Look, Event::Tick, Event::Observed(Uuid::from_u128(10), Some(Some(OFF)))] {
        assert_eq!(machine.step(event), [""; 0]);
    }
    assert_eq!(machine.step(Event::Resolve(3)), ["start resolve for 3"]);
    assert_eq!((machine.shown(), machine.job()), (Shown::Unresolved, Some("resolve")));
    assert_eq!(machine.step(Event::Resolve(4)), ["4 busy resolve"]);
    // Whether the other host did not answer, or could not be asked: it has to decide all the same.
    assert_eq!(machine.ends(Err(unresolved("beta"))), ["3 Failed"]);
    machine.step(Event::Resolve(5));
    assert_eq!(machine.fails(Remains::Something), ["5 Failed"]);
    assert!(is_held(&machine));
}

#[test]
fn decision_ends_what_is_held() {
    let resolved = |result: Option<Guest>| {
        let mut machine = held();
        machine.step(Event::Resolve(2));
        let effects = machine.ends(Ok(result));
        (machine, effects)
    };
    let (machine, effects) = resolved(None);
    assert_eq!(effects, ["destroyed", "2 done"]);
    assert!(machine.state.is_gone());
    let (mut machine, effects) = resolved(Some(guest(10, "")));
    assert_eq!(effects, ["changed", "2 done", "observe"]);
    assert_eq!((machine.shown(), machine.job()), (Shown::Running, None));
    machine.step(Event::Observed(Uuid::from_u128(10), Some(None)));
    assert_eq!(machine.step(Event::Change(3, "mem-set")), ["start mem-set for 3"]);
    assert_eq!(machine.fails(Remains::Something), ["3 Failed", "observe"]);
    assert_eq!(machine.shown(), Shown::Running);
    let (machine, effects) = resolved(Some(guest(11, "")));
    assert_eq!(effects, ["created", "2 created", "observe"]);
    assert_eq!(machine.shown(), Shown::Running);
}

#[test]
fn guest_is_destroyed_of_which_the_decision_has_left_something() {
    let mut machine = held();
    machine.step(Event::Resolve(2));
    let incomplete = Failed { decided: true, ..failed(Remains::Something) };
    assert_eq!(machine.ends(Err(incomplete)), ["2 Failed", "observe"]);
    let effects = machine.step(Event::Observed(Uuid::from_u128(10), Some(Some(GuestEvent::Gone))));
    assert_eq!(effects, ["release monitor", "gone", "start destroy"]);
    assert_eq!(machine.ends(Ok(None)), ["destroyed"]);
}

#[test]
fn earlier_daemons_guest_is_held_by_the_host_that_has_to_decide() {
    let state = State::held(guest(10, ""), "beta".to_owned(), LIMITS);
    let mut machine = Machine { state, now: START, more: "" };
    assert!(is_held(&machine));
    let effects = machine.state.step(START, Event::Destroy(1));
    let [Effect::Reply(1, Reply::Refused(Refusal::Unresolved { guest, host, message }))] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((guest.as_str(), host.as_str()), ("hello", "beta"));
    assert!(message.contains("beta"), "{message}");
    machine.step(Event::Resolve(2));
    assert_eq!(machine.ends(Ok(Some(super::guest(10, "")))), ["changed", "2 done", "observe"]);
}

#[test]
fn migration_of_a_guest_that_runs_is_settled_without_harm() {
    let mut machine = Machine::running("on_poweroff=\"preserve\"");
    assert_eq!(machine.step(Event::Resolve(1)), ["start resolve for 1"]);
    assert_eq!((machine.shown(), machine.job()), (Shown::Running, Some("resolve")));
    assert_eq!(machine.fails(Remains::Something), ["1 Failed", "observe"]);
    machine.step(Event::Observed(Uuid::from_u128(10), Some(Some(OFF))));
    assert_eq!(machine.shown(), Shown::ShutDown);
    machine.step(Event::Resolve(2));
    let same = guest(10, "on_poweroff=\"preserve\"");
    assert_eq!(machine.ends(Ok(Some(same))), ["changed", "2 done", "observe"]);
    assert_eq!(machine.shown(), Shown::ShutDown);
}
