//! What the suite tries of the embedded host itself, or with more than one boot of it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use testhost::{Job, Machine, Observer, Put, Request};

use super::report::Outcome;
use super::states::Hosts;
use crate::{guest, pair, watch};

/// One boot's part of the trial of a reboot, before scaling.
const REBOOT_LIMIT: Duration = Duration::from_secs(5 * 60);
/// The disk of that trial, in bytes.
const DISK: u64 = 32 << 20;

/// A trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trial {
    /// Does harm to a host without programs of ours and sees whether each run tells of it at once.
    Watch,
    /// Boots a host, cuts its power while guests run, and boots it again with the same disk.
    Reboot,
    /// Two hosts with a network and a disk between them, and a crash of one.
    Pair,
}

impl Trial {
    pub(super) const ALL: [Self; 3] = [Self::Watch, Self::Reboot, Self::Pair];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Watch => "trials::watch_over_the_embedded_host",
            Self::Reboot => "trials::reboot_of_the_embedded_host",
            Self::Pair => "trials::pair_of_hosts",
        }
    }

    /// How many hosts it runs at once.
    pub(super) fn hosts(self) -> usize {
        match self {
            Self::Watch | Self::Reboot => 1,
            Self::Pair => 2,
        }
    }

    /// How long it takes where nobody knows better, in seconds.
    pub(super) fn expected(self) -> f64 {
        match self {
            Self::Watch => 90.0,
            Self::Reboot => 130.0,
            Self::Pair => 100.0,
        }
    }

    /// Does it, and tells what became of it. Logs of what passed are removed.
    pub(super) fn run(self, hosts: &Hosts, logs: &Path) -> Outcome {
        let begun = Instant::now();
        let mut listener = Listener::default();
        let result = match self {
            Self::Watch => watch(hosts, logs, &mut listener),
            Self::Reboot => reboot(hosts, logs, &mut listener),
            Self::Pair => pair(hosts, logs, &mut listener),
        };
        let failure = result
            .err()
            .map(|error| format!("{error:#}\n{}     the logs are in {}", listener.said, logs.display()));
        if failure.is_none() {
            let _ = std::fs::remove_dir_all(logs);
        }
        Outcome { name: self.name().to_owned(), seconds: begun.elapsed().as_secs_f64(), failure }
    }
}

/// Keeps what is said, for the case of a failure.
#[derive(Default)]
struct Listener {
    said: String,
}

impl Observer for Listener {
    fn progress(&mut self, what: &str) {
        self.said += &format!("     {what}\n");
    }

    fn output(&mut self, bytes: &[u8]) {
        self.said += &String::from_utf8_lossy(bytes);
    }
}

fn watch(hosts: &Hosts, logs: &Path, listener: &mut Listener) -> Result<()> {
    watch::trials(&hosts.bare, &hosts.machine(), hosts.scale(), logs, listener)
}

fn pair(hosts: &Hosts, logs: &Path, listener: &mut Listener) -> Result<()> {
    pair::trials(&hosts.tools, &hosts.machine(), hosts.scale(), logs, listener)
}

fn reboot(hosts: &Hosts, logs: &Path, listener: &mut Listener) -> Result<()> {
    let scale = hosts.scale();
    let folder = tempfile::tempdir()?;
    let [disk, script] = ["disk", "script"].map(|name| folder.path().join(name));
    std::fs::File::create(&disk)?.set_len(DISK)?;
    let machine = Machine { disk: Some(disk), ..hosts.machine() };
    let console: Put = guest::console()?;
    for half in ["before-reboot", "after-reboot"] {
        std::fs::write(&script, format!("#!/bin/sh\n{}exec vm-tests {half}\n", hosts.exports()))?;
        let request = Request {
            machine: machine.clone(),
            preparations: Vec::new(),
            job: Job::Script(script.clone()),
            puts: vec![console.clone()],
            timeout: Some(REBOOT_LIMIT),
            fresh: true,
            logs: logs.join(half),
            scale,
        };
        // A run ends as by a power cut: the emulator is killed, whatever its guests do.
        let report = testhost::run(&hosts.tools, &request, listener)?;
        if report.status != 0 {
            bail!("vm-tests {half} ended with status {}", report.status);
        }
    }
    Ok(())
}
