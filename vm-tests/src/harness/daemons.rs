//! The daemons: killed, stopped, started. The console daemon is ours or Xen's, one at a time, and ours again when a case
//! is over.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::{Output, outrigger, run};
use super::seconds;

/// Both names.
const NAMES: [&str; 2] = ["outrigger-consoled", "xenconsoled"];
const XENCONSOLED: &str = "xenconsoled";

/// A console daemon with options of its own; the usual one comes back when this is dropped.
#[derive(Debug)]
pub(crate) struct ConsoleDaemon {
    pub(crate) pid: Pid,
}

impl ConsoleDaemon {
    /// Ours.
    pub(crate) fn ours(options: &[&str]) -> Result<Self> {
        stop(Signal::SIGTERM)?;
        start_ours(options)?.good()?;
        Ok(Self { pid: pid("outrigger-consoled")? })
    }

    /// Xen's.
    pub(crate) fn stock(options: &[&str]) -> Result<Self> {
        stop(Signal::SIGTERM)?;
        // Its parent ends before it serves.
        let status = Command::new(XENCONSOLED).args(options).status().context("cannot start xenconsoled")?;
        ensure!(status.success(), "xenconsoled ended with {status}");
        Ok(Self { pid: pid("xenconsoled")? })
    }

    /// None at all.
    pub(crate) fn none() -> Result<Self> {
        stop(Signal::SIGTERM)?;
        Ok(Self { pid: Pid::from_raw(0) })
    }

    /// Kills ours the hard way and starts it again.
    pub(crate) fn kill_and_restart(&mut self, options: &[&str]) -> Result<()> {
        stop(Signal::SIGKILL)?;
        start_ours(options)?.good()?;
        self.pid = pid("outrigger-consoled")?;
        Ok(())
    }

    /// The processor's time that it has used, in hundredths of a second.
    pub(crate) fn time(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let fields: Vec<&str> = after.split_whitespace().collect();
        // utime and stime, the 14th and 15th field of all.
        let sum = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        sum(11).zip(sum(12)).map(|(user, system)| user + system).context("no times in /proc/PID/stat")
    }

    /// A number of `/proc/PID/status` or `smaps_rollup`.
    pub(crate) fn number(&self, file: &str, key: &str) -> Result<u64> {
        number(self.pid, file, key)
    }
}

/// A number of a process's `/proc/PID/status` or `smaps_rollup`.
pub(crate) fn number(pid: Pid, file: &str, key: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no {key} in /proc/PID/{file}"))
}

impl Drop for ConsoleDaemon {
    fn drop(&mut self) {
        // What fails here makes the next case fail.
        let _ = stop(Signal::SIGTERM);
        let _ = start_ours(&[]);
    }
}

/// The toolstack's daemon while it is stopped; it runs again when this is dropped.
#[derive(Debug)]
pub(crate) struct Daemon(());

impl Daemon {
    /// Stops it the hard way.
    pub(crate) fn stop() -> Result<Self> {
        kill_hard("outriggerd")?;
        Ok(Self(()))
    }

    /// Starts it again, and waits until it answers.
    pub(crate) fn start(self) -> Result<()> {
        std::mem::forget(self);
        start_outriggerd()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // What fails here makes the next case fail.
        let _ = start_outriggerd();
    }
}

/// Leaves the host to xl, with Xen's console daemon and without ours.
pub(crate) fn to_xl(options: &[&str]) -> Result<()> {
    kill_hard("outriggerd")?;
    std::mem::forget(ConsoleDaemon::stock(options)?);
    Ok(())
}

/// Gives the host to our daemons again.
pub(crate) fn to_ours() -> Result<()> {
    stop(Signal::SIGTERM)?;
    start_ours(&[])?.good()?;
    start_outriggerd()
}

/// Starts ours; it returns when all consoles are served.
pub(crate) fn start_ours(options: &[&str]) -> Result<Output> {
    run("outrigger-consoled", options)
}

/// The process of a daemon that runs.
pub(crate) fn pid(name: &str) -> Result<Pid> {
    let output = run("pidof", &[name])?.good()?;
    let first = output.stdout.split_whitespace().next().with_context(|| format!("{name} does not run"))?;
    Ok(Pid::from_raw(first.parse()?))
}

fn stop(signal: Signal) -> Result<()> {
    for name in NAMES {
        let pids = run("pidof", &[name])?.stdout;
        for pid in pids.split_whitespace() {
            // It may end by itself meanwhile.
            let _ = kill(Pid::from_raw(pid.parse()?), signal);
            let deadline = Instant::now() + seconds(10);
            while runs(pid) {
                ensure!(Instant::now() < deadline, "{name} does not end");
                std::thread::yield_now();
            }
        }
    }
    Ok(())
}

/// Whether a process has anything open yet. Its program is gone a moment before its sockets are closed, and who connects
/// to one in that moment talks to nobody. They are closed when the last of its threads has ended, which need not be the
/// first one.
fn runs(pid: &str) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, after)| after.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    })
}

/// Kills a daemon the hard way.
pub(crate) fn kill_hard(daemon: &str) -> Result<()> {
    let pids = run("pidof", &[daemon])?.good()?.stdout;
    for pid in pids.split_whitespace() {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
        let gone = Instant::now() + seconds(10);
        while runs(pid) {
            ensure!(Instant::now() < gone, "{daemon} survives SIGKILL");
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Starts a daemon again, as init would, and waits until it answers.
pub(crate) fn start(daemon: &str, answers: impl Fn() -> bool) -> Result<()> {
    let log =
        fs::OpenOptions::new().append(true).create(true).open(format!("/var/log/outrigger/{daemon}.log"))?;
    Command::new("setsid")
        .arg(daemon)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {daemon}"))?;
    let deadline = Instant::now() + seconds(30);
    while !answers() {
        if Instant::now() >= deadline {
            bail!("{daemon} does not answer after its restart");
        }
        std::thread::yield_now();
    }
    Ok(())
}

pub(crate) fn start_outriggerd() -> Result<()> {
    start("outriggerd", || outrigger(&["list"]).is_ok_and(|output| output.status == 0))
}
