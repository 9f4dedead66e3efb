//! xenstored dies: the host can make no guest any more, which is to be said, and its guests run on.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xen::{Hypervisor, RealHypervisor};
use xen_types::DomId;

use super::Case;
use crate::harness::command::{outrigger, run, run_within};
use crate::harness::config::GuestConfig;
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[Case::the_end("xenstored_gone::is_said_and_nothing_is_left", gone)];

/// Exit status of `outrigger` without a daemon.
const NO_DAEMON: i32 = 5;

fn gone() -> Result<()> {
    let (guest, _) = GuestConfig::hello("survivor").boot()?;
    let (domid, stub) = guest.domids()?;
    let loops = loops()?;
    kill_xenstored()?;
    daemon_says_why_it_ends()?;
    outrigger(&["list"])?.refused(NO_DAEMON, &["xenstored"])?;
    new_daemon_says_it_at_once()?;
    only_these_run(&[DomId::DOM0, domid, stub])?;
    ensure!(loops == self::loops()?, "Loop devices are left");
    // Nothing could destroy it here.
    guest.leave();
    Ok(())
}

fn new_daemon_says_it_at_once() -> Result<()> {
    let daemon = run_within(seconds(20), "outriggerd", &[])?;
    ensure!(daemon.status == 1 && daemon.stderr.contains("xenstore"), "A new daemon: {}", daemon.stderr);
    Ok(())
}

fn only_these_run(wanted: &[DomId]) -> Result<()> {
    let running = domains()?;
    ensure!(running == wanted, "Domains are {running:?}");
    Ok(())
}

fn daemon_says_why_it_ends() -> Result<()> {
    let next = GuestConfig::hello("next").write()?;
    // The daemon sees that its connection has broken, and ends; a request may come before or after.
    let deadline = Instant::now() + seconds(30);
    loop {
        let output = run_within(seconds(20), "outrigger", &["create", &next.to_string_lossy()])?;
        ensure!(output.status != 0, "A guest was made without xenstored");
        ensure!(output.stderr.contains("xenstored"), "The error does not tell: {}", output.stderr);
        if output.status == NO_DAEMON {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "outriggerd goes on without xenstored: {}", output.stderr);
    }
}

fn kill_xenstored() -> Result<()> {
    let programs = ["xenstored", "oxenstored"];
    let pid = run("pidof", &programs)?.good()?.stdout.trim().parse().context("pidof xenstored oxenstored")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    Ok(())
}

/// What lives, by Xen's own list: xenstore has none any more.
fn domains() -> Result<Vec<DomId>> {
    let hypervisor = RealHypervisor::open()?;
    let mut domains: Vec<DomId> = hypervisor.list_domains()?.into_iter().map(|info| info.domid).collect();
    domains.sort();
    if domains.is_empty() {
        bail!("Xen lists no domain");
    }
    Ok(domains)
}

fn loops() -> Result<String> {
    Ok(run("losetup", &["-a"])?.good()?.stdout)
}
