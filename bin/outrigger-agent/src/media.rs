//! A set of descriptors in QEMU for the medium of each CD drive, kept true while PV disks come and go.
//!
//! The toolstack changes a medium by taking the stubdomain's PV disk away and giving another one, then tells QEMU to
//! use the set of descriptors that carries `stub-devid:<devid>`. The set's own number is the PV disk's, which is
//! above 255 and so never meets a set that others number. It has one descriptor, read-only: a CD drive is.

use std::fs::File;
use std::os::fd::OwnedFd;

use serde_json::json;
use stubdom_abi::{StubDevid, harmless};

use crate::disks::{Change, PvDisk};
use crate::monitor::Request;
use crate::qemu::Asked;

/// What the monitor's answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The medium was given to QEMU.
    Added(u32),
    /// The medium was taken from QEMU.
    Removed(u32),
}

/// The commands for a change of a CD drive's PV disk, and a line for the log.
pub(crate) fn requests(
    change: &Change,
    open: impl Fn(&PvDisk) -> std::io::Result<File>,
) -> (Vec<Request<Asked>>, Option<String>) {
    match change {
        Change::Went(disk) => (vec![remove(disk.devid)], None),
        Change::Came(disk) => match open(disk) {
            Ok(file) => (vec![remove(disk.devid), add(disk.devid, file)], None),
            Err(error) => {
                (vec![remove(disk.devid)], Some(format!("cannot open the medium {}: {error}", disk.path())))
            }
        },
    }
}

/// The log line for QEMU's answer.
pub(crate) fn answered(step: Step, answer: &Result<serde_json::Value, String>) -> Option<String> {
    match (step, answer) {
        (Step::Added(devid), Ok(_)) => {
            Some(format!("QEMU has the medium of PV disk {devid} ({})", StubDevid(devid)))
        }
        (Step::Added(devid), Err(error)) => {
            Some(format!("QEMU refused the medium of PV disk {devid}: {}", harmless(error.as_bytes())))
        }
        // Most often there was none, or the toolstack removed it.
        (Step::Removed(_), _) => None,
    }
}

fn add(devid: u32, file: File) -> Request<Asked> {
    Request {
        purpose: Asked::Media(Step::Added(devid)),
        command: "add-fd",
        arguments: json!({"fdset-id": devid, "opaque": StubDevid(devid).to_string()}),
        file: Some(OwnedFd::from(file)),
    }
}

fn remove(devid: u32) -> Request<Asked> {
    Request {
        purpose: Asked::Media(Step::Removed(devid)),
        command: "remove-fd",
        arguments: json!({"fdset-id": devid}),
        file: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> PvDisk {
        PvDisk { devid: 51728, name: "xvdb".to_owned(), sequence: 3 }
    }

    fn commands(change: &Change) -> Vec<(&'static str, String, bool)> {
        let (requests, _) = requests(change, |_| File::open("/dev/null"));
        requests.into_iter().map(|r| (r.command, r.arguments.to_string(), r.file.is_some())).collect()
    }

    #[test]
    fn a_medium_that_comes_replaces_what_was_there() {
        assert_eq!(
            commands(&Change::Came(disk())),
            [
                ("remove-fd", r#"{"fdset-id":51728}"#.to_owned(), false),
                ("add-fd", r#"{"fdset-id":51728,"opaque":"stub-devid:51728"}"#.to_owned(), true),
            ]
        );
    }

    #[test]
    fn a_medium_that_goes_is_taken_from_qemu() {
        assert_eq!(
            commands(&Change::Went(disk())),
            [("remove-fd", r#"{"fdset-id":51728}"#.to_owned(), false)]
        );
    }

    #[test]
    fn a_medium_that_cannot_be_opened_is_told() {
        let (requests, told) = requests(&Change::Came(disk()), |_| Err(std::io::ErrorKind::NotFound.into()));
        assert_eq!(requests.len(), 1);
        assert!(told.unwrap().contains("/dev/xvdb"));
    }
}
