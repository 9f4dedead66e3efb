//! Serving consoles while xenstored does not answer.
//!
//! Moving bytes needs no xenstore: only new consoles and handshakes do. So a request that fails ends the connection and
//! not the daemon. A thread of its own connects again and sets all watches; the loop takes over what that thread has
//! made and looks at every console, since nothing is known of what changed meanwhile. Any guest may be the reason why
//! xenstored is slow, so the loop waits for it once in an outage and never again.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::{info, warn};
use xen_types::DomId;
use xenstore::{Connection, SpecialWatch, StoreError};

use super::console::with_cause;
use super::dirty::Dirty;
use super::id::ConsoleId;
use super::poller::{Poller, Slot, Source};
use super::scheduler::Due;
use super::tree::{backends, frontend_dir, primary_dir, secondaries, soft};
use super::{Server, ServerError};
use crate::platform::Platform;

/// Makes a connection to xenstored, with the time limit that each request has at the daemon's start.
pub type Connect = Arc<dyn Fn() -> Result<Connection, StoreError> + Send + Sync>;

/// When xenstored is asked again for the first time; each later wait is twice as long.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// The longest of those waits.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A connection that is lost sooner than this after an outage continues that outage's waits.
const STABLE: Duration = Duration::from_secs(60);
/// How often Xen is asked which domains are gone, which xenstored would have reported.
const DOMAINS_INTERVAL: Duration = Duration::from_secs(1);

/// The server's connection to xenstored, and how it gets another one.
pub(crate) struct Reconnect {
    connect: Connect,
    /// How long one request may take.
    timeout: Duration,
    /// The connection's place in the poller, unless it is lost.
    slot: Option<Slot>,
    outage: Option<Outage>,
    /// Whether the next look at an outage is in the server's list.
    is_scheduled: bool,
    /// The last wait before xenstored answered, and when that was.
    last: Option<(Duration, Instant)>,
}

/// A time in which xenstored does not answer.
struct Outage {
    since: Instant,
    asker: Option<Asker>,
    first_delay: Duration,
}

/// The thread that asks again.
struct Asker {
    /// Until it is known to have ended.
    thread: Option<JoinHandle<()>>,
    answer: Receiver<Answer>,
    /// Readable when there is an answer.
    bell: Arc<EventFd>,
    slot: Slot,
    /// Dropped to end the thread.
    _stop: Sender<()>,
}

/// What that thread has reached.
struct Answer {
    store: Connection,
    /// The secondary consoles of the known domains.
    secondaries: Vec<ConsoleId>,
    delay: Duration,
}

/// What that thread does.
struct Job {
    connect: Connect,
    timeout: Duration,
    domains: Vec<DomId>,
    /// Secondary consoles whose frontends are watched.
    consoles: Vec<ConsoleId>,
}

impl core::fmt::Debug for Reconnect {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Reconnect").field("is_lost", &self.outage.is_some()).finish_non_exhaustive()
    }
}

impl Reconnect {
    pub(crate) fn new(connect: Connect, timeout: Duration, slot: Slot) -> Self {
        Self { connect, timeout, slot: Some(slot), outage: None, is_scheduled: false, last: None }
    }

    pub(crate) const fn is_lost(&self) -> bool {
        self.outage.is_some()
    }

    /// Stops waiting for the connection.
    pub(crate) fn remove(&mut self, poller: &mut Poller, store: &Connection) {
        if let Some(slot) = self.slot.take() {
            poller.remove(&slot, store.as_fd());
        }
    }
}

/// Sets the watches that find everything else.
pub(crate) fn watch_host(store: &Connection) -> Result<(), StoreError> {
    store.watch(&SpecialWatch::IntroduceDomain, "introduce")?;
    store.watch(&SpecialWatch::ReleaseDomain, "release")?;
    store.watch(&backends(), "backends")
}

impl Asker {
    /// Whether the thread has ended without an answer, as it does only by a panic.
    fn has_panicked(&mut self) -> bool {
        let ended = self.thread.take_if(|thread| thread.is_finished());
        ended.is_some_and(|thread| thread.join().is_err())
    }
}

impl Job {
    /// Connects, sets all watches, and finds the consoles.
    fn ask(&self) -> Result<(Connection, Vec<ConsoleId>), StoreError> {
        let store = (self.connect)()?.with_timeout(self.timeout);
        watch_host(&store)?;
        let mut found = Vec::new();
        for domid in self.domains.iter().copied() {
            let primary = ConsoleId { domid, number: 0 };
            soft(store.watch(&primary_dir(domid), &primary.to_string()).map(Some))?;
            let numbers = secondaries(&store, domid)?;
            found.extend(numbers.into_iter().map(|number| ConsoleId { domid, number }));
        }
        for id in self.consoles.iter().copied() {
            soft(store.watch(&frontend_dir(id), &id.to_string()).map(Some))?;
        }
        Ok((store, found))
    }

    /// Asks until there is an answer or `stop` is dropped.
    fn run(&self, first_delay: Duration, stop: &Receiver<()>, answer: &Sender<Answer>, bell: &EventFd) {
        let mut delay = first_delay;
        while matches!(stop.recv_timeout(delay), Err(RecvTimeoutError::Timeout)) {
            if let Ok((store, secondaries)) = self.ask() {
                // Without a receiver, the server has ended.
                let _ = answer.send(Answer { store, secondaries, delay });
                let _ = bell.write(1);
                return;
            }
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }
}

impl<P: Platform> Server<P> {
    /// Passes on errors that end the daemon; the loss of xenstore is none.
    pub(crate) fn survive(&mut self, done: Result<(), ServerError>) -> Result<(), ServerError> {
        match done {
            Err(ServerError::Store(error)) => {
                self.lose_store(&error);
                Ok(())
            }
            other => other,
        }
    }

    /// Continues without xenstore.
    pub(crate) fn lose_store(&mut self, error: &StoreError) {
        if self.reconnect.is_lost() {
            return;
        }
        let now = Instant::now();
        let recent = self.reconnect.last.filter(|(_, answered)| now.duration_since(*answered) < STABLE);
        let first_delay = recent.map_or(FIRST_DELAY, |(delay, _)| (delay * 2).min(LONGEST_DELAY));
        warn!(
            "xenstored does not answer; known consoles are still served, and new ones wait: {}",
            with_cause(error)
        );
        self.reconnect.remove(&mut self.poller, &self.store);
        self.reconnect.outage = Some(Outage { since: now, asker: None, first_delay });
        self.dirty.set_unread(false);
        self.mind_outage();
    }

    /// Does what is due each second while xenstore is lost.
    pub(crate) fn outage_is_due(&mut self) {
        self.reconnect.is_scheduled = false;
        self.mind_outage();
    }

    fn mind_outage(&mut self) {
        let Some(outage) = &mut self.reconnect.outage else { return };
        // Some domains may be gone, and their last bytes are still in the rings.
        self.dirty.add_domains();
        if let Some(Asker { bell, slot, .. }) = outage.asker.take_if(Asker::has_panicked) {
            self.poller.remove(&slot, &*bell);
            outage.first_delay = (outage.first_delay * 2).min(LONGEST_DELAY);
            warn!("the thread that retries xenstored has failed because of a bug; starting another");
        }
        if outage.asker.is_none() {
            let first_delay = outage.first_delay;
            match self.ask_again(first_delay) {
                Ok(asker) => {
                    if let Some(outage) = &mut self.reconnect.outage {
                        outage.asker = Some(asker);
                    }
                }
                // The same with the next second.
                Err(error) => tracing::debug!(%error, "cannot start a thread that retries xenstored"),
            }
        }
        if !core::mem::replace(&mut self.reconnect.is_scheduled, true) {
            self.scheduler.schedule(Instant::now() + DOMAINS_INTERVAL, Due::Outage);
        }
    }

    fn ask_again(&mut self, first_delay: Duration) -> io::Result<Asker> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let ((sender, answer), (stop, stopped)) = (channel(), channel());
        let job = Job {
            connect: Arc::clone(&self.reconnect.connect),
            timeout: self.reconnect.timeout,
            domains: self.consoles.domains().map(|(domid, _)| domid).collect(),
            consoles: self.consoles.ids().filter(|id| id.number != 0).collect(),
        };
        let own_bell = Arc::clone(&bell);
        let work = move || job.run(first_delay, &stopped, &sender, &own_bell);
        let slot = self.poller.add(&*bell, Source::StoreAgain, EpollFlags::EPOLLIN)?;
        let thread = std::thread::Builder::new().name("xenstore".to_owned()).spawn(work);
        match thread {
            Ok(thread) => Ok(Asker { thread: Some(thread), answer, bell, slot, _stop: stop }),
            Err(error) => {
                self.poller.remove(&slot, &*bell);
                Err(error)
            }
        }
    }

    /// Takes over the connection that was made, and looks at everything.
    pub(crate) fn find_store(&mut self) {
        let Some(outage) = &mut self.reconnect.outage else { return };
        let Some(Ok(answer)) = outage.asker.as_ref().map(|asker| asker.answer.try_recv()) else { return };
        if let Some(Asker { bell, slot, .. }) = outage.asker.take() {
            self.poller.remove(&slot, &*bell);
        }
        match self.poller.add(answer.store.as_fd(), Source::Store, EpollFlags::EPOLLIN) {
            Ok(slot) => self.reconnect.slot = Some(slot),
            // Asked again with the next second.
            Err(_) => return,
        }
        info!("xenstored answers again after {} s; checking all consoles", outage.since.elapsed().as_secs());
        self.reconnect.outage = None;
        self.reconnect.last = Some((answer.delay, Instant::now()));
        self.store = answer.store;
        self.looks.forget_all();
        self.dirty = Dirty::all();
        let primaries = self.consoles.domains().map(|(domid, _)| ConsoleId { domid, number: 0 });
        let all: BTreeSet<ConsoleId> =
            primaries.chain(answer.secondaries).chain(self.consoles.ids()).collect();
        for id in all {
            self.dirty.add_due(id);
        }
        // Events that came while watches were set wait in the connection.
        self.dirty.set_unread(true);
    }
}
