//! Random events: no panic, one job and one look at a time, one answer to each request.

use std::collections::{BTreeMap, BTreeSet};

use super::super::RequestId;
use super::*;
use proptest::prelude::*;

/// A random event; what it needs of the machine is filled in.
#[derive(Clone, Debug)]
enum Random {
    Request(u8),
    Look,
    Observed(bool, u8),
    Ended(u8),
    Tick,
    Heartbeat(bool, u8),
    Due(bool),
    Orphaned(bool),
    Time(u8),
}

fn random() -> impl Strategy<Value = Random> {
    prop_oneof![
        4 => (0..5_u8).prop_map(Random::Request),
        2 => Just(Random::Look),
        4 => (prop::bool::weighted(0.8), 0..9_u8).prop_map(|(own, n)| Random::Observed(own, n)),
        4 => (0..7_u8).prop_map(Random::Ended),
        1 => Just(Random::Tick),
        2 => (any::<bool>(), 0..3_u8).prop_map(|(own, n)| Random::Heartbeat(own, n)),
        2 => any::<bool>().prop_map(Random::Due),
        1 => any::<bool>().prop_map(Random::Orphaned),
        1 => any::<u8>().prop_map(Random::Time),
    ]
}

/// What a look at the guest finds; nothing when Xen does not answer.
fn found(n: u8) -> Option<Option<GuestEvent>> {
    match n {
        0 => None,
        1 => Some(None),
        2 => Some(Some(OFF)),
        3 => Some(Some(REBOOT)),
        4 => Some(Some(SUSPEND)),
        5 => Some(Some(GuestEvent::DeviceModelDied)),
        6 => Some(Some(GuestEvent::StubdomainDestroyed)),
        7 => Some(Some(GuestEvent::SuspendedLate)),
        _ => Some(Some(GuestEvent::Gone)),
    }
}

/// What the effects of all steps must keep to.
#[derive(Default)]
struct Ledger {
    asked: RequestId,
    open: BTreeSet<RequestId>,
    job: Option<Job>,
    observing: bool,
    turns: Vec<Turn>,
    stubs: u128,
    answers: BTreeMap<RequestId, usize>,
}

impl Ledger {
    fn ask(&mut self) -> RequestId {
        self.asked += 1;
        self.open.insert(self.asked);
        self.asked
    }

    fn event(&mut self, machine: &mut Machine, random: &Random) -> Option<Event> {
        let own = |own: bool, machine: &Machine| {
            let stub = machine.state.guest().map(|guest| guest.stub_uuid);
            stub.filter(|_| own).unwrap_or(Uuid::from_u128(999))
        };
        Some(match random {
            Random::Request(0) => Event::Destroy(self.ask()),
            Random::Request(1) => Event::Change(self.ask(), "mem-set"),
            Random::Request(2) => Event::Screenshot(self.ask()),
            Random::Request(3) => Event::Resolve(self.ask()),
            Random::Request(_) => Event::Quick(self.ask()),
            Random::Look => Event::Look,
            Random::Observed(is_own, n) => {
                if !std::mem::take(&mut self.observing) {
                    return None;
                }
                Event::Observed(own(*is_own, machine), found(*n))
            }
            Random::Ended(n) => {
                let job = self.job.take()?;
                self.stubs += 1;
                let new = || Some(guest(100 + self.stubs, machine.more));
                let result = match (n, job) {
                    (0, _) => Err(failed(Remains::Nothing)),
                    (1, _) => Err(failed(Remains::Unchanged)),
                    (2, _) => Err(failed(Remains::Something)),
                    (4, Job::Change(_) | Job::Resolve) => {
                        Err(Failed { held: Some("beta".to_owned()), ..failed(Remains::Something) })
                    }
                    (_, Job::Create | Job::Restart(_)) => Ok(new()),
                    // It was saved, or is at another host.
                    (3, Job::Change(_) | Job::Resolve) => Ok(None),
                    (5, Job::Resolve) => Ok(new()),
                    (_, Job::Resolve) => Ok(machine.state.guest().cloned()),
                    (_, Job::PreserveAs(..) | Job::Change(_)) => {
                        Ok(machine.state.guest().map(|old| Guest { name: "new".to_owned(), ..old.clone() }))
                    }
                    _ => Ok(None),
                };
                Event::Ended(Box::new(result))
            }
            Random::Tick => Event::Tick,
            Random::Heartbeat(is_own, n) => {
                let beat = match n {
                    0 => None,
                    1 => Some(Beat::NotExpected),
                    _ => Some(Beat::Value(None)),
                };
                Event::Heartbeat(own(*is_own, machine), beat)
            }
            Random::Due(last) => {
                let turn = self.turns.last().copied().filter(|_| *last).unwrap_or_default();
                Event::Expired(Timer::Restart(turn))
            }
            Random::Orphaned(is_own) => Event::Expired(Timer::Orphaned(own(*is_own, machine))),
            Random::Time(seconds) => {
                machine.now += Duration::from_secs(u64::from(*seconds));
                return None;
            }
        })
    }

    fn check(&mut self, machine: &Machine, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Start(job, _) => {
                    assert_eq!(self.job, None, "one job at a time");
                    assert!(machine.state.id().is_some(), "{job:?} has a guest");
                    self.job = Some(*job);
                }
                Effect::Perform(request) | Effect::Reply(request, _) => {
                    *self.answers.entry(*request).or_default() += 1;
                    assert!(self.open.remove(request), "{request} is answered once");
                }
                Effect::Observe => {
                    assert!(!self.observing, "one look at a time");
                    self.observing = true;
                }
                Effect::RecordRestart(turn) => self.turns.push(*turn),
                _ => {}
            }
        }
        let view = machine.state.view();
        let busy = self.job.map(Job::name);
        assert!(view.job == busy || busy.is_none() && view.state == Shown::Restarting, "{view:?} {busy:?}");
        let is_nothing = view.guest.is_none() && view.incomplete.is_none();
        assert_eq!(machine.state.is_gone(), is_nothing && self.job.is_none());
    }
}

proptest! {
    #[test]
    fn each_request_is_answered_once_whatever_happens(
        begin in 0..3_u8,
        config in 0..4_usize,
        events in prop::collection::vec(random(), 0..80),
    ) {
        let more = [
            "on_reboot=\"restart\"\non_device_model_crash=\"restart\"",
            "on_reboot=\"rename-restart\"\non_poweroff=\"preserve\"",
            "on_poweroff=\"restart\"\non_device_model_crash=\"preserve\"",
            "on_reboot=\"destroy\"",
        ][config];
        let mut ledger = Ledger::default();
        let backoff = Backoff::default();
        let state = match begin {
            0 => {
                ledger.job = Some(Job::Create);
                State::creating("hello".to_owned(), Some(ledger.ask()), backoff, LIMITS)
            }
            1 => {
                ledger.job = Some(Job::Settle);
                State::adopted(guest(10, more), true, backoff, LIMITS)
            }
            _ => State::adopted(guest(10, more), false, backoff, LIMITS),
        };
        let mut machine = Machine { state, now: START, more };
        for random in &events {
            if let Some(event) = ledger.event(&mut machine, random) {
                let effects = machine.state.step(machine.now, event);
                ledger.check(&machine, &effects);
            }
        }
        // Whatever is in progress ends.
        while ledger.job.is_some() {
            let event = ledger.event(&mut machine, &Random::Ended(5)).unwrap();
            let effects = machine.state.step(machine.now, event);
            ledger.check(&machine, &effects);
        }
        prop_assert!(ledger.open.is_empty(), "{:?} are not answered", ledger.open);
        prop_assert!(ledger.answers.values().all(|count| *count == 1));
        prop_assert_eq!(u64::try_from(ledger.answers.len()).unwrap(), ledger.asked);
    }
}
