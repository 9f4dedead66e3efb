//! The console server: one thread, one poll, every console of every domain.
//!
//! A turn waits for descriptors, looks at what changed in xenstore, and then serves rings: first each console that says
//! little, then a few of those that flood, round robin, one ring's worth at a time. A flood's bytes are handed on in
//! larger pieces: they are safe in the console's spool before. A console whose port has fired keeps the port masked
//! until its ring is found empty, so that a flooding guest costs its turns and no interrupts; how many turns a second
//! the consoles of one domain get is bounded. When someone has typed, floods rest for a moment, so that the answer finds a processor.
//! Nothing here waits for a reader: what a reader does not read stays in the history until newer bytes need the
//! room. Outputs that are to lose nothing hold up their own domain instead: its bytes stay in the ring.
//!
//! Nothing is kept that cannot be read back from Xen and xenstore: a new process takes all consoles up again.

mod bucket;
mod console;
mod control;
mod discovery;
mod ends;
mod hypervisor;
mod id;
mod leftovers;
mod open;
mod outage;
mod poller;
mod reader;
mod settings;
mod share;
mod sinks;
mod tree;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollFlags, EpollTimeout};
use tracing::warn;
use uuid::Uuid;
use xen_types::{DomId, EventPort};
use xenstore::Connection;

pub use id::ConsoleId;
pub use outage::Connect;
pub use settings::{LogNames, LogPace, ServerError, Settings};

use crate::platform::Platform;
use crate::xenbus::Link;
use console::Console;
use control::Control;
use discovery::Dirty;
use hypervisor::HypervisorLog;
use leftovers::{make_folder, remove_stale_names};
use outage::{Reconnect, watch_host};
use poller::{Part, Poller, Source};
use share::Share;

/// How long readers of a console whose domain is gone may take for the rest.
const LEAVE_TIME: Duration = Duration::from_secs(5);
/// Rings of floods that are served before descriptors are looked at again: looking costs as much as a ring.
const SERVICES: usize = 8;
/// How long no client is accepted after this process had no descriptor or memory for one.
const ACCEPT_REST: Duration = Duration::from_secs(1);
/// How long floods pause for a viewer that has typed and has no answer yet (interactive boost).
const HUSH: Duration = Duration::from_millis(3);
/// Bytes that someone types at once.
const TYPED: usize = 16;

/// What is to be done at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
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
    /// Give a console's files what they could not have before.
    Files(u64),
    /// Look after an outage of xenstored.
    Outage,
}

/// What ended a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Work was done, or there was none.
    Done,
    /// The caller's descriptor is readable.
    Caller,
}

/// Serves consoles. See the [module](self).
#[derive(Debug)]
pub struct Server<P: Platform> {
    platform: P,
    store: Connection,
    settings: Settings,
    poller: Poller,
    reconnect: Reconnect,
    control: Control,
    hypervisor: Option<HypervisorLog>,
    /// The domains that are served, with their UUIDs, since domids are reused.
    domains: BTreeMap<DomId, Uuid>,
    /// What all consoles of a domain have together.
    shares: BTreeMap<DomId, Rc<Share>>,
    /// Consoles by a number that is never used twice; those that leave have no name any more.
    consoles: BTreeMap<u64, Console<P::Page>>,
    names: BTreeMap<ConsoleId, u64>,
    next_key: u64,
    ports: HashMap<EventPort, u64>,
    /// Consoles that have something to do.
    ready: VecDeque<u64>,
    /// Those of them that said much the last time.
    floods: VecDeque<u64>,
    /// Whose answer is waited for, and until when.
    hush: Option<(u64, Instant)>,
    due: BinaryHeap<Reverse<(Instant, Due)>>,
    dirty: Dirty,
    /// Whether events of watches may wait where the poll does not see them.
    unread: bool,
}

impl<P: Platform> Server<P> {
    /// Makes the folders, sets the watches and takes up every console that there is. Later too, `connect` makes the
    /// connections to xenstored, when the first one is lost.
    ///
    /// # Errors
    /// When a folder cannot be made, or xenstore or Xen does not answer.
    pub fn start(platform: P, connect: Connect, settings: Settings) -> Result<Self, ServerError> {
        for folder in [&settings.log_dir, &settings.socket_dir] {
            make_folder(folder)?;
        }
        remove_stale_names(&settings.socket_dir);
        let store = connect()?;
        let mut poller = Poller::new().map_err(ServerError::Poll)?;
        let input = EpollFlags::EPOLLIN;
        poller.add(platform.event_fd(), Source::Events, input).map_err(ServerError::Poll)?;
        let store_slot = poller.add(store.as_fd(), Source::Store, input).map_err(ServerError::Poll)?;
        let reconnect = Reconnect::new(connect, settings.store_timeout, store_slot);
        let control = Control::open(&settings.socket_dir, &mut poller)
            .map_err(|source| ServerError::Folder { path: settings.socket_dir.clone(), source })?;
        let mut server = Self {
            platform,
            store,
            settings,
            poller,
            reconnect,
            control,
            hypervisor: None,
            domains: BTreeMap::new(),
            shares: BTreeMap::new(),
            consoles: BTreeMap::new(),
            names: BTreeMap::new(),
            next_key: 0,
            ports: HashMap::new(),
            ready: VecDeque::new(),
            floods: VecDeque::new(),
            hush: None,
            due: BinaryHeap::new(),
            dirty: Dirty::all(),
            unread: true,
        };
        server.open_hypervisor_log();
        watch_host(&server.store)?;
        // Before another domain of the same name has the same log.
        let alive = server.alive()?;
        server.finish_journals(|id, uuid| alive.get(&id.domid) != Some(&uuid));
        server.look()?;
        server.finish_journals(|id, uuid| !server.serves(id, uuid));
        // Until here nothing was served that could wait.
        server.store = server.store.with_timeout(server.settings.store_timeout);
        Ok(server)
    }

    fn open_hypervisor_log(&mut self) {
        let Some(style) = self.settings.hypervisor_log else { return };
        match HypervisorLog::open(&mut self.platform, &self.settings, style) {
            Ok(log) => self.hypervisor = Some(log),
            Err(error) => warn!("Xen's own console is not logged: {error}"),
        }
    }

    /// Adds a descriptor of the caller's: a turn ends with [`Turn::Caller`] when it is readable.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn add_caller_fd(&mut self, fd: BorrowedFd<'_>) -> Result<(), ServerError> {
        self.poller.add(fd, Source::Caller, EpollFlags::EPOLLIN).map(drop).map_err(ServerError::Poll)
    }

    /// Waits until there is something to do, at most `patience` if given, and does one round of it.
    ///
    /// # Errors
    /// When Xen, event channels or the poll itself are lost; a guest cannot cause one.
    pub fn turn(&mut self, patience: Option<Duration>) -> Result<Turn, ServerError> {
        let mut result = Turn::Done;
        for (source, flags) in self.poller.wait(self.timeout(patience)).map_err(ServerError::Poll)? {
            match source {
                Source::Events => self.take_events()?,
                Source::Store => self.read_watches(),
                Source::StoreAgain => self.find_store(),
                Source::Caller => result = Turn::Caller,
                Source::Control => self.accept_guest(),
                Source::Guest(number) => {
                    let heard = self.hear_guest(number);
                    self.survive(heard)?;
                }
                Source::Console(key, part) => self.handle(key, part, flags),
            }
        }
        self.do_what_is_due();
        if self.unread {
            self.read_watches();
        }
        if !self.dirty.is_clean() {
            let looked = self.look();
            self.survive(looked)?;
            // Answers may have been preceded by events, which the poll does not know of any more.
            self.read_watches();
        }
        self.serve_some();
        Ok(result)
    }

    /// Opens all log files again, for a log rotator.
    pub fn reopen_logs(&mut self) {
        for console in self.consoles.values_mut() {
            console.reopen_files();
        }
        if let Some(hypervisor) = &mut self.hypervisor {
            hypervisor.reopen();
        }
    }

    /// Ends: removes the sockets; rings stay as they are, for the next process to take up, and so do the notes about
    /// them.
    pub fn stop(mut self) {
        let keys: Vec<u64> = self.consoles.keys().copied().collect();
        for key in keys {
            if let Some(mut console) = self.consoles.remove(&key) {
                console.leave(&mut self.poller, false);
                console.close(&mut self.poller);
            }
        }
        self.control.remove();
        self.reconnect.remove(&mut self.poller, &self.store);
    }

    /// The consoles that are known, for a report.
    pub fn consoles(&self) -> impl Iterator<Item = ConsoleId> {
        self.names.keys().copied()
    }

    fn timeout(&self, patience: Option<Duration>) -> EpollTimeout {
        let floods = !self.floods.is_empty();
        if !self.ready.is_empty() || !self.dirty.is_clean() || self.unread || (floods && self.hush.is_none())
        {
            return EpollTimeout::ZERO;
        }
        let until_due = self.due.peek().map(|Reverse((at, _))| *at);
        let until_loud = self.hush.filter(|_| floods).map(|(_, until)| until);
        let until = [until_due, until_loud].into_iter().flatten().min();
        let until = until.map(|at| at.saturating_duration_since(Instant::now()));
        let Some(wait) = [until, patience].into_iter().flatten().min() else { return EpollTimeout::NONE };
        // Rounded up: waking just before the time would cost turns that do nothing.
        let millis = u32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    fn console_mut(&mut self, id: ConsoleId) -> Option<&mut Console<P::Page>> {
        self.consoles.get_mut(self.names.get(&id)?)
    }

    fn schedule(&mut self, at: Instant, due: Due) {
        self.due.push(Reverse((at, due)));
    }

    fn do_what_is_due(&mut self) {
        if self.due.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(Reverse((at, due))) = self.due.peek().copied() {
            if at > now {
                return;
            }
            self.due.pop();
            match due {
                Due::Serve(key) => {
                    if let Some(console) = self.consoles.get_mut(&key) {
                        console.queued = false;
                        self.queue(key);
                    }
                }
                Due::Look(id) => {
                    self.dirty.add_due(id);
                    if let Some(console) = self.console_mut(id) {
                        console.look_is_due = false;
                    }
                }
                Due::Close(key) => self.close(key),
                Due::Dismiss(number) => self.dismiss_guest(number),
                Due::Accept(key) => {
                    if let Some(console) = self.consoles.get_mut(&key) {
                        console.rest_doors(&self.poller, false);
                    }
                }
                Due::AcceptClients => self.control.rest(&self.poller, false),
                Due::Files(key) => self.flush_late(key),
                Due::Outage => self.outage_is_due(),
            }
        }
    }

    fn take_events(&mut self) -> Result<(), ServerError> {
        // Each port comes once before it is unmasked.
        while let Some(port) = self.platform.next_event().map_err(ServerError::Events)? {
            if self.hear_hypervisor(port) {
                continue;
            }
            let Some(key) = self.ports.get(&port).copied() else { continue };
            if let Some(console) = self.consoles.get_mut(&key) {
                console.fired = true;
                self.queue(key);
            }
        }
        Ok(())
    }

    fn handle(&mut self, key: u64, part: Part, flags: EpollFlags) {
        let Some(console) = self.consoles.get(&key) else { return };
        let (domid, uuid) = (console.id.domid, console.uuid);
        // A new client means the domain that has the domid now.
        if matches!(part, Part::Listener | Part::OutputListener) && !self.is_still(domid, uuid) {
            return;
        }
        let Some(console) = self.consoles.get_mut(&key) else { return };
        console.handle(&mut self.poller, part, flags);
        let rests = console.doors_rest();
        if rests && matches!(part, Part::Listener | Part::OutputListener) {
            self.schedule(Instant::now() + ACCEPT_REST, Due::Accept(key));
        }
        let Some(console) = self.consoles.get(&key) else { return };
        if console.has_left() {
            self.close(key);
        } else {
            self.queue(key);
        }
    }

    /// Queues a console; those that say little come before those that flood, who get their share of each turn all the
    /// same.
    fn queue(&mut self, key: u64) {
        let Some(console) = self.consoles.get_mut(&key) else { return };
        if !console.queued && console.wire.is_some() {
            console.queued = true;
            if console.floods { &mut self.floods } else { &mut self.ready }.push_back(key);
        }
    }

    /// Serves each console that says little, and some floods unless they rest.
    fn serve_some(&mut self) {
        if self.ready.is_empty() && self.floods.is_empty() {
            return;
        }
        let now = Instant::now();
        for _ in 0..self.ready.len() {
            if let Some(key) = self.ready.pop_front() {
                self.serve(key, now);
            }
        }
        if self.hush.is_some_and(|(_, until)| now < until) {
            return;
        }
        self.hush = None;
        for _ in 0..SERVICES {
            let Some(key) = self.floods.pop_front() else { break };
            self.serve(key, now);
        }
    }

    /// Gives one console its turn.
    fn serve(&mut self, key: u64, now: Instant) {
        let Some(console) = self.consoles.get_mut(&key) else { return };
        if let Err(at) = console.share.take_turn(now) {
            // It stays queued, so that its events do not bring it back before.
            self.schedule(at, Due::Serve(key));
            return;
        }
        console.queued = false;
        let platform = &mut self.platform;
        let moved = match console.serve(&mut self.poller, now, |port| platform.notify(port)) {
            Ok(moved) => moved,
            Err(lie) => {
                console.complain(&lie);
                let id = console.id;
                self.refuse(id);
                return;
            }
        };
        let files_are_due = console.unscheduled_files();
        if (1..=TYPED).contains(&moved.input) && !console.floods {
            self.hush = Some((key, now + HUSH));
        } else if moved.output > 0 && self.hush.is_some_and(|(typed, _)| typed == key) {
            self.hush = None;
        }
        if let Some(wire) = &console.wire {
            if moved.output > 0 || moved.handed_on {
                self.queue(key);
            } else if !moved.held_up && core::mem::take(&mut console.fired) {
                self.platform.unmask(wire.port);
            }
        }
        if let Some(at) = files_are_due {
            self.schedule(at, Due::Files(key));
        }
    }

    /// Gives a console's files what they could not have before, and serves a ring that waited for them.
    fn flush_late(&mut self, key: u64) {
        let Some(console) = self.consoles.get_mut(&key) else { return };
        console.flush_late();
        if let Some(at) = console.unscheduled_files() {
            self.schedule(at, Due::Files(key));
        }
        self.queue(key);
    }

    /// Releases a corrupted ring and its offer.
    fn refuse(&mut self, id: ConsoleId) {
        let Some(link) = self.console_mut(id).map(|console| console.link) else { return };
        self.disconnect(id, true);
        if let (Some(console), Link::Connected { offer, .. }) = (self.console_mut(id), link) {
            console.link = Link::Refused(offer);
        }
        // The frontend is told by the handshake.
        self.dirty.add_due(id);
    }

    /// Takes a console out of service; its readers may still get the rest.
    fn retire(&mut self, id: ConsoleId) {
        let Some(key) = self.names.remove(&id) else { return };
        let Some(console) = self.consoles.get_mut(&key) else { return };
        console.leave(&mut self.poller, true);
        if console.has_left() {
            self.close(key);
        } else {
            self.schedule(Instant::now() + LEAVE_TIME, Due::Close(key));
        }
    }

    fn close(&mut self, key: u64) {
        if let Some(console) = self.consoles.remove(&key) {
            console.close(&mut self.poller);
        }
    }
}
