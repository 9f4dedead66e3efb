//! The way from the first instruction to QEMU, in named and timed steps.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signalfd::SignalFd;
use stubdom_abi::{ImageConfig, STATE_IN_FD, STATE_OUT_FD, Serves, StubConsole, harmless};
use xen_types::DomId;
use xenstore::Connection;

use crate::bridge::{self, Service};
use crate::consoles::{self, Descriptors, open_raw};
use crate::error::AgentError;
use crate::log::{Log, uptime};
use crate::net::Nics;
use crate::plan::Plan;
use crate::qemu::Qemu;
use crate::sandbox::Confinement;
use crate::sandbox::filter::Mode;
use crate::state::States;
use crate::system::Loading;
use crate::{disks, qemu, sandbox, store, system};

/// What runs once QEMU is started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) store: Connection,
    pub(crate) target: DomId,
    pub(crate) qemu: Qemu,
    pub(crate) nics: Nics,
    pub(crate) confinement: Confinement,
    /// Blocked from before QEMU's start, so that its end is not missed.
    pub(crate) signals: SignalFd,
    /// The state's ways, where they are relayed.
    pub(crate) states: States,
    /// What dom0 can reach by vchan.
    pub(crate) services: &'static [Service],
    /// The serial consoles, and that of QEMU's monitor. A console's raw mode lasts only while someone has it open.
    _serials: Vec<File>,
}

/// A start that did not succeed: at which step, why, and whom to tell.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: &'static str,
    pub(crate) error: AgentError,
    /// Where to report it, when it came that far.
    pub(crate) store: Option<Connection>,
    pub(crate) target: Option<DomId>,
}

/// Runs the steps and keeps what a failure report needs.
struct Steps<'a> {
    log: &'a mut Log,
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
        self.log.say(&format!("step {name}: {}.{} ms", took.as_millis(), took.subsec_micros() % 1000 / 100));
        Ok(value)
    }
}

/// Starts everything.
pub(crate) fn start(log: &mut Log) -> Result<Started, Box<Failed>> {
    let begin = uptime();
    let mut steps = Steps { log, current: "start" };
    let mut found = (None, None);
    let result = run(&mut steps, &mut found, begin);
    // Only now: each line is an event for dom0, which then has the processor instead of QEMU's start.
    steps.log.open_console();
    match result {
        Ok(children) => {
            let took = uptime().saturating_sub(begin).as_millis();
            log.say(&format!("QEMU started {took} ms after the agent's first instruction"));
            let (store, target) = found;
            let (store, target) = store.zip(target).expect("QEMU's arguments came from xenstore");
            let Children { qemu, nics, confinement, signals, states, services, serials } = children;
            let _serials = serials;
            Ok(Started { store, target, qemu, nics, confinement, signals, states, services, _serials })
        }
        Err(error) => Err(Box::new(Failed { step: steps.current, error, store: found.0, target: found.1 })),
    }
}

/// What is found on the way, and is needed for a report also when a later step fails.
type Found = (Option<Connection>, Option<DomId>);

struct Children {
    qemu: Qemu,
    nics: Nics,
    confinement: Confinement,
    signals: SignalFd,
    states: States,
    services: &'static [Service],
    serials: Vec<File>,
}

fn run(steps: &mut Steps<'_>, found: &mut Found, begin: Duration) -> Result<Children, AgentError> {
    // Workers of the kernel would take milliseconds from every step. So they run while the agent waits for dom0.
    let (store, gathered) = linux_sched::undisturbed(|| gather(steps, found))?;
    let target = gathered.target;
    let services = bridge::services(&gathered.cmdline);
    let mut known = Known { steps, store, target, services, begin };
    let result = linux_sched::undisturbed(|| known.prepare(gathered)).and_then(|ready| known.launch(ready));
    let step = if result.is_ok() { store::SERVING } else { known.steps.current };
    show(step, store, target, services, known.steps.log);
    result
}

/// The steps to where the target is known.
fn gather<'a>(steps: &mut Steps<'_>, found: &'a mut Found) -> Result<(&'a Connection, Gathered), AgentError> {
    // First of all: the numbers must be free.
    let descriptors = steps.step("descriptors", |_| Descriptors::reserve())?;
    let signals = steps.step("signals", |_| crate::serve::signals())?;
    steps.step("mounts", |_| system::mount_all())?;
    let config = steps.step("image", |_| system::read_config(Path::new(ImageConfig::PATH)))?;
    let loading = system::start_modules(&config);
    let (store, known_target) = found;
    let store =
        &*store.insert(steps.step("xenstore", |_| Ok(Connection::open_path(Path::new(store::DEVICE))?))?);
    let (cmdline, serves, target) = steps.step("target", |_| {
        let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let serves = Serves::of_cmdline(&cmdline);
        let target = match &serves {
            Some(serves) => serves.target,
            None => store::target(store)?,
        };
        Ok((cmdline, serves, target))
    })?;
    *known_target = Some(target);
    Ok((store, Gathered { config, cmdline, serves, target, descriptors, signals, loading }))
}

/// Lets dom0 see how far the start is, on console 0 and in xenstore. Not at every step, because each word is a journey to
/// dom0 and back, on which QEMU would have to wait: where the agent has to wait itself, and at the end.
fn show(step: &str, store: &Connection, target: DomId, services: &'static [Service], log: &mut Log) {
    log.open_console();
    let told = store::announce(store, target, services).and_then(|()| store::tell_step(store, target, step));
    if let Err(error) = told {
        log.say(&crate::error::chain(&error));
    }
}

/// What the first steps have opened and found.
struct Gathered {
    config: ImageConfig,
    /// The kernel's.
    cmdline: String,
    /// What it says of the guest.
    serves: Option<Serves>,
    target: DomId,
    descriptors: Descriptors,
    signals: SignalFd,
    loading: Loading,
}

/// What QEMU is started with.
struct Ready {
    config: ImageConfig,
    confinement: Confinement,
    command: Command,
    args: Vec<OsString>,
    descriptors: Descriptors,
    signals: SignalFd,
    states: States,
    serials: Vec<File>,
    nics: Nics,
}

/// The steps from when the target is known.
struct Known<'a, 'b> {
    steps: &'a mut Steps<'b>,
    store: &'a Connection,
    target: DomId,
    services: &'static [Service],
    /// When the agent began.
    begin: Duration,
}

impl Known<'_, '_> {
    fn step<T>(
        &mut self,
        name: &'static str,
        run: impl FnOnce(&Connection, &mut Log) -> Result<T, AgentError>,
    ) -> Result<T, AgentError> {
        self.steps.step(name, |log| run(self.store, log))
    }

    fn prepare(&mut self, gathered: Gathered) -> Result<Ready, AgentError> {
        let Gathered { config, cmdline, serves, target, mut descriptors, signals, loading } = gathered;
        let services = self.services;
        let plan = self.step("argv", |store, _| {
            let argv = match &serves {
                Some(serves) => store::argv_below(store, &serves.vm),
                None => store::argv(store, target),
            };
            Ok(Plan::of(&argv?))
        })?;
        let mut states = None;
        let (has_state_out, serials) = self.step("consoles", |_, log| {
            let consoles = consoles::present(system::has_xen_device);
            let wanted = States::are_wanted(&cmdline);
            let relay = wanted.then(|| states.insert(States::default()));
            let state_out = connect_states(&consoles, &plan, &mut descriptors, relay, log)?;
            Ok((state_out, open_serials(&consoles, log)))
        })?;
        let states = states.unwrap_or_default();
        let confinement = Confinement::of(&plan, &cmdline);
        self.step("modules", |_, log| {
            loading.wait().iter().for_each(|line| log.say(line));
            system::tune();
            system::check_devices()
        })?;
        self.step("disks", |store, log| {
            disks::wait_for(&plan.disks, store, || show("disks", store, target, services, log))
        })?;
        let nics = self.step("nics", |store, log| {
            let mut waits = || show("nics", store, target, services, log);
            let (nics, lines) = Nics::prepare(&plan.nics, confinement.user(), store, &mut waits)?;
            lines.iter().for_each(|line| log.say(line));
            Ok(nics)
        })?;
        self.step("sandbox", |_, _| {
            let disks = plan.disks.iter().filter_map(|path| path.strip_prefix("/dev/"));
            let serials = serials.iter().map(|(name, _)| name.as_str());
            let names: Vec<String> = serials.chain(disks).map(str::to_owned).collect();
            sandbox::devices::prepare(&names, confinement)
        })?;
        // Before QEMU, which runs one of them for a tap whose argument has no script=no.
        self.step("helpers", |_, _| system::link_helpers())?;
        let args = qemu::arguments(&config, has_state_out, plan.args);
        let filter = Mode::of_cmdline(&cmdline);
        let command = sandbox::launch::command(confinement, filter, &config.qemu, &args);
        let ready = uptime().saturating_sub(self.begin).as_millis();
        self.steps.log.say(&format!("ready to start QEMU {ready} ms after the agent's first instruction"));
        let serials = serials.into_iter().map(|(_, file)| file).collect();
        Ok(Ready { config, confinement, command, args, descriptors, signals, states, serials, nics })
    }

    fn launch(&mut self, ready: Ready) -> Result<Children, AgentError> {
        let Ready { config, confinement, command, args, descriptors, signals, states, serials, nics } = ready;
        let qemu = self.step("qemu", |_, _| Qemu::start(&config.qemu, command, descriptors))?;
        self.steps.log.say(&format!("{} {}", config.qemu, describe(&args)));
        // QEMU has far to go until it reads anything from its guest.
        self.step("walls", |_, _| {
            system::harden();
            qemu.limit_memory();
            Ok(())
        })?;
        // Both watches tell at once what is there already.
        store::watch(self.store, self.target, states.are_relayed())?;
        let services = self.services;
        Ok(Children { qemu, nics, confinement, signals, states, services, serials })
    }
}

/// Connects the state's way in where the arguments name it, and its way out where that console exists: to QEMU itself,
/// or through a `relay`. Gives whether there is a way out.
fn connect_states(
    consoles: &[StubConsole],
    plan: &Plan,
    descriptors: &mut Descriptors,
    mut relay: Option<&mut States>,
    log: &mut Log,
) -> Result<bool, AgentError> {
    if plan.incoming {
        if !consoles.contains(&StubConsole::StateIn) {
            return Err(AgentError::NoIncomingConsole);
        }
        let qemus: OwnedFd = match &mut relay {
            Some(states) => states.relay_in()?.into(),
            None => open_raw(StubConsole::StateIn)?.into(),
        };
        descriptors.fill(STATE_IN_FD, qemus)?;
    }
    if !consoles.contains(&StubConsole::StateOut) {
        return Ok(false);
    }
    let qemus: Result<OwnedFd, AgentError> = match relay {
        Some(states) => states.relay_out().map(Into::into),
        None => open_raw(StubConsole::StateOut).map(Into::into),
    };
    match qemus {
        Ok(qemus) => descriptors.fill(STATE_OUT_FD, qemus).map(|()| true),
        Err(error) => {
            log.say(&crate::error::chain(&error));
            Ok(false)
        }
    }
}

/// Opens every serial console there is in raw mode, and gives its device's name in `/dev` too. QEMU opens it again by
/// its name.
fn open_serials(consoles: &[StubConsole], log: &mut Log) -> Vec<(String, File)> {
    let mut open = Vec::new();
    for console in consoles.iter().filter(|console| matches!(console, StubConsole::Serial(_))) {
        match open_raw(*console) {
            Ok(file) => open.push((console.device().trim_start_matches("/dev/").to_owned(), file)),
            Err(error) => log.say(&crate::error::chain(&error)),
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
