//! What is done about a change that a killed daemon had begun.

use config::Disk;

use super::disk::{forget_disk, remove_disk, unplug_disk};
use super::nic::{forget_nic, remove_nic, replace_nic, unplug_card};
use super::{Live, device, medium, screen, scsi};
use crate::error::Cause;
use crate::record::{Change, GuestRecord};
use crate::steps::StepResult;
use crate::tree::{DeviceId, DeviceKind};

/// Whether it is QEMU that puts the change back, with whom nobody has a session when a daemon begins.
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

/// Puts the change back, or brings it to its end when the guest has agreed to it.
pub(crate) fn settle(live: &mut Live<'_>) -> StepResult {
    let Some(change) = live.record.change.clone() else { return Ok(()) };
    match change.clone() {
        Change::AttachDisk(disk) => {
            unplug_disk(live, disk.vdev)?;
            remove_disk(live, disk.vdev)?;
            forget_disk(live, disk.vdev);
        }
        Change::DetachDisk { vdev, let_go } => {
            if let_go || !still_there(live, DeviceKind::Vbd, vdev.devid())? {
                // It goes whatever QEMU says.
                let _ = unplug_disk(live, vdev);
                remove_disk(live, vdev)?;
                forget_disk(live, vdev);
            }
        }
        Change::ChangeMedium { vdev } => medium::settle(live, vdev)?,
        Change::Screenshot { vdev } => screen::settle(live, vdev)?,
        Change::AttachNic(nic) => {
            unplug_card(live, &nic)?;
            remove_nic(live, nic.devid)?;
            forget_nic(live, nic.devid);
        }
        Change::DetachNic { devid, let_go } => {
            if let_go || !still_there(live, DeviceKind::Vif, devid)? {
                remove_nic(live, devid)?;
                forget_nic(live, devid);
            }
        }
        Change::MoveNic { devid } => replace_nic(live, devid)?,
    }
    live.record.change = None;
    live.save().inspect_err(|_| live.record.change = Some(change))
}

/// Whether a device that the guest was asked for works on, which it does again then.
fn still_there(live: &Live<'_>, kind: DeviceKind, devid: u32) -> Result<bool, Cause> {
    device::take_back(live.ts, DeviceId::new(kind, live.domid()?, devid))
}
