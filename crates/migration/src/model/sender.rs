//! The shell around the sender's machine.

use crate::record::SenderRecord;
use crate::sender::{Effect, Event, Sender, Timer};

use super::messages::{DIGEST, JOURNAL, Kind, TO_SENDER, decision, id};
use super::steps::{Class, Steps};
use super::world::{Disk, Dom, Host, Plan, World};

impl World {
    pub(super) fn sender_effects(&mut self, plan: &Plan, migration: usize, effects: Vec<Effect>) {
        for effect in effects {
            let state = &mut self.migrations[migration];
            match effect {
                Effect::Send(message) => {
                    let bit = Kind::of(&message).map_or(0, Kind::bit);
                    state.net |= bit;
                    state.said_go |= bit == Kind::Go.bit();
                }
                Effect::SendOffer => state.net |= Kind::Offer.bit(),
                Effect::BootAnew => self.boot(plan.legs[migration].copy),
                Effect::Stream(_) | Effect::StartTimer(_) | Effect::Finished | Effect::ReportTwoCopies => {}
                effect => {
                    let busy = matches!(state.sender.under_way, Some(Effect::Write(_)));
                    assert!(!busy || plan.broken.is_some(), "a write is replaced by {effect:?}");
                    state.sender.under_way = Some(effect);
                }
            }
        }
    }

    /// Lets an event happen, and reports whether it changed anything.
    pub(super) fn sender_event(&mut self, plan: &Plan, migration: usize, event: Event) -> bool {
        let Some(machine) = &mut self.migrations[migration].sender.machine else { return false };
        let before = machine.clone();
        let effects = machine.step(event);
        machine.forget_reason();
        let changed = *machine != before || !effects.is_empty();
        self.sender_effects(plan, migration, effects);
        changed
    }

    fn restore_sender(&mut self, plan: &Plan, migration: usize) {
        if let Some(record) = self.migrations[migration].sender.cache.clone() {
            let (machine, effects) = Sender::with(id(migration), JOURNAL, record, true, plan.rules());
            self.migrations[migration].sender.machine = Some(machine);
            self.sender_effects(plan, migration, effects);
        }
    }

    /// The daemon of a host starts.
    pub(super) fn start_daemon(&mut self, plan: &Plan, host: usize) {
        self.hosts[host] = Host::Up;
        for (migration, leg) in plan.legs.iter().enumerate() {
            if leg.from == host {
                self.restore_sender(plan, migration);
            }
            if leg.to == host {
                self.restore_receiver(plan, migration);
            }
        }
    }
}

/// Everything that may happen at the sender of a migration next.
pub(super) fn steps(steps: &mut Steps<'_>, migration: usize) {
    let (world, plan) = (steps.world, steps.plan);
    let leg = plan.legs[migration];
    let side = &world.migrations[migration].sender;
    if side.cache != side.disk {
        steps.add("the kernel writes S's record to the disk", Class::Step, |world| {
            let side = &mut world.migrations[migration].sender;
            side.disk = side.cache.clone();
        });
    }
    if world.hosts[leg.from] != Host::Up {
        return;
    }
    if side.machine.is_none() {
        return begin(steps, migration);
    }
    under_way(steps, migration);
    for (label, event) in [
        ("S: the rest fits into the downtime", Event::Converged),
        ("S: no progress, or cancelled", Event::Timeout(Timer::Progress)),
        ("S: no answer, or cancelled", Event::Timeout(Timer::Answer)),
        ("S: tries again", Event::Timeout(Timer::Retry)),
        ("S: connected", Event::Connected),
    ] {
        steps.sender(label, Class::Step, migration, event);
    }
    if world.copies[leg.copy].dom == Dom::None {
        steps.sender("S: finds that the guest has ended", Class::Step, migration, Event::GuestEnded);
    }
    for kind in TO_SENDER {
        if world.migrations[migration].net & kind.bit() != 0 {
            steps.sender(kind.name(), Class::Step, migration, Event::Received(kind.message(migration)));
        }
    }
    if !plan.local && (world.hosts[leg.to] == Host::Off || world.lost[leg.to]) {
        let event = Event::AssumeReceiverDead(decision());
        steps.sender("operator: --assume-receiver-dead", Class::Force, migration, event);
    }
}

/// A user begins the migration (rule 10).
fn begin(steps: &mut Steps<'_>, migration: usize) {
    let (world, plan) = (steps.world, steps.plan);
    let leg = plan.legs[migration];
    let allowed = plan.legs.iter().zip(&world.migrations).take(migration).all(|(earlier, state)| {
        let sent = state.sender.machine.as_ref().is_some_and(Sender::allows_operation);
        let received = state.receiver.machine.as_ref().is_none_or(|machine| {
            machine.allows_operation()
                && (machine.record() == Some(&crate::record::ReceiverRecord::Owned) || sent)
        });
        (earlier.from != leg.from || sent)
            && (earlier.to != leg.from || received)
            && state.sender.cache.is_some()
    });
    let whole =
        !world.lost[leg.from] && !world.lost[leg.to] && world.migrations[migration].sender.cache.is_none();
    if allowed && whole && world.copies[leg.copy].dom == Dom::Running {
        steps.add("a user begins the migration", Class::User, |world| {
            let (machine, effects) =
                Sender::with(id(migration), JOURNAL, SenderRecord::Start, false, plan.rules());
            world.migrations[migration].sender.machine = Some(machine);
            world.sender_effects(plan, migration, effects);
        });
    }
}

/// What is under way at the sender ends.
fn under_way(steps: &mut Steps<'_>, migration: usize) {
    let (world, plan) = (steps.world, steps.plan);
    let copy = plan.legs[migration].copy;
    let Some(effect) = world.migrations[migration].sender.under_way.clone() else { return };
    let finish = move |world: &mut World, event: Event| {
        world.migrations[migration].sender.under_way = None;
        world.sender_event(plan, migration, event);
    };
    let dom = world.copies[copy].dom;
    let failure = match effect {
        Effect::Resume => Some(("S cannot resume the guest", Event::ResumeFailed)),
        Effect::DestroyCopy => Some(("S cannot destroy the suspended copy", Event::DestroyFailed)),
        _ => None,
    };
    if let Some((label, event)) = failure {
        steps.add(label, Class::Fault, |world| finish(world, event));
    }
    match effect {
        Effect::Write(record) => write(steps, migration, &record),
        Effect::Suspend if dom == Dom::Running => steps.add("S suspends the guest", Class::Step, |world| {
            world.copies[copy].dom = Dom::Suspended;
            finish(world, Event::Suspended);
        }),
        Effect::StopAndSave if dom == Dom::Suspended => {
            steps.add("S sends the rest and fences the disks", Class::Step, |world| {
                world.copies[copy].disk = Disk::Fenced;
                world.fits |= 1 << (migration + 1);
                finish(world, Event::Saved { length: 1, digest: DIGEST });
            });
        }
        Effect::VerifySuspended if dom == Dom::Suspended => {
            steps.add("S finds the guest suspended", Class::Step, |world| {
                finish(world, Event::StillSuspended);
            });
        }
        Effect::Resume if dom != Dom::None => steps.add("S resumes the guest", Class::Step, |world| {
            if world.copies[copy].dom == Dom::Suspended {
                world.go_on(copy);
            }
            finish(world, Event::Resumed);
        }),
        Effect::DestroyCopy => steps.add("S destroys the suspended copy", Class::Step, |world| {
            if world.copies[copy].dom == Dom::Suspended {
                world.copies[copy] = super::world::Copy::default();
                world.ended |= !world.runs();
            }
            finish(world, Event::Destroyed);
        }),
        _ => steps.add("S finds the guest gone", Class::Step, |world| finish(world, Event::GuestEnded)),
    }
}

fn write(steps: &mut Steps<'_>, migration: usize, record: &SenderRecord) {
    let plan = steps.plan;
    let name = match record {
        SenderRecord::Start => "S writes START",
        SenderRecord::Go { .. } => "S writes GO",
        SenderRecord::Done(crate::record::Done::Aborted(_)) => "S writes DONE(aborted)",
        SenderRecord::Done(crate::record::Done::Moved) => "S writes DONE(moved)",
        SenderRecord::Forced(_) => "S writes FORCED",
        SenderRecord::ForcedDone(_) => "S writes FORCED-DONE",
    };
    let mut add = |name, class, cache: bool, disk: bool, event: Event| {
        steps.add(name, class, |world| {
            let side = &mut world.migrations[migration].sender;
            side.under_way = None;
            if cache {
                side.cache = Some(record.clone());
            }
            if disk {
                side.disk = Some(record.clone());
            }
            world.sender_event(plan, migration, event);
        });
    };
    add(name, Class::Step, true, true, Event::Written);
    add(
        "S: the write fails, nothing is written",
        Class::Fault,
        false,
        false,
        Event::WriteFailed { doubtful: false },
    );
    add(
        "S: the write fails, it is in the cache",
        Class::Fault,
        true,
        false,
        Event::WriteFailed { doubtful: true },
    );
    add(
        "S: the write fails, it is on the disk",
        Class::Fault,
        true,
        true,
        Event::WriteFailed { doubtful: true },
    );
}
