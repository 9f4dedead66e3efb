//! The console server: one thread, one poll, every console of every domain.
//!
//! A turn waits for descriptors, looks at what changed in xenstore, and then serves rings: first each console that says
//! little, then a few of those that flood, round robin, one ring's worth at a time. A flood's bytes are handed on in
//! larger pieces: they are safe in the console's spool before. A console whose port has fired keeps the port masked
//! until its ring is found empty, so that a flooding guest costs its turns and no interrupts; how many turns a second
//! one console gets is bounded. When someone has typed, floods rest for a moment, so that the answer finds a processor.
//! Nobody here waits for a reader: what a reader does not take stays in the console's history until newer bytes need the
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
mod open;
mod poller;
mod reader;
mod sinks;
mod tree;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollFlags, EpollTimeout};
use thiserror::Error;
use tracing::warn;
use xen_types::{DomId, EventPort};
use xenstore::{Connection, StoreError};

pub use id::ConsoleId;

use crate::logfile::LogStyle;
use crate::output::Overflow;
use crate::platform::Platform;
use crate::ring::OUT_SIZE;
use crate::spool::Spool;
use crate::xenbus::Link;
use console::Console;
use control::Control;
use discovery::Dirty;
use hypervisor::HypervisorLog;
use poller::{Poller, Slot, Source};
use sinks::Sinks;

/// How long readers of a console whose domain is gone may take for the rest.
const LEAVE_TIME: Duration = Duration::from_secs(5);
/// Rings of floods that are served before descriptors are looked at again: looking costs as much as a ring.
const SERVICES: usize = 8;
/// How long floods rest for someone who has typed and has no answer yet.
const HUSH: Duration = Duration::from_millis(3);
/// Bytes that someone types at once.
const TYPED: usize = 16;

/// Where the server keeps its files, and what it does with bytes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the consoles' logs.
    pub log_dir: PathBuf,
    /// The folder of the consoles' sockets, `<domid>.<number>`, and of the control socket.
    pub socket_dir: PathBuf,
    /// What the logs are called.
    pub log_names: LogNames,
    /// Whether consoles have logs, where the toolstack does not say it.
    pub log_guests: bool,
    /// How logs are written, and files that a console has as its output.
    pub log_style: LogStyle,
    /// How the log of Xen's own console is written; nothing for none.
    pub hypervisor_log: Option<LogStyle>,
    /// What becomes of bytes that nobody reads from a pseudo-terminal or a socket, where the toolstack does not say it.
    pub overflow: Overflow,
}

impl Settings {
    /// Logs of all consoles in one folder, sockets in another, and everything else as it is usual.
    #[must_use]
    pub fn new(log_dir: PathBuf, socket_dir: PathBuf) -> Self {
        Self {
            log_dir,
            socket_dir,
            log_names: LogNames::default(),
            log_guests: true,
            log_style: LogStyle::default(),
            hypervisor_log: None,
            overflow: Overflow::Drop,
        }
    }
}

/// What consoles' logs are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogNames {
    /// `<domain's name>.<number>.log`.
    #[default]
    Numbered,
    /// As xenconsoled calls them: `guest-<domain's name>.log`; those of secondary consoles, which it does not have,
    /// `guest-<domain's name>.<number>.log`.
    Xenconsoled,
}

/// Why the server cannot start or go on.
#[derive(Debug, Error)]
pub enum ServerError {
    /// xenstored does not answer any more, or never did.
    #[error("Lost xenstore, where consoles are found")]
    Store(#[from] StoreError),
    /// Xen does not list its domains.
    #[error("Cannot list the domains")]
    Domains(#[source] io::Error),
    /// No more event channels can be received.
    #[error("Cannot receive event channels")]
    Events(#[source] io::Error),
    /// The poll itself fails.
    #[error("Cannot wait for consoles")]
    Poll(#[source] io::Error),
    /// A folder that is needed cannot be made, or nothing can be made in it.
    #[error("Cannot use the folder {path}; check the options for folders and who may write there")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

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
    store_slot: Slot,
    control: Control,
    hypervisor: Option<HypervisorLog>,
    domains: BTreeSet<DomId>,
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
    /// Makes the folders, sets the watches and takes up every console that there is.
    ///
    /// # Errors
    /// When a folder cannot be made, or xenstore or Xen does not answer.
    pub fn start(platform: P, store: Connection, settings: Settings) -> Result<Self, ServerError> {
        for folder in [&settings.log_dir, &settings.socket_dir] {
            make_folder(folder)?;
        }
        remove_stale_sockets(&settings.socket_dir);
        let mut poller = Poller::new().map_err(ServerError::Poll)?;
        let input = EpollFlags::EPOLLIN;
        poller.add(platform.event_fd(), Source::Events, input).map_err(ServerError::Poll)?;
        let store_slot = poller.add(store.as_fd(), Source::Store, input).map_err(ServerError::Poll)?;
        let control = Control::open(&settings.socket_dir, &mut poller)
            .map_err(|source| ServerError::Folder { path: settings.socket_dir.clone(), source })?;
        let mut server = Self {
            platform,
            store,
            settings,
            poller,
            store_slot,
            control,
            hypervisor: None,
            domains: BTreeSet::new(),
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
        server.watch_host()?;
        // Before another domain of the same name has the same log.
        let domains = server.platform.domains().map_err(ServerError::Domains)?;
        let there =
            |domid: &str| domains.iter().any(|domain| !domain.dying && domain.domid.to_string() == domid);
        server.finish_journals(|console| !console.split_once('.').is_some_and(|(domid, _)| there(domid)));
        server.look()?;
        let known: BTreeSet<String> = server.names.keys().map(ConsoleId::to_string).collect();
        server.finish_journals(|console| !known.contains(console));
        Ok(server)
    }

    fn open_hypervisor_log(&mut self) {
        let Some(style) = self.settings.hypervisor_log else { return };
        match HypervisorLog::open(&mut self.platform, &self.settings, style) {
            Ok(log) => self.hypervisor = Some(log),
            Err(error) => warn!("Xen's own console is not logged: {error}"),
        }
    }

    /// Removes what a killed process kept of consoles that are `gone`, when their files have all of it.
    fn finish_journals(&self, gone: impl Fn(&str) -> bool) {
        let Ok(entries) = fs::read_dir(&self.settings.socket_dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            let Some(console) = name.strip_suffix(".journal").filter(|console| gone(console)) else {
                continue;
            };
            if let Some(kept) = Spool::read_kept(&entry.path(), OUT_SIZE)
                && let Err(error) = Sinks::finish(&kept, self.settings.log_style)
            {
                warn!(console, "{}", console::with_cause(&error));
            }
            let _ = fs::remove_file(entry.path());
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
    /// When xenstore, event channels or the poll itself are lost; a guest cannot cause one.
    pub fn turn(&mut self, patience: Option<Duration>) -> Result<Turn, ServerError> {
        let mut result = Turn::Done;
        for (source, flags) in self.poller.wait(self.timeout(patience)).map_err(ServerError::Poll)? {
            match source {
                Source::Events => self.take_events()?,
                Source::Store => self.read_watches()?,
                Source::Caller => result = Turn::Caller,
                Source::Control => self.accept_guest(),
                Source::Guest(number) => self.hear_guest(number)?,
                Source::Console(key, part) => self.handle(key, part, flags),
            }
        }
        self.do_what_is_due();
        if self.unread {
            self.read_watches()?;
        }
        if !self.dirty.is_clean() {
            self.look()?;
            // Answers may have been preceded by events, which the poll does not know of any more.
            self.read_watches()?;
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
        self.poller.remove(&self.store_slot, self.store.as_fd());
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

    fn handle(&mut self, key: u64, part: poller::Part, flags: EpollFlags) {
        let Some(console) = self.consoles.get_mut(&key) else { return };
        console.handle(&mut self.poller, part, flags);
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
        if let Err(at) = console.turns.take(now) {
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
        if (1..=TYPED).contains(&moved.input) && !console.floods {
            self.hush = Some((key, now + HUSH));
        } else if moved.output > 0 && self.hush.is_some_and(|(typed, _)| typed == key) {
            self.hush = None;
        }
        let Some(wire) = &console.wire else { return };
        if moved.output > 0 || moved.handed_on {
            self.queue(key);
        } else if !moved.held_up && core::mem::take(&mut console.fired) {
            self.platform.unmask(wire.port);
        }
    }

    /// Lets go of a ring that lied, and of its offer.
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

fn make_folder(path: &Path) -> Result<(), ServerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| ServerError::Folder { path: path.to_owned(), source })
}

/// Removes the sockets of a process that was killed: those of consoles that are still there are made anew.
fn remove_stale_sockets(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_console = name.to_str().is_some_and(|name| {
            let (domid, number) = name.split_once('.').unwrap_or((name, ""));
            domid.parse::<DomId>().is_ok() && number.parse::<u32>().is_ok()
        });
        if is_console {
            // Whatever cannot be removed is reported when a console needs the name.
            let _ = fs::remove_file(entry.path());
        }
    }
}
