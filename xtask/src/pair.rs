//! `cargo xtask host run --pair`: a script on two hosts at once, and the trial of that.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tempfile::NamedTempFile;
use testhost::pair::{self, PairRequest, Role};
use testhost::{Host, HostError, Job, Machine, Observer, Report, Request, TimeScale};

#[cfg(test)]
use crate::host;

/// Two hosts instead of one.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PairOptions {
    /// Runs the script on two hosts at once, host-a and host-b, with a network between them. OUTRIGGER_HOST is `a` or `b`.
    #[arg(long, conflicts_with = "disk")]
    pub(crate) pair: bool,
    /// A raw file that both hosts have as a disk, /dev/vda and so on; may be repeated.
    #[arg(long, value_name = "FILE", requires = "pair")]
    pub(crate) shared_disk: Vec<PathBuf>,
}

/// Runs the job on both hosts, shows what each says, and returns both reports.
pub(crate) fn run(
    host: &Host,
    request: &PairRequest,
    view: &mut (impl Observer + Send),
) -> Result<[Report; 2]> {
    let view = Mutex::new(view);
    let [mut a, mut b] = Role::BOTH.map(|role| Prefixed::new(role, &view));
    Ok(pair::run(host, request, [&mut a, &mut b])?)
}

/// The exit status of both: the first that is not zero.
pub(crate) fn status(reports: &[Report; 2]) -> i32 {
    reports.iter().map(|report| report.status).find(|status| *status != 0).unwrap_or(0)
}

/// The sizes of the disks between the hosts of the cases and benchmarks, in bytes.
const DISKS: [u64; 2] = [64 << 20, 1 << 20];

/// Makes these disks, of zeros.
pub(crate) fn disks() -> Result<Vec<NamedTempFile>> {
    let disk = |size| {
        let disk = NamedTempFile::new()?;
        disk.as_file().set_len(size)?;
        Ok(disk)
    };
    DISKS.into_iter().map(disk).collect()
}

/// Shows one of two hosts: every line begins with its letter.
struct Prefixed<'a, V: Observer> {
    role: Role,
    view: &'a Mutex<&'a mut V>,
    output: Lines,
    console: Lines,
}

impl<'a, V: Observer> Prefixed<'a, V> {
    fn new(role: Role, view: &'a Mutex<&'a mut V>) -> Self {
        Self { role, view, output: Lines::default(), console: Lines::default() }
    }

    fn view(&self) -> MutexGuard<'a, &'a mut V> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Observer> Observer for Prefixed<'_, V> {
    fn progress(&mut self, what: &str) {
        self.view().progress(&format!("{}: {what}", self.role.letter()));
    }

    fn output(&mut self, bytes: &[u8]) {
        let lines = self.output.push(self.role, bytes);
        self.view().output(&lines);
    }

    fn console(&mut self, bytes: &[u8]) {
        let lines = self.console.push(self.role, bytes);
        self.view().console(&lines);
    }
}

impl<V: Observer> Drop for Prefixed<'_, V> {
    fn drop(&mut self) {
        let (output, console) = (self.output.rest(self.role), self.console.rest(self.role));
        self.view().output(&output);
        self.view().console(&console);
    }
}

/// Bytes that wait for the end of their line.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// A longer line is shown in pieces.
    const LONGEST: usize = 64 << 10;

    /// Takes more bytes and returns all whole lines, each with the letter before it.
    fn push(&mut self, role: Role, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::new();
        for &byte in bytes {
            self.0.push(byte);
            if byte == b'\n' || self.0.len() >= Self::LONGEST {
                shown.extend(self.rest(role));
            }
        }
        shown
    }

    /// Returns what has no end yet, ended.
    fn rest(&mut self, role: Role) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut line = format!("{}: ", role.letter()).into_bytes();
        line.append(&mut self.0);
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        line
    }
}

/// What both hosts run in the trial.
const SCRIPT: &str = include_str!("pair.sh");
/// The script for the trial of a crash: host-a dies while host-b waits.
const CRASH: &str = "#!/bin/sh\n[ $OUTRIGGER_HOST = a ] || exec sleep 1000\n\
                     until ping -c 1 -W 1 host-b >/dev/null; do :; done\necho c >/proc/sysrq-trigger\nsleep 1000\n";
/// What either script may take, before scaling.
const LIMIT: Duration = Duration::from_secs(120);
/// How soon after the crash both hosts have to be gone, before scaling.
const CRASH_LIMIT: Duration = Duration::from_secs(20);
/// The size of the shared disk in bytes.
const DISK: u64 = 16 << 20;

/// The trials of a pair: network and shared disk work, and a crash of one ends both. Deadlines are stretched by `scale`.
pub(crate) fn trials(
    host: &Host,
    machine: &Machine,
    scale: TimeScale,
    logs: &Path,
    view: &mut (impl Observer + Send),
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [disk, script] = ["disk", "script"].map(|name| folder.path().join(name));
    std::fs::File::create(&disk)?.set_len(DISK)?;
    let request = |name: &str| PairRequest {
        each: Request {
            machine: machine.clone(),
            preparations: Vec::new(),
            job: Job::Script(script.clone()),
            puts: Vec::new(),
            timeout: Some(LIMIT),
            fresh: false,
            logs: logs.join(name),
            scale,
        },
        shared_disks: vec![disk.clone()],
    };
    std::fs::write(&script, SCRIPT)?;
    let reports = run(host, &request("pair"), view)?;
    let ready = reports.iter().map(|report| report.startup).max().unwrap_or_default();
    view.progress(&format!("Both hosts were ready after {:.1} s", ready.as_secs_f64()));
    if status(&reports) != 0 {
        bail!("The script failed with status {}; the logs are in {}", status(&reports), logs.display());
    }
    std::fs::write(&script, CRASH)?;
    view.progress(&crash(host, &request("pair-crash"), scale)?);
    Ok(())
}

/// Runs a pair of which one host crashes, and says how that was told.
fn crash(host: &Host, request: &PairRequest, scale: TimeScale) -> Result<String> {
    let [mut a, mut b] = [Machines::default(), Machines::default()];
    let result = pair::run(host, request, [&mut a, &mut b]);
    let told = match result {
        Err(HostError::Pair { host: "host-a", source }) if matches!(*source, HostError::Crashed { .. }) => {
            source
        }
        Err(error) => bail!("The crash of host-a was told as something else: {error}"),
        Ok(_) => bail!("The run ended as if host-a had not crashed"),
    };
    let left: Vec<u32> = a.pids.iter().chain(&b.pids).copied().filter(|pid| is_emulator(*pid)).collect();
    if !left.is_empty() {
        bail!("Emulators outlived the run: processes {left:?}");
    }
    // The job's start is at most this long before the crash.
    let took = a.up.context("host-a was never up")?.elapsed();
    if took > scale.of(CRASH_LIMIT) {
        bail!("The run of both ended only {took:.1?} after host-a began the script that crashes it");
    }
    let first = told.to_string().lines().next().unwrap_or_default().to_owned();
    Ok(format!(
        "A crash of host-a ended both hosts {:.1} s after its script began: {first}",
        took.as_secs_f64()
    ))
}

/// Notes the emulators of a run, and when its host was up.
#[derive(Debug, Default)]
struct Machines {
    pids: Vec<u32>,
    up: Option<Instant>,
}

impl Observer for Machines {
    fn machine(&mut self, pid: u32) {
        self.pids.push(pid);
    }

    fn up(&mut self) {
        self.up = Some(Instant::now());
    }
}

/// Whether this process is an emulator.
fn is_emulator(pid: u32) -> bool {
    let output = Command::new("ps").args(["-o", "comm=", "-p", &pid.to_string()]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("qemu"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: host::Command,
    }

    fn parse(words: &str) -> Result<PairOptions, clap::Error> {
        match Line::try_parse_from(words.split(' '))?.command {
            host::Command::Run { pair, .. } => Ok(pair),
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn shared_disks_are_a_pairs_and_its_own_disk_is_refused() {
        let options = parse("host run --pair --shared-disk /x --shared-disk /y script").unwrap();
        assert!(options.pair && options.shared_disk.len() == 2);
        assert!(!parse("host run script").unwrap().pair);
        assert!(parse("host run --shared-disk /x script").is_err());
        assert!(parse("host run --pair --disk /x script").is_err());
        assert!(Line::try_parse_from(["host", "shell", "--pair"]).is_err());
    }

    #[test]
    fn every_line_begins_with_its_hosts_letter() {
        #[derive(Default)]
        struct Kept(Vec<u8>);
        impl Observer for Kept {
            fn output(&mut self, bytes: &[u8]) {
                self.0.extend_from_slice(bytes);
            }
        }
        let mut kept = Kept::default();
        {
            let view = Mutex::new(&mut kept);
            let [mut a, mut b] = Role::BOTH.map(|role| Prefixed::new(role, &view));
            a.output(b"one\ntw");
            b.output(b"1\n");
            a.output(b"o\n\nthree");
        }
        let text = String::from_utf8(kept.0).unwrap();
        assert_eq!(text, "a: one\nb: 1\na: two\na: \na: three\n");
    }
}
