//! Trials of the watch over the embedded host: a crash, a silence or a dead QEMU has to end a run at once, with what
//! the console said last, and never by waiting for the whole timeout.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use testhost::{Host, HostError, Job, Machine, Observer, Request, TimeScale};

/// What each script writes when it runs, so that the harm comes in the middle of it.
const MARK: &str = "the script runs";
/// Deadlines of a trial that waits for silence, as a part of what they are elsewhere.
const HASTE: f64 = 0.1;
/// The timeout of every run: what no trial may wait for.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// The script whose own limit is tried has this long.
const SHORT: Duration = Duration::from_secs(3);

/// What befalls the host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// Xen cannot boot dom0.
    XenPanics,
    /// dom0's kernel finds no init.
    Dom0PanicsAtBoot,
    /// dom0's init never says that it is ready.
    SilentBoot,
    /// dom0 crashes under the script.
    Dom0Crashes,
    /// QEMU is killed under the script.
    QemuKilled,
    /// The whole machine stops under the script.
    MachineStopped,
    /// Nothing but a script without end.
    ScriptHangs,
}

const HARMS: [Harm; 7] = [
    Harm::XenPanics,
    Harm::Dom0PanicsAtBoot,
    Harm::SilentBoot,
    Harm::Dom0Crashes,
    Harm::QemuKilled,
    Harm::MachineStopped,
    Harm::ScriptHangs,
];

impl Harm {
    fn name(self) -> &'static str {
        match self {
            Self::XenPanics => "Xen panics",
            Self::Dom0PanicsAtBoot => "dom0's kernel panics at boot",
            Self::SilentBoot => "dom0 is silent at boot",
            Self::Dom0Crashes => "dom0 crashes under a script",
            Self::QemuKilled => "QEMU is killed under a script",
            Self::MachineStopped => "the machine stops under a script",
            Self::ScriptHangs => "a script has no end",
        }
    }

    /// The machine, and whether the harm is done by how it boots.
    fn machine(self, machine: Machine) -> (Machine, bool) {
        match self {
            // Later words win: no memory for the kernel and its RAM disk.
            Self::XenPanics => {
                let xen_arguments = format!("{} dom0_mem=8M,max:8M", machine.xen_arguments);
                (Machine { xen_arguments, ..machine }, true)
            }
            Self::Dom0PanicsAtBoot => {
                (Machine { dom0_arguments: "rdinit=/none root=/dev/none".to_owned(), ..machine }, true)
            }
            Self::SilentBoot => {
                let dom0_arguments = "rdinit=/bin/busybox -- sleep 100000".to_owned();
                (Machine { dom0_arguments, ..machine }, true)
            }
            _ => (machine, false),
        }
    }

    fn script(self) -> String {
        let rest = match self {
            Self::Dom0Crashes => "echo c >/proc/sysrq-trigger",
            _ => "sleep 100000",
        };
        format!("#!/bin/sh\necho '{MARK}'\n{rest}\n")
    }

    /// What is done to QEMU when the script runs.
    fn signal(self) -> Option<&'static str> {
        match self {
            Self::QemuKilled => Some("KILL"),
            Self::MachineStopped => Some("STOP"),
            _ => None,
        }
    }

    /// Whether silence is what tells.
    fn by_silence(self) -> bool {
        matches!(self, Self::SilentBoot | Self::MachineStopped)
    }

    /// How long after the harm the run may go on, before scaling.
    fn limit(self) -> Duration {
        match self {
            // The boot until the panic, too.
            Self::XenPanics | Self::Dom0PanicsAtBoot => Duration::from_secs(60),
            // A part of the 90 s and 120 s of the deadlines, and the boot before.
            Self::SilentBoot => Duration::from_secs(60),
            Self::MachineStopped => Duration::from_secs(25),
            Self::Dom0Crashes | Self::QemuKilled => Duration::from_secs(10),
            Self::ScriptHangs => SHORT + Duration::from_secs(15),
        }
    }

    fn is_told_by(self, error: &HostError) -> bool {
        match (self, error) {
            (Self::XenPanics, HostError::Crashed { phase, line, .. }) => {
                *phase == "boot" && line.contains("(XEN)")
            }
            (Self::Dom0PanicsAtBoot, HostError::Crashed { phase, line, .. }) => {
                *phase == "boot" && line.contains("Kernel panic")
            }
            (Self::SilentBoot, HostError::Hung { phase, .. }) => *phase == "boot",
            (Self::Dom0Crashes, HostError::Crashed { phase, .. })
            | (Self::MachineStopped, HostError::Hung { phase, .. }) => *phase == "the job",
            (Self::QemuKilled, HostError::QemuDied { phase, status, .. }) => {
                *phase == "the job" && status.contains("signal 9")
            }
            (Self::ScriptHangs, HostError::ScriptTimeout { limit, .. }) => *limit >= SHORT,
            _ => false,
        }
    }

    /// Whether the error quotes the console. Of a script that hangs, the console knows nothing.
    fn quotes_the_console(self, error: &HostError) -> bool {
        self == Self::ScriptHangs || {
            let text = error.to_string();
            text.contains("\n  | ") && !text.contains("(nothing was printed)")
        }
    }
}

/// Does the harm, and notes when.
struct Culprit {
    harm: Harm,
    qemu: Option<u32>,
    heard: Vec<u8>,
    since: Option<Instant>,
}

impl Observer for Culprit {
    fn machine(&mut self, pid: u32) {
        self.qemu = Some(pid);
    }

    fn output(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
        if self.since.is_some() || !String::from_utf8_lossy(&self.heard).contains(MARK) {
            return;
        }
        self.since = Some(Instant::now());
        if let (Some(signal), Some(qemu)) = (self.harm.signal(), self.qemu) {
            // If it does not work, the trial fails for want of harm.
            let _ = Command::new("kill").args(["-s", signal, &qemu.to_string()]).status();
        }
    }
}

/// Runs all trials on this host, with deadlines stretched by `scale`; the first that is not told as it should be ends them.
pub(crate) fn trials(
    host: &Host,
    machine: &Machine,
    scale: TimeScale,
    logs: &Path,
    view: &mut dyn Observer,
) -> Result<()> {
    for (number, harm) in HARMS.into_iter().enumerate() {
        let logs = logs.join(format!("watch-{number}"));
        let (took, error) = trial(host, harm, machine, scale, logs)
            .with_context(|| format!("The trial \"{}\" failed", harm.name()))?;
        let first = error.to_string().lines().next().unwrap_or_default().to_owned();
        view.progress(&format!("{}: told after {:.1} s: {first}", harm.name(), took.as_secs_f64()));
    }
    Ok(())
}

fn trial(
    host: &Host,
    harm: Harm,
    machine: &Machine,
    scale: TimeScale,
    logs: PathBuf,
) -> Result<(Duration, HostError)> {
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("script");
    std::fs::write(&script, harm.script())?;
    let (machine, at_boot) = harm.machine(machine.clone());
    let request = Request {
        machine,
        preparations: Vec::new(),
        job: Job::Script(script),
        puts: Vec::new(),
        timeout: Some(if harm == Harm::ScriptHangs { SHORT } else { TIMEOUT }),
        fresh: at_boot,
        logs,
        scale: if harm.by_silence() { scale.times(HASTE) } else { scale },
    };
    let mut culprit = Culprit { harm, qemu: None, heard: Vec::new(), since: at_boot.then(Instant::now) };
    let Err(error) = testhost::run(host, &request, &mut culprit) else {
        bail!("The run ended as if nothing had happened");
    };
    let since = culprit.since.with_context(|| format!("The harm was not done: {error}"))?;
    let took = since.elapsed();
    if !harm.is_told_by(&error) {
        bail!("The run told something else: {error}");
    }
    if !harm.quotes_the_console(&error) {
        bail!("The error says nothing of the console: {error}");
    }
    let limit = scale.of(harm.limit());
    if took > limit {
        bail!("It was told only after {took:.1?}, more than {limit:?}: {error}");
    }
    Ok((took, error))
}
