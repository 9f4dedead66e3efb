//! Visits every world that can be reached, the nearest first.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::steps::{Class, Step};
use super::world::{Plan, World};

/// What to explore, besides the plan.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many states are visited at most.
    pub states: usize,
    /// Whether to check that a settled world can be reached from everywhere without further faults.
    pub progress: bool,
    /// The receiver's host stays off once it is, and the operator decides: what "without further faults" means then.
    pub receiver_off: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// How many worlds there are.
    pub states: usize,
    /// How many steps.
    pub steps: usize,
    /// The longest of the shortest ways to a world.
    pub depth: usize,
    /// The first property that does not hold, and the shortest way there.
    pub violation: Option<(&'static str, Vec<&'static str>)>,
    /// How many worlds cannot reach a settled one.
    pub stuck: usize,
    /// The shortest way to one of them.
    pub stuck_way: Vec<&'static str>,
    /// Whether the guest was moved; came back after GO; was started anew by a decision that the receiver confirmed.
    pub seen: [bool; 3],
    /// Not everything was visited.
    pub cut_off: bool,
}

/// Visits all worlds of a plan, until a property does not hold.
pub fn explore(plan: &Plan, limits: Limits) -> Report {
    let mut search = Search::default();
    let mut report = Report::default();
    let mut waiting = VecDeque::new();
    let first = World::initial(plan);
    search.insert(&first, 0, 0, limits);
    waiting.push_back(first);
    let mut at = 0;
    while let Some(world) = waiting.pop_front() {
        let steps = world.steps(plan);
        report.steps += steps.len();
        for Step { label, class, world: next } in steps {
            let free = limits.progress && is_free(class, label, &world, &next, limits);
            let (known, new) = search.insert(&next, at, search.depth_of(at) + 1, limits);
            if free {
                search.edges.push((at, known));
            }
            if !new {
                continue;
            }
            report.seen[0] |= next.is_moved();
            report.seen[1] |= next.is_back();
            report.seen[2] |= next.is_forced();
            if let Some(property) = next.broken() {
                report.violation = Some((property, search.way(plan, known)));
                report.states = search.parents.len();
                return report;
            }
            waiting.push_back(next);
        }
        at += 1;
        if search.parents.len() > limits.states {
            report.cut_off = true;
            break;
        }
    }
    report.states = search.parents.len();
    report.depth = search.parents.iter().map(|(_, depth)| *depth as usize).max().unwrap_or_default();
    if limits.progress && !report.cut_off {
        let good = search.reach_settled();
        report.stuck = good.iter().filter(|good| !**good).count();
        let stuck = good.iter().position(|good| !*good).and_then(|at| u32::try_from(at).ok());
        report.stuck_way = stuck.map(|at| search.way(plan, at)).unwrap_or_default();
    }
    report
}

fn is_free(class: Class, label: &str, before: &World, after: &World, limits: Limits) -> bool {
    if limits.receiver_off {
        let starts = label == "the host starts the guest anew";
        return (matches!(class, Class::Step | Class::Force) || starts)
            && before.is_off(1) == after.is_off(1);
    }
    class == Class::Step
}

#[derive(Default)]
struct Search {
    /// The number of each world, by a fingerprint of 64 bits.
    known: HashMap<u64, u32, BuildHasherDefault<Fingerprint>>,
    /// From where each was reached first, and in how many steps.
    parents: Vec<(u32, u16)>,
    settled: Vec<bool>,
    /// Steps without faults.
    edges: Vec<(u32, u32)>,
}

impl Search {
    fn depth_of(&self, at: u32) -> u16 {
        self.parents[at as usize].1
    }

    fn insert(&mut self, world: &World, parent: u32, depth: u16, limits: Limits) -> (u32, bool) {
        let next = u32::try_from(self.parents.len()).unwrap_or(u32::MAX);
        let known = *self.known.entry(fingerprint(world)).or_insert(next);
        if known == next {
            self.parents.push((parent, depth));
            let settled =
                if limits.receiver_off { world.is_settled_without_receiver() } else { world.is_settled() };
            self.settled.push(settled);
        }
        (known, known == next)
    }

    /// The labels of the steps to a world.
    fn way(&self, plan: &Plan, mut at: u32) -> Vec<&'static str> {
        let mut numbers = vec![at];
        while at != 0 {
            at = self.parents[at as usize].0;
            numbers.push(at);
        }
        let (mut world, mut labels) = (World::initial(plan), Vec::new());
        for number in numbers.iter().rev().skip(1) {
            let steps = world.steps(plan);
            let step =
                steps.into_iter().find(|step| self.known.get(&fingerprint(&step.world)) == Some(number));
            let Some(step) = step else { break };
            labels.push(step.label);
            world = step.world;
        }
        labels
    }

    /// Which worlds can reach a settled one by steps without faults.
    fn reach_settled(&mut self) -> Vec<bool> {
        let mut good = self.settled.clone();
        self.edges.sort_unstable_by_key(|(_, to)| *to);
        let mut stack: Vec<u32> = (0_u32..).zip(&good).filter(|(_, good)| **good).map(|(at, _)| at).collect();
        while let Some(at) = stack.pop() {
            let begin = self.edges.partition_point(|(_, to)| *to < at);
            for (from, _) in self.edges[begin..].iter().take_while(|(_, to)| *to == at) {
                if !std::mem::replace(&mut good[*from as usize], true) {
                    stack.push(*from);
                }
            }
        }
        good
    }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = Fingerprint::default();
    world.hash(&mut hasher);
    hasher.finish()
}

/// A fast hash whose values are used as identities: a product of 128 bits, folded, for each 64 bits.
#[derive(Clone, Copy, Default)]
struct Fingerprint(u64);

impl Fingerprint {
    #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
    fn mix(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
        self.0 = (product as u64 ^ (product >> 64) as u64).rotate_left(23);
    }
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(word, byte)| *word = *byte);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.mix(value.cast_unsigned() as u64);
    }
}
