//! The state of the world around the machines, and what machines and faults do to it.

use crate::Mutation;
use crate::mutation::Rules;
use crate::receiver::{Effect as ReceiverEffect, OwnJournal, Receiver};
use crate::record::{Claim, ReceiverRecord, SenderRecord, may_start};
use crate::sender::{Effect as SenderEffect, Sender};

use super::messages::{JOURNAL, NEW_JOURNAL};

/// How many hosts there are at most.
pub(super) const HOSTS: usize = 3;
/// How many migrations there are at most. The incoming copy of migration `m` is copy `m + 1`.
pub(super) const MIGRATIONS: usize = 2;
/// How many copies of the guest there are at most.
pub(super) const COPIES: usize = MIGRATIONS + 1;
/// As the number of faults: no limit.
pub const UNLIMITED: u8 = u8::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Host {
    #[default]
    Up,
    DaemonDown,
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Dom {
    #[default]
    None,
    Paused,
    Suspended,
    Running,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Disk {
    #[default]
    Closed,
    Fenced,
    Armed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Copy {
    pub(super) dom: Dom,
    pub(super) disk: Disk,
}

/// One role of one migration: its machine while the daemon is up, the effect under way, and the record as a restarted
/// daemon reads it (cache) and as it survives a crash of the host (disk).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Side<M, E, R> {
    pub(super) machine: Option<M>,
    pub(super) under_way: Option<E>,
    pub(super) cache: Option<R>,
    pub(super) disk: Option<R>,
}

impl<M, E, R> Default for Side<M, E, R> {
    fn default() -> Self {
        Self { machine: None, under_way: None, cache: None, disk: None }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Migration {
    pub(super) sender: Side<Sender, SenderEffect, SenderRecord>,
    pub(super) receiver: Side<Receiver, ReceiverEffect, ReceiverRecord>,
    /// The messages that may arrive.
    pub(super) net: u16,
    /// GO was ever sent.
    pub(super) said_go: bool,
}

/// Which host migrates the guest to which.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    /// The sender's host.
    pub from: usize,
    /// The receiver's host.
    pub to: usize,
    /// The copy that leaves: 0, or the number of the migration that brought it plus 1.
    pub copy: usize,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The migrations: one or two.
    pub legs: Vec<Leg>,
    /// Both hosts are one machine: faults hit both.
    pub local: bool,
    /// How many faults there are at most; 255 is no limit.
    pub faults: u8,
    /// The rule that is broken.
    pub broken: Option<Mutation>,
}

impl Plan {
    /// One migration between two hosts.
    pub fn one(faults: u8) -> Self {
        Self { legs: vec![Leg { from: 0, to: 1, copy: 0 }], local: false, faults, broken: None }
    }

    /// The same migration twice.
    pub fn again(faults: u8) -> Self {
        Self { legs: vec![Leg { from: 0, to: 1, copy: 0 }; 2], ..Self::one(faults) }
    }

    /// There and back.
    pub fn back(faults: u8) -> Self {
        Self {
            legs: vec![Leg { from: 0, to: 1, copy: 0 }, Leg { from: 1, to: 0, copy: 1 }],
            ..Self::one(faults)
        }
    }

    /// On to a third host.
    pub fn on(faults: u8) -> Self {
        Self {
            legs: vec![Leg { from: 0, to: 1, copy: 0 }, Leg { from: 1, to: 2, copy: 1 }],
            ..Self::one(faults)
        }
    }

    pub(super) fn rules(&self) -> Rules {
        Rules::without(self.broken)
    }

    pub(super) fn host_of(&self, copy: usize) -> usize {
        if copy == 0 { self.legs[0].from } else { self.legs.get(copy - 1).map_or(HOSTS, |leg| leg.to) }
    }

    pub(super) fn broke(&self, mutation: Mutation) -> bool {
        self.broken == Some(mutation)
    }
}

/// One state of the world.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub(super) hosts: [Host; HOSTS],
    pub(super) copies: [Copy; COPIES],
    pub(super) migrations: [Migration; MIGRATIONS],
    /// Which hosts came back with an empty journal.
    pub(super) lost: [bool; HOSTS],
    /// The copies whose memory fits what is on the disks: the one that ran last, and what was sent from it since.
    pub(super) fits: u8,
    /// The guest has ended, and this is seen somewhere.
    pub(super) ended: bool,
    /// A copy went on whose memory is older than the disks.
    pub(super) stale: bool,
    /// The guest ended before GO.
    pub(super) over: bool,
    /// Such a guest ran again by the hand-over.
    pub(super) revived: bool,
    /// How many faults are left.
    pub(super) faults: u8,
}

impl World {
    /// The guest runs on the first host, and no migration has begun.
    pub fn initial(plan: &Plan) -> Self {
        let mut copies = [Copy::default(); COPIES];
        copies[0] = Copy { dom: Dom::Running, disk: Disk::Armed };
        Self {
            hosts: [Host::Up; HOSTS],
            copies,
            migrations: Default::default(),
            lost: [false; HOSTS],
            fits: 1,
            ended: false,
            stale: false,
            over: false,
            revived: false,
            faults: plan.faults,
        }
    }

    pub(super) fn own_journal(&self, host: usize) -> OwnJournal {
        OwnJournal { id: if self.lost[host] { NEW_JOURNAL } else { JOURNAL }, since: 0 }
    }

    pub(super) fn runs(&self) -> bool {
        self.copies.iter().any(|copy| copy.dom == Dom::Running)
    }

    /// The copy's memory goes on.
    pub(super) fn go_on(&mut self, copy: usize) {
        self.stale |= self.fits >> copy & 1 == 0;
        self.start(copy);
    }

    /// The guest boots from its disks.
    pub(super) fn boot(&mut self, copy: usize) {
        if self.copies[copy].dom == Dom::None {
            self.start(copy);
            self.over = false;
        }
    }

    fn start(&mut self, copy: usize) {
        self.copies[copy] = Copy { dom: Dom::Running, disk: Disk::Armed };
        self.fits = 1 << copy;
        self.ended = false;
    }

    /// A copy ends, by itself or by an operator.
    pub(super) fn destroy(&mut self, plan: &Plan, copy: usize) {
        let was = std::mem::take(&mut self.copies[copy]).dom;
        // Before the sender has looked at the guest for GO, its end is the guest's end.
        let latest = plan.legs.iter().zip(&self.migrations).rev();
        let mut latest =
            latest.filter(|(leg, migration)| leg.copy == copy && migration.sender.cache.is_some());
        self.over |= was != Dom::Paused
            && latest.next().is_some_and(|(_, migration)| {
                migration.sender.cache == Some(SenderRecord::Start)
                    && !matches!(
                        migration.sender.under_way,
                        Some(SenderEffect::Write(SenderRecord::Go { .. }))
                    )
            });
        let counts = was != Dom::Paused || {
            let receiver = &self.migrations[copy - 1].receiver;
            receiver.cache == Some(ReceiverRecord::Committed)
                || receiver.under_way == Some(ReceiverEffect::Write(ReceiverRecord::Committed))
        };
        self.ended |= counts && !self.runs();
    }

    pub(super) fn kill_daemon(&mut self, plan: &Plan, host: usize) {
        self.hosts[host] = Host::DaemonDown;
        for (leg, migration) in plan.legs.iter().zip(&mut self.migrations) {
            if leg.from == host {
                migration.sender.machine = None;
                migration.sender.under_way = None;
            }
            if leg.to == host {
                migration.receiver.machine = None;
                migration.receiver.under_way = None;
            }
        }
    }

    /// What is being written reaches the cache just before the daemon is killed.
    pub(super) fn writes_reach_cache(&mut self, plan: &Plan, host: usize) {
        for (leg, migration) in plan.legs.iter().zip(&mut self.migrations) {
            if let (true, Some(SenderEffect::Write(record))) = (leg.from == host, &migration.sender.under_way)
            {
                migration.sender.cache = Some(record.clone());
            }
            if let (true, Some(ReceiverEffect::Write(record))) =
                (leg.to == host, &migration.receiver.under_way)
            {
                migration.receiver.cache = Some(record.clone());
            }
        }
    }

    pub(super) fn crash_host(&mut self, plan: &Plan, host: usize) {
        self.kill_daemon(plan, host);
        self.hosts[host] = Host::Off;
        for (leg, migration) in plan.legs.iter().zip(&mut self.migrations) {
            if leg.from == host {
                migration.sender.cache = migration.sender.disk.clone();
            }
            if leg.to == host {
                migration.receiver.cache = migration.receiver.disk.clone();
            }
        }
        for copy in 0..COPIES {
            if plan.host_of(copy) != host {
                continue;
            }
            let counts = match std::mem::take(&mut self.copies[copy]).dom {
                Dom::None => false,
                Dom::Running | Dom::Suspended => true,
                Dom::Paused => self.migrations[copy - 1].receiver.cache == Some(ReceiverRecord::Committed),
            };
            self.ended |= counts && !self.runs();
        }
    }

    /// Whether a host starts the guest by itself (rule 9), from records that are surely on disk.
    pub(super) fn starts(&self, plan: &Plan, host: usize) -> bool {
        let rules = plan.rules();
        let mut claims = Vec::new();
        for (leg, migration) in plan.legs.iter().zip(&self.migrations) {
            if let (true, Some(machine)) = (leg.from == host, &migration.sender.machine) {
                claims.push(machine.record().map_or(Claim::Undecided, |record| record.claim_by(rules)));
            }
            if let (true, Some(machine)) = (leg.to == host, &migration.receiver.machine) {
                claims.push(machine.record().map_or(Claim::Undecided, |record| record.claim_by(rules)));
            }
        }
        may_start(host == plan.legs[0].from && !self.lost[host], claims)
    }

    /// Whether a host has another copy of the guest, or an unfinished migration of it.
    pub(super) fn is_busy(&self, plan: &Plan, migration: usize) -> bool {
        let host = plan.legs[migration].to;
        let domain = (0..COPIES).any(|copy| {
            plan.host_of(copy) == host
                && self.copies[copy].dom != Dom::None
                && !(plan.local && copy == plan.legs[migration].copy)
        });
        let unfinished = plan.legs.iter().zip(&self.migrations).enumerate().any(|(other, (leg, state))| {
            use ReceiverRecord::{Claimed, Committed, Open};
            use SenderRecord::{Forced, Go, Start};
            let sends = leg.from == host && matches!(state.sender.cache, Some(Start | Go { .. } | Forced(_)));
            let receives =
                leg.to == host && matches!(state.receiver.cache, Some(Open | Committed | Claimed(_)));
            other != migration && (sends || receives)
        });
        domain || unfinished
    }
}
