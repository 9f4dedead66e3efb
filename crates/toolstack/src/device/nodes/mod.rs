//! The nodes of PV devices: pure, from values to writes.
//!
//! Paths, values and permissions are those that libxl 4.17 writes (`libxl__device_generic_add` and the `device_*_add`
//! functions in `tools/libs/light`).

mod console;
mod disk;
mod nic;

use xenbus::{DeviceId, DeviceKind, XenbusState};
use xenstore::{Access, Permissions};

use crate::batch::Batch;
use crate::nodes::below;

pub(crate) use console::{channel_node, console_node, private_node};
pub(crate) use disk::{DiskBacking, disk_node};
pub(crate) use nic::{interface_name, nic_node, vif_name};

/// A PV device with its keys.
#[derive(Clone, Debug)]
pub(crate) struct DeviceNode {
    pub(crate) id: DeviceId,
    /// What the backend reads.
    pub(crate) back: Vec<(&'static str, String)>,
    /// What the frontend reads and may change.
    pub(crate) front: Vec<(&'static str, String)>,
    /// What the frontend may only read.
    pub(crate) fixed: Vec<(&'static str, String)>,
}

impl DeviceNode {
    /// A device with what every backend and frontend has.
    pub(crate) fn new(id: DeviceId) -> Self {
        let state = ("state", XenbusState::Initialising.to_string());
        let back = vec![("frontend-id", id.frontend.to_string()), ("online", "1".to_owned()), state.clone()];
        let front = vec![("backend-id", id.backend.to_string()), state];
        Self { id, back, front, fixed: Vec::new() }
    }

    pub(crate) fn back(&mut self, key: &'static str, value: impl Into<String>) -> &mut Self {
        self.back.push((key, value.into()));
        self
    }

    pub(crate) fn front(&mut self, key: &'static str, value: impl Into<String>) -> &mut Self {
        self.front.push((key, value.into()));
        self
    }

    pub(crate) fn fixed(&mut self, key: &'static str, value: impl Into<String>) -> &mut Self {
        self.fixed.push((key, value.into()));
        self
    }
}

/// Both ends of a device, and the toolstack's copy (`libxl__device_generic_add`).
pub(crate) fn add_device(batch: &mut Batch, node: &DeviceNode) {
    let id = node.id;
    let (front, back, copy) = (id.front(), id.back(), id.copy());
    batch.write(&below(&copy, "frontend"), front.as_str());
    batch.write(&below(&copy, "backend"), back.as_str());

    let theirs = Permissions::owned_by(id.frontend).allow(id.backend, Access::Read);
    let ours = Permissions::owned_by(id.backend).allow(id.frontend, Access::Read);
    // Below the first console's directory are things that the guest must not change (XSA-57).
    let primary = id.is_primary_console();
    batch.make(&front, if primary { &ours } else { &theirs });
    batch.write(&below(&front, "backend"), back.as_str());
    for (keys, permissions, inherited) in [(&node.front, &theirs, !primary), (&node.fixed, &ours, primary)] {
        for (key, value) in keys {
            // A new node has its parent's permissions, so that half of the requests is saved.
            if inherited {
                batch.write(&below(&front, key), value);
            } else {
                batch.write_with(&below(&front, key), value, permissions);
            }
        }
    }

    batch.make(&back, &ours);
    batch.write(&below(&back, "frontend"), front.as_str());
    for (key, value) in &node.back {
        batch.write(&below(&back, key), value);
        // Stock tools show disks and interfaces from the copy; nobody reads that of a console.
        if id.kind != DeviceKind::Console {
            batch.write(&below(&copy, key), value);
        }
    }
}
