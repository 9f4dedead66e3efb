//! A set of descriptors in QEMU for the medium of each CD drive, kept up to date while PV disks come and go.
//!
//! The toolstack changes a medium by removing the stubdomain's PV disk and attaching another one, then tells QEMU to
//! use the set of descriptors that carries `stub-devid:<devid>`. The set's own number is the PV disk's, which is
//! above 255 and so never meets a set that others number. It has one descriptor, read-only: a CD drive is.

use serde_json::{Value, json};
use stubdom_abi::{StubDevid, harmless};

use crate::effect::Effect;
use crate::qmp::{Command, Purpose};

/// A PV disk that has connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PvDisk {
    /// Its number (`device/vbd/<devid>`).
    pub(crate) devid: u32,
    /// Its device's name, such as `xvda`.
    pub(crate) name: String,
    /// The kernel's count of disks when this one came: tells it from another of the same number and name.
    pub(crate) sequence: u64,
}

impl PvDisk {
    /// Its device.
    pub(crate) fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }
}

/// What happened to a PV disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It connected.
    Came(PvDisk),
    /// It was removed.
    Went(PvDisk),
}

/// What a change means for QEMU's `/dev`.
pub(crate) fn device(change: &Change) -> Effect {
    match change {
        Change::Came(disk) => Effect::GrantDevice(disk.name.clone()),
        Change::Went(disk) => Effect::RevokeDevice(disk.name.clone()),
    }
}

/// What a change of a CD drive's PV disk means for QEMU's sets of descriptors.
pub(crate) fn descriptors(change: &Change) -> Vec<Effect> {
    match change {
        Change::Went(disk) => vec![remove(disk.devid)],
        Change::Came(disk) => vec![remove(disk.devid), add(disk)],
    }
}

/// Takes QEMU's answer to the command that adds the medium of this PV disk.
pub(crate) fn added(devid: u32, answer: &Result<Value, String>) -> Effect {
    Effect::Log(match answer {
        Ok(_) => format!("QEMU has the medium of PV disk {devid} ({})", StubDevid(devid)),
        Err(error) => format!("QEMU refused the medium of PV disk {devid}: {}", harmless(error.as_bytes())),
    })
}

fn add(disk: &PvDisk) -> Effect {
    let devid = disk.devid;
    let command = Command {
        purpose: Purpose::AddMedium(devid),
        name: "add-fd",
        arguments: json!({"fdset-id": devid, "opaque": StubDevid(devid).to_string()}),
    };
    Effect::PassDisk(command, disk.path())
}

fn remove(devid: u32) -> Effect {
    Effect::Ask(Command {
        purpose: Purpose::RemoveMedium(devid),
        name: "remove-fd",
        arguments: json!({"fdset-id": devid}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> PvDisk {
        PvDisk { devid: 51728, name: "xvdb".to_owned(), sequence: 3 }
    }

    fn commands(change: &Change) -> Vec<(&'static str, String, Option<String>)> {
        let command = |effect| match effect {
            Effect::Ask(command) => (command.name, command.arguments.to_string(), None),
            Effect::PassDisk(command, disk) => (command.name, command.arguments.to_string(), Some(disk)),
            other => panic!("no command: {other:?}"),
        };
        descriptors(change).into_iter().map(command).collect()
    }

    #[test]
    fn a_medium_that_comes_replaces_what_was_there() {
        assert_eq!(
            commands(&Change::Came(disk())),
            [
                ("remove-fd", r#"{"fdset-id":51728}"#.to_owned(), None),
                (
                    "add-fd",
                    r#"{"fdset-id":51728,"opaque":"stub-devid:51728"}"#.to_owned(),
                    Some("/dev/xvdb".to_owned())
                ),
            ]
        );
    }

    #[test]
    fn a_medium_that_goes_is_removed_from_qemu() {
        assert_eq!(
            commands(&Change::Went(disk())),
            [("remove-fd", r#"{"fdset-id":51728}"#.to_owned(), None)]
        );
    }

    #[test]
    fn qemus_dev_has_the_disks_that_are_present() {
        assert_eq!(device(&Change::Came(disk())), Effect::GrantDevice("xvdb".to_owned()));
        assert_eq!(device(&Change::Went(disk())), Effect::RevokeDevice("xvdb".to_owned()));
    }

    #[test]
    fn qemus_answer_is_logged() {
        let logged = |answer| match added(51728, &answer) {
            Effect::Log(line) => line,
            other => panic!("no line: {other:?}"),
        };
        assert_eq!(logged(Ok(json!({}))), "QEMU has the medium of PV disk 51728 (stub-devid:51728)");
        assert_eq!(logged(Err("no\n".to_owned())), "QEMU refused the medium of PV disk 51728: no?");
    }
}
