//! A run: from a built host and a job to an exit status and a folder of logs.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::AtPath as _;
use crate::events::Event;
use crate::machine::{Machine, Memory};
use crate::share::Share;
use crate::shell::{self, Terminal};
use crate::snapshot::Snapshot;
use crate::vm::{Places, Vm};
use crate::{HostError, Stopper, TimeScale};

/// Nothing on any channel for so long during the boot: it hangs. The longest silence of a good boot is 8 s.
const BOOT_SILENCE: Duration = Duration::from_secs(90);
/// The whole boot.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// dom0 sends a beat every 5 s while a script runs; without one for so long, it hangs.
const BEAT_SILENCE: Duration = Duration::from_secs(120);
/// From the word to run until dom0 has mounted the share; more than that, and a restored host is not alive.
const MOUNT_LIMIT: Duration = Duration::from_secs(30);
/// Collecting logs after the script.
const COLLECT_LIMIT: Duration = Duration::from_secs(60);

/// A built host: a folder with `xen`, `vmlinuz` and `initramfs.img`.
#[derive(Debug, Clone)]
pub struct Host {
    /// The folder. Snapshots are kept in it too.
    pub folder: PathBuf,
}

/// A file or folder to bring into dom0 before the job starts.
#[derive(Debug, Clone)]
pub struct Put {
    /// What to copy.
    pub source: PathBuf,
    /// Its absolute path in dom0.
    pub target: PathBuf,
}

/// What to do once dom0 and its daemons are up.
#[derive(Debug, Clone)]
pub enum Job {
    /// Run this file as root; its `#!` line says what reads it (`/bin/sh` is busybox's).
    Script(PathBuf),
    /// Join the caller's terminal to a shell.
    Shell,
}

/// A run to be made.
#[derive(Debug, Clone)]
pub struct Request {
    /// The machine's size.
    pub machine: Machine,
    /// What to do.
    pub job: Job,
    /// What to bring in.
    pub puts: Vec<Put>,
    /// How long the job may take, before scaling; none for as long as it lives.
    pub timeout: Option<Duration>,
    /// Boots from scratch and neither uses nor makes a snapshot.
    pub fresh: bool,
    /// The folder for logs; made if missing.
    pub logs: PathBuf,
    /// The factor of every deadline.
    pub scale: TimeScale,
}

/// How the host came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From scratch.
    Booted,
    /// From a snapshot.
    Restored,
}

/// A run that was made.
#[derive(Debug, Clone)]
pub struct Report {
    /// The job's exit status.
    pub status: i32,
    /// How the host came up.
    pub origin: Origin,
    /// From the request until dom0 was ready for the job.
    pub startup: Duration,
    /// How long the job took.
    pub job: Duration,
    /// The folder of logs: `console.log` (Xen's and dom0's), `output.log`, `qemu.log`, `dom0/` (logs of dom0).
    pub logs: PathBuf,
}

/// Hears about a run while it goes on. Each method does nothing unless it is written.
pub trait Observer {
    /// The run has come to this point.
    fn progress(&mut self, _what: &str) {}
    /// The emulated machine is this process.
    fn machine(&mut self, _pid: u32) {}
    /// What ends the run from another thread, as long as this machine runs.
    fn stopper(&mut self, _stopper: Stopper) {}
    /// dom0 is up and gets its job when this returns.
    fn up(&mut self) {}
    /// The script wrote these bytes.
    fn output(&mut self, _bytes: &[u8]) {}
    /// Xen or dom0's kernel wrote these bytes.
    fn console(&mut self, _bytes: &[u8]) {}
    /// The job ended with this status; the machine ends when this returns.
    fn ended(&mut self, _status: i32) {}
}

/// Brings the host up, does the job, takes the host down.
///
/// # Errors
/// Any [`HostError`]; a job that ends with a status, whichever, is no error.
pub fn run(host: &Host, request: &Request, observer: &mut dyn Observer) -> Result<Report, HostError> {
    fs::create_dir_all(&request.logs).at("make the folder", &request.logs)?;
    let logs = request.logs.canonicalize().at("resolve", &request.logs)?;
    let share = Share::prepare(&logs, &request.job, &request.puts)?;
    let places = Places { image: &host.folder, logs: &logs, share: share.folder() };
    let started = Instant::now();
    if !request.fresh && request.machine.can_be_restored() {
        match from_snapshot(request, &places, started, observer) {
            Ok(report) => return Ok(report),
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Snapshot(error)) => {
                observer.progress(&format!("No snapshot is used: {error}"));
            }
        }
    }
    observer.progress("Booting the host from scratch");
    let mut vm = Vm::start(&request.machine, Memory::Anonymous, &places, request.scale, observer)?;
    boot(&mut vm)?;
    Work { request, places: &places, origin: Origin::Booted, started }.finish(vm)
}

/// Why an attempt with a snapshot ended.
pub(crate) enum Attempt {
    /// The snapshot could not be saved or restored: booting without one may do.
    Snapshot(HostError),
    /// The host did not boot, or its job failed: another boot would do no better.
    Final(HostError),
}

fn from_snapshot(
    request: &Request,
    places: &Places<'_>,
    started: Instant,
    observer: &mut dyn Observer,
) -> Result<Report, Attempt> {
    let snapshot = Snapshot::find_or_make(&request.machine, places, request.scale, observer)?;
    observer.progress("Restoring the host from its snapshot");
    let memory = Memory::CopyOf(&snapshot.memory());
    let work = Work { request, places, origin: Origin::Restored, started };
    let begun = Vm::start(&request.machine, memory, places, request.scale, observer).and_then(|mut vm| {
        snapshot.restore(&mut vm)?;
        work.begin(&mut vm)?;
        Ok(vm)
    });
    match begun {
        Ok(vm) => work.complete(vm).map_err(Attempt::Final),
        // Nothing is wrong with the snapshot.
        Err(HostError::Stopped) => Err(Attempt::Final(HostError::Stopped)),
        Err(error) => {
            snapshot.remove();
            Err(Attempt::Snapshot(error))
        }
    }
}

/// Waits until dom0 says that its daemons are up.
pub(crate) fn boot(vm: &mut Vm<'_>) -> Result<(), HostError> {
    vm.set_phase("boot");
    let end = Instant::now() + vm.scaled(BOOT_LIMIT);
    let silence = vm.scaled(BOOT_SILENCE);
    loop {
        let deadline = end.min(vm.last_heard() + silence);
        if Instant::now() >= deadline {
            return Err(vm.hung(silence));
        }
        let Some(Event::Control(line)) = vm.next(deadline)? else { continue };
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("ready", uptime) => {
                vm.observer().progress(&format!("dom0 and its daemons are up (dom0's uptime: {uptime} s)"));
                return Ok(());
            }
            ("step", what) => vm.observer().progress(&format!("dom0: {what}")),
            ("failed", why) => return Err(vm.init_failed(why)),
            _ => {}
        }
    }
}

/// The job's part of a run.
struct Work<'a> {
    request: &'a Request,
    places: &'a Places<'a>,
    origin: Origin,
    started: Instant,
}

impl Work<'_> {
    /// How long the script may take, scaled.
    fn limit(&self) -> Option<Duration> {
        self.request.timeout.map(|limit| self.request.scale.of(limit))
    }

    fn finish(&self, mut vm: Vm<'_>) -> Result<Report, HostError> {
        self.begin(&mut vm)?;
        self.complete(vm)
    }

    /// Gives dom0 the word and waits until it has the script and the files.
    fn begin(&self, vm: &mut Vm<'_>) -> Result<(), HostError> {
        vm.set_phase("start of the job");
        vm.observer().up();
        // dom0's clock stood still with the snapshot.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let message = match (&self.request.job, self.limit()) {
            // dom0 ends the script itself, so that its logs still come out.
            (Job::Script(_), Some(limit)) => format!("run {now} {}\n", limit.as_secs().max(1)),
            (Job::Script(_), None) => format!("run {now} {}\n", u32::MAX),
            (Job::Shell, _) => format!("shell {now} {}\n", shell::terminal()),
        };
        vm.send("control", message.as_bytes())?;
        let limit = vm.scaled(MOUNT_LIMIT);
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let Some(Event::Control(line)) = vm.next(deadline)? else { continue };
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("step", "mounted") => return Ok(()),
                ("failed", why) => return Err(vm.init_failed(why)),
                _ => {}
            }
        }
        Err(vm.hung(limit))
    }

    /// Follows the job to its end.
    fn complete(&self, mut vm: Vm<'_>) -> Result<Report, HostError> {
        let startup = self.started.elapsed();
        vm.set_phase("the job");
        vm.observer().progress(&format!("Ready after {:.1} s", startup.as_secs_f64()));
        let mut output = Output::new(self.places.logs)?;
        let terminal = match self.request.job {
            Job::Shell => Some(Terminal::join(&vm)?),
            Job::Script(_) => None,
        };
        let begun = Instant::now();
        let status = self.follow(&mut vm, &mut output)?;
        let job = begun.elapsed();
        vm.observer().ended(status);
        // The status came on a channel of its own, so the last of the output may still be on its way.
        vm.stop();
        vm.drain(|vm, bytes| output.take(vm, bytes))?;
        drop(terminal);
        match self.limit() {
            Some(limit) if status != 0 && job >= limit => Err(vm.script_timeout(limit)),
            _ => Ok(Report { status, origin: self.origin, startup, job, logs: self.places.logs.to_owned() }),
        }
    }

    /// Passes on what the job writes, until its exit status comes.
    fn follow(&self, vm: &mut Vm<'_>, output: &mut Output) -> Result<i32, HostError> {
        let limit = self.limit();
        // dom0 ends a script at its limit; what is waited for beyond it are the logs.
        let end = limit.map(|limit| Instant::now() + limit + vm.scaled(COLLECT_LIMIT));
        let silence = vm.scaled(BEAT_SILENCE);
        let mut last_beat = Instant::now();
        loop {
            let hang = last_beat + silence;
            match vm.next(end.map_or(hang, |end| end.min(hang)))? {
                Some(Event::Output(bytes)) => output.take(vm, &bytes)?,
                Some(Event::Shell(bytes)) => shell::show(&bytes),
                Some(Event::Control(line)) => {
                    last_beat = Instant::now();
                    match line.split_once(' ').unwrap_or((&line, "")) {
                        ("exit", status) => return Ok(status.parse().unwrap_or(255)),
                        ("failed", why) => return Err(vm.init_failed(why)),
                        ("step", "collecting") => vm.set_phase("collecting of logs"),
                        _ => {}
                    }
                }
                _ => {}
            }
            let now = Instant::now();
            match (end, limit) {
                (Some(end), Some(limit)) if now >= end => return Err(vm.script_timeout(limit)),
                _ if now >= last_beat + silence => return Err(vm.hung(silence)),
                _ => {}
            }
        }
    }
}

/// The script's output on its way to the log and to the caller.
struct Output {
    file: File,
    path: PathBuf,
}

impl Output {
    fn new(logs: &Path) -> Result<Self, HostError> {
        let path = logs.join("output.log");
        Ok(Self { file: File::create(&path).at("make", &path)?, path })
    }

    fn take(&mut self, vm: &mut Vm<'_>, bytes: &[u8]) -> Result<(), HostError> {
        self.file.write_all(bytes).at("write", &self.path)?;
        vm.observer().output(bytes);
        Ok(())
    }
}

/// A folder name for the logs of one run below `parent`: the time and the process, so that none is used twice.
#[must_use]
pub fn fresh_log_folder(parent: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    parent.join(format!("{now}-{}", std::process::id()))
}
