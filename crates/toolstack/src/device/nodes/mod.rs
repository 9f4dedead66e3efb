//! The nodes of PV devices: pure, from values to writes.
//!
//! Paths, values and permissions are those that libxl 4.17 writes (`libxl__device_generic_add` and the `device_*_add`
//! functions in `tools/libs/light`).

mod console;
mod disk;
mod nic;

use xen_types::DomId;
use xenstore::{Access, Permissions, XsPath};

use crate::batch::Batch;
use crate::nodes::{below, libxl_dir};

pub(crate) use console::{channel_node, console_node, monitor_node};
pub(crate) use disk::{DiskBacking, disk_node};
pub(crate) use nic::{interface_name, nic_node, vif_name};

/// `XenbusStateInitialising` (`xen/include/public/io/xenbus.h`): where both ends of a device begin.
const INITIALISING: &str = "1";

/// The kinds of PV devices that are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DeviceKind {
    Vbd,
    Vif,
    Console,
}

impl DeviceKind {
    pub(crate) const ALL: [Self; 3] = [Self::Vbd, Self::Vif, Self::Console];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vif => "vif",
            Self::Console => "console",
        }
    }
}

/// A PV device of one domain, with its backend in dom0.
#[derive(Clone, Debug)]
pub(crate) struct DeviceNode {
    pub(crate) kind: DeviceKind,
    pub(crate) devid: u32,
    /// What the backend reads.
    pub(crate) back: Vec<(&'static str, String)>,
    /// What the frontend reads and may change.
    pub(crate) front: Vec<(&'static str, String)>,
    /// What the frontend may only read.
    pub(crate) fixed: Vec<(&'static str, String)>,
}

impl DeviceNode {
    /// A device with what every backend and frontend has.
    pub(crate) fn new(kind: DeviceKind, devid: u32, frontend: DomId) -> Self {
        let back = vec![
            ("frontend-id", frontend.to_string()),
            ("online", "1".to_owned()),
            ("state", INITIALISING.to_owned()),
        ];
        let front = vec![("backend-id", "0".to_owned()), ("state", INITIALISING.to_owned())];
        Self { kind, devid, back, front, fixed: Vec::new() }
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

    /// The first console lies at another place than all other devices, and knows no states.
    fn is_primary_console(&self) -> bool {
        self.kind == DeviceKind::Console && self.devid == 0
    }
}

/// Which PV device of which domain; its backend is in dom0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeviceId {
    pub(crate) kind: DeviceKind,
    pub(crate) frontend: DomId,
    pub(crate) devid: u32,
}

impl DeviceId {
    pub(crate) const fn new(kind: DeviceKind, frontend: DomId, devid: u32) -> Self {
        Self { kind, frontend, devid }
    }

    /// The frontend's directory.
    pub(crate) fn front(self) -> XsPath {
        frontend_dir(self.kind, self.frontend, self.devid)
    }

    /// The backend's directory.
    pub(crate) fn back(self) -> XsPath {
        backend_dir(self.kind, self.frontend, self.devid)
    }

    /// The backend's directory as its driver and scripts name it, below `/local/domain/0`.
    pub(crate) fn backend_name(self) -> String {
        format!("backend/{}/{}/{}", self.kind.name(), self.frontend, self.devid)
    }

    /// The toolstack's copy.
    pub(crate) fn copy(self) -> XsPath {
        below(&libxl_dir(self.frontend), &format!("device/{}/{}", self.kind.name(), self.devid))
    }

    /// All its directories, and where Linux's xenbus writes the errors of its backend.
    pub(crate) fn all(self) -> [XsPath; 4] {
        let error = format!("error/{}", self.backend_name());
        [self.front(), self.back(), self.copy(), below(&XsPath::domain(DomId::DOM0), &error)]
    }

    /// The directories above that go with the last device in them, the lowest first.
    pub(crate) fn shared(self) -> Vec<XsPath> {
        let kind = self.kind.name();
        let dom0 = XsPath::domain(DomId::DOM0);
        let mut shared = vec![
            below(&XsPath::domain(self.frontend), &format!("device/{kind}")),
            below(&libxl_dir(self.frontend), &format!("device/{kind}")),
            backend_parent(self.kind, self.frontend),
            below(&dom0, &format!("backend/{kind}")),
            below(&dom0, "backend"),
        ];
        shared.extend(
            [format!("error/backend/{kind}/{}", self.frontend), format!("error/backend/{kind}")]
                .iter()
                .map(|name| below(&dom0, name)),
        );
        shared
    }
}

/// `/local/domain/0/backend/<kind>/<domid>`: the backends of one domain's devices of one kind.
pub(crate) fn backend_parent(kind: DeviceKind, frontend: DomId) -> XsPath {
    below(&XsPath::domain(DomId::DOM0), &format!("backend/{}/{frontend}", kind.name()))
}

/// `/local/domain/0/backend/<kind>/<domid>/<devid>`.
pub(crate) fn backend_dir(kind: DeviceKind, frontend: DomId, devid: u32) -> XsPath {
    below(&backend_parent(kind, frontend), &devid.to_string())
}

/// `/local/domain/<domid>/device/<kind>/<devid>`, or `/local/domain/<domid>/console`.
pub(crate) fn frontend_dir(kind: DeviceKind, frontend: DomId, devid: u32) -> XsPath {
    let dir = XsPath::domain(frontend);
    if kind == DeviceKind::Console && devid == 0 {
        return below(&dir, "console");
    }
    below(&dir, &format!("device/{}/{devid}", kind.name()))
}

/// Both ends of a device, and the toolstack's copy (`libxl__device_generic_add`).
pub(crate) fn add_device(batch: &mut Batch, frontend: DomId, node: &DeviceNode) {
    let id = DeviceId::new(node.kind, frontend, node.devid);
    let (front, back, copy) = (id.front(), id.back(), id.copy());
    batch.write(&below(&copy, "frontend"), front.as_str());
    batch.write(&below(&copy, "backend"), back.as_str());

    let theirs = Permissions::owned_by(frontend).allow(DomId::DOM0, Access::Read);
    let ours = Permissions::owned_by(DomId::DOM0).allow(frontend, Access::Read);
    // Below the first console's directory are things that the guest must not change (XSA-57).
    let primary = node.is_primary_console();
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
        if node.kind != DeviceKind::Console {
            batch.write(&below(&copy, key), value);
        }
    }
}
