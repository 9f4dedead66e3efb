//! What the machines want done: the loop performs it, in order.

use stubdom_abi::DmKey;

use crate::qmp::Command;

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// Write a line to the log.
    Log(String),
    /// Log how QEMU is confined.
    LogConfinement,
    /// Write a key of the stubdomain's directory.
    Write(DmKey, String),
    /// Offer dom0 the vchans to QEMU.
    OpenBridges,
    /// Let QEMU open this device of the stubdomain's `/dev`.
    GrantDevice(String),
    /// Remove this device from QEMU's `/dev`.
    RevokeDevice(String),
    /// Send QEMU a command.
    Ask(Command),
    /// Send QEMU a command with a descriptor of the disk with this path; only log it if the disk cannot be opened.
    PassDisk(Command, String),
    /// Let the launcher that waits become QEMU.
    Continue,
    /// Ask QEMU to end.
    Terminate,
    /// Kill QEMU.
    Kill,
    /// End the domain: power off when clean, else crash.
    End { clean: bool },
}
