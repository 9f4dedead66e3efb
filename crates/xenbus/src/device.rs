use xen_types::DomId;
use xenstore::XsPath;

/// A kind of PV device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKind {
    /// A disk.
    Vbd,
    /// A network interface.
    Vif,
    /// A console.
    Console,
}

impl DeviceKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vbd, Self::Vif, Self::Console];

    /// Its name in paths of xenstore.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vif => "vif",
            Self::Console => "console",
        }
    }
}

/// Which PV device: its kind and number in the domain that uses it, and the domain that serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// Its kind.
    pub kind: DeviceKind,
    /// The domain that uses it.
    pub frontend: DomId,
    /// Its number among the frontend's devices of its kind.
    pub devid: u32,
    /// The domain that serves it.
    pub backend: DomId,
}

impl DeviceId {
    /// A device that dom0 serves.
    #[must_use]
    pub const fn of_dom0(kind: DeviceKind, frontend: DomId, devid: u32) -> Self {
        Self { kind, frontend, devid, backend: DomId::DOM0 }
    }

    /// Whether it is its domain's first console, whose frontend's directory has another place than those of all other
    /// devices, and which has no states.
    #[must_use]
    pub fn is_primary_console(self) -> bool {
        self.kind == DeviceKind::Console && self.devid == 0
    }

    /// The frontend's directory: `/local/domain/<frontend>/device/<kind>/<devid>`, or
    /// `/local/domain/<frontend>/console`.
    #[must_use]
    pub fn front(self) -> XsPath {
        if self.is_primary_console() {
            return of_domain(self.frontend, "console");
        }
        of_domain(self.frontend, &format!("device/{}/{}", self.kind.name(), self.devid))
    }

    /// The backend's directory: `/local/domain/<backend>/backend/<kind>/<frontend>/<devid>`.
    #[must_use]
    pub fn back(self) -> XsPath {
        of_domain(self.backend, &self.backend_name())
    }

    /// The backend's directory as its driver and scripts name it, below the directory of the backend's domain.
    #[must_use]
    pub fn backend_name(self) -> String {
        format!("backend/{}/{}/{}", self.kind.name(), self.frontend, self.devid)
    }

    /// Where Linux's xenbus writes the backend's errors.
    #[must_use]
    pub fn errors(self) -> XsPath {
        of_domain(self.backend, &format!("error/{}", self.backend_name()))
    }

    /// The toolstack's copy: `/libxl/<frontend>/device/<kind>/<devid>`.
    #[must_use]
    pub fn copy(self) -> XsPath {
        of_libxl(self.frontend, &format!("device/{}/{}", self.kind.name(), self.devid))
    }

    /// All its directories, and that of its backend's errors.
    #[must_use]
    pub fn all(self) -> [XsPath; 4] {
        [self.front(), self.back(), self.copy(), self.errors()]
    }

    /// The directories above that are removed with the last device in them, the lowest first.
    #[must_use]
    pub fn shared(self) -> [XsPath; 7] {
        let Self { kind, frontend, backend, .. } = self;
        let devices = format!("device/{}", kind.name());
        [
            of_domain(frontend, &devices),
            of_libxl(frontend, &devices),
            backend_parent(kind, backend, frontend),
            kind_dir(kind, backend),
            of_domain(backend, "backend"),
            errors_parent(kind, backend, frontend),
            errors_dir(kind, backend),
        ]
    }
}

/// `/local/domain/<backend>/backend/<kind>`: the backends of all domains' devices of a kind.
#[must_use]
pub fn kind_dir(kind: DeviceKind, backend: DomId) -> XsPath {
    of_domain(backend, &format!("backend/{}", kind.name()))
}

/// `/local/domain/<backend>/backend/<kind>/<frontend>`: the backends of one domain's devices of a kind.
#[must_use]
pub fn backend_parent(kind: DeviceKind, backend: DomId, frontend: DomId) -> XsPath {
    of_domain(backend, &format!("backend/{}/{frontend}", kind.name()))
}

/// `/local/domain/<backend>/error/backend/<kind>`: the errors of all backends of a kind.
#[must_use]
pub fn errors_dir(kind: DeviceKind, backend: DomId) -> XsPath {
    of_domain(backend, &format!("error/backend/{}", kind.name()))
}

/// `/local/domain/<backend>/error/backend/<kind>/<frontend>`: the errors of the backends of one domain's devices of a
/// kind.
#[must_use]
pub fn errors_parent(kind: DeviceKind, backend: DomId, frontend: DomId) -> XsPath {
    of_domain(backend, &format!("error/backend/{}/{frontend}", kind.name()))
}

fn of_domain(domid: DomId, name: &str) -> XsPath {
    XsPath::domain(domid).join(name).expect("a few short words and numbers make a path")
}

fn of_libxl(domid: DomId, name: &str) -> XsPath {
    XsPath::new(format!("/libxl/{domid}/{name}")).expect("a few short words and numbers make a path")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domid(number: u16) -> DomId {
        DomId::new(number).unwrap()
    }

    #[test]
    fn a_devices_directories_follow_from_its_identity() {
        let id = DeviceId { kind: DeviceKind::Vbd, frontend: domid(7), devid: 768, backend: domid(3) };
        assert_eq!(id.backend_name(), "backend/vbd/7/768");
        assert_eq!(
            id.all().map(|path| path.to_string()),
            [
                "/local/domain/7/device/vbd/768",
                "/local/domain/3/backend/vbd/7/768",
                "/libxl/7/device/vbd/768",
                "/local/domain/3/error/backend/vbd/7/768",
            ]
        );
        assert_eq!(
            id.shared().map(|path| path.to_string()),
            [
                "/local/domain/7/device/vbd",
                "/libxl/7/device/vbd",
                "/local/domain/3/backend/vbd/7",
                "/local/domain/3/backend/vbd",
                "/local/domain/3/backend",
                "/local/domain/3/error/backend/vbd/7",
                "/local/domain/3/error/backend/vbd",
            ]
        );
    }

    #[test]
    fn the_primary_console_has_a_frontend_of_its_own() {
        let front = |devid| DeviceId::of_dom0(DeviceKind::Console, domid(7), devid).front().to_string();
        assert_eq!(front(0), "/local/domain/7/console");
        assert_eq!(front(1), "/local/domain/7/device/console/1");
    }
}
