//! What happens once, in order: from the first instruction to QEMU, in named and timed steps.

use std::ffi::OsString;
use std::fs::File;
use std::mem::take;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::signalfd::SignalFd;
use stubdom_abi::{
    AgentExit, DmKey, HELD_STEP, HOLD_WORD, ImageConfig, STATE_IN_FD, STATE_OUT_FD, Serves, StubConsole,
    harmless, has_word,
};
use xen_types::DomId;
use xenstore::Connection;

use crate::error::{AgentError, chain};
use crate::fd::Descriptors;
use crate::machines::supervise::SERVING;
use crate::plan::Plan;
use crate::qemu::{self, Qemu};
use crate::sandbox::filter::Mode;
use crate::sandbox::launch::Begin;
use crate::sandbox::{self, Confinement};
use crate::services::bridge::{self, Service};
use crate::services::consoles::{self, open_raw};
use crate::services::log::{Log, uptime};
use crate::services::net::Nics;
use crate::services::relay::Relay;
use crate::services::{disks, store};
use crate::signals;
use crate::system::{self, Loading};

/// What the steps find and make, in the order of the steps. What a later step fills is empty until then.
#[derive(Debug)]
pub(crate) struct Boot {
    /// Where QEMU finds its descriptors.
    descriptors: Descriptors,
    /// Blocked from before QEMU's start, so that its end is not missed.
    pub(crate) signals: SignalFd,
    /// The image's description of itself.
    config: ImageConfig,
    loading: Loading,
    /// xenstore.
    pub(crate) store: Connection,
    /// The kernel's.
    cmdline: String,
    /// Whether QEMU is held until the toolstack has it started.
    pub(crate) holds: bool,
    /// The guest, where the command line names it.
    serves: Option<Serves>,
    /// The guest's domain.
    pub(crate) target: DomId,
    /// What dom0 can reach by vchan.
    pub(crate) services: &'static [Service],
    plan: Plan,
    /// The state's streams, where they are relayed.
    pub(crate) relay: Relay,
    /// Whether QEMU has a descriptor for an outgoing state.
    has_state_out: bool,
    /// The serial consoles with their names in `/dev`. A console's raw mode lasts only while it is open.
    serials: Vec<(String, File)>,
    /// What QEMU may do.
    pub(crate) confinement: Confinement,
}

/// Logs, names and times the steps.
struct Steps<'a> {
    log: &'a mut Log,
    /// When the agent began.
    begin: Duration,
    current: &'static str,
}

impl Steps<'_> {
    fn step<T>(
        &mut self,
        name: &'static str,
        run: impl FnOnce(&mut Log) -> Result<T, AgentError>,
    ) -> Result<T, AgentError> {
        self.current = name;
        let begin = uptime();
        let value = run(self.log)?;
        let took = uptime().saturating_sub(begin);
        self.log.line(&format!("step {name}: {}.{} ms", took.as_millis(), took.subsec_micros() % 1000 / 100));
        Ok(value)
    }

    fn since_begin(&self) -> u128 {
        uptime().saturating_sub(self.begin).as_millis()
    }
}

/// Prepares the domain and starts QEMU, or has it held one step before. Returns nothing if that failed, which is then reported.
pub(crate) fn boot(log: &mut Log) -> Option<(Boot, Nics, Qemu)> {
    let mut steps = Steps { log, begin: uptime(), current: "start" };
    // Workers of the kernel would take milliseconds from every step. So they run while the agent waits for dom0.
    let opened = linux_sched::undisturbed(|| Boot::open(&mut steps));
    let mut boot = match opened {
        Ok(boot) => boot,
        Err(error) => {
            steps.log.open_console();
            log_failure(steps.current, &error, steps.log);
            return None;
        }
    };
    let started = linux_sched::undisturbed(|| boot.prepare(&mut steps))
        .and_then(|nics| Ok((nics, boot.launch(&mut steps)?)));
    // Only now: each line is an event for dom0, which then has the processor instead of QEMU's start.
    let step = match (&started, boot.holds) {
        (Ok(_), true) => HELD_STEP,
        (Ok(_), false) => SERVING,
        (Err(_), _) => steps.current,
    };
    boot.show(step, steps.log);
    match started {
        Ok((nics, qemu)) => {
            let (took, what) = (steps.since_begin(), if boot.holds { "held" } else { "started" });
            log.line(&format!("QEMU {what} {took} ms after the agent's first instruction"));
            Some((boot, nics, qemu))
        }
        Err(error) => {
            let exit = log_failure(steps.current, &error, log);
            boot.write(DmKey::AgentExit, &exit.encode(), log);
            None
        }
    }
}

/// Logs why the start failed, and returns it for the toolstack.
fn log_failure(step: &str, error: &AgentError, log: &mut Log) -> AgentExit {
    let why = format!("{step}: {}", chain(error));
    log.line(&format!("failed at step {why}"));
    AgentExit::Failed(why)
}

impl Boot {
    /// The steps to where the target is known.
    fn open(steps: &mut Steps<'_>) -> Result<Self, AgentError> {
        // First of all: the numbers must be free.
        let descriptors = steps.step("descriptors", |_| Descriptors::reserve())?;
        let signals = steps.step("signals", |_| signals::open())?;
        steps.step("mounts", |_| system::mount_all())?;
        let config = steps.step("image", |_| system::read_config(Path::new(ImageConfig::PATH)))?;
        let loading = system::start_modules(&config);
        let store = steps.step("xenstore", |_| Ok(Connection::open_path(Path::new(store::DEVICE))?))?;
        let (cmdline, serves, target) = steps.step("target", |_| {
            let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
            let serves = Serves::of_cmdline(&cmdline);
            let target = match &serves {
                Some(serves) => serves.target,
                None => store::target(&store)?,
            };
            Ok((cmdline, serves, target))
        })?;
        Ok(Self {
            descriptors,
            signals,
            config,
            loading,
            store,
            services: bridge::services(&cmdline),
            holds: has_word(&cmdline, HOLD_WORD),
            cmdline,
            serves,
            target,
            plan: Plan::default(),
            relay: Relay::default(),
            has_state_out: false,
            serials: Vec::new(),
            confinement: Confinement::User,
        })
    }

    /// The steps to where QEMU can start.
    fn prepare(&mut self, steps: &mut Steps<'_>) -> Result<Nics, AgentError> {
        self.plan = steps.step("argv", |_| {
            let argv = match &self.serves {
                Some(serves) => store::argv_below(&self.store, &serves.vm),
                None => store::argv(&self.store, self.target),
            };
            Ok(Plan::of(&argv?))
        })?;
        steps.step("consoles", |log| {
            let consoles = consoles::present(system::has_xen_device);
            self.has_state_out = self.connect_states(&consoles, log)?;
            self.serials = open_serials(&consoles, log);
            Ok(())
        })?;
        self.confinement = Confinement::of(&self.plan, &self.cmdline);
        steps.step("modules", |log| {
            take(&mut self.loading).wait().iter().for_each(|line| log.line(line));
            system::tune();
            system::check_devices()
        })?;
        steps.step("disks", |log| {
            disks::wait_for(&self.plan.disks, &self.store, || self.show("disks", log))
        })?;
        let nics = steps.step("nics", |log| {
            let mut waits = || self.show("nics", log);
            let (nics, lines) =
                Nics::prepare(&self.plan.nics, self.confinement.user(), &self.store, &mut waits)?;
            lines.iter().for_each(|line| log.line(line));
            Ok(nics)
        })?;
        steps.step("sandbox", |_| {
            let disks = self.plan.disks.iter().filter_map(|path| path.strip_prefix("/dev/"));
            let serials = self.serials.iter().map(|(name, _)| name.as_str());
            let names: Vec<String> = serials.chain(disks).map(str::to_owned).collect();
            sandbox::devices::prepare(&names, self.confinement)
        })?;
        // Before QEMU, which runs one of them for a tap whose argument has no script=no.
        steps.step("helpers", |_| system::link_helpers())?;
        Ok(nics)
    }

    /// Starts QEMU, and takes from it what it does not need at its start. A QEMU that is held is still its launcher, which
    /// has nothing left to do but to become QEMU: all else here is done before.
    fn launch(&mut self, steps: &mut Steps<'_>) -> Result<Qemu, AgentError> {
        let program = &self.config.qemu;
        let args = qemu::arguments(&self.config, self.has_state_out, take(&mut self.plan.args));
        let filter = Mode::of_cmdline(&self.cmdline);
        let begin = if self.holds { Begin::WhenContinued } else { Begin::AtOnce };
        let command = sandbox::launch::command(self.confinement, filter, begin, program, &args);
        let ready = steps.since_begin();
        steps.log.line(&format!("ready to start QEMU {ready} ms after the agent's first instruction"));
        let qemu = steps.step("qemu", |_| {
            let qemu = Qemu::start(program, command, take(&mut self.descriptors))?;
            // A launcher that failed has ended: the loop reports it as any end of QEMU.
            self.holds = self.holds && qemu.is_waiting()?;
            Ok(qemu)
        })?;
        steps.log.line(&format!("{program} {}", describe(&args)));
        // QEMU has far to go until it reads anything from its guest.
        steps.step("hardening", |_| {
            system::harden();
            qemu.limit_memory();
            Ok(())
        })?;
        // Each watch causes an event at once for what exists already.
        let mut keys = vec![DmKey::State, DmKey::Command];
        keys.extend(self.relay.is_used().then_some(DmKey::StateEnd));
        keys.extend(self.holds.then_some(DmKey::Start));
        store::watch(&self.store, self.target, &keys)?;
        Ok(qemu)
    }

    /// Shows dom0 how far the start is, on console 0 and in xenstore. Not at every step, because each key is a round
    /// trip to dom0, on which QEMU would have to wait: where the agent has to wait itself, and at the end.
    fn show(&self, step: &str, log: &mut Log) {
        log.open_console();
        match store::announce(&self.store, self.target, self.services) {
            Ok(()) => self.write(DmKey::AgentStep, step, log),
            Err(error) => log.error(&error),
        }
    }

    /// Writes a key. A refusal of xenstore is logged; QEMU continues without it.
    pub(crate) fn write(&self, key: DmKey, value: &str, log: &mut Log) {
        if let Err(error) = store::write(&self.store, self.target, key, value) {
            log.error(&error);
        }
    }

    /// Connects the incoming state where the arguments name it, and the outgoing one where its console exists: to QEMU
    /// itself, or through the relay. Returns whether there is an outgoing one.
    fn connect_states(&mut self, consoles: &[StubConsole], log: &mut Log) -> Result<bool, AgentError> {
        let relays = Relay::is_wanted(&self.cmdline);
        if self.plan.incoming {
            if !consoles.contains(&StubConsole::StateIn) {
                return Err(AgentError::NoIncomingConsole);
            }
            let input: OwnedFd =
                if relays { self.relay.open_in()?.into() } else { open_raw(StubConsole::StateIn)?.into() };
            self.descriptors.fill(STATE_IN_FD, input)?;
        }
        if !consoles.contains(&StubConsole::StateOut) {
            return Ok(false);
        }
        let output: Result<OwnedFd, AgentError> = if relays {
            self.relay.open_out().map(Into::into)
        } else {
            open_raw(StubConsole::StateOut).map(Into::into)
        };
        match output {
            Ok(output) => self.descriptors.fill(STATE_OUT_FD, output).map(|()| true),
            Err(error) => {
                log.error(&error);
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
impl Boot {
    /// What the loop needs, with nothing found.
    pub(crate) fn for_tests(store: Connection, target: DomId) -> Self {
        Self {
            descriptors: Descriptors::default(),
            signals: signals::open().unwrap(),
            config: ImageConfig::default(),
            loading: Loading::default(),
            store,
            cmdline: String::new(),
            holds: false,
            serves: None,
            target,
            services: &[],
            plan: Plan::default(),
            relay: Relay::default(),
            has_state_out: false,
            serials: Vec::new(),
            confinement: Confinement::User,
        }
    }
}

/// Opens every serial console in raw mode, and returns it with its device's name in `/dev`. QEMU opens it again by its
/// name.
fn open_serials(consoles: &[StubConsole], log: &mut Log) -> Vec<(String, File)> {
    let mut open = Vec::new();
    for console in consoles.iter().filter(|console| matches!(console, StubConsole::Serial(_))) {
        match open_raw(*console) {
            Ok(file) => open.push((console.device().trim_start_matches("/dev/").to_owned(), file)),
            Err(error) => log.error(&error),
        }
    }
    open
}

/// QEMU's arguments on one line, for the log.
fn describe(args: &[OsString]) -> String {
    let quoted = |arg: &OsString| {
        let text = harmless(arg.as_encoded_bytes());
        if text.is_empty() || text.contains([' ', '?']) { format!("\"{text}\"") } else { text }
    };
    args.iter().map(quoted).collect::<Vec<_>>().join(" ")
}
