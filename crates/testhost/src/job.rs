//! A job: from the word to begin until dom0 has given its exit status.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::HostError;
use crate::error::AtPath as _;
use crate::events::Event;
use crate::request::Job;
use crate::shell::{self, Terminal};
use crate::vm::Vm;

/// dom0 sends a beat every 5 s while a script runs; without one for so long, it hangs.
const BEAT_SILENCE: Duration = Duration::from_secs(120);
/// From the word to run until dom0 has mounted the share; more than that, and a restored host is not alive.
const MOUNT_LIMIT: Duration = Duration::from_secs(30);
/// What a failed job has said before it ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Collecting logs after the script.
const COLLECT_LIMIT: Duration = Duration::from_secs(60);

/// A limit as dom0 takes it, which ends the script itself.
pub(crate) fn whole_seconds(limit: Duration) -> Duration {
    Duration::from_secs(limit.as_secs().max(1))
}

/// A job for a machine whose dom0 is ready for one.
pub(crate) struct Work<'a> {
    /// What to do.
    pub(crate) job: &'a Job,
    /// Whether a script prepares the host for a snapshot: dom0 then stays without the disks of this run.
    pub(crate) prepares: bool,
    /// How long it may take, scaled, in whole seconds; none for as long as it lives.
    pub(crate) limit: Option<Duration>,
    /// Where its output is kept.
    pub(crate) logs: &'a Path,
}

/// A job that has ended.
pub(crate) struct Ended {
    /// Its exit status.
    pub(crate) status: i32,
    /// How long it took.
    pub(crate) took: Duration,
    output: Output,
}

impl Work<'_> {
    /// Gives dom0 the word and waits until it has the script and the files.
    pub(crate) fn begin(&self, vm: &mut Vm<'_>) -> Result<(), HostError> {
        vm.set_phase("start of the job");
        // dom0's clock stopped with the snapshot.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let message = match self.job {
            Job::Script(_) => {
                let word = if self.prepares { "prepare" } else { "run" };
                // dom0 ends the script itself, so that its logs still come out.
                format!("{word} {now} {}\n", self.limit.map_or(u32::MAX.into(), |limit| limit.as_secs()))
            }
            Job::Shell => format!("shell {now} {}\n", shell::terminal()),
        };
        vm.send("control", message.as_bytes())?;
        // Shorter deadlines than usual are meant for the job.
        let limit = vm.scaled(MOUNT_LIMIT).max(MOUNT_LIMIT);
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

    /// Follows the job to its end. The machine goes on.
    pub(crate) fn complete(&self, vm: &mut Vm<'_>) -> Result<Ended, HostError> {
        vm.set_phase("the job");
        let mut output = Output::new(self.logs)?;
        let terminal = match self.job {
            Job::Shell => Some(Terminal::join(vm)?),
            Job::Script(_) => None,
        };
        let begun = Instant::now();
        let status = self.follow(vm, &mut output)?;
        let took = begun.elapsed();
        drop(terminal);
        match self.limit {
            Some(limit) if status != 0 && took >= limit => Err(vm.script_timeout(limit)),
            _ => Ok(Ended { status, took, output }),
        }
    }

    /// Passes on what the job writes, until its exit status comes.
    fn follow(&self, vm: &mut Vm<'_>, output: &mut Output) -> Result<i32, HostError> {
        let limit = self.limit;
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

impl Ended {
    /// Takes what a job has said that has failed in a machine that goes on: its status came on a channel of its own, so
    /// the last of the output may still be on its way.
    pub(crate) fn last_words(mut self, vm: &mut Vm<'_>) -> Result<i32, HostError> {
        let deadline = Instant::now() + LAST_WORDS;
        while self.status != 0 && Instant::now() < deadline {
            if let Some(Event::Output(bytes)) = vm.next(deadline)? {
                self.output.take(vm, &bytes)?;
            }
        }
        Ok(self.status)
    }

    /// Ends the machine. The status came on a channel of its own, so the last of the output may still be on its way.
    pub(crate) fn stop(mut self, vm: &mut Vm<'_>) -> Result<(i32, Duration), HostError> {
        vm.stop();
        vm.drain(|vm, bytes| self.output.take(vm, bytes))?;
        Ok((self.status, self.took))
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
