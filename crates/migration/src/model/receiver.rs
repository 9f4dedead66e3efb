//! The shell around the receiver's machine.

use crate::receiver::{Copy as Found, Effect, Event, First, Receiver, Timer};
use crate::record::ReceiverRecord;
use crate::{Ended, Mutation, Reason};

use super::messages::{Kind, TO_RECEIVER, decision, id};
use super::steps::{Class, Steps};
use super::world::{Copy, Disk, Dom, Host, Plan, World};

impl World {
    pub(super) fn receiver_effects(&mut self, plan: &Plan, migration: usize, effects: Vec<Effect>) {
        for effect in effects {
            let state = &mut self.migrations[migration];
            match effect {
                Effect::Send(message) => {
                    state.net |= Kind::of(&message).map_or(0, Kind::bit);
                }
                Effect::BootAnew => self.boot(migration + 1),
                Effect::PauseCopy | Effect::StartTimer(_) | Effect::Finished | Effect::ReportTwoCopies => {}
                effect => {
                    let busy = matches!(state.receiver.under_way, Some(Effect::Write(_)));
                    assert!(!busy || plan.broken.is_some(), "a write is replaced by {effect:?}");
                    state.receiver.under_way = Some(effect);
                }
            }
        }
    }

    /// Lets an event happen, and reports whether it changed anything.
    pub(super) fn receiver_event(&mut self, plan: &Plan, migration: usize, event: Event) -> bool {
        let Some(machine) = &mut self.migrations[migration].receiver.machine else { return false };
        let before = machine.clone();
        let effects = machine.step(event);
        machine.forget_reason();
        let changed = *machine != before || !effects.is_empty();
        self.receiver_effects(plan, migration, effects);
        changed
    }

    pub(super) fn restore_receiver(&mut self, plan: &Plan, migration: usize) {
        let own = self.own_journal(plan.legs[migration].to);
        if let Some(record) = self.migrations[migration].receiver.cache.clone() {
            let (machine, effects) = Receiver::restored_by(id(migration), own, record, plan.rules());
            self.migrations[migration].receiver.machine = Some(machine);
            self.receiver_effects(plan, migration, effects);
        }
    }

    fn first(&mut self, plan: &Plan, migration: usize, kind: Kind, refusal: Option<Reason>) {
        let own = self.own_journal(plan.legs[migration].to);
        match Receiver::first_by(&kind.message(migration), own, refusal, plan.rules()) {
            First::Machine(mut machine, effects) => {
                machine.forget_reason();
                self.migrations[migration].receiver.machine = Some(machine);
                self.receiver_effects(plan, migration, effects);
            }
            First::Reply(message) => self.receiver_effects(plan, migration, vec![Effect::Send(message)]),
            First::Nothing => {}
        }
    }
}

/// Everything that may happen at the receiver of a migration next.
pub(super) fn steps(steps: &mut Steps<'_>, migration: usize) {
    let (world, plan) = (steps.world, steps.plan);
    let leg = plan.legs[migration];
    let state = &world.migrations[migration];
    let side = &state.receiver;
    if side.cache != side.disk {
        steps.add("the kernel writes R's record to the disk", Class::Step, |world| {
            let side = &mut world.migrations[migration].receiver;
            side.disk = side.cache.clone();
        });
    }
    if world.hosts[leg.to] != Host::Up {
        return;
    }
    let arrived = TO_RECEIVER.into_iter().filter(|kind| state.net & kind.bit() != 0);
    if side.machine.is_none() {
        for kind in arrived {
            if kind != Kind::Offer || !world.is_busy(plan, migration) {
                steps.add(kind.name(), Class::Step, |world| world.first(plan, migration, kind, None));
            }
            if kind == Kind::Offer {
                let refusal = Some(Reason::Other);
                steps.add("OFFER, refused", Class::Step, |world| world.first(plan, migration, kind, refusal));
            }
        }
        return;
    }
    under_way(steps, migration);
    for (label, event) in [
        ("R: no progress, or cancelled", Event::Timeout(Timer::Progress)),
        ("R: tries again", Event::Timeout(Timer::Retry)),
        ("R: connected", Event::Connected),
    ] {
        steps.receiver(label, Class::Step, migration, event);
    }
    if world.copies[migration + 1].dom == Dom::None && side.under_way != Some(Effect::Build) {
        steps.receiver(
            "R: finds that its copy is gone",
            Class::Step,
            migration,
            Event::CopyGone(Ended::Other),
        );
    }
    for kind in arrived {
        steps.receiver(kind.name(), Class::Step, migration, Event::Received(kind.message(migration)));
    }
    if !plan.local && (world.hosts[leg.from] == Host::Off || world.lost[leg.from]) {
        let event = Event::AssumeSenderDead(decision());
        steps.receiver("operator: --assume-sender-dead", Class::Force, migration, event);
    }
}

/// What is under way at the receiver ends.
fn under_way(steps: &mut Steps<'_>, migration: usize) {
    let (world, plan) = (steps.world, steps.plan);
    let copy = migration + 1;
    let Some(effect) = world.migrations[migration].receiver.under_way.clone() else { return };
    let finish = move |world: &mut World, event: Event| {
        world.migrations[migration].receiver.under_way = None;
        world.receiver_event(plan, migration, event);
    };
    let dom = world.copies[copy].dom;
    let failure = match effect {
        Effect::Unpause => Some(("R cannot unpause the guest", Event::UnpauseFailed)),
        Effect::DestroyIncoming => Some(("R cannot destroy the paused copy", Event::DestroyFailed)),
        _ => None,
    };
    if let Some((label, event)) = failure {
        steps.add(label, Class::Fault, |world| finish(world, event));
    }
    let mut add = |label, class, disk: Option<Disk>, event: Event| {
        steps.add(label, class, |world| {
            world.copies[copy].disk = disk.unwrap_or(world.copies[copy].disk);
            finish(world, event);
        });
    };
    match effect {
        Effect::Write(record) => write(steps, migration, &record),
        Effect::Build => steps.add("R builds the domains", Class::Step, |world| {
            world.copies[copy] = Copy { dom: Dom::Paused, disk: Disk::Closed };
            finish(world, Event::Built);
        }),
        Effect::Load { .. } if dom == Dom::Paused => {
            add("R loads the guest, disks fenced", Class::Step, Some(Disk::Fenced), Event::Loaded);
        }
        Effect::VerifyPaused if dom == Dom::Paused => {
            add("R finds its copy paused", Class::Step, None, Event::StillPaused);
        }
        Effect::Arm if dom == Dom::Paused => {
            add("R arms the disks", Class::Step, Some(Disk::Armed), Event::Armed);
            add("R cannot arm the disks", Class::Fault, None, Event::ArmFailed);
        }
        Effect::Unpause if dom == Dom::Paused => steps.add("R unpauses the guest", Class::Step, |world| {
            world.revived |= world.over;
            world.go_on(copy);
            finish(world, Event::Unpaused);
        }),
        Effect::Inspect => steps.add("R looks what there is", Class::Step, |world| {
            let committed = world.migrations[migration].receiver.cache == Some(ReceiverRecord::Committed);
            let found = match world.copies[copy].dom {
                Dom::None => Found::Gone(Ended::Other),
                Dom::Running => Found::Running,
                _ => Found::Paused,
            };
            world.ended |= committed && dom == Dom::None && !world.runs();
            finish(world, Event::Inspected(found));
        }),
        Effect::DestroyIncoming => steps.add("R destroys the paused copy", Class::Step, |world| {
            if world.copies[copy].dom == Dom::Paused {
                world.copies[copy] = Copy::default();
            }
            finish(world, Event::Destroyed);
        }),
        _ => steps
            .add("R finds its copy gone", Class::Step, |world| finish(world, Event::CopyGone(Ended::Other))),
    }
}

fn write(steps: &mut Steps<'_>, migration: usize, record: &ReceiverRecord) {
    let name = match record {
        ReceiverRecord::Open => "R writes OPEN",
        ReceiverRecord::Committed => "R writes COMMITTED",
        ReceiverRecord::Aborted(_) => "R writes ABORTED",
        ReceiverRecord::Owned => "R writes OWNED",
        ReceiverRecord::Void(_) => "R writes VOID",
        ReceiverRecord::Claimed(_) => "R writes CLAIMED",
    };
    let plan = steps.plan;
    let unsynced = plan.broke(Mutation::CommittedNotSynced) && *record == ReceiverRecord::Committed;
    let mut add = |name, class, cache: bool, disk: bool, event: Event| {
        steps.add(name, class, |world| {
            let side = &mut world.migrations[migration].receiver;
            side.under_way = None;
            if cache {
                side.cache = Some(record.clone());
            }
            if disk {
                side.disk = Some(record.clone());
            }
            world.receiver_event(plan, migration, event);
        });
    };
    add(name, Class::Step, true, !unsynced, Event::Written);
    add("R: the write fails, nothing is written", Class::Fault, false, false, Event::WriteFailed);
    add("R: the write fails, it is in the cache", Class::Fault, true, false, Event::WriteFailed);
    add("R: the write fails, it is on the disk", Class::Fault, true, true, Event::WriteFailed);
}
