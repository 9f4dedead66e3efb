//! What the agent makes of the stubdomain: QEMU's sandbox, descriptors of media.

use anyhow::{Result, ensure};

use super::Case;
use crate::harness::command::outrigger;
use crate::harness::config::GuestConfig;

pub(super) const CASES: &[Case] = &[Case::new("agent::qemu_is_confined_and_serves", confined)];

/// What the kernel of the stubdomain says about the running QEMU, but for the number of its filters: a QEMU that has
/// `-sandbox` adds one of its own to the agent's three.
const CONFINED: [&str; 2] = [
    "confined: user 1000, capabilities 0000000000000000 of 0000000000000000, no new privileges 1, seccomp 2 with ",
    " filters, root ro",
];

fn confined() -> Result<()> {
    std::fs::write("/tmp/medium.iso", vec![0; 1 << 20])?;
    let config = GuestConfig::hello("jailed").line("disk += [ '/tmp/medium.iso,raw,hdc,cdrom' ]");
    let (guest, mut console) = config.boot()?;
    // A disk, a serial port and its echo work for a QEMU that may do little.
    ensure!(console.seen.contains("this is hda"), "it has not read its disk: {}", console.seen);
    console.echo("freedom")?;
    must_be_confined("jailed")?;
    guest.destroy()
}

fn must_be_confined(name: &str) -> Result<()> {
    let log = outrigger(&["dm-log", name])?.good()?.stdout;
    let filters = log.split_once(CONFINED[0]).and_then(|(_, rest)| rest.split_once(CONFINED[1]));
    ensure!(
        filters.is_some_and(|(count, _)| ["3", "4"].contains(&count)),
        "QEMU is not confined as it should be: {log}"
    );
    ensure!(log.contains("QEMU has the medium of PV disk"), "the CD drive's medium is in no set: {log}");
    Ok(())
}
