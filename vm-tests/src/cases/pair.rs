//! Two hosts with a disk between them.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use vm_report::HostState;

use super::Case;
use crate::harness::consoles::Console;
use crate::harness::guest::{HELLO_DISK, Made, cpus, list, scratch};
use crate::harness::peer::{Peer, SHARED_DISK, Side};

pub(super) const CASES: &[Case] =
    &[Case::on(HostState::Pair, "pair::guest_on_a_shared_disk_runs_on_one_host_then_on_the_other", in_turn)];

fn in_turn() -> Result<()> {
    let mut peer = Peer::join()?;
    match peer.side {
        Side::A => {
            let mut disk = OpenOptions::new().write(true).open(SHARED_DISK)?;
            disk.write_all(&fs::read(HELLO_DISK)?).context("cannot write the shared disk")?;
            disk.sync_all()?;
            drop(disk);
            let guest = Made::create(&config("")?, &[])?;
            Console::serial(&guest, 0)?.wait_for("this is hda", 60)?;
            let uuid = guest.guest.uuid.to_string();
            guest.destroy()?;
            peer.tell(&uuid)?;
            ensure!(peer.hear()? == uuid, "the other host ran something else");
            ensure!(list()?.is_empty(), "a guest is here again");
        }
        Side::B => {
            let uuid = peer.hear()?;
            let guest = Made::create(&config(&format!("uuid='{uuid}'"))?, &[])?;
            Console::serial(&guest, 0)?.wait_for("this is hda", 60)?;
            let ran = guest.guest.uuid.to_string();
            guest.destroy()?;
            peer.tell(&ran)?;
        }
    }
    Ok(())
}

/// The boot sector guest on the shared disk.
fn config(more: &str) -> Result<PathBuf> {
    let text = format!(
        "name='shared'\ntype='hvm'\nmemory=64\nvcpus=1\n{}\nvga='none'\nserial='pty'\n\
         disk=['format=raw, vdev=hda, access=rw, target={SHARED_DISK}']\n{more}\n",
        cpus()
    );
    scratch("shared.cfg", text.as_bytes())
}
