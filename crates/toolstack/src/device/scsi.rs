//! Hot-plugging of emulated disks: SCSI disks, the only ones that QEMU can hot-plug, for guests that use no PV drivers.
//! A guest that does would see the disk twice.
//!
//! The stubdomain's PV disk is attached before QEMU's disk and detached after it.

use std::time::Instant;

use config::{Disk, Vdev, VdevBus};
use qmp::commands::{
    BlockdevAdd, BlockdevDel, DeviceAdd, DeviceDel, Drive, QomList, QueryBlock, QueryNamedBlockNodes,
};
use qmp::{Command, ErrorClass, QmpError};
use serde_json::{Value, json};

use crate::Toolstack;
use crate::domain::GuestId;
use crate::error::Cause;
use crate::guest::Live;
use crate::operation::StepResult;
use crate::record::{EmulatedDisk, GuestRecord};
use crate::wait::Watcher;

/// Where QEMU has its devices: those with an id, and those without one.
const DEVICES: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];
/// The controller, as the guest has it from its start when its configuration has such a disk.
const CONTROLLER: &str = "lsi53c895a";
/// Where the letters of the stubdomain's disks end.
const LETTERS: u32 = 26;

/// What a disk that comes is to be for QEMU.
pub(crate) enum Emulation {
    /// A disk, with this PV disk of the stubdomain behind it.
    Plugged(EmulatedDisk),
    /// None; with what to say about it, if it may surprise.
    None(Option<String>),
}

impl Emulation {
    pub(crate) fn wanted(live: &Live<'_>, disk: &Disk) -> Result<Self, Cause> {
        let vdev = disk.vdev;
        let has_drivers = live.uses_pv_devices()?;
        if qemu_args::scsi_target(vdev).is_ok() {
            return Ok(if has_drivers {
                Self::None(None)
            } else {
                Self::Plugged(EmulatedDisk { vdev, stub_vdev: free_letter(&live.record)? })
            });
        }
        let others = "sda to sdg can be hot-plugged as emulated SCSI disks";
        Ok(Self::None(if vdev.bus() == VdevBus::Hd {
            Some(format!(
                "{vdev} is only a PV disk until the guest is restarted, because QEMU cannot hot-plug IDE or AHCI \
                 disks; {others}"
            ))
        } else if has_drivers {
            None
        } else {
            Some(format!(
                "{vdev} is only a PV disk, and the guest has no active PV drivers to use it; {others}"
            ))
        }))
    }
}

/// The first letter of the stubdomain's disks that has none.
fn free_letter(record: &GuestRecord) -> Result<Vdev, Cause> {
    let taken = |vdev: &Vdev| record.emulated_disks.iter().any(|disk| disk.stub_vdev == *vdev);
    let mut letters = (0..LETTERS).filter_map(|letter| Vdev::new(VdevBus::Xvd, letter, 0));
    letters.find(|vdev| !taken(vdev)).ok_or_else(|| Cause::NotNow {
        name: record.name.clone(),
        why: "has too many emulated disks: its stubdomain has no free drive letter".to_owned(),
    })
}

/// Whether QEMU may have a disk of this name that can be taken out.
pub(crate) fn is_plugged(record: &GuestRecord, vdev: Vdev) -> bool {
    record.emulated_disks.iter().any(|disk| disk.vdev == vdev) && qemu_args::scsi_target(vdev).is_ok()
}

/// A SCSI disk of QEMU's, which may be plugged in or not.
pub(crate) struct ScsiDisk {
    guest: GuestId,
    vdev: Vdev,
    target: u32,
    /// Its device's id when it is plugged in here. One that was there from the start has none.
    id: String,
    /// The name of what QEMU reads and writes.
    node: String,
    /// The stubdomain's device.
    device: String,
}

impl ScsiDisk {
    /// QEMU's disk for a disk of the guest, when it is one that can be plugged in and out.
    pub(crate) fn of(live: &Live<'_>, vdev: Vdev) -> Option<Self> {
        let (Some(stub_vdev), Ok(target)) = (live.stub_vdev(vdev), qemu_args::scsi_target(vdev)) else {
            return None;
        };
        Some(Self {
            guest: live.id(),
            vdev,
            target,
            id: format!("scsi-{}", vdev.devid()),
            node: qemu_args::scsi_drive(target),
            device: format!("/dev/{stub_vdev}"),
        })
    }

    fn run<C: Command>(&self, ts: &Toolstack, command: &C) -> Result<C::Answer, QmpError> {
        qmp::run(&*ts.monitors.monitor(self.guest)?, command, Instant::now() + ts.deadlines.qmp)
    }

    /// Plugs it in, once the stubdomain's kernel has its PV disk.
    pub(crate) fn plug(&self, ts: &Toolstack, writable: bool) -> StepResult {
        // Left by one that was detached by force.
        self.unplug(ts)?;
        self.open(ts, writable)?;
        self.plug_controller(ts)?;
        let device =
            json!({ "driver": "scsi-hd", "id": self.id, "drive": self.node, "scsi-id": self.target });
        self.run(ts, &DeviceAdd(members(&device)))?;
        Ok(())
    }

    /// Has QEMU open the device, which is there a moment after the PV disk has connected.
    fn open(&self, ts: &Toolstack, writable: bool) -> StepResult {
        let node = json!({
            "driver": "host_device", "node-name": self.node, "filename": self.device, "read-only": !writable,
        });
        let node = BlockdevAdd(members(&node));
        let mut last = None;
        let opened =
            Watcher::new().until(Instant::now() + ts.deadlines.backends, || match self.run(ts, &node) {
                Ok(_) => Ok(Some(())),
                Err(error @ QmpError::Refused { class: ErrorClass::Generic, .. }) => {
                    last = Some(error);
                    Ok(None)
                }
                Err(error) => Err(error.into()),
            })?;
        match (opened, last) {
            (None, Some(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Gives the guest a controller, which stays, unless it has one.
    fn plug_controller(&self, ts: &Toolstack) -> StepResult {
        let kind = format!("child<{CONTROLLER}>");
        for path in DEVICES {
            match self.run(ts, &QomList { path: path.to_owned() }) {
                Ok(devices) if devices.iter().any(|device| device.kind == kind) => return Ok(()),
                // QEMU makes the folders when it needs them.
                Ok(_) | Err(QmpError::Refused { class: ErrorClass::DeviceNotFound, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.run(ts, &DeviceAdd(members(&json!({ "driver": CONTROLLER, "id": "scsi0" }))))?;
        Ok(())
    }

    /// Takes it out, as far as it is there. QEMU asks no guest about that.
    pub(crate) fn unplug(&self, ts: &Toolstack) -> StepResult {
        let mut events = ts.monitors.monitor(self.guest)?.events(&["DEVICE_DELETED"])?;
        let ours = |drive: &Drive| {
            let node = drive.inserted.as_ref().and_then(|medium| medium.node_name.as_deref());
            drive.device == self.node || node == Some(&*self.node)
        };
        let found = self.run(ts, &QueryBlock {})?.into_iter().find(ours).and_then(|drive| drive.qdev);
        if let Some(id) = found
            && self.ask(ts, &DeviceDel { id: id.clone() })?
        {
            let after = ts.deadlines.release;
            let gone =
                |event: &qmp::Event| ["device", "path"].into_iter().any(|key| event.text(key) == Some(&*id));
            match events.wait(Instant::now() + after, gone) {
                Ok(_) => {}
                Err(error) => return Err(Cause::from(error).about(format!("Disk {}", self.vdev))),
            }
        }
        // `blockdev-del` has no error class for a node that does not exist.
        let nodes = self.run(ts, &QueryNamedBlockNodes { flat: true })?;
        if nodes.iter().any(|node| node.node_name.as_deref() == Some(&*self.node)) {
            self.run(ts, &BlockdevDel { node_name: self.node.clone() })?;
        }
        Ok(())
    }

    /// Has something removed; false when it is not there.
    fn ask<C: Command>(&self, ts: &Toolstack, command: &C) -> Result<bool, Cause> {
        match self.run(ts, command) {
            Ok(_) => Ok(true),
            Err(QmpError::Refused { class: ErrorClass::DeviceNotFound, .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn members(value: &Value) -> serde_json::Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
