//! The guests that the daemon manages, and the events that it reports to subscribers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::types::{Happening, Refusal, State};
use config::Uuid;
use tokio::sync::{broadcast, mpsc};
use toolstack::Guest;
use xen_types::DomId;

use crate::driver::Event;

/// Events that are queued for a slow subscriber; beyond that, the oldest are dropped.
const BACKLOG: usize = 256;

/// Names a guest's entry for as long as the daemon lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

/// What is known of a guest.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// The guest; absent until its create has ended.
    pub(crate) guest: Option<Guest>,
    /// What it does, as far as Xen does not say it.
    pub(crate) state: State,
    /// Its driver's queue.
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

/// An observer that is notified when guests appear, change and disappear.
pub(crate) trait Keeper: Send + Sync {
    /// The guest is new, or its name or its stubdomain has changed.
    fn has(&self, guest: &Guest);
    /// It is gone.
    fn gone(&self, guest: &Guest);
}

/// All guests. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Registry {
    inner: Arc<Mutex<Inner>>,
    keeper: Option<Arc<dyn Keeper>>,
    happenings: broadcast::Sender<Happening>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<Key, Entry>,
    next: u64,
}

impl Registry {
    /// No guests.
    pub(crate) fn new() -> Self {
        Self { inner: Arc::default(), keeper: None, happenings: broadcast::Sender::new(BACKLOG) }
    }

    /// The same, with an observer.
    pub(crate) fn with_keeper(mut self, keeper: Arc<dyn Keeper>) -> Self {
        self.keeper = Some(keeper);
        self
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The map is whole between any two statements that hold the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a guest under a name that no other has.
    pub(crate) fn enter(&self, entry: Entry) -> Result<Key, Refusal> {
        let mut inner = self.lock();
        if let Some(other) = inner.entries.values().find(|other| other.name == entry.name) {
            return Err(match &other.guest {
                Some(guest) => Refusal::NameTaken { name: entry.name, domid: guest.domid },
                None => Refusal::Busy { guest: entry.name, lifecycle: "create".to_owned() },
            });
        }
        let key = Key(inner.next);
        inner.next += 1;
        let guest = entry.guest.clone();
        inner.entries.insert(key, entry);
        drop(inner);
        self.tell_keeper(None, guest.as_ref());
        Ok(key)
    }

    /// Changes what is known of a guest.
    pub(crate) fn update(&self, key: Key, change: impl FnOnce(&mut Entry)) {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(&key) else { return };
        let before = entry.guest.clone();
        change(entry);
        let now = entry.guest.clone();
        drop(inner);
        self.tell_keeper(before.as_ref(), now.as_ref());
    }

    /// Gives a guest another name, which no other has.
    pub(crate) fn rename(&self, key: Key, name: &str) -> Result<(), Refusal> {
        let mut inner = self.lock();
        let other = inner.entries.iter().find(|(other, entry)| **other != key && entry.name == name);
        if let Some((_, other)) = other {
            let name = name.to_owned();
            return Err(match &other.guest {
                Some(guest) => Refusal::NameTaken { name, domid: guest.domid },
                None => Refusal::Busy { guest: name, lifecycle: "create".to_owned() },
            });
        }
        if let Some(entry) = inner.entries.get_mut(&key) {
            name.clone_into(&mut entry.name);
        }
        Ok(())
    }

    /// Forgets a guest.
    pub(crate) fn forget(&self, key: Key) {
        let entry = self.lock().entries.remove(&key);
        self.tell_keeper(entry.and_then(|entry| entry.guest).as_ref(), None);
    }

    fn tell_keeper(&self, before: Option<&Guest>, now: Option<&Guest>) {
        let Some(keeper) = &self.keeper else { return };
        let who = |guest: &Guest| (guest.uuid, guest.stub_uuid, guest.name.clone());
        if let Some(before) = before
            && now.is_none_or(|now| now.uuid != before.uuid)
        {
            keeper.gone(before);
        }
        if let Some(now) = now
            && before.map(who) != Some(who(now))
        {
            keeper.has(now);
        }
    }

    /// The guest of this name, if it is complete.
    pub(crate) fn named(&self, name: &str) -> Option<Guest> {
        let inner = self.lock();
        inner.entries.values().find(|entry| entry.name == name).and_then(|entry| entry.guest.clone())
    }

    /// What is known of a guest.
    pub(crate) fn entry(&self, key: Key) -> Option<Entry> {
        self.lock().entries.get(&key).cloned()
    }

    /// All guests, by domid.
    pub(crate) fn all(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.lock().entries.values().cloned().collect();
        all.sort_by_key(|entry| entry.guest.as_ref().map(|guest| guest.domid));
        all
    }

    /// Finds a guest by its name, its UUID or its domid; a name has priority. `holder` returns the UUID of the domain
    /// that has a domid now; a domid counts only if that is the guest's UUID.
    pub(crate) fn find(&self, asked: &str, holder: impl Fn(DomId) -> Option<Uuid>) -> Result<Entry, Refusal> {
        let number = asked.parse::<DomId>().ok();
        let holder = number.and_then(|domid| Some((domid, holder(domid)?)));
        let uuid = asked.parse::<Uuid>().ok();
        let inner = self.lock();
        let is_meant = |guest: &Guest| {
            Some(guest.uuid) == uuid || holder.is_some_and(|holder| holder == (guest.domid, guest.uuid))
        };
        let mut entries = inner.entries.values();
        let by_name = entries.clone().find(|entry| entry.name == asked);
        by_name
            .or_else(|| entries.find(|entry| entry.guest.as_ref().is_some_and(is_meant)))
            .cloned()
            .ok_or_else(|| Refusal::NoSuchGuest { guest: asked.chars().take(256).collect() })
    }

    /// Makes every driver query its guest.
    pub(crate) fn look(&self) {
        for entry in self.lock().entries.values() {
            // A driver that has ended is about to be forgotten.
            let _ = entry.events.send(Event::Look);
        }
    }

    /// Publishes an event of a guest.
    pub(crate) fn tell(&self, guest: &Guest, kind: &str, detail: impl Into<String>) {
        let happening = Happening {
            name: guest.name.clone(),
            uuid: guest.uuid.to_string(),
            domid: guest.domid,
            kind: kind.to_owned(),
            detail: detail.into(),
        };
        tracing::info!(guest = happening.name, domid = %happening.domid, detail = happening.detail, "{kind}");
        // There may be no subscriber.
        let _ = self.happenings.send(happening);
    }

    /// Subscribes to events from now on.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Happening> {
        self.happenings.subscribe()
    }

    /// The number of subscribers.
    #[cfg(test)]
    pub(crate) fn listeners(&self) -> usize {
        self.happenings.receiver_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        let (events, _) = mpsc::unbounded_channel();
        Entry { name: name.to_owned(), guest: None, state: State::Creating, events }
    }

    #[test]
    fn name_is_taken_from_the_first_moment() {
        let registry = Registry::new();
        let key = registry.enter(entry("a")).unwrap();
        assert!(matches!(registry.enter(entry("a")), Err(Refusal::Busy { .. })));
        registry.forget(key);
        assert!(registry.enter(entry("a")).is_ok());
    }

    #[test]
    fn unknown_guest_is_named_in_the_error() {
        assert_eq!(
            Registry::new().find("x", |_| None).unwrap_err(),
            Refusal::NoSuchGuest { guest: "x".into() }
        );
    }
}
