//! What is to be looked at again.

use std::collections::BTreeMap;
use std::ops::Bound;

use xenstore::{EventPath, WatchEvent};

use super::id::ConsoleId;
use super::tree::backend_of;

/// What the events of watches say to look at again.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    domains: bool,
    /// Consoles, and whether looking was put off before (then the look needs no share of its own).
    consoles: BTreeMap<ConsoleId, bool>,
    /// The console that was looked at last.
    last: Option<ConsoleId>,
    /// Whether events of watches may wait where the poll does not see them.
    unread: bool,
}

impl Dirty {
    pub(crate) fn all() -> Self {
        Self { domains: true, unread: true, ..Self::default() }
    }

    pub(crate) fn is_clean(&self) -> bool {
        !self.domains && self.consoles.is_empty()
    }

    pub(crate) fn add_due(&mut self, id: ConsoleId) {
        self.consoles.insert(id, true);
    }

    /// Whether the domains are to be looked at, which they are not any more then.
    pub(crate) const fn take_domains(&mut self) -> bool {
        core::mem::replace(&mut self.domains, false)
    }

    pub(crate) const fn add_domains(&mut self) {
        self.domains = true;
    }

    /// Whether events of watches may wait where the poll does not see them.
    pub(crate) const fn has_unread(&self) -> bool {
        self.unread
    }

    pub(crate) const fn set_unread(&mut self, unread: bool) {
        self.unread = unread;
    }

    /// Takes the next console that is to be looked at. They take turns, whichever of them change all the time.
    pub(crate) fn next_console(&mut self) -> Option<(ConsoleId, bool)> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.consoles.range((behind, Bound::Unbounded)).next().map(|(id, _)| *id);
        self.last = next.or_else(|| self.consoles.first_key_value().map(|(id, _)| *id));
        self.consoles.remove_entry(&self.last?)
    }

    fn add(&mut self, id: ConsoleId) {
        self.consoles.entry(id).or_insert(false);
    }

    /// Notes an event. Returns the console that it is about.
    pub(crate) fn note(&mut self, event: &WatchEvent) -> Option<ConsoleId> {
        let id = match &event.path {
            EventPath::Special(_) => {
                self.domains = true;
                None
            }
            // The watch of a console's directory has the console's ID as its token.
            EventPath::Node(path) => backend_of(path).or_else(|| ConsoleId::parse(&event.token)),
            EventPath::Relative(_) | EventPath::Other(_) => None,
        };
        id.inspect(|id| self.add(*id))
    }
}

#[cfg(test)]
mod tests {
    use xen_types::DomId;

    use super::*;

    #[test]
    fn console_that_changes_all_the_time_waits_for_the_others() {
        let id = |number: u16| ConsoleId { domid: DomId::new(number).unwrap(), number: 0 };
        let mut dirty = Dirty::default();
        (1..4).for_each(|number| dirty.add(id(number)));
        let mut looked = Vec::new();
        for _ in 0..4 {
            looked.extend(dirty.next_console().map(|(id, _)| id));
            dirty.add(id(1));
        }
        assert_eq!(looked, [id(1), id(2), id(3), id(1)]);
        dirty.add_due(id(1));
        assert_eq!(dirty.next_console(), Some((id(1), true)));
        assert_eq!(dirty.next_console(), None);
        assert!(dirty.is_clean());
    }
}
