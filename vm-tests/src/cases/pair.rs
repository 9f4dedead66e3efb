//! Two hosts with a disk between them.

use std::fs;

use anyhow::{Result, ensure};
use vm_report::HostState;

use super::Case;
use crate::harness::config::GuestConfig;
use crate::harness::consoles::Console;
use crate::harness::guest::{HELLO_DISK, list};
use crate::harness::pair::write_disk;
use crate::harness::peer::{Peer, SHARED_DISK, Side};

pub(super) const CASES: &[Case] =
    &[Case::on(HostState::Pair, "pair::guest_on_a_shared_disk_runs_on_one_host_then_on_the_other", in_turn)];

fn in_turn() -> Result<()> {
    let mut peer = Peer::join()?;
    match peer.side {
        Side::A => runs_here_first(&mut peer),
        Side::B => runs_here_then(&mut peer),
    }
}

fn runs_here_first(peer: &mut Peer) -> Result<()> {
    write_disk(SHARED_DISK, &fs::read(HELLO_DISK)?)?;
    let uuid = run_to_its_disk(&config())?;
    peer.tell(&uuid)?;
    ensure!(peer.hear()? == uuid, "the other host ran something else");
    ensure!(list()?.is_empty(), "a guest is here again");
    Ok(())
}

fn runs_here_then(peer: &mut Peer) -> Result<()> {
    let uuid = peer.hear()?;
    let ran = run_to_its_disk(&config().line(&format!("uuid='{uuid}'")))?;
    peer.tell(&ran)
}

/// The boot sector guest on the shared disk.
fn config() -> GuestConfig {
    GuestConfig::hello("shared").boot_disk(SHARED_DISK.as_ref())
}

/// Creates the guest, destroys it once it has read its disk, and returns its UUID.
fn run_to_its_disk(config: &GuestConfig) -> Result<String> {
    let guest = config.create()?;
    Console::serial(&guest, 0)?.wait_for("this is hda", 60)?;
    let uuid = guest.guest.uuid.clone();
    guest.destroy()?;
    Ok(uuid)
}
