//! What may happen next, and what kind of step it is.

use crate::receiver::Event as ReceiverEvent;
use crate::sender::Event as SenderEvent;

use super::world::{Plan, UNLIMITED, World};

/// Whose step it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Of the machines and what surrounds them, without a fault: it happens at some time.
    Step,
    /// Of a user.
    User,
    /// A fault.
    Fault,
    /// Of an operator who declares a host dead.
    Force,
}

/// A step: what happens, for which migration, copy or host, and what follows.
#[derive(Clone, Debug)]
pub struct Step {
    /// What happens.
    pub label: &'static str,
    /// Whose step it is.
    pub class: Class,
    /// The world after it.
    pub world: World,
}

/// Collects the steps from one world.
pub(super) struct Steps<'a> {
    pub(super) plan: &'a Plan,
    pub(super) world: &'a World,
    pub(super) out: Vec<Step>,
}

impl Steps<'_> {
    /// Adds a step if it changes something, and if it may happen.
    pub(super) fn add(&mut self, label: &'static str, class: Class, change: impl FnOnce(&mut World)) {
        if class == Class::Fault && self.world.faults == 0 {
            return;
        }
        let mut world = self.world.clone();
        change(&mut world);
        if world == *self.world {
            return;
        }
        if class == Class::Fault && world.faults != UNLIMITED {
            world.faults -= 1;
        }
        self.out.push(Step { label, class, world });
    }

    /// Adds an event of the sender's machine, unless it changes nothing.
    pub(super) fn sender(&mut self, label: &'static str, class: Class, migration: usize, event: SenderEvent) {
        let Some(machine) = &self.world.migrations[migration].sender.machine else { return };
        let mut probe = machine.clone();
        if !probe.step(event.clone()).is_empty() || probe != *machine {
            let plan = self.plan;
            self.add(label, class, |world| _ = world.sender_event(plan, migration, event));
        }
    }

    /// Adds an event of the receiver's machine, unless it changes nothing.
    pub(super) fn receiver(
        &mut self,
        label: &'static str,
        class: Class,
        migration: usize,
        event: ReceiverEvent,
    ) {
        let Some(machine) = &self.world.migrations[migration].receiver.machine else { return };
        let mut probe = machine.clone();
        if !probe.step(event.clone()).is_empty() || probe != *machine {
            let plan = self.plan;
            self.add(label, class, |world| _ = world.receiver_event(plan, migration, event));
        }
    }
}
