//! The loop while QEMU runs: one thread, one epoll, no waiting anywhere else but for a disk that has just come (a moment).

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use stubdom_abi::{AgentExit, DmKey};
use xen_types::DomId;
use xenstore::{Connection, Store};

use crate::bridge::Bridge;
use crate::disks::{Change, DiskWatch, PvDisk};
use crate::error::AgentError;
use crate::log::{Log, uptime};
use crate::media;
use crate::monitor::{News, Request};
use crate::pci::{Effect, PciCommands};
use crate::qemu::{self, Asked};
use crate::sandbox::{Confinement, devices};
use crate::start::Started;
use crate::store;
use crate::supervise::{Action, Event, Supervisor};

/// How much of QEMU's output is read at once.
const CHUNK: usize = 4096;
/// How often the kernel's PCI devices are looked at while one is to appear there, which nothing tells.
const PCI_LOOK: Duration = Duration::from_millis(50);

/// What can wake the loop.
#[derive(Clone, Copy, Debug)]
enum Source {
    Signal = 1,
    Output,
    Monitor,
    Store,
    Links,
    Disks,
    Console,
    States,
}

/// The first of the bridges' tokens, two for each.
const BRIDGES: u64 = 16;

/// The loop's own things.
struct Server<'a> {
    started: Started,
    log: &'a mut Log,
    epoll: Epoll,
    disks: DiskWatch,
    pci: PciCommands,
    /// Whether QEMU's output is polled: not while the console has no room for it, nor after its end.
    output: Polled,
    console: Polled,
    supervisor: Supervisor,
    /// What dom0 reaches through vchans, once QEMU is running.
    bridges: Vec<Bridge>,
}

/// Whether a source is in the epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Polled {
    Yes,
    No,
    Ended,
}

/// The signals that the loop takes: the end of a child, and a request to shut down.
fn signal_set() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM].into_iter().collect()
}

/// A descriptor for the signals that the loop takes, which are blocked from here on.
pub(crate) fn signals() -> Result<SignalFd, AgentError> {
    signal_set().thread_block().map_err(AgentError::system("block signals"))?;
    SignalFd::with_flags(&signal_set(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(AgentError::system("make a descriptor for signals"))
}

/// Runs `spawn` with no signal blocked, because a child inherits what is blocked, and QEMU would not hear SIGTERM.
///
/// What comes meanwhile is lost, since PID 1 has no handlers: the loop therefore reaps at every turn.
pub(crate) fn unblocked<T>(spawn: impl FnOnce() -> T) -> Result<T, AgentError> {
    signal_set().thread_unblock().map_err(AgentError::system("unblock signals"))?;
    let value = spawn();
    signal_set().thread_block().map_err(AgentError::system("block signals"))?;
    Ok(value)
}

/// Serves until QEMU has ended; gives whether the end was clean.
pub(crate) fn serve(started: Started, log: &mut Log) -> Result<bool, AgentError> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(AgentError::system("make an epoll"))?;
    add(&epoll, started.signals.as_fd(), Source::Signal, EpollFlags::EPOLLIN)?;
    add(&epoll, started.qemu.output.as_fd(), Source::Output, EpollFlags::EPOLLIN)?;
    add(&epoll, started.qemu.monitor.as_fd(), Source::Monitor, EpollFlags::EPOLLIN)?;
    add(&epoll, started.store.as_fd(), Source::Store, EpollFlags::EPOLLIN)?;
    add(&epoll, started.nics.as_fd(), Source::Links, EpollFlags::EPOLLIN)?;
    started.states.poll(&epoll, Source::States as u64)?;
    let disks = DiskWatch::open()?;
    add(&epoll, disks.as_fd(), Source::Disks, EpollFlags::EPOLLIN)?;
    let supervisor = Supervisor::new(uptime());
    let (output, console) = (Polled::Yes, Polled::No);
    let pci = PciCommands::new(started.confinement == Confinement::Pci);
    Server { started, log, epoll, disks, pci, output, console, supervisor, bridges: Vec::new() }.run()
}

fn add(epoll: &Epoll, fd: BorrowedFd<'_>, source: Source, flags: EpollFlags) -> Result<(), AgentError> {
    epoll.add(fd, EpollEvent::new(flags, source as u64)).map_err(AgentError::system("poll a descriptor"))
}

impl Server<'_> {
    fn run(mut self) -> Result<bool, AgentError> {
        // A NIC may have come, and QEMU have gone, between the last look and the watch.
        self.look_at_nics();
        self.look_at_disks();
        let mut news = vec![Event::Tick];
        self.reap(&mut news);
        // System calls are what a round trip of QMP costs: those that can be left out are.
        loop {
            let now = uptime();
            for event in news {
                for action in self.supervisor.handle(now, event) {
                    if let Some(clean) = self.act(action) {
                        return Ok(clean);
                    }
                }
            }
            self.poll_console()?;
            let left = self.supervisor.deadline().saturating_sub(now);
            let left = if self.bridges.iter().any(Bridge::is_unfinished) { Duration::ZERO } else { left };
            let left = if self.pci.is_waiting() { left.min(PCI_LOOK) } else { left };
            let timeout =
                EpollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(EpollTimeout::MAX);
            let mut events = [EpollEvent::empty(); 8];
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(AgentError::system("wait for events")(errno)),
            };
            news = vec![Event::Tick];
            for event in &events[..count] {
                self.take(event.data(), &mut news)?;
            }
            self.turn_bridges(&events[..count], &mut news)?;
            // A signal that came during [`unblocked`] is lost: the next beat finds what it told of.
            if count == 0 {
                self.reap(&mut news);
            }
            if self.pci.is_waiting() {
                self.look_at_pci();
            }
        }
    }

    fn take(&mut self, source: u64, news: &mut Vec<Event>) -> Result<(), AgentError> {
        const SIGNAL: u64 = Source::Signal as u64;
        const OUTPUT: u64 = Source::Output as u64;
        const MONITOR: u64 = Source::Monitor as u64;
        const STORE: u64 = Source::Store as u64;
        const LINKS: u64 = Source::Links as u64;
        const DISKS: u64 = Source::Disks as u64;
        const CONSOLE: u64 = Source::Console as u64;
        const STATES: u64 = Source::States as u64;
        match source {
            SIGNAL => self.take_signals(news),
            OUTPUT => self.take_output(),
            MONITOR => self.take_monitor(),
            DISKS => self.look_at_disks(),
            STORE => self.take_store(news)?,
            LINKS => self.look_at_nics(),
            CONSOLE => self.log.pump(),
            STATES => self.started.states.pump(self.log),
            // A bridge's, which has its turn after all others.
            _ => {}
        }
        Ok(())
    }

    fn take_signals(&mut self, news: &mut Vec<Event>) {
        while let Ok(Some(info)) = self.started.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if signal != Some(Signal::SIGCHLD) {
                news.push(Event::Stop);
            }
        }
        self.reap(news);
    }

    /// Looks for children that have ended.
    fn reap(&mut self, news: &mut Vec<Event>) {
        for (pid, exit) in qemu::reap() {
            if self.started.qemu.is(pid) {
                // Its last output is still in the pipe.
                self.take_output();
                news.push(Event::Ended(exit, self.log.last_qemu_line()));
            }
        }
    }

    fn open_bridges(&mut self) {
        for (token, service) in (BRIDGES..).step_by(2).zip(self.started.services) {
            let Started { store, target, .. } = &self.started;
            match Bridge::open(service, store, *target, &self.epoll, token) {
                Ok(bridge) => self.bridges.push(bridge),
                Err(error) => self.log.say(&crate::error::chain(&error)),
            }
        }
    }

    /// Gives a turn to the bridges that have events or are not done.
    fn turn_bridges(&mut self, events: &[EpollEvent], news: &mut Vec<Event>) -> Result<(), AgentError> {
        let mut asked_store = false;
        for bridge in &mut self.bridges {
            let mine = || events.iter().map(EpollEvent::data).filter(|token| bridge.owns(*token));
            if bridge.is_unfinished() || mine().next().is_some() {
                let woken = bridge.is_unfinished() || mine().any(|token| bridge.is_vchan(token));
                asked_store |= bridge.turn(woken, &self.started.store, &self.epoll, self.log);
            }
        }
        // Waiting for an answer, the connection may have queued events, of which its descriptor says nothing.
        if asked_store { self.take_store(news) } else { Ok(()) }
    }

    /// Passes on what QEMU wrote, as long as the console has room.
    fn take_output(&mut self) {
        let mut buffer = [0; CHUNK];
        while self.log.has_room() {
            match self.started.qemu.output.read(&mut buffer) {
                Ok(0) => {
                    let _ = self.epoll.delete(self.started.qemu.output.as_fd());
                    self.output = Polled::Ended;
                    return;
                }
                Ok(count) => self.log.qemu(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Takes what QEMU says to the agent.
    fn take_monitor(&mut self) {
        let monitor = &mut self.started.qemu.monitor;
        let news = monitor.pump();
        if !monitor.is_open() {
            let _ = self.epoll.delete(monitor.as_fd());
        }
        match news {
            Ok(news) => news.into_iter().for_each(|news| self.take_news(&news)),
            Err(broken) => self.log.say(&broken.to_string()),
        }
    }

    fn take_news(&mut self, news: &News<Asked>) {
        let effects = match news {
            News::Answer(Asked::Media(step), answer) => {
                if let Some(line) = media::answered(*step, answer) {
                    self.log.say(&line);
                }
                return;
            }
            News::Answer(Asked::Pci(number), answer) => self.pci.answered(*number, answer),
            News::Event(name, data) => self.pci.event(name, data),
        };
        self.pci_effects(effects);
    }

    /// Looks which PV disks have come and gone, and tells QEMU about those of CD drives.
    fn look_at_disks(&mut self) {
        let Started { store, qemu, confinement, .. } = &mut self.started;
        for change in self.disks.changes() {
            let (Change::Came(disk) | Change::Went(disk)) = &change;
            match &change {
                Change::Went(disk) => devices::take(&disk.name),
                Change::Came(disk) => {
                    if let Err(error) = devices::give(&disk.name, *confinement) {
                        self.log.say(&crate::error::chain(&error));
                    }
                }
            }
            // A removed disk has no keys any more, and removing a missing medium from QEMU is harmless.
            if matches!(change, Change::Came(_)) && !disk.is_cdrom(store) {
                continue;
            }
            let (requests, line) = media::requests(&change, PvDisk::open);
            let mut lost = false;
            for request in requests {
                lost |= !qemu.monitor.ask(request);
            }
            if lost {
                self.log.say(&format!("cannot notify QEMU of the medium of PV disk {}", disk.devid));
            }
            if let Some(line) = line {
                self.log.say(&line);
            }
        }
    }

    fn take_store(&mut self, news: &mut Vec<Event>) -> Result<(), AgentError> {
        let Started { store: connection, target, .. } = &self.started;
        let (mut changed, mut commanded, mut state_ends) = (false, false, false);
        while let Some(event) = connection.next_event(Instant::now())? {
            match event.token.as_str() {
                store::COMMAND_TOKEN => commanded = true,
                store::STATE_END_TOKEN => state_ends = true,
                _ => changed = true,
            }
        }
        if changed && store::is_running(connection, *target)? {
            news.push(Event::Running);
        }
        // The word goes before the stream's end can be seen: the next one is another.
        if state_ends && store::take_state_end(connection, *target)? {
            self.started.states.end();
            self.started.states.pump(self.log);
        }
        let Started { store: connection, target, .. } = &self.started;
        if commanded {
            let (command, parameter) = store::command(connection, *target)?;
            let effects = self.pci.command(uptime(), &command, &parameter);
            self.pci_effects(effects);
            self.look_at_pci();
        }
        Ok(())
    }

    /// Looks whether the PCI device is there that the toolstack wants QEMU to have.
    fn look_at_pci(&mut self) {
        let store = &self.started.store;
        let effects = self.pci.look(uptime(), |address| store::pci_inside(store, address));
        self.pci_effects(effects);
    }

    /// Does what the older PCI protocol asks for.
    fn pci_effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Say(line) => self.log.say(&line),
                Effect::Write(key, value) => {
                    write(&self.started.store, self.started.target, key, &value, self.log);
                }
                Effect::Ask(number, command, arguments) => {
                    let request = Request { purpose: Asked::Pci(number), command, arguments, file: None };
                    if !self.started.qemu.monitor.ask(request) {
                        self.log.say("cannot notify QEMU of a PCI device");
                    }
                }
            }
        }
    }

    fn look_at_nics(&mut self) {
        for line in self.started.nics.look(&self.started.store) {
            self.log.say(&line);
        }
    }

    /// Polls the console for room while bytes wait, and QEMU's output while there is room.
    fn poll_console(&mut self) -> Result<(), AgentError> {
        let wanted = if self.log.is_pending() { Polled::Yes } else { Polled::No };
        if let Some(fd) = self.log.fd().filter(|_| wanted != self.console) {
            match wanted {
                Polled::Yes => add(&self.epoll, fd, Source::Console, EpollFlags::EPOLLOUT)?,
                _ => self.epoll.delete(fd).map_err(AgentError::system("poll a descriptor"))?,
            }
            self.console = wanted;
        }
        let wanted = if self.log.has_room() { Polled::Yes } else { Polled::No };
        if self.output != Polled::Ended && self.output != wanted {
            let output = self.started.qemu.output.as_fd();
            match wanted {
                Polled::Yes => add(&self.epoll, output, Source::Output, EpollFlags::EPOLLIN)?,
                _ => self.epoll.delete(output).map_err(AgentError::system("poll a descriptor"))?,
            }
            self.output = wanted;
        }
        Ok(())
    }

    /// Does it; gives how to end when it is the end.
    fn act(&mut self, action: Action) -> Option<bool> {
        match action {
            Action::Say(line) => self.log.say(&line),
            Action::Write(key, value) => {
                write(&self.started.store, self.started.target, key, &value, self.log);
            }
            Action::Inspect => self.log.say(&self.started.qemu.describe()),
            Action::OpenBridges => self.open_bridges(),
            Action::Terminate => self.started.qemu.terminate(),
            Action::Kill => self.started.qemu.kill(),
            Action::End { clean } => return Some(clean),
        }
        None
    }
}

/// Writes a key. A refusal of xenstore is logged; QEMU continues without it.
fn write(store: &Connection, target: DomId, key: DmKey, value: &str, log: &mut Log) {
    if let Err(error) = store.write(&key.own_path(target), value.as_bytes()) {
        log.say(&crate::error::chain(&error));
    }
}

/// Reports a start that failed where the toolstack looks for it.
pub(crate) fn report_failure(failed: &crate::start::Failed, log: &mut Log) {
    let why = format!("{}: {}", failed.step, crate::error::chain(&failed.error));
    log.say(&format!("failed at step {why}"));
    if let (Some(store), Some(target)) = (&failed.store, failed.target) {
        write(store, target, DmKey::AgentExit, &AgentExit::Failed(why).encode(), log);
    }
}
