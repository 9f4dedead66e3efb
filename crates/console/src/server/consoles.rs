//! All consoles, and how they are found: by key, by ID, by port, by domain.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use uuid::Uuid;
use xen_types::{DomId, EventPort};

use super::console::Console;
use super::id::ConsoleId;
use super::share::Share;

/// The consoles that are served, and those that leave.
#[derive(Debug)]
pub(crate) struct Consoles<M> {
    /// By a number that is never used twice. Consoles that leave have no ID any more.
    by_key: BTreeMap<u64, Console<M>>,
    keys: BTreeMap<ConsoleId, u64>,
    ports: HashMap<EventPort, u64>,
    /// The domains that are served, with their UUIDs, since domids are reused.
    domains: BTreeMap<DomId, Uuid>,
    /// What all consoles of a domain have together.
    shares: BTreeMap<DomId, Rc<Share>>,
    next_key: u64,
}

impl<M> Consoles<M> {
    pub(crate) fn new() -> Self {
        Self {
            by_key: BTreeMap::new(),
            keys: BTreeMap::new(),
            ports: HashMap::new(),
            domains: BTreeMap::new(),
            shares: BTreeMap::new(),
            next_key: 0,
        }
    }

    /// A key that no console has had.
    pub(crate) const fn new_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key - 1
    }

    pub(crate) fn insert(&mut self, id: ConsoleId, key: u64, console: Console<M>) {
        self.keys.insert(id, key);
        self.by_key.insert(key, console);
    }

    pub(crate) fn get(&self, key: u64) -> Option<&Console<M>> {
        self.by_key.get(&key)
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut Console<M>> {
        self.by_key.get_mut(&key)
    }

    pub(crate) fn key(&self, id: ConsoleId) -> Option<u64> {
        self.keys.get(&id).copied()
    }

    pub(crate) fn named(&self, id: ConsoleId) -> Option<&Console<M>> {
        self.by_key.get(self.keys.get(&id)?)
    }

    pub(crate) fn named_mut(&mut self, id: ConsoleId) -> Option<&mut Console<M>> {
        self.by_key.get_mut(self.keys.get(&id)?)
    }

    /// Takes a console's ID away: another one may have it.
    pub(crate) fn take_id(&mut self, id: ConsoleId) -> Option<u64> {
        self.keys.remove(&id)
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<Console<M>> {
        self.by_key.remove(&key)
    }

    /// All IDs.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ConsoleId> {
        self.keys.keys().copied()
    }

    /// All consoles that have an ID.
    pub(crate) fn all_named(&self) -> impl Iterator<Item = &Console<M>> {
        self.keys.values().filter_map(|key| self.by_key.get(key))
    }

    /// All consoles, with those that leave.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Console<M>> {
        self.by_key.values_mut()
    }

    pub(crate) fn all_keys(&self) -> Vec<u64> {
        self.by_key.keys().copied().collect()
    }

    /// The IDs and keys of a domain's consoles.
    pub(crate) fn of_domain(&self, domid: DomId) -> impl Iterator<Item = (ConsoleId, u64)> {
        let first = ConsoleId { domid, number: 0 };
        let last = ConsoleId { domid, number: u32::MAX };
        self.keys.range(first..=last).map(|(id, key)| (*id, *key))
    }

    pub(crate) fn set_port(&mut self, port: EventPort, key: u64) {
        self.ports.insert(port, key);
    }

    pub(crate) fn remove_port(&mut self, port: EventPort) {
        self.ports.remove(&port);
    }

    pub(crate) fn at_port(&self, port: EventPort) -> Option<u64> {
        self.ports.get(&port).copied()
    }

    /// The UUID of the domain that is served under this domid.
    pub(crate) fn domain(&self, domid: DomId) -> Option<Uuid> {
        self.domains.get(&domid).copied()
    }

    /// All domains that are served.
    pub(crate) fn domains(&self) -> impl Iterator<Item = (DomId, Uuid)> {
        self.domains.iter().map(|(domid, uuid)| (*domid, *uuid))
    }

    /// Adds a domain. Returns false if it was there already.
    pub(crate) fn add_domain(&mut self, domid: DomId, uuid: Uuid) -> bool {
        self.domains.insert(domid, uuid).is_none()
    }

    pub(crate) fn remove_domain(&mut self, domid: DomId) {
        self.domains.remove(&domid);
        self.shares.remove(&domid);
    }

    /// What all consoles of a domain have together.
    pub(crate) fn share(&mut self, domid: DomId, make: impl FnOnce() -> Share) -> Rc<Share> {
        Rc::clone(self.shares.entry(domid).or_insert_with(|| Rc::new(make())))
    }
}
