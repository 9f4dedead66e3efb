//! Recovery of a change that a killed daemon had begun: it is undone, or completed if the guest has agreed to it.

use config::Disk;

use super::{Live, device, disk, medium, nic, screen, scsi};
use crate::error::Cause;
use crate::record::{Change, GuestRecord};
use crate::tree::{DeviceId, DeviceKind};

/// Whether QEMU has to undo the change; there is no session with it yet when a daemon starts.
pub(crate) fn needs_qemu(record: &GuestRecord) -> bool {
    match &record.change {
        Some(Change::ChangeMedium { .. }) => true,
        Some(Change::AttachDisk(Disk { vdev, .. }) | Change::DetachDisk { vdev, .. }) => {
            scsi::is_plugged(record, *vdev)
        }
        Some(Change::AttachNic(nic)) => record.emulated_nics.contains(&nic.devid),
        _ => false,
    }
}

/// Undoes the change, or brings it to its end when the guest has agreed to it. When something of it stays, so does the
/// note of it, for the next attempt.
pub(crate) fn settle(live: Live<'_>) -> Result<Live<'_>, Cause> {
    let Some(change) = live.record.change.clone() else { return Ok(live) };
    end(live, change).map_err(|cause| Cause::EarlierChange(Box::new(cause)))
}

fn end(mut live: Live<'_>, change: Change) -> Result<Live<'_>, Cause> {
    let before = live.record.clone();
    let (mut live, left) = match change {
        Change::AttachDisk(disk) => disk::undo_attach(live, disk),
        Change::DetachDisk { vdev, let_go } => {
            let has_let_go = let_go || !still_there(&live, DeviceKind::Vbd, vdev.devid())?;
            disk::conclude_detach(live, vdev, has_let_go)
        }
        Change::ChangeMedium { vdev } => medium::undo_change(live, vdev)?,
        Change::Screenshot { vdev } => {
            screen::settle(&mut live, vdev)?;
            (live, Vec::new())
        }
        Change::AttachNic(nic) => nic::undo_attach(live, nic)?,
        Change::DetachNic { devid, let_go } => {
            let has_let_go = let_go || !still_there(&live, DeviceKind::Vif, devid)?;
            nic::conclude_detach(live, devid, has_let_go)
        }
        Change::MoveNic { devid } => nic::undo_move(live, devid),
    };
    let Some(failure) = left.into_iter().next() else { return Ok(live) };
    // What was undone is not undone again; what is noted of the change is needed for the rest.
    live.record.change = before.change;
    live.record.emulated_disks = before.emulated_disks;
    live.record.emulated_nics = before.emulated_nics;
    live.record.disks = before.disks;
    live.save()?;
    Err(failure.cause)
}

/// Whether a device that the guest was asked for works on, which it does again then.
fn still_there(live: &Live<'_>, kind: DeviceKind, devid: u32) -> Result<bool, Cause> {
    device::take_back(live.ts, DeviceId::new(kind, live.domid()?, devid))
}
