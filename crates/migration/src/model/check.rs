//! All steps from a world, and what must hold in each.

use crate::record::{Done, ReceiverRecord, SenderRecord};

use super::messages::{TO_RECEIVER, TO_SENDER};
use super::steps::{Class, Step, Steps};
use super::world::{COPIES, Disk, Dom, HOSTS, Host, Migration, Plan, World};
use super::{receiver, sender};

impl World {
    /// Returns everything that may happen next.
    pub fn steps(&self, plan: &Plan) -> Vec<Step> {
        let mut steps = Steps { plan, world: self, out: Vec::new() };
        for migration in 0..plan.legs.len() {
            sender::steps(&mut steps, migration);
            receiver::steps(&mut steps, migration);
            for kind in TO_RECEIVER.into_iter().chain(TO_SENDER) {
                steps.add("a message is lost", Class::Fault, |world| {
                    world.migrations[migration].net &= !kind.bit();
                });
            }
        }
        guests(&mut steps);
        hosts(&mut steps);
        steps.out
    }

    /// Returns the first property that does not hold.
    pub fn broken(&self) -> Option<&'static str> {
        let count = |dom: Dom| self.copies.iter().filter(|copy| copy.dom == dom).count();
        let armed = self.copies.iter().filter(|copy| copy.disk == Disk::Armed).count();
        let whole = self.lost == [false; HOSTS];
        if count(Dom::Running) > 1 {
            return Some("P1: two copies run");
        }
        if armed > 1 {
            return Some("P2: two copies can write the disks");
        }
        if self.revived {
            return Some("P10: a guest that had ended before GO runs again");
        }
        if self.stale {
            return Some("P3: a copy goes on whose memory is older than the disks");
        }
        if count(Dom::Running) == 0 && !self.ended && whole && !self.migrations.iter().any(says_so) {
            return Some("P7: the guest is nowhere, and no side says so");
        }
        None
    }

    /// Whether everything is decided, or waits for an operator because a journal is lost.
    pub fn is_settled(&self) -> bool {
        let existing = self.copies.iter().filter(|copy| copy.dom != Dom::None).count();
        let waits = self.migrations.iter().any(|migration| self.waits_for_operator(migration));
        self.hosts == [Host::Up; HOSTS]
            && self
                .migrations
                .iter()
                .all(|migration| self.waits_for_operator(migration) || is_final(migration))
            && ((existing == 1 && self.runs()) || (existing == 0 && self.ended) || waits)
    }

    fn waits_for_operator(&self, migration: &Migration) -> bool {
        let (sender, receiver) = (&migration.sender.cache, &migration.receiver.cache);
        let forced = matches!(sender, Some(SenderRecord::Forced(_)));
        let open = forced || matches!(sender, Some(SenderRecord::Go { .. }));
        let lost = self.lost != [false; HOSTS];
        (lost && (open || *receiver == Some(ReceiverRecord::Committed)))
            || (forced && matches!(receiver, Some(ReceiverRecord::Claimed(_))))
    }

    /// Whether the guest was moved, and both sides know it.
    pub fn is_moved(&self) -> bool {
        let first = &self.migrations[0];
        first.sender.cache == Some(SenderRecord::Done(Done::Moved))
            && first.receiver.cache == Some(ReceiverRecord::Owned)
            && self.copies[1].dom == Dom::Running
    }

    /// Whether the guest came back after GO, because the receiver aborted.
    pub fn is_back(&self) -> bool {
        let first = &self.migrations[0];
        matches!(first.sender.cache, Some(SenderRecord::Done(Done::Aborted(_))))
            && first.said_go
            && self.copies[0].dom == Dom::Running
    }

    /// Whether the guest was started anew by an operator's decision that is confirmed.
    pub fn is_forced(&self) -> bool {
        let first = &self.migrations[0];
        matches!(first.sender.cache, Some(SenderRecord::ForcedDone(_))) && self.copies[0].dom == Dom::Running
    }

    /// Whether the guest runs at its first sender or is known to have left or ended, although the receiver stays off.
    pub fn is_settled_without_receiver(&self) -> bool {
        let here = self.copies[0].dom;
        let moved = self.migrations[0].sender.cache == Some(SenderRecord::Done(Done::Moved));
        !self.is_off(1) || self.lost[0] || moved || here == Dom::Running || (here == Dom::None && self.ended)
    }

    /// Whether a host is off.
    pub fn is_off(&self, host: usize) -> bool {
        self.hosts.get(host) == Some(&Host::Off)
    }
}

fn is_final(migration: &Migration) -> bool {
    use ReceiverRecord::{Aborted, Claimed, Owned, Void};
    use SenderRecord::{Done, ForcedDone};
    matches!(migration.sender.cache, None | Some(Done(_) | ForcedDone(_)))
        && matches!(migration.receiver.cache, None | Some(Aborted(_) | Owned | Void(_) | Claimed(_)))
}

/// Whether a record shows users that something is to be done.
fn says_so(migration: &Migration) -> bool {
    use ReceiverRecord::{Claimed, Committed};
    use SenderRecord::{Forced, ForcedDone, Go, Start};
    matches!(migration.sender.cache, Some(Start | Go { .. } | Forced(_) | ForcedDone(_)))
        || matches!(migration.receiver.cache, Some(Committed | Claimed(_)))
}

/// Guests end, are destroyed, and are started by their hosts.
fn guests(steps: &mut Steps<'_>) {
    let (world, plan) = (steps.world, steps.plan);
    for copy in 0..COPIES {
        let label = match world.copies[copy].dom {
            Dom::Running => "the guest ends, or is destroyed",
            Dom::Suspended => "the suspended copy is destroyed",
            Dom::Paused => "the paused copy is destroyed",
            Dom::None => continue,
        };
        steps.add(label, Class::Fault, |world| world.destroy(plan, copy));
    }
    for host in (0..HOSTS).filter(|host| world.hosts[*host] == Host::Up && world.starts(plan, *host)) {
        let mine = || (0..COPIES).filter(|copy| plan.host_of(*copy) == host);
        let came = |copy: &usize| {
            use ReceiverRecord::{Claimed, Committed, Owned};
            *copy == 0
                || matches!(world.migrations[copy - 1].receiver.cache, Some(Owned | Committed | Claimed(_)))
        };
        let latest = mine().filter(came).max();
        if let (Some(copy), true) = (latest, mine().all(|copy| world.copies[copy].dom == Dom::None)) {
            steps.add("the host starts the guest anew", Class::User, |world| world.boot(copy));
        }
    }
}

/// Daemons are killed, hosts crash, and both come back.
fn hosts(steps: &mut Steps<'_>) {
    let (world, plan) = (steps.world, steps.plan);
    for host in (0..HOSTS).filter(|host| plan.legs.iter().any(|leg| leg.from == *host || leg.to == *host)) {
        if plan.local && host > 0 {
            continue;
        }
        let together = if plan.local { vec![0, 1] } else { vec![host] };
        if world.hosts[host] == Host::Up {
            steps.add("the daemon is killed", Class::Fault, |world| {
                together.iter().for_each(|host| world.kill_daemon(plan, *host));
            });
            let mut written = world.clone();
            together.iter().for_each(|host| written.writes_reach_cache(plan, *host));
            if written != *world {
                steps.add("the daemon is killed while it writes", Class::Fault, |world| {
                    together.iter().for_each(|host| world.writes_reach_cache(plan, *host));
                    together.iter().for_each(|host| world.kill_daemon(plan, *host));
                });
            }
        }
        if world.hosts[host] != Host::Off {
            steps.add("the host crashes", Class::Fault, |world| {
                together.iter().for_each(|host| world.crash_host(plan, *host));
            });
        } else if !plan.local && plan.legs.len() == 1 && !world.lost[host] {
            steps.add("the host comes back with an empty journal", Class::Fault, |world| {
                world.lost[host] = true;
                world.hosts[host] = Host::Up;
                let migration = &mut world.migrations[0];
                if plan.legs[0].from == host {
                    (migration.sender.cache, migration.sender.disk) = (None, None);
                } else {
                    (migration.receiver.cache, migration.receiver.disk) = (None, None);
                }
            });
        }
        if world.hosts[host] != Host::Up {
            steps.add("the daemon starts", Class::Step, |world| {
                together.iter().for_each(|host| world.start_daemon(plan, *host));
            });
        }
    }
}
