//! The console server: one loop, one poll, every console of every domain.
//!
//! | part | owns |
//! |---|---|
//! | `Scheduler` | which console is served next, and what is due when |
//! | `Consoles` | all consoles, and how they are found |
//! | `Console` | the history of one console; it has a `RingLink`, `Outputs` and `Viewers` |
//! | `RingLink` | the mapped ring, the event channel, input for the guest |
//! | `Outputs` | log and file (`FilesLink`), pseudo-terminal or pipe, the output's socket |
//! | `Viewers` | clients, and the socket to which they connect |
//! | `Writers` | the threads that write logs and files |
//! | `discovery`, `looks`, `outage` | xenstore and Xen: which consoles there are |
//!
//! A turn waits for descriptors, looks at what changed in xenstore, and then serves rings as the scheduler says, one
//! ring's worth at a time. A flood's bytes are handed on in larger pieces: they are safe in the console's spool before.
//! A console whose port has fired keeps the port masked until its ring is found empty, so that a flooding guest costs
//! its turns and no interrupts.
//!
//! Nothing here waits for a reader: what a reader does not read stays in the history until newer bytes need the
//! room. xenstored is waited for, but no longer than for one answer at a time, and rings have the loop for at least as
//! long. Outputs that are to lose nothing hold up their own domain instead: its bytes stay in the ring. Nothing here
//! waits for a disk either: threads write the logs, and one whose disk hangs lacks bytes (`Writers`).
//!
//! Nothing is kept that cannot be read back from Xen and xenstore: a new process takes all consoles up again.

mod bucket;
mod console;
mod consoles;
mod control;
mod dirty;
mod discovery;
mod ends;
mod files_link;
mod hypervisor;
mod id;
mod leftovers;
mod listener;
mod looks;
mod open;
mod outage;
mod outputs;
mod poller;
mod reader;
mod ring_link;
mod scheduler;
mod settings;
mod share;
mod tree;
mod viewers;
mod writer;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollFlags, EpollTimeout};
use tracing::warn;
use xenstore::Connection;

pub use id::ConsoleId;
pub use outage::Connect;
pub use settings::{LogNames, LogPace, ServerError, Settings};

use crate::handshake::Link;
use crate::platform::Platform;
use consoles::Consoles;
use control::Control;
use dirty::Dirty;
use hypervisor::HypervisorLog;
use leftovers::{make_folder, make_log_folder, remove_stale_names};
use looks::Looks;
use outage::{Reconnect, watch_host};
use poller::{Part, Poller, Source};
use scheduler::{Due, Scheduler, Service};
use writer::{Answer, Owner, Writers};

/// How long readers of a console whose domain is gone may take for the rest.
const LEAVE_TIME: Duration = Duration::from_secs(5);
/// How long no client is accepted after this process had no descriptor or memory for one.
const ACCEPT_REST: Duration = Duration::from_secs(1);
/// How long logs may take for what a killed process has left, and for all that is there when this one ends.
const SETTLE_TIME: Duration = Duration::from_secs(2);

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
    consoles: Consoles<P::Page>,
    scheduler: Scheduler,
    dirty: Dirty,
    looks: Looks,
    hypervisor: Option<HypervisorLog>,
    /// Dropped after all that uses it, since it waits for its threads.
    writers: Writers,
}

impl<P: Platform> Server<P> {
    /// Makes the folders, sets the watches and takes up every console that there is. Later too, `connect` makes the
    /// connections to xenstored, when the first one is lost.
    ///
    /// # Errors
    /// When a folder cannot be made, or xenstore or Xen does not answer.
    pub fn start(platform: P, connect: Connect, settings: Settings) -> Result<Self, ServerError> {
        make_log_folder(&settings.log_dir, SETTLE_TIME / 2)?;
        make_folder(&settings.socket_dir)?;
        remove_stale_names(&settings.socket_dir);
        let store = connect()?;
        let mut poller = Poller::new().map_err(ServerError::Poll)?;
        let writers = Writers::new(settings.disk.clone()).map_err(ServerError::Writers)?;
        let input = EpollFlags::EPOLLIN;
        poller.add(platform.event_fd(), Source::Events, input).map_err(ServerError::Poll)?;
        poller.add(writers.bell(), Source::Writers, input).map_err(ServerError::Poll)?;
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
            consoles: Consoles::new(),
            scheduler: Scheduler::default(),
            dirty: Dirty::all(),
            looks: Looks::default(),
            hypervisor: None,
            writers,
        };
        server.take_up()?;
        // Until here nothing was served that could wait.
        server.store = server.store.with_timeout(server.settings.store_timeout);
        Ok(server)
    }

    /// Continues where an earlier process has stopped.
    fn take_up(&mut self) -> Result<(), ServerError> {
        self.open_hypervisor_log();
        watch_host(&self.store)?;
        // Before another domain of the same name has the same log.
        let alive = self.alive()?;
        let finished = self.finish_journals(&[], |_, id, uuid| alive.get(&id.domid) != Some(&uuid));
        self.settle(SETTLE_TIME / 2);
        self.look()?;
        self.finish_journals(&finished, |server, id, uuid| !server.serves(id, uuid));
        self.settle(SETTLE_TIME / 2);
        Ok(())
    }

    fn open_hypervisor_log(&mut self) {
        let Some(style) = self.settings.hypervisor_log else { return };
        match HypervisorLog::open(&mut self.platform, &mut self.writers, &self.settings, style) {
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
        let timeout = self.timeout(patience);
        let sleeps = timeout != EpollTimeout::ZERO;
        if sleeps {
            self.writers.set_sleeping(true);
        }
        // The last ones that came without the bell.
        let timeout = if self.take_answers() { EpollTimeout::ZERO } else { timeout };
        self.writers.send_all();
        let events = self.poller.wait(timeout).map_err(ServerError::Poll)?;
        if sleeps {
            self.writers.set_sleeping(false);
        }
        for (source, flags) in events {
            match source {
                Source::Events => self.take_events()?,
                Source::Store => self.read_watches(),
                Source::StoreAgain => self.find_store(),
                Source::Writers => self.writers.clear_bell(),
                Source::Caller => result = Turn::Caller,
                Source::Control => self.accept_client(),
                Source::Client(number) => {
                    let read = self.read_client(number);
                    self.survive(read)?;
                }
                Source::Console(key, part) => self.handle(key, part, flags),
            }
        }
        self.take_answers();
        self.do_what_is_due();
        if self.dirty.has_unread() {
            self.read_watches();
        }
        if !self.dirty.is_clean() && !self.looks.rests() {
            self.look_for_a_while()?;
            // Answers may have been preceded by events, which the poll does not know of any more.
            self.read_watches();
        }
        self.serve_some();
        self.writers.send_all();
        Ok(result)
    }

    /// Opens all log files again, for a log rotator.
    pub fn reopen_logs(&mut self) {
        for console in self.consoles.all_mut() {
            console.reopen_files();
        }
        if let Some(hypervisor) = &mut self.hypervisor {
            hypervisor.reopen();
        }
    }

    /// Ends: removes the sockets; rings stay as they are, for the next process to take up, and so do the notes about
    /// them. Waits for the logs, but not for a disk that hangs: the next process has what is missing there.
    pub fn stop(mut self) {
        for key in self.consoles.all_keys() {
            if let Some(console) = self.consoles.get_mut(key) {
                console.leave(&mut self.poller, false);
            }
        }
        if !self.settle(SETTLE_TIME) {
            warn!(
                "some logs lack their last bytes, since a disk does not answer; the next process writes them"
            );
        }
        for key in self.consoles.all_keys() {
            self.close(key);
        }
        self.control.remove();
        self.reconnect.remove(&mut self.poller, &self.store);
    }

    /// The consoles that are known, for a report.
    pub fn consoles(&self) -> impl Iterator<Item = ConsoleId> {
        self.consoles.ids()
    }

    fn timeout(&mut self, patience: Option<Duration>) -> EpollTimeout {
        let is_dirty = !self.dirty.is_clean() && !self.looks.rests();
        if self.scheduler.is_busy() || is_dirty || self.dirty.has_unread() {
            return EpollTimeout::ZERO;
        }
        let consoles = &mut self.consoles;
        self.scheduler
            .skip_files(|key| consoles.get_mut(key).is_some_and(|console| console.files_need_a_look()));
        let until = self.scheduler.idle_until().map(|at| at.saturating_duration_since(Instant::now()));
        let Some(wait) = [until, patience].into_iter().flatten().min() else { return EpollTimeout::NONE };
        // Rounded up: waking just before the time would cost turns that do nothing.
        let millis = u32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    fn do_what_is_due(&mut self) {
        if !self.scheduler.has_due() {
            return;
        }
        let now = Instant::now();
        while let Some(due) = self.scheduler.next_due(now) {
            match due {
                // The scheduler's own.
                Due::Serve(_) => {}
                Due::Look(id) => self.dirty.add_due(id),
                Due::Close(key) => self.close(key),
                Due::Dismiss(number) => self.dismiss_client(number),
                Due::Accept(key) => {
                    if let Some(console) = self.consoles.get_mut(key) {
                        console.accept_again(&self.poller);
                    }
                }
                Due::AcceptClients => self.control.rest(&self.poller, false),
                Due::Files(key) => self.look_at_files(key, now),
                Due::Outage => self.outage_is_due(),
                Due::Looks => self.looks.end_rest(),
            }
        }
    }

    fn take_events(&mut self) -> Result<(), ServerError> {
        // Each port comes once before it is unmasked.
        while let Some(port) = self.platform.next_event().map_err(ServerError::Events)? {
            if self.has_hypervisor_event(port) {
                continue;
            }
            let Some(key) = self.consoles.at_port(port) else { continue };
            if let Some(console) = self.consoles.get_mut(key) {
                console.ring_mut().fire();
                self.scheduler.queue(key);
            }
        }
        Ok(())
    }

    fn handle(&mut self, key: u64, part: Part, flags: EpollFlags) {
        let is_listener = matches!(part, Part::Listener | Part::OutputListener);
        let Some(console) = self.consoles.get(key) else { return };
        let (domid, uuid) = (console.id().domid, console.uuid());
        // A new client means the domain that has the domid now.
        if is_listener && !self.is_still(domid, uuid) {
            return;
        }
        let Some(console) = self.consoles.get_mut(key) else { return };
        console.handle(&mut self.poller, part, flags);
        if is_listener && console.is_resting() {
            self.scheduler.schedule(Instant::now() + ACCEPT_REST, Due::Accept(key));
        }
        self.after_console(key);
    }

    /// Closes a console that has left, and gives any other one a turn.
    fn after_console(&mut self, key: u64) {
        self.after_files(key);
        self.scheduler.queue(key);
    }

    /// Closes a console that has left, and sees to the files of any other one in time.
    fn after_files(&mut self, key: u64) {
        let Some(console) = self.consoles.get_mut(key) else { return };
        if console.has_left() {
            self.close(key);
        } else if let Some(at) = console.unscheduled_files() {
            self.scheduler.schedule(at, Due::Files(key));
        }
    }

    /// Serves the consoles that the scheduler names.
    fn serve_some(&mut self) {
        if !self.scheduler.is_busy() && self.scheduler.idle_until().is_none() {
            return;
        }
        let now = Instant::now();
        let mut round = self.scheduler.round();
        while let Some(key) = self.scheduler.next(&mut round, now) {
            self.serve(key, now);
        }
    }

    /// Gives one console its turn.
    fn serve(&mut self, key: u64, now: Instant) {
        let Some(console) = self.consoles.get_mut(key) else { return };
        let platform = &mut self.platform;
        let moved = match console.serve(&mut self.poller, now, |port| platform.notify(port)) {
            Ok(moved) => moved,
            Err(error) => {
                console.complain(&error);
                let id = console.id();
                self.refuse(id);
                return;
            }
        };
        let service = Service { output: moved.output, input: moved.input, is_flood: moved.is_flood };
        self.scheduler.served(key, service, now);
        if moved.is_more {
            self.scheduler.queue(key);
        } else if !moved.held_up
            && let Some(port) = console.ring_mut().take_fired()
        {
            self.platform.unmask(port);
        }
        if let Some(at) = console.unscheduled_files() {
            self.scheduler.schedule(at, Due::Files(key));
        }
    }

    /// Gives a console's files what they could not have before, and serves a ring that waited for them.
    fn look_at_files(&mut self, key: u64, now: Instant) {
        if let Some(console) = self.consoles.get_mut(key) {
            console.look_at_files(&mut self.poller, now);
            self.after_console(key);
        }
    }

    /// Takes the answers of the threads that write logs. Returns whether there were any.
    fn take_answers(&mut self) -> bool {
        let mut were_any = false;
        while self.writers.owed() > 0
            && let Some(answer) = self.writers.next_answer()
        {
            self.take_answer(answer);
            were_any = true;
        }
        were_any
    }

    fn take_answer(&mut self, answer: Answer) {
        match answer.owner {
            Owner::Console(key) => {
                // Of one that was closed meanwhile, nothing is left to do.
                let Some(console) = self.consoles.get_mut(key) else { return };
                let freed = console.files_answered(&mut self.poller, answer.what, Instant::now());
                if let Some(port) = freed {
                    self.platform.notify(port);
                }
                let is_held_up = console.is_held_up();
                self.after_files(key);
                if freed.is_some() || is_held_up {
                    self.scheduler.queue(key);
                }
            }
            Owner::Hypervisor => self.hypervisor_answered(answer.what),
            Owner::Journal(_) => leftovers::report(&answer.what),
        }
    }

    /// Waits until all logs have what is there for them, at most this long. Returns whether they have.
    fn settle(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.writers.owed() > 0 {
            let Some(answer) = self.writers.wait_answer(until) else { return false };
            self.take_answer(answer);
        }
        true
    }

    /// Releases a corrupted ring and its offer.
    fn refuse(&mut self, id: ConsoleId) {
        let Some(link) = self.consoles.named(id).map(|console| console.ring().handshake()) else { return };
        self.disconnect(id, true);
        if let (Some(console), Link::Connected { offer, .. }) = (self.consoles.named_mut(id), link) {
            console.ring_mut().refuse(offer);
        }
        // The frontend is told by the handshake.
        self.dirty.add_due(id);
    }

    /// Takes a console out of service; its readers may still get the rest.
    fn retire(&mut self, id: ConsoleId) {
        let Some(key) = self.consoles.take_id(id) else { return };
        let Some(console) = self.consoles.get_mut(key) else { return };
        console.leave(&mut self.poller, true);
        self.scheduler.schedule(Instant::now() + LEAVE_TIME, Due::Close(key));
        self.after_console(key);
    }

    fn close(&mut self, key: u64) {
        if let Some(console) = self.consoles.remove(key) {
            console.close(&mut self.poller);
        }
    }
}
