//! Where everything is in xenstore, and with which permissions.

use xen_types::DomId;
use xenstore::{Access, PathError, Permissions, RelPath, XsPath};

use crate::StubConsole;

/// One key of `/local/domain/<stub>/device-model/<target>/`.
///
/// The directory belongs to the stubdomain, the target may read it ([`device_model_permissions`]). Nothing found
/// in it may be trusted: [`crate::StubReport`] reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DmKey {
    /// `state`: written by QEMU, `running` when it is ready ([`crate::DmState`]).
    State,
    /// `command`: written by the toolstack, the older PCI hot-plug protocol.
    Command,
    /// `parameter`: the older PCI hot-plug protocol, in both directions.
    Parameter,
    /// `features`: written by the agent before QEMU starts ([`crate::Features`]).
    Features,
    /// `agent/version`: the agent's name and version, a text for people.
    AgentVersion,
    /// `agent/step`: the step of its start that the agent is at, or `serving` once QEMU was started; for people, but for
    /// [`HELD_STEP`](crate::HELD_STEP).
    AgentStep,
    /// `agent/heartbeat`: seconds since the stubdomain's start ([`crate::Heartbeat`]).
    AgentHeartbeat,
    /// `agent/exit`: how the device model ended ([`crate::AgentExit`]).
    AgentExit,
    /// `qmp-vchan`: the directory in which the stubdomain offers its vchan with QEMU's monitor.
    QmpVchan,
    /// `vnc-vchan`: the same for the graphics.
    VncVchan,
    /// `state-vchan`: the same for the framed device state.
    StateVchan,
    /// `state-end`: written by the toolstack when QEMU has written its whole state; removed by the agent before the
    /// framed stream's end.
    StateEnd,
    /// `start`: written by the toolstack when a QEMU that is held ([`HOLD_WORD`](crate::HOLD_WORD)) is to start; removed
    /// by the agent as it starts it.
    Start,
}

impl DmKey {
    /// The key's path below the device-model directory.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Command => "command",
            Self::Parameter => "parameter",
            Self::Features => "features",
            Self::AgentVersion => "agent/version",
            Self::AgentStep => "agent/step",
            Self::AgentHeartbeat => "agent/heartbeat",
            Self::AgentExit => "agent/exit",
            Self::QmpVchan => "qmp-vchan",
            Self::VncVchan => "vnc-vchan",
            Self::StateVchan => "state-vchan",
            Self::StateEnd => "state-end",
            Self::Start => "start",
        }
    }

    /// The key's path as the toolstack names it.
    #[must_use]
    pub fn path(self, stub: DomId, target: DomId) -> XsPath {
        below(&device_model_dir(stub, target), self.name())
    }

    /// The key's path as the stubdomain names it, relative to its own directory.
    #[must_use]
    pub fn own_path(self, target: DomId) -> RelPath {
        own(&format!("device-model/{target}/{}", self.name()))
    }
}

/// `/local/domain/<stub>/device-model/<target>`, made by the toolstack with [`device_model_permissions`] before
/// the stubdomain runs.
#[must_use]
pub fn device_model_dir(stub: DomId, target: DomId) -> XsPath {
    below(&XsPath::domain(stub), &format!("device-model/{target}"))
}

/// Permissions of [`device_model_dir`]: the stubdomain's own, readable by the target.
#[must_use]
pub fn device_model_permissions(stub: DomId, target: DomId) -> Permissions {
    Permissions::owned_by(stub).allow(target, Access::Read)
}

/// `/local/domain/<stub>/target`: the domid of the guest that the stubdomain serves, decimal. It is written before
/// the stubdomain is unpaused: its kernel restricts privcmd to this domain (XSA-482).
#[must_use]
pub fn stub_target(stub: DomId) -> XsPath {
    below(&XsPath::domain(stub), "target")
}

/// The stubdomain's own name for [`stub_target`].
#[must_use]
pub fn own_target() -> RelPath {
    own("target")
}

/// `/local/domain/<domid>/vm`: holds the path `/vm/<uuid>` of that domain.
#[must_use]
pub fn vm_link(domid: DomId) -> XsPath {
    below(&XsPath::domain(domid), "vm")
}

/// `/local/domain/<target>/image/device-model-domid`: the stubdomain's domid, decimal; how tools find it.
#[must_use]
pub fn device_model_domid(target: DomId) -> XsPath {
    below(&XsPath::domain(target), "image/device-model-domid")
}

/// `/vm/<uuid>`, of the uuid in its usual form with hyphens.
///
/// # Errors
/// When the text is empty or has characters that a xenstore path may not have.
pub fn vm_dir(uuid: &str) -> Result<XsPath, PathError> {
    XsPath::new(format!("/vm/{uuid}"))
}

/// `<vm>/image/dm-argv`: the directory of the arguments, one key each ([`crate::Argv::to_keys`]). `vm` is what
/// [`vm_link`] of the *target* holds. Made with [`argv_permissions`].
///
/// # Errors
/// When `vm` is so long that nothing fits below it.
pub fn dm_argv_dir(vm: &XsPath) -> Result<XsPath, PathError> {
    vm.join("image/dm-argv")
}

/// `<vm>/image/dmargs`: the older form, one value ([`crate::Argv::to_dmargs`]). Made with [`argv_permissions`].
///
/// # Errors
/// When `vm` is so long that nothing fits below it.
pub fn dmargs(vm: &XsPath) -> Result<XsPath, PathError> {
    vm.join("image/dmargs")
}

/// Permissions of [`dm_argv_dir`], its keys and [`dmargs`]: domain 0's own, nobody else's, readable by the stub.
#[must_use]
pub fn argv_permissions(stub: DomId) -> Permissions {
    Permissions::owned_by(DomId::DOM0).allow(stub, Access::Read)
}

/// `/local/domain/<stub>/control/shutdown`: `poweroff` written here stops QEMU and ends the stubdomain.
#[must_use]
pub fn control_shutdown(stub: DomId) -> XsPath {
    below(&XsPath::domain(stub), "control/shutdown")
}

/// The stubdomain's own name for [`control_shutdown`].
#[must_use]
pub fn own_control_shutdown() -> RelPath {
    own("control/shutdown")
}

/// The frontend's directory of a stubdomain's console: `/local/domain/<stub>/console` for the log, and
/// `/local/domain/<stub>/device/console/<n>` for every other.
#[must_use]
pub fn console_frontend(stub: DomId, console: StubConsole) -> XsPath {
    below(&XsPath::domain(stub), own_console(console).as_str())
}

/// The stubdomain's own name for [`console_frontend`]. It tells whether the console exists.
#[must_use]
pub fn own_console(console: StubConsole) -> RelPath {
    match console {
        StubConsole::Log => own("console"),
        _ => own(&format!("device/console/{}", console.number())),
    }
}

/// The backend's directory of a stubdomain's console: `/local/domain/<backend>/backend/console/<stub>/<n>`.
#[must_use]
pub fn console_backend(backend: DomId, stub: DomId, console: StubConsole) -> XsPath {
    below(&XsPath::domain(backend), &format!("backend/console/{stub}/{}", console.number()))
}

fn below(parent: &XsPath, name: &str) -> XsPath {
    parent.join(name).expect("a domain's directory and a few short words make a path")
}

fn own(name: &str) -> RelPath {
    RelPath::new(name).expect("a few short words make a path")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dom(n: u16) -> DomId {
        DomId::new(n).unwrap()
    }

    #[test]
    fn both_sides_name_the_same_nodes() {
        let (stub, target) = (dom(8), dom(7));
        let own = |path: RelPath| path.of_domain(stub).unwrap();
        assert_eq!(own(DmKey::AgentExit.own_path(target)), DmKey::AgentExit.path(stub, target));
        assert_eq!(own(own_target()), stub_target(stub));
        assert_eq!(own(own_control_shutdown()), control_shutdown(stub));
        assert_eq!(own(own_console(StubConsole::StateIn)), console_frontend(stub, StubConsole::StateIn));
        assert_eq!(DmKey::State.path(stub, target).as_str(), "/local/domain/8/device-model/7/state");
    }

    #[test]
    fn the_primary_console_is_not_below_device() {
        assert_eq!(console_frontend(dom(8), StubConsole::Log).as_str(), "/local/domain/8/console");
        let serial = StubConsole::serial(1).unwrap();
        assert_eq!(console_frontend(dom(8), serial).as_str(), "/local/domain/8/device/console/4");
        assert_eq!(
            console_backend(DomId::DOM0, dom(8), serial).as_str(),
            "/local/domain/0/backend/console/8/4"
        );
    }

    #[test]
    fn only_the_stub_and_dom0_read_the_arguments() {
        let permissions = argv_permissions(dom(8));
        assert_eq!(permissions.to_string(), "n0,r8");
        assert_eq!(permissions.access(dom(7)), Access::None);
        assert_eq!(device_model_permissions(dom(8), dom(7)).to_string(), "n8,r7");
    }

    #[test]
    fn arguments_are_below_the_targets_vm() {
        let vm = vm_dir("1b4e28ba-2fa1-11d2-883f-0016d3cca427").unwrap();
        assert_eq!(
            dm_argv_dir(&vm).unwrap().join("001").unwrap().as_str(),
            "/vm/1b4e28ba-2fa1-11d2-883f-0016d3cca427/image/dm-argv/001"
        );
        assert_eq!(dmargs(&vm).unwrap().file_name(), Some("dmargs"));
        assert!(vm_dir("../etc").is_err());
    }
}
