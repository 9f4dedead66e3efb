//! The Linux guest that some cases start from: it has booted, uses its PV drivers, and does what it is told on its first
//! serial port. The runner makes it once and keeps the whole host as a snapshot.

use std::fs;

use anyhow::{Context as _, Result};

use super::clean::Host;
use super::command::outrigger;
use super::config::GuestConfig;
use super::guest::{Made, scratch};
use super::network;
use super::shell::{BOOT, SCRIPT, Shell};

/// Its name.
pub(crate) const NAME: &str = "idle";
/// The address of dom0 on the bridge.
pub(crate) const DOM0: &str = "10.79.0.1";
/// How dom0 was before the guest was made.
const BEFORE: &str = "/run/idle-guest-before.json";

/// The disc in its CD drive `hdc`, of 1 MiB.
pub(crate) fn first_disc() -> Result<String> {
    file("first-disc.iso", 1)
}

/// A file of so many MiB whose content depends on its name.
pub(crate) fn file(name: &str, mib: usize) -> Result<String> {
    let line = format!("this is {name}\n").into_bytes();
    let content: Vec<u8> = line.iter().copied().cycle().take(mib << 20).collect();
    Ok(scratch(name, &content)?.display().to_string())
}

/// Makes it, with two processors of which one is on, a CD drive and no NIC, and waits until it is idle.
pub(crate) fn prepare() -> Result<()> {
    network::bridge_with(network::BRIDGE, &format!("{DOM0}/24"))?;
    let cd = format!("devtype=cdrom, vdev=hdc, access=ro, format=raw, target={}", first_disc()?);
    let config = GuestConfig::linux(NAME, SCRIPT).line("maxvcpus=2").disk(&cd);
    let path = config.write()?;
    fs::write(BEFORE, serde_json::to_vec(&Host::look()?)?)?;
    let guest = Made::create(&path, &[])?;
    Shell::wait(&guest, BOOT)?;
    guest.leave();
    Ok(())
}

/// Its shell.
pub(crate) fn shell() -> Result<Shell> {
    let guest = Made::named(NAME)?;
    // The console daemon tells again what the guest has said.
    let shell = Shell::wait(&guest, 30);
    guest.leave();
    shell
}

/// How dom0 was before the guest was made.
pub(crate) fn host_before() -> Result<Host> {
    let bytes = fs::read(BEFORE).with_context(|| format!("cannot read {BEFORE}"))?;
    serde_json::from_slice(&bytes).context("the guest's maker has written something else")
}

/// Destroys it, whatever a case has called it.
pub(crate) fn destroy() -> Result<()> {
    for guest in super::guest::list()? {
        outrigger(&["destroy", &guest.domid.to_string()])?.good()?;
    }
    Ok(())
}
