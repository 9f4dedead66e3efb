//! Which console is served next, and what is due when. No I/O and no clock: the caller says what time it is.
//!
//! Consoles that say little are served first, each once a turn. Those that flood share a few places a turn, round
//! robin. When someone has typed, floods rest for a moment (*interactive boost*), so that the answer finds a processor.
//! How many turns the consoles of one domain get is bounded, as is how often a console's nodes are looked at.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use xen_types::DomId;

use super::bucket::Bucket;
use super::id::ConsoleId;

/// Rings of floods that are served before descriptors are looked at again: looking costs as much as a ring.
const SERVICES: usize = 8;
/// How long floods pause for a viewer that has typed and has no answer yet.
const BOOST: Duration = Duration::from_millis(3);
/// Bytes that someone types at once.
const TYPED: usize = 16;

/// What is to be done at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// Serve a console that used up its share.
    Serve(u64),
    /// Look at a console's nodes.
    Look(ConsoleId),
    /// Close a console that waited for its readers.
    Close(u64),
    /// Take leave of a client that has not said what it wants.
    Dismiss(u64),
    /// Accept viewers of a console again.
    Accept(u64),
    /// Accept clients of the control socket again.
    AcceptClients,
    /// Look at a console's files: they may have more bytes, or their disk hangs.
    Files(u64),
    /// Look after an outage of xenstored.
    Outage,
    /// Look at consoles again, after rings have had the loop.
    Looks,
}

/// What a console's turn has moved.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Service {
    /// Bytes from the guest.
    pub(crate) output: usize,
    /// Bytes to the guest.
    pub(crate) input: usize,
    /// Whether it was too much output for a person to read.
    pub(crate) is_flood: bool,
}

/// The consoles that one turn may still serve.
#[derive(Debug)]
pub(crate) struct Round {
    quiet: usize,
    floods: usize,
}

/// All consoles that have a ring, and everything that is due.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    consoles: HashMap<u64, Entry>,
    /// Consoles that have something to do.
    quiet: VecDeque<u64>,
    /// Those of them that said much the last time.
    floods: VecDeque<u64>,
    /// Whose answer is waited for, and until when.
    boost: Option<(u64, Instant)>,
    /// Turns of service that all consoles of a domain may have.
    turns: BTreeMap<DomId, Bucket>,
    /// Looks at nodes that a console may have, and whether one was put off.
    looks: BTreeMap<ConsoleId, (Bucket, bool)>,
    due: BinaryHeap<Reverse<(Instant, Due)>>,
}

/// One console.
#[derive(Debug)]
struct Entry {
    domid: DomId,
    /// Whether it waits for its turn.
    is_queued: bool,
    is_flood: bool,
}

impl Scheduler {
    /// Adds a console whose ring is connected.
    pub(crate) fn add(&mut self, key: u64, domid: DomId) {
        self.consoles.insert(key, Entry { domid, is_queued: false, is_flood: false });
    }

    /// Removes a console whose ring is not connected any more.
    pub(crate) fn remove(&mut self, key: u64) {
        self.consoles.remove(&key);
    }

    /// Removes what the consoles of a domain have together.
    pub(crate) fn remove_domain(&mut self, domid: DomId) {
        self.turns.remove(&domid);
        self.looks.retain(|id, _| id.domid != domid);
    }

    /// Queues a console that may have something to do.
    pub(crate) fn queue(&mut self, key: u64) {
        let Some(entry) = self.consoles.get_mut(&key) else { return };
        if !core::mem::replace(&mut entry.is_queued, true) {
            if entry.is_flood { &mut self.floods } else { &mut self.quiet }.push_back(key);
        }
    }

    /// Begins a turn: each console that says little, and some floods.
    pub(crate) fn round(&self) -> Round {
        Round { quiet: self.quiet.len(), floods: SERVICES }
    }

    /// The next console to serve in a turn. It is not queued any more.
    pub(crate) fn next(&mut self, round: &mut Round, now: Instant) -> Option<u64> {
        while round.quiet > 0 {
            round.quiet -= 1;
            let Some(key) = self.quiet.pop_front() else { break };
            if self.take_turn(key, now) {
                return Some(key);
            }
        }
        if self.floods.is_empty() || self.boost.is_some_and(|(_, until)| now < until) {
            return None;
        }
        self.boost = None;
        while round.floods > 0 {
            round.floods -= 1;
            let key = self.floods.pop_front()?;
            if self.take_turn(key, now) {
                return Some(key);
            }
        }
        None
    }

    fn take_turn(&mut self, key: u64, now: Instant) -> bool {
        let Some(entry) = self.consoles.get_mut(&key).filter(|entry| entry.is_queued) else { return false };
        // About a fifth of a processor when each turn moves one byte, 80 MB/s when each moves a full ring.
        let turns = self.turns.entry(entry.domid).or_insert_with(|| Bucket::new(4096, 40_960, now));
        match turns.take(now) {
            Ok(()) => {
                entry.is_queued = false;
                true
            }
            Err(at) => {
                // It stays queued, so that its events do not bring it back before.
                self.due.push(Reverse((at, Due::Serve(key))));
                false
            }
        }
    }

    /// Takes note of what a console's turn has moved.
    pub(crate) fn served(&mut self, key: u64, service: Service, now: Instant) {
        if let Some(entry) = self.consoles.get_mut(&key) {
            entry.is_flood = service.is_flood;
        }
        if (1..=TYPED).contains(&service.input) && !service.is_flood {
            self.boost = Some((key, now + BOOST));
        } else if service.output > 0 && self.boost.is_some_and(|(typed, _)| typed == key) {
            self.boost = None;
        }
    }

    /// Whether a console's nodes may be looked at now. If not, that is due later.
    pub(crate) fn may_look(&mut self, id: ConsoleId, now: Instant) -> bool {
        let (looks, is_due) = self.looks.entry(id).or_insert_with(|| (Bucket::new(16, 50, now), false));
        match looks.take(now) {
            Ok(()) => true,
            Err(at) => {
                if !core::mem::replace(is_due, true) {
                    self.due.push(Reverse((at, Due::Look(id))));
                }
                false
            }
        }
    }

    /// Does something at a time.
    pub(crate) fn schedule(&mut self, at: Instant, due: Due) {
        self.due.push(Reverse((at, due)));
    }

    /// Takes what is due, one thing at a time.
    pub(crate) fn next_due(&mut self, now: Instant) -> Option<Due> {
        loop {
            let Reverse((at, due)) = self.due.peek().copied()?;
            if at > now {
                return None;
            }
            self.due.pop();
            match due {
                Due::Serve(key) => {
                    if let Some(entry) = self.consoles.get_mut(&key) {
                        entry.is_queued = false;
                        self.queue(key);
                    }
                    continue;
                }
                Due::Look(id) => {
                    if let Some((_, is_due)) = self.looks.get_mut(&id) {
                        *is_due = false;
                    }
                }
                _ => {}
            }
            return Some(due);
        }
    }

    /// Forgets what would be due next as long as it is about files that need no look any more: who is idle does not wake.
    pub(crate) fn skip_files(&mut self, mut need_a_look: impl FnMut(u64) -> bool) {
        while let Some(Reverse((_, Due::Files(key)))) = self.due.peek()
            && !need_a_look(*key)
        {
            self.due.pop();
        }
    }

    /// Whether anything may be due, so that the time need not be asked for if not.
    pub(crate) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether a console is to be served at once.
    pub(crate) fn is_busy(&self) -> bool {
        !self.quiet.is_empty() || (!self.floods.is_empty() && self.boost.is_none())
    }

    /// Until when there is nothing to do, if that is known.
    pub(crate) fn idle_until(&self) -> Option<Instant> {
        let until_due = self.due.peek().map(|Reverse((at, _))| *at);
        let until_floods = self.boost.filter(|_| !self.floods.is_empty()).map(|(_, until)| until);
        [until_due, until_floods].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Service = Service { output: 10, input: 0, is_flood: false };
    const FLOOD: Service = Service { output: 2048, input: 0, is_flood: true };

    fn domid(number: u16) -> DomId {
        DomId::new(number).unwrap()
    }

    /// Consoles with these keys, each of a domain of its own.
    fn scheduler(keys: core::ops::Range<u64>) -> Scheduler {
        let mut scheduler = Scheduler::default();
        for key in keys {
            scheduler.add(key, domid(u16::try_from(key).unwrap()));
        }
        scheduler
    }

    /// One turn, in which each console moves what `moved` says and stays busy.
    fn turn(scheduler: &mut Scheduler, now: Instant, moved: impl Fn(u64) -> Service) -> Vec<u64> {
        let mut served = Vec::new();
        let mut round = scheduler.round();
        while let Some(key) = scheduler.next(&mut round, now) {
            scheduler.served(key, moved(key), now);
            scheduler.queue(key);
            served.push(key);
        }
        served
    }

    #[test]
    fn files_that_need_no_look_do_not_wake() {
        let now = Instant::now();
        let mut scheduler = Scheduler::default();
        for key in 1..4 {
            scheduler.schedule(now + Duration::from_secs(key), Due::Files(key));
        }
        scheduler.skip_files(|key| key == 2);
        assert_eq!(scheduler.idle_until(), Some(now + Duration::from_secs(2)));
        scheduler.skip_files(|_| false);
        assert_eq!(scheduler.idle_until(), None);
    }

    #[test]
    fn quiet_consoles_come_first_and_floods_take_turns() {
        let now = Instant::now();
        let mut scheduler = scheduler(0..20);
        let moved = |key| if key == 7 { QUIET } else { FLOOD };
        for key in 0..20 {
            scheduler.queue(key);
            scheduler.queue(key);
        }
        // What each will be is not known before its first turn, in which some are served again as floods.
        turn(&mut scheduler, now, moved);
        let mut counts = [0; 20];
        for _ in 0..19 {
            let served = turn(&mut scheduler, now, moved);
            assert_eq!(served[0], 7);
            assert_eq!(served.len(), 1 + SERVICES);
            for key in served {
                counts[usize::try_from(key).unwrap()] += 1;
            }
        }
        counts[7] = 8;
        assert!(counts.iter().all(|count| *count == 8), "{counts:?}");
    }

    #[test]
    fn floods_rest_until_the_console_at_which_someone_typed_has_answered() {
        let now = Instant::now();
        let typed = Service { output: 0, input: 1, is_flood: false };
        let mut scheduler = scheduler(0..2);
        scheduler.queue(0);
        turn(&mut scheduler, now, |_| FLOOD);
        assert!(scheduler.is_busy());
        for (answered, wanted) in [(false, Vec::new()), (true, vec![0; SERVICES])] {
            scheduler.served(1, typed, now);
            assert!(!scheduler.is_busy());
            assert_eq!(scheduler.idle_until(), Some(now + BOOST));
            if answered {
                scheduler.served(1, QUIET, now);
            }
            assert_eq!(turn(&mut scheduler, now, |_| FLOOD), wanted);
        }
        scheduler.served(1, typed, now);
        assert_eq!(turn(&mut scheduler, now + BOOST, |_| FLOOD), [0; SERVICES]);
    }

    #[test]
    fn a_domain_that_used_up_its_turns_is_served_later() {
        let now = Instant::now();
        let mut scheduler = Scheduler::default();
        // Two consoles of one domain.
        for key in 0..2 {
            scheduler.add(key, domid(1));
            scheduler.queue(key);
        }
        let mut served = 0;
        while scheduler.is_busy() {
            served += turn(&mut scheduler, now, |_| QUIET).len();
        }
        assert_eq!(served, 4096);
        let later = scheduler.idle_until().unwrap();
        assert_eq!(later - now, Duration::from_millis(100));
        assert_eq!(scheduler.next_due(now), None);
        // An event in between changes nothing.
        scheduler.queue(0);
        assert!(!scheduler.is_busy());
        assert_eq!(scheduler.next_due(later), None);
        assert_eq!(turn(&mut scheduler, later, |_| QUIET), [0, 1]);
    }

    #[test]
    fn a_console_that_is_gone_is_not_served_and_one_that_came_back_once() {
        let now = Instant::now();
        let mut scheduler = scheduler(0..2);
        scheduler.queue(0);
        scheduler.queue(1);
        scheduler.remove(0);
        scheduler.remove(1);
        scheduler.add(1, domid(1));
        scheduler.queue(1);
        let mut round = scheduler.round();
        assert_eq!(scheduler.next(&mut round, now), Some(1));
        assert_eq!(scheduler.next(&mut round, now), None);
    }

    #[test]
    fn looks_at_nodes_are_put_off_once() {
        let now = Instant::now();
        let mut scheduler = Scheduler::default();
        let id = ConsoleId { domid: domid(1), number: 1 };
        assert_eq!((0..100).filter(|_| scheduler.may_look(id, now)).count(), 16);
        let later = now + Duration::from_millis(100);
        assert_eq!(scheduler.next_due(later), Some(Due::Look(id)));
        assert_eq!(scheduler.next_due(later), None);
        assert!(scheduler.may_look(id, later));
    }

    #[test]
    fn what_is_due_comes_in_its_order() {
        let now = Instant::now();
        let mut scheduler = Scheduler::default();
        let after = |millis| now + Duration::from_millis(millis);
        scheduler.schedule(after(2), Due::Outage);
        scheduler.schedule(after(1), Due::AcceptClients);
        assert_eq!((scheduler.next_due(now), scheduler.idle_until()), (None, Some(after(1))));
        assert_eq!(scheduler.next_due(after(3)), Some(Due::AcceptClients));
        assert_eq!(scheduler.next_due(after(3)), Some(Due::Outage));
        assert!(!scheduler.has_due());
    }
}
