//! One running emulated host: its QEMU, its channels, and the watch over both.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::console::ConsoleWatch;
use crate::error::AtPath as _;
use crate::events::{Event, Events};
use crate::machine::{CHANNELS, Machine, Memory};
use crate::qmp::{self, Reply};
use crate::share::Share;
use crate::{HostError, Observer, TimeScale};

/// QEMU connects its channels before it does anything else.
const CONNECT: Duration = Duration::from_secs(30);
/// The monitor answers at once, except while the machine is being saved.
const MONITOR: Duration = Duration::from_secs(60);
/// Reading what a socket still holds.
const DRAIN: Duration = Duration::from_secs(10);
/// Lines at the end of QEMU's stderr that an error quotes.
const STDERR_LINES: usize = 10;

/// Where a run keeps its things.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'a> {
    /// The folder of `xen`, `vmlinuz` and `initramfs.img`.
    pub(crate) image: &'a Path,
    /// The folder of this run's logs.
    pub(crate) logs: &'a Path,
    /// The folder that dom0 mounts.
    pub(crate) share: &'a Share,
}

/// A started QEMU. Dropping it kills QEMU.
pub(crate) struct Vm<'a> {
    child: Child,
    events: Events,
    observer: &'a mut dyn Observer,
    console: ConsoleWatch,
    console_log: File,
    streams: Vec<(&'static str, UnixStream)>,
    logs: PathBuf,
    scale: TimeScale,
    // What to do when there is no emulator.
    remedy: String,
    phase: &'static str,
    next_command: u64,
    last_heard: Instant,
    // Removed when the machine is gone.
    _sockets: tempfile::TempDir,
}

impl<'a> Vm<'a> {
    /// Starts QEMU and waits until all its channels are connected.
    ///
    /// The kernel kills QEMU when the thread that called this ends, so that no emulation outlives its caller.
    pub(crate) fn start(
        machine: &Machine,
        memory: Memory<'_>,
        places: &Places<'_>,
        scale: TimeScale,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, HostError> {
        let sockets = tempfile::Builder::new()
            .prefix("outrigger-host-")
            .tempdir()
            .at("make a folder for sockets in", std::env::temp_dir())?;
        let events = Events::new();
        for name in CHANNELS {
            events.listen(sockets.path(), name)?;
        }
        let console_log = create(&places.logs.join("console.log"))?;
        let stderr = create(&places.logs.join("qemu.log"))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(machine.emulator.program())
            .args(machine.qemu_arguments(sockets.path(), places.share.folder(), memory))
            .current_dir(places.image)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|source| HostError::Program { program: "setpriv", package: "util-linux", source })?;
        observer.machine(child.id());
        observer.stopper(events.stopper());
        let mut vm = Self {
            child,
            events,
            observer,
            console: ConsoleWatch::default(),
            console_log,
            streams: Vec::new(),
            logs: places.logs.to_owned(),
            scale,
            remedy: machine.emulator.remedy(),
            phase: "start of QEMU",
            next_command: 0,
            last_heard: Instant::now(),
            _sockets: sockets,
        };
        vm.connect()?;
        Ok(vm)
    }

    /// Names what is being done, for the text of an error.
    pub(crate) fn set_phase(&mut self, phase: &'static str) {
        self.phase = phase;
    }

    /// The last lines of the console.
    pub(crate) fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// Tells what the machine that this is a copy of had written last.
    pub(crate) fn seed_console(&mut self, kept: &str) {
        self.console.seed(kept);
    }

    /// The caller's observer.
    pub(crate) fn observer(&mut self) -> &mut dyn Observer {
        self.observer
    }

    fn connect(&mut self) -> Result<(), HostError> {
        let limit = self.scale.of(CONNECT);
        let deadline = Instant::now() + limit;
        while self.streams.len() < CHANNELS.len() {
            // QEMU may end before it connects the console, and then no channel tells: look at the process too.
            let step = deadline.min(Instant::now() + Duration::from_millis(200));
            if let Some(event) = self.events.next(step) {
                self.take(event)?;
            } else if self.has_ended() {
                return Err(self.died());
            } else if Instant::now() >= deadline {
                return Err(self.hung(limit));
            }
        }
        self.command("qmp_capabilities", &Value::Null).map(|_| ())
    }

    fn has_ended(&mut self) -> bool {
        // A failed wait means that there is no such child any more.
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Handles what concerns the machine itself; hands everything else on.
    fn take(&mut self, event: Event) -> Result<Option<Event>, HostError> {
        match event {
            Event::Connected(name, stream) => self.streams.push((name, stream)),
            Event::Console(bytes) => {
                self.console_log.write_all(&bytes).at("write", self.logs.join("console.log"))?;
                self.observer.console(&bytes);
                if let Some(line) = self.console.push(&bytes) {
                    return Err(self.crashed(line));
                }
            }
            Event::Closed("console") => return Err(self.died()),
            Event::Stopped => return Err(HostError::Stopped),
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    /// The next event that is not the machine's own; nothing when the deadline comes first.
    pub(crate) fn next(&mut self, deadline: Instant) -> Result<Option<Event>, HostError> {
        while let Some(event) = self.events.next(deadline) {
            self.last_heard = Instant::now();
            if let Some(event) = self.take(event)? {
                return Ok(Some(event));
            }
            if self.last_heard >= deadline {
                break;
            }
        }
        Ok(None)
    }

    /// When the machine gave its last sign of life, on whichever channel.
    pub(crate) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// Writes to the channel of this name.
    pub(crate) fn send(&mut self, name: &str, bytes: &[u8]) -> Result<(), HostError> {
        let Some((_, stream)) = self.streams.iter_mut().find(|(known, _)| *known == name) else {
            return Err(self.died());
        };
        match stream.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.died()),
        }
    }

    /// A second handle of the channel of this name, for a thread that writes to it.
    pub(crate) fn stream(&self, name: &str) -> Option<UnixStream> {
        self.streams.iter().find(|(known, _)| *known == name).and_then(|(_, stream)| stream.try_clone().ok())
    }

    /// Gives the monitor a command and waits for its answer.
    pub(crate) fn command(&mut self, name: &str, arguments: &Value) -> Result<Value, HostError> {
        self.next_command += 1;
        let id = self.next_command;
        self.send("qmp", qmp::command(id, name, arguments).as_bytes())?;
        let deadline = Instant::now() + self.scale.of(MONITOR);
        let failed = |reason: String| HostError::Monitor { command: name.to_owned(), reason };
        while let Some(event) = self.next(deadline)? {
            let Event::Monitor(line) = event else { continue };
            match qmp::parse(&line) {
                Reply::Done(done, value) if done == id => return Ok(value),
                Reply::Failed(done, reason) if done == id => return Err(failed(reason)),
                _ => {}
            }
        }
        Err(failed("no answer in time".to_owned()))
    }

    /// Waits until a migration, out or in, has ended.
    pub(crate) fn migrated(&mut self) -> Result<(), HostError> {
        let deadline = Instant::now() + self.scale.of(MONITOR);
        while Instant::now() < deadline {
            let answer = self.command("query-migrate", &Value::Null)?;
            let status = answer.get("status").and_then(Value::as_str).unwrap_or("none");
            match status {
                "completed" => return Ok(()),
                "failed" | "cancelled" => {
                    let reason =
                        answer.get("error-desc").and_then(Value::as_str).unwrap_or(status).to_owned();
                    return Err(HostError::Monitor { command: "migrate".to_owned(), reason });
                }
                // The machine is stopped: the next event, if any, is the monitor's own MIGRATION event.
                _ => {
                    self.next(Instant::now() + Duration::from_millis(20))?;
                }
            }
        }
        Err(HostError::Monitor { command: "migrate".to_owned(), reason: "it did not end in time".to_owned() })
    }

    /// Ends QEMU; what it had sent can still be read with [`Vm::drain`].
    pub(crate) fn stop(&mut self) {
        // Both fail only when it is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Hands on what is left of the script's output, after [`Vm::stop`].
    pub(crate) fn drain(
        &mut self,
        mut take: impl FnMut(&mut Self, &[u8]) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        let deadline = Instant::now() + DRAIN;
        while let Some(event) = self.events.next(deadline) {
            match event {
                Event::Output(bytes) => take(self, &bytes)?,
                Event::Closed("output") => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// How long, scaled, the host may take for something.
    pub(crate) fn scaled(&self, duration: Duration) -> Duration {
        self.scale.of(duration)
    }

    pub(crate) fn hung(&self, silence: Duration) -> HostError {
        HostError::Hung { phase: self.phase, silence, tail: self.console.tail(), logs: self.logs.clone() }
    }

    pub(crate) fn script_timeout(&self, limit: Duration) -> HostError {
        HostError::ScriptTimeout { limit, logs: self.logs.clone() }
    }

    pub(crate) fn init_failed(&self, reason: &str) -> HostError {
        HostError::Init { reason: reason.to_owned(), tail: self.console.tail(), logs: self.logs.clone() }
    }

    /// A crash: reads on for a moment, because the lines after the first tell why.
    fn crashed(&mut self, line: String) -> HostError {
        let deadline = Instant::now() + Duration::from_secs(1);
        while let Some(event) = self.events.next(deadline) {
            if let Event::Console(bytes) = event {
                // The crash is the error to report, not a full disk.
                let _ = self.console_log.write_all(&bytes);
                self.console.push(&bytes);
            }
        }
        HostError::Crashed { phase: self.phase, line, tail: self.console.tail(), logs: self.logs.clone() }
    }

    fn died(&mut self) -> HostError {
        let deadline = Instant::now() + Duration::from_secs(2);
        // It closed its channels, so it is about to end; a status is wanted for the message, not a corpse at once.
        while !self.has_ended() && Instant::now() < deadline {
            let _ = self.events.next(Instant::now() + Duration::from_millis(20));
        }
        let status = match self.child.try_wait() {
            Ok(Some(status)) => match (status.code(), status.signal()) {
                (Some(127), _) => self.remedy.clone(),
                (Some(code), _) => format!("exit status {code}"),
                (_, Some(signal)) => format!("signal {signal}"),
                _ => "unknown status".to_owned(),
            },
            _ => "its channels are closed".to_owned(),
        };
        let stderr = std::fs::read(self.logs.join("qemu.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&stderr);
        let mut told: Vec<&str> = text.lines().filter(|line| !line.contains("TCG doesn't support")).collect();
        told.drain(..told.len().saturating_sub(STDERR_LINES));
        let status = if told.is_empty() { status } else { format!("{status}: {}", told.join("; ")) };
        HostError::QemuDied { phase: self.phase, status, tail: self.console.tail(), logs: self.logs.clone() }
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn create(path: &Path) -> Result<File, HostError> {
    File::options().create(true).append(true).open(path).at("open", path)
}
