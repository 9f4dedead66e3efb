//! The guests that the daemon manages, and the events that it reports to subscribers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::types::{Event, Refusal};
use config::Uuid;
use tokio::sync::broadcast;
use toolstack::Guest;
use xen_types::DomId;

use super::handle::{Handle, NotQueued};
use super::names::{Names, Reservation};
use super::observer::Observer;
use super::request::Request;
use super::view::View;
use crate::reply::Replies;

/// Events that are queued for a slow subscriber; beyond that, the oldest are dropped.
const BACKLOG: usize = 256;

/// Names a guest's entry for as long as the daemon lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

/// A guest that is managed.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Names it here.
    pub(crate) key: Key,
    /// What its driver has published of it.
    pub(crate) view: View,
    /// Its driver's queue.
    pub(crate) handle: Handle,
}

impl Entry {
    /// Queues a request for the guest's driver; the answers come through `replies`.
    pub(crate) fn ask(&self, request: Request, replies: &Replies) -> Result<(), Refusal> {
        self.handle.ask(request, replies).map_err(|why| match why {
            NotQueued::Full => self.view.busy(),
            NotQueued::Ended => Refusal::NoSuchGuest { guest: self.view.name.clone() },
        })
    }
}

/// All guests. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Registry {
    inner: Arc<Mutex<Inner>>,
    /// Names that guests are about to get.
    names: Names,
    observer: Option<Arc<dyn Observer>>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<Key, Entry>,
    next: u64,
}

impl Registry {
    /// No guests.
    pub(crate) fn new() -> Self {
        let names = Names::default();
        Self { inner: Arc::default(), names, observer: None, events: broadcast::Sender::new(BACKLOG) }
    }

    /// The same, with an observer.
    pub(crate) fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The map is whole between any two statements that hold the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a guest under a name that no other has.
    pub(crate) fn enter(&self, view: View, handle: Handle) -> Result<Key, Refusal> {
        let mut inner = self.lock();
        self.check_free(&inner, &view.name, None)?;
        let key = Key(inner.next);
        inner.next += 1;
        let guest = view.guest.clone();
        inner.entries.insert(key, Entry { key, view, handle });
        drop(inner);
        self.notify(None, guest.as_ref());
        Ok(key)
    }

    /// Replaces what is known of a guest.
    pub(crate) fn update(&self, key: Key, view: View) {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(&key) else { return };
        let now = view.guest.clone();
        let before = std::mem::replace(&mut entry.view, view).guest;
        drop(inner);
        self.notify(before.as_ref(), now.as_ref());
    }

    /// Reserves another name for a guest, which no other has.
    pub(crate) fn reserve(&self, key: Key, name: &str) -> Result<Reservation, Refusal> {
        let inner = self.lock();
        self.check_free(&inner, name, Some(key))?;
        self.names.reserve(name).ok_or_else(|| being_renamed(name))
    }

    /// Fails if another guest than this one has the name or is about to get it.
    fn check_free(&self, inner: &Inner, name: &str, own: Option<Key>) -> Result<(), Refusal> {
        let mut others = inner.entries.values().filter(|other| Some(other.key) != own);
        if let Some(other) = others.find(|other| other.view.name == name) {
            return Err(match &other.view.guest {
                Some(guest) => Refusal::NameTaken { name: name.to_owned(), domid: guest.domid },
                None => other.view.busy(),
            });
        }
        if self.names.has(name) { Err(being_renamed(name)) } else { Ok(()) }
    }

    /// Forgets a guest.
    pub(crate) fn forget(&self, key: Key) {
        let entry = self.lock().entries.remove(&key);
        self.notify(entry.and_then(|entry| entry.view.guest).as_ref(), None);
    }

    fn notify(&self, before: Option<&Guest>, now: Option<&Guest>) {
        let Some(observer) = &self.observer else { return };
        let who = |guest: &Guest| (guest.uuid, guest.stub_uuid, guest.name.clone());
        if let Some(before) = before
            && now.is_none_or(|now| now.uuid != before.uuid)
        {
            observer.gone(before);
        }
        if let Some(now) = now
            && before.map(who) != Some(who(now))
        {
            observer.has(now);
        }
    }

    /// All guests, by domid.
    pub(crate) fn all(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.lock().entries.values().cloned().collect();
        all.sort_by_key(|entry| entry.view.guest.as_ref().map(|guest| guest.domid));
        all
    }

    /// Finds a guest by its name, its UUID or its domid; a name has priority. `holder` is the domid that is asked for,
    /// with the UUID of the domain that has it now; a domid counts only if that is the guest's UUID.
    pub(crate) fn find(&self, asked: &str, holder: Option<(DomId, Uuid)>) -> Result<Entry, Refusal> {
        let uuid = asked.parse::<Uuid>().ok();
        let inner = self.lock();
        let is_meant = |guest: &Guest| {
            Some(guest.uuid) == uuid || holder.is_some_and(|holder| holder == (guest.domid, guest.uuid))
        };
        let mut entries = inner.entries.values();
        let by_name = entries.clone().find(|entry| entry.view.name == asked);
        let is_left =
            |entry: &Entry| entry.view.incomplete.as_ref().is_some_and(|left| Some(left.id.0) == uuid);
        let is_meant = |entry: &&Entry| entry.view.guest.as_ref().is_some_and(is_meant) || is_left(entry);
        by_name
            .or_else(|| entries.find(is_meant))
            .cloned()
            .ok_or_else(|| Refusal::NoSuchGuest { guest: asked.chars().take(256).collect() })
    }

    /// Makes every driver query its guest.
    pub(crate) fn look(&self) {
        self.lock().entries.values().for_each(|entry| entry.handle.look());
    }

    /// Publishes an event of a guest.
    pub(crate) fn publish(&self, event: Event) {
        let Event { name, domid, kind, detail, .. } = &event;
        tracing::info!(guest = name, %domid, detail, "{kind}");
        // There may be no subscriber.
        let _ = self.events.send(event);
    }

    /// Subscribes to events from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// The number of subscribers.
    #[cfg(test)]
    pub(crate) fn subscribers(&self) -> usize {
        self.events.receiver_count()
    }
}

fn being_renamed(name: &str) -> Refusal {
    Refusal::Busy { guest: name.to_owned(), lifecycle: "rename".to_owned() }
}

#[cfg(test)]
mod tests {
    use api::types::State;

    use super::*;

    fn enter(registry: &Registry, name: &str) -> Result<Key, Refusal> {
        let view = View {
            name: name.to_owned(),
            guest: None,
            incomplete: None,
            state: State::Creating,
            job: Some("create"),
        };
        registry.enter(view, Handle::new().0)
    }

    #[test]
    fn name_is_taken_from_the_first_moment() {
        let registry = Registry::new();
        let key = enter(&registry, "a").unwrap();
        assert!(matches!(enter(&registry, "a"), Err(Refusal::Busy { .. })));
        registry.forget(key);
        assert!(enter(&registry, "a").is_ok());
    }

    #[test]
    fn reserved_name_is_free_again_when_the_reservation_ends() {
        let registry = Registry::new();
        let key = enter(&registry, "a").unwrap();
        let reservation = registry.reserve(key, "b").unwrap();
        let busy = Refusal::Busy { guest: "b".to_owned(), lifecycle: "rename".to_owned() };
        assert_eq!(enter(&registry, "b").unwrap_err(), busy);
        assert_eq!(registry.reserve(key, "b").unwrap_err(), busy);
        drop(reservation);
        assert!(registry.reserve(key, "a").is_ok(), "its own name");
        assert!(enter(&registry, "b").is_ok());
    }

    #[test]
    fn full_queue_is_busy_with_the_job_in_progress() {
        let registry = Registry::new();
        let view = View {
            name: "a".to_owned(),
            guest: None,
            incomplete: None,
            state: State::Running,
            job: Some("settle"),
        };
        let (handle, _inbox) = Handle::new();
        registry.enter(view, handle).unwrap();
        let entry = registry.find("a", None).unwrap();
        let (replies, _answers) = tokio::sync::mpsc::channel(1);
        let refused = (0..1000).find_map(|_| entry.ask(Request::Destroy, &replies).err());
        let busy = Refusal::Busy { guest: "a".to_owned(), lifecycle: "settle".to_owned() };
        assert_eq!(refused, Some(busy));
    }

    #[test]
    fn unknown_guest_is_named_in_the_error() {
        assert_eq!(Registry::new().find("x", None).unwrap_err(), Refusal::NoSuchGuest { guest: "x".into() });
    }
}
