//! The loop while QEMU runs, or is held before: what a source reports goes to a machine, and what the machine wants is performed.
//!
//! One thread, one epoll, no waiting anywhere else but for a disk that has just come (a moment).

mod sources;

use std::io::Read;
use std::mem::take;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollFlags, EpollTimeout};
use stubdom_abi::{AgentExit, DmKey};

use self::sources::{Source, Sources};
use crate::boot::Boot;
use crate::effect::Effect;
use crate::error::AgentError;
use crate::machines::media::{self, Change};
use crate::machines::pci::PciCommands;
use crate::machines::supervise::{Event, Supervisor};
use crate::qemu::Qemu;
use crate::qmp::{Command, Message, Purpose};
use crate::sandbox::{Confinement, devices, inspect};
use crate::services::bridge::Bridge;
use crate::services::disks::{self, DiskWatch};
use crate::services::log::{Log, uptime};
use crate::services::net::Nics;
use crate::services::store;
use crate::signals;

/// How much of QEMU's output is read at once, in bytes.
const CHUNK: usize = 4096;
/// How often the kernel's PCI devices are looked at while one is to appear there, which causes no event.
const PCI_LOOK: Duration = Duration::from_millis(50);

/// The sources, the machines, and what the effects are performed on.
struct Loop<'a> {
    boot: Boot,
    nics: Nics,
    qemu: Qemu,
    log: &'a mut Log,
    disks: DiskWatch,
    /// What dom0 reaches through vchans, once QEMU is running.
    bridges: Vec<Bridge>,
    sources: Sources,
    /// Whether QEMU's output is polled: not while the console has no room for it, nor after its end.
    output: Polled,
    console: Polled,
    supervisor: Supervisor,
    pci: PciCommands,
    /// What the supervisor has not handled yet.
    events: Vec<Event>,
    /// Whether the domain ends, and cleanly.
    end: Option<bool>,
}

/// Whether a source is in the epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Polled {
    Yes,
    No,
    Ended,
}

/// Runs until QEMU has ended; returns whether the end was clean.
pub(crate) fn run(boot: Boot, nics: Nics, qemu: Qemu, log: &mut Log) -> Result<bool, AgentError> {
    let mut this = open(boot, nics, qemu, log)?;
    // A NIC may have come, and QEMU have gone, between the last look and the watch.
    this.look_at_nics();
    this.look_at_disks();
    this.reap();
    loop {
        if let Some(clean) = this.turn()? {
            return Ok(clean);
        }
    }
}

/// Polls every source.
fn open(boot: Boot, nics: Nics, qemu: Qemu, log: &mut Log) -> Result<Loop<'_>, AgentError> {
    let mut sources = Sources::new()?;
    sources.add(Source::Signal, &boot.signals, EpollFlags::EPOLLIN)?;
    sources.add(Source::Output, &qemu.output, EpollFlags::EPOLLIN)?;
    sources.add(Source::Qmp, &qemu.qmp, EpollFlags::EPOLLIN)?;
    sources.add(Source::Store, boot.store.as_fd(), EpollFlags::EPOLLIN)?;
    sources.add(Source::Links, &nics, EpollFlags::EPOLLIN)?;
    let relay = sources.token(Source::Relay);
    boot.relay.poll(sources.epoll(), relay)?;
    let disks = DiskWatch::open()?;
    sources.add(Source::Disks, &disks, EpollFlags::EPOLLIN)?;
    let pci = PciCommands::new(boot.confinement == Confinement::Pci);
    let supervisor = if boot.holds { Supervisor::held(uptime()) } else { Supervisor::new(uptime()) };
    Ok(Loop {
        boot,
        nics,
        qemu,
        log,
        disks,
        bridges: Vec::new(),
        sources,
        output: Polled::Yes,
        console: Polled::No,
        supervisor,
        pci,
        events: vec![Event::Tick],
        end: None,
    })
}

impl Loop<'_> {
    /// Handles what came in the last turn, and waits for more; returns how to end when it is the end.
    ///
    /// System calls are what a round trip of QMP costs: those that can be left out are.
    fn turn(&mut self) -> Result<Option<bool>, AgentError> {
        let now = uptime();
        loop {
            for event in take(&mut self.events) {
                let effects = self.supervisor.handle(now, event);
                self.perform(effects);
                if self.end.is_some() {
                    return Ok(self.end);
                }
            }
            // What came while an answer was waited for, before this loop too: xenstore's descriptor does not show it.
            if !self.boot.store.has_event() {
                break;
            }
            self.take_store()?;
        }
        self.poll_console()?;
        let ready = self.sources.wait(self.timeout(now))?;
        self.events.push(Event::Tick);
        for source in &ready {
            self.take(*source)?;
        }
        self.turn_bridges(&ready)?;
        // A signal that came while none was blocked is lost: the next heartbeat finds the child that has ended.
        if ready.is_empty() {
            self.reap();
        }
        if self.pci.is_waiting() {
            self.look_at_pci();
        }
        Ok(None)
    }

    /// How long nothing has to be done without an event.
    fn timeout(&self, now: Duration) -> EpollTimeout {
        let left = self.supervisor.deadline().saturating_sub(now);
        let left = if self.bridges.iter().any(Bridge::is_unfinished) { Duration::ZERO } else { left };
        let left = if self.pci.is_waiting() { left.min(PCI_LOOK) } else { left };
        EpollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(EpollTimeout::MAX)
    }

    fn take(&mut self, source: Source) -> Result<(), AgentError> {
        match source {
            Source::Signal => self.take_signals(),
            Source::Output => self.take_output(),
            Source::Qmp => self.take_qmp(),
            Source::Store => self.take_store()?,
            Source::Links => self.look_at_nics(),
            Source::Disks => self.look_at_disks(),
            Source::Console => self.log.pump(),
            Source::Relay => self.boot.relay.pump(self.log),
            // Bridges have their turn after all others.
            Source::Vchan(_) | Source::Socket(_) => {}
        }
        Ok(())
    }

    fn take_signals(&mut self) {
        if signals::take(&self.boot.signals) {
            self.events.push(Event::Stop);
        }
        self.reap();
    }

    /// Looks for children that have ended.
    fn reap(&mut self) {
        for (pid, exit) in signals::reap() {
            if self.qemu.is(pid) {
                // Its last output is still in the pipe.
                self.take_output();
                if let (AgentExit::Killed(_), Some(line)) = (&exit, inspect::shortage()) {
                    self.log.line(&line);
                }
                self.events.push(Event::Ended(exit, self.log.last_qemu_line()));
            }
        }
    }

    /// Gives a turn to the bridges that have events or are not done.
    fn turn_bridges(&mut self, ready: &[Source]) -> Result<(), AgentError> {
        let mut asked_store = false;
        for (index, bridge) in self.bridges.iter_mut().enumerate() {
            let woken = bridge.is_unfinished() || ready.contains(&Source::Vchan(index));
            if woken || ready.contains(&Source::Socket(index)) {
                asked_store |= bridge.turn(woken, &self.boot.store, self.sources.epoll(), self.log);
            }
        }
        // Waiting for an answer, the connection may have queued events, which its descriptor does not show.
        if asked_store { self.take_store() } else { Ok(()) }
    }

    /// Passes on what QEMU wrote, as long as the console has room.
    fn take_output(&mut self) {
        let mut buffer = [0; CHUNK];
        while self.log.has_room() {
            match self.qemu.output.read(&mut buffer) {
                Ok(0) => {
                    let _ = self.sources.remove(&self.qemu.output);
                    self.output = Polled::Ended;
                    return;
                }
                Ok(count) => self.log.qemu(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Takes what QEMU sends to the agent.
    fn take_qmp(&mut self) {
        let messages = self.qemu.qmp.pump();
        if !self.qemu.qmp.is_open() {
            let _ = self.sources.remove(&self.qemu.qmp);
        }
        match messages {
            Ok(messages) => messages.iter().for_each(|message| self.take_message(message)),
            Err(broken) => self.log.line(&broken.to_string()),
        }
    }

    fn take_message(&mut self, message: &Message) {
        let effects = match message {
            Message::Greeting => {
                self.events.push(Event::MonitorReady);
                Vec::new()
            }
            Message::Answer(Purpose::AddMedium(devid), answer) => vec![media::added(*devid, answer)],
            // Most often there was none, or the toolstack removed it.
            Message::Answer(Purpose::RemoveMedium(_), _) => Vec::new(),
            Message::Answer(Purpose::Pci(number), answer) => self.pci.answered(*number, answer),
            Message::Event(name, data) => self.pci.event(name, data),
        };
        self.perform(effects);
    }

    /// Looks which PV disks have come and gone, and notifies QEMU of those of CD drives.
    fn look_at_disks(&mut self) {
        for change in self.disks.changes() {
            // Before xenstore is asked: the toolstack may have QEMU open the disk at any moment.
            self.perform([media::device(&change)]);
            let is_cdrom = match &change {
                Change::Came(disk) => disks::is_cdrom(disk, &self.boot.store),
                // A removed disk has no keys any more, and removing a missing medium from QEMU is harmless.
                Change::Went(_) => true,
            };
            if is_cdrom {
                self.perform(media::descriptors(&change));
            }
        }
    }

    fn take_store(&mut self) -> Result<(), AgentError> {
        let (connection, target) = (&self.boot.store, self.boot.target);
        let (mut changed, mut commanded, mut state_ends, mut starts) = (false, false, false, false);
        while let Some(event) = connection.next_event(Instant::now())? {
            match event.token.as_str() {
                store::COMMAND_TOKEN => commanded = true,
                store::STATE_END_TOKEN => state_ends = true,
                store::START_TOKEN => starts = true,
                _ => changed = true,
            }
        }
        if starts && store::take(connection, target, DmKey::Start)? {
            self.events.push(Event::Start);
        }
        if changed && store::is_running(connection, target)? {
            self.events.push(Event::Running);
        }
        // The key is removed before the stream's end can be seen: what is written then is for the next state.
        if state_ends && store::take(connection, target, DmKey::StateEnd)? {
            self.boot.relay.end();
            self.boot.relay.pump(self.log);
        }
        if commanded {
            let (command, parameter) = store::command(&self.boot.store, target)?;
            let effects = self.pci.command(uptime(), &command, &parameter);
            self.perform(effects);
            self.look_at_pci();
        }
        Ok(())
    }

    /// Looks whether the PCI device has appeared that the toolstack wants QEMU to have.
    fn look_at_pci(&mut self) {
        let store = &self.boot.store;
        let effects = self.pci.look(uptime(), |address| store::pci_inside(store, address));
        self.perform(effects);
    }

    fn look_at_nics(&mut self) {
        for line in self.nics.look(&self.boot.store) {
            self.log.line(&line);
        }
    }

    /// Polls the console for room while bytes wait, and QEMU's output while there is room.
    fn poll_console(&mut self) -> Result<(), AgentError> {
        let wanted = if self.log.is_pending() { Polled::Yes } else { Polled::No };
        if let Some(fd) = self.log.fd().filter(|_| wanted != self.console) {
            match wanted {
                Polled::Yes => self.sources.add(Source::Console, fd, EpollFlags::EPOLLOUT)?,
                _ => self.sources.remove(fd)?,
            }
            self.console = wanted;
        }
        let wanted = if self.log.has_room() { Polled::Yes } else { Polled::No };
        if self.output != Polled::Ended && self.output != wanted {
            match wanted {
                Polled::Yes => self.sources.add(Source::Output, &self.qemu.output, EpollFlags::EPOLLIN)?,
                _ => self.sources.remove(&self.qemu.output)?,
            }
            self.output = wanted;
        }
        Ok(())
    }

    fn perform(&mut self, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            match effect {
                Effect::Log(line) => self.log.line(&line),
                Effect::LogConfinement => self.log.line(&self.qemu.describe()),
                Effect::Write(key, value) => self.boot.write(key, &value, self.log),
                Effect::OpenBridges => self.open_bridges(),
                Effect::GrantDevice(name) => {
                    if let Err(error) = devices::grant(&name, self.boot.confinement) {
                        self.log.error(&error);
                    }
                }
                Effect::RevokeDevice(name) => devices::revoke(&name),
                Effect::Ask(command) => self.ask(command, None),
                Effect::PassDisk(command, path) => match disks::open_medium(&path) {
                    Ok(file) => self.ask(command, Some(file.into())),
                    Err(error) => self.log.error(&error),
                },
                Effect::Continue => self.qemu.proceed(),
                Effect::Terminate => self.qemu.terminate(),
                Effect::Kill => self.qemu.kill(),
                Effect::End { clean } => self.end = Some(clean),
            }
        }
    }

    fn ask(&mut self, command: Command, file: Option<OwnedFd>) {
        let purpose = command.purpose;
        if !self.qemu.qmp.ask(command, file) {
            self.log.line(&format!("cannot notify QEMU of {purpose}"));
        }
    }

    fn open_bridges(&mut self) {
        let Boot { services, store, target, .. } = &self.boot;
        for service in *services {
            let index = self.bridges.len();
            let tokens =
                (self.sources.token(Source::Vchan(index)), self.sources.token(Source::Socket(index)));
            match Bridge::open(service, store, *target, self.sources.epoll(), tokens) {
                Ok(bridge) => self.bridges.push(bridge),
                Err(error) => self.log.error(&error),
            }
        }
    }
}

#[cfg(test)]
mod tests;
