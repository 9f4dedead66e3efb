//! The devices that a guest and its stubdomain have from their start.

use std::collections::BTreeMap;
use std::time::Instant;

use config::{Disk, GuestConfig, SerialOutput, Vdev};
use qemu_args::{Plan, StubDisk};
use stubdom_abi::StubConsole;
use xen_types::{DomId, EventPort, Gfn};
use xenbus::{DeviceId, DeviceKind, backend_parent};

use super::backend::wait_for;
use super::claims::OpenDisks;
use super::nic::Vif;
use super::nodes::{DiskBacking, add_device, channel_node, console_node, disk_node, private_node};
use super::removal::devices_of;
use super::{check_backend, describe, disk, nic};
use crate::Toolstack;
use crate::batch::Batch;
use crate::error::Cause;
use crate::operation::StepResult;
use crate::record::{EmulatedDisk, GuestRecord};

/// What is behind each disk, by its name.
pub(crate) type Backings = BTreeMap<Vdev, DiskBacking>;

/// The devices, once both domains have their domids.
#[derive(Clone, Copy)]
pub(crate) struct Initial<'a> {
    pub(crate) ts: &'a Toolstack,
    pub(crate) config: &'a GuestConfig,
    /// What QEMU emulates.
    pub(crate) plan: &'a Plan,
    pub(crate) guest: DomId,
    pub(crate) stub: DomId,
}

/// Whether dom0 has what the configured devices need.
pub(crate) fn check(ts: &Toolstack, config: &GuestConfig) -> StepResult {
    let backends = config.disks.iter().map(|disk| &disk.backend);
    for backend in backends.chain(config.nics.iter().map(|nic| &nic.backend)) {
        check_backend(backend.as_deref())?;
    }
    for each in &config.disks {
        disk::check(&each.source, &*ts.host).map_err(|cause| cause.about(format!("Disk {}", each.vdev)))?;
    }
    for each in &config.nics {
        let about = |cause: Cause| cause.about(format!("Network interface {}", each.devid));
        nic::check_bridge(each, &*ts.host).map_err(about)?;
    }
    Ok(())
}

/// Attaches each image file once; guest and stubdomain share the loop device.
pub(crate) fn attach_images(
    ts: &Toolstack,
    record: &mut GuestRecord,
    disks: &[Disk],
    open: &OpenDisks,
) -> Result<Backings, Cause> {
    let mut backings = Backings::new();
    for each in disks {
        let backing = disk::attach_image(ts, record, each, open.get(&each.vdev))
            .map_err(|cause| cause.about(describe(each)))?;
        backings.insert(each.vdev, backing);
    }
    Ok(backings)
}

/// Notes in the record which machine and devices QEMU emulates.
pub(crate) fn note_emulated(record: &mut GuestRecord, plan: &Plan) {
    let emulated = |disk: &StubDisk| EmulatedDisk { vdev: disk.guest_vdev, stub_vdev: disk.stub_vdev };
    record.machine = Some(plan.machine.to_owned());
    record.emulated_disks = plan.disks.iter().map(emulated).collect();
    record.emulated_nics = plan.nics.iter().map(|nic| nic.devid).collect();
}

/// Waits until each disk's and interface's backend has taken its device.
pub(crate) fn wait_for_backends(ts: &Toolstack, record: &GuestRecord) -> StepResult {
    let mut devices = Vec::new();
    for domid in record.own_numbers(ts)? {
        devices.extend(devices_of(ts, domid)?);
    }
    wait_for(ts, devices)
}

impl Initial<'_> {
    /// Writes the nodes of all disks and interfaces in one transaction: backends begin to work at once.
    pub(crate) fn write_nodes(&self, record: &GuestRecord, backings: &Backings) -> StepResult {
        let mut batch = Batch::new();
        for domid in [self.guest, self.stub] {
            // What an earlier domain of the number left would mix with what comes.
            for kind in DeviceKind::ALL {
                batch.remove(backend_parent(kind, DomId::DOM0, domid));
            }
        }
        for (domid, disk, vdev) in self.disks() {
            let (backing, pv) = (backing(backings, disk), domid == self.stub);
            let id = DeviceId::of_dom0(DeviceKind::Vbd, domid, vdev.devid());
            add_device(&mut batch, &disk_node(id, disk, backing, vdev, pv));
        }
        for vif in self.vifs() {
            vif.add_nodes(self.ts, &record.uuid, &mut batch);
        }
        batch.commit(&self.ts.xenstore)
    }

    /// Runs the scripts of disks that have one, for both users of each.
    pub(crate) fn run_disk_scripts(&self, record: &mut GuestRecord, backings: &Backings) -> StepResult {
        for (domid, each, vdev) in self.disks() {
            let DiskBacking::Script { script, .. } = backing(backings, each) else { continue };
            let id = DeviceId::of_dom0(DeviceKind::Vbd, domid, vdev.devid());
            disk::run_script(self.ts, record, script, id).map_err(|cause| cause.about(describe(each)))?;
        }
        Ok(())
    }

    /// Connects each interface with its bridge.
    pub(crate) fn connect_nics(&self, record: &mut GuestRecord) -> StepResult {
        let deadline = Instant::now() + self.ts.deadlines.backends;
        for vif in self.vifs() {
            let about = |cause: Cause| cause.about(format!("Network interface {}", vif.nic.devid));
            vif.connect(self.ts, record, deadline).map_err(about)?;
        }
        Ok(())
    }

    /// The guest's consoles: the primary one, and its channels.
    pub(crate) fn guest_consoles(&self, batch: &mut Batch, ring: (Gfn, EventPort)) {
        let guest = self.guest;
        add_device(batch, &console_node(guest, 0, "pty", Some(ring)));
        for (number, channel) in (1..).zip(&self.config.channels) {
            add_device(batch, &channel_node(guest, number, channel));
        }
    }

    /// The stubdomain's consoles: the primary one; 1 and 2, by which the state of its devices goes out and comes in; and
    /// from 3 on the guest's serial ports, and QEMU's monitor where it has one.
    ///
    /// Linux gives each secondary console the next free `hvc` number (`hvc_alloc`), whatever its own number, so that
    /// console 3 is `/dev/hvc3` only if all below it are there and come before it.
    pub(crate) fn stubdomain_consoles(&self, batch: &mut Batch, ring: (Gfn, EventPort)) {
        let (stub, plan) = (self.stub, self.plan);
        add_device(batch, &console_node(stub, 0, "pty", Some(ring)));
        for console in [StubConsole::StateOut, StubConsole::StateIn] {
            add_device(batch, &private_node(stub, console.number()));
        }
        for (serial, output) in plan.serials.iter().zip(&self.config.serials) {
            let output = match output {
                SerialOutput::Pty => "pty".to_owned(),
                SerialOutput::File(path) => format!("file:{path}"),
                SerialOutput::Null => "null".to_owned(),
            };
            add_device(batch, &console_node(stub, u32::from(serial.console.number()), &output, None));
        }
        if let Some(console) = plan.qmp {
            add_device(batch, &private_node(stub, console.number()));
        }
    }

    /// Each disk of each domain, with its name there: the guest's, and those that the stubdomain needs for its QEMU.
    fn disks(&self) -> Vec<(DomId, &Disk, Vdev)> {
        let disks = &self.config.disks;
        let with_medium = self.plan.disks.iter().filter(|disk| disk.medium);
        let of_stub =
            with_medium.filter_map(|disk| Some((self.stub, disks.get(disk.index)?, disk.stub_vdev)));
        disks.iter().map(|disk| (self.guest, disk, disk.vdev)).chain(of_stub).collect()
    }

    /// The users of each interface: the guest's PV driver, and for an emulated NIC the stubdomain.
    fn vifs(&self) -> Vec<Vif> {
        let nics = &self.config.nics;
        let of_guest = nics.iter().map(|nic| Vif { domid: self.guest, nic: nic.clone(), stub: false });
        let emulated = self.plan.nics.iter().filter_map(|nic| nics.get(nic.index));
        of_guest.chain(emulated.map(|nic| Vif { domid: self.stub, nic: nic.clone(), stub: true })).collect()
    }
}

fn backing<'b>(backings: &'b Backings, disk: &Disk) -> &'b DiskBacking {
    backings.get(&disk.vdev).unwrap_or(&DiskBacking::Empty)
}
