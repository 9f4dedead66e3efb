//! The errors of the interface `io.outrigger`, as its definition names them.

use serde::{Deserialize, Serialize};
use xen_types::DomId;

/// Every error of the interface.
pub const ERRORS: [&str; 20] = [
    "NoSuchGuest",
    "BadConfig",
    "NameTaken",
    "UuidTaken",
    "InUse",
    "Busy",
    "NotRunning",
    "Paused",
    "DeviceModelDead",
    "NoPvDrivers",
    "GuestDidNotAcknowledge",
    "GuestDidNotRelease",
    "NeedsForce",
    "TrayLocked",
    "NoSuchDevice",
    "DeviceExists",
    "NotMigrated",
    "Unresolved",
    "StepFailed",
    "Failed",
];

/// Why the daemon did not do what a client asked for: an error of the interface, with its parameters.
///
/// A program decides by the variant; `message` and the hint are for people. All but [`StepFailed`](Self::StepFailed),
/// [`Failed`](Self::Failed) and [`Unresolved`](Self::Unresolved) leave everything as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "error", content = "parameters")]
pub enum Refusal {
    /// No guest has that name, uuid or domid.
    NoSuchGuest {
        /// As in the request.
        guest: String,
    },
    /// The configuration is wrong.
    BadConfig {
        /// Rendered for a person.
        diagnostics: String,
    },
    /// Another domain has the name.
    NameTaken {
        /// The name.
        name: String,
        /// The domain that has it.
        domid: DomId,
    },
    /// Another guest has the UUID.
    UuidTaken {
        /// The UUID in its usual text form.
        uuid: String,
        /// For people.
        message: String,
    },
    /// The disk is in use, and one of the two would write.
    InUse {
        /// The file or block device.
        path: String,
        /// For people: who uses it, and what to do.
        message: String,
    },
    /// Another job of this guest is in progress.
    Busy {
        /// The guest's name.
        guest: String,
        /// The job in progress.
        lifecycle: String,
    },
    /// The guest has ended or its domain is gone.
    NotRunning {
        /// The guest's name.
        guest: String,
        /// For people.
        message: String,
    },
    /// The guest is paused.
    Paused {
        /// The guest's name.
        guest: String,
        /// For people.
        message: String,
    },
    /// The guest's device model has ended.
    DeviceModelDead {
        /// The guest's name.
        guest: String,
        /// For people.
        message: String,
    },
    /// The guest has no PV drivers, which would receive the request.
    NoPvDrivers {
        /// The guest's name.
        guest: String,
        /// For people.
        message: String,
    },
    /// The guest's PV drivers did not acknowledge the request in time; it was withdrawn.
    GuestDidNotAcknowledge {
        /// The guest's name.
        guest: String,
        /// For people.
        message: String,
    },
    /// The guest did not release the device in time.
    GuestDidNotRelease {
        /// The guest's name.
        guest: String,
        /// The device.
        device: String,
        /// For people.
        message: String,
    },
    /// The guest cannot be asked to release the device.
    NeedsForce {
        /// The guest's name.
        guest: String,
        /// The device.
        device: String,
        /// For people.
        message: String,
    },
    /// The guest has locked the drive's tray, and was asked to open it.
    TrayLocked {
        /// The guest's name.
        guest: String,
        /// The drive.
        vdev: String,
        /// For people.
        message: String,
    },
    /// The guest has no such device.
    NoSuchDevice {
        /// The guest's name.
        guest: String,
        /// As in the request.
        device: String,
        /// For people.
        message: String,
    },
    /// The guest has such a device already.
    DeviceExists {
        /// The guest's name.
        guest: String,
        /// The device.
        device: String,
        /// For people.
        message: String,
    },
    /// The guest was not migrated, and runs here.
    NotMigrated {
        /// The guest's name.
        guest: String,
        /// The other host.
        host: String,
        /// The other host may still wait for the guest, until `MigrateResolve` tells it.
        waits: bool,
        /// For people.
        message: String,
    },
    /// The guest was handed over to another host, which has not answered: it is suspended here and may run there.
    Unresolved {
        /// The guest's name.
        guest: String,
        /// The other host; empty if it is not known.
        host: String,
        /// For people.
        message: String,
    },
    /// A step failed; completed steps were undone.
    StepFailed {
        /// The lifecycle's name.
        lifecycle: String,
        /// What names the step to programs, within its lifecycle. Empty from older daemons.
        #[serde(default)]
        id: String,
        /// What the step does, for people.
        step: String,
        /// What was tried, on what.
        message: String,
        /// Why, outermost first.
        causes: Vec<String>,
        /// What the user can do.
        hint: Option<String>,
        /// What could not be undone.
        undo_failures: Vec<String>,
        /// The last lines of the stubdomain's log.
        log: Vec<String>,
    },
    /// Xen or xenstore refused, or could not be reached; or a reason without an error of its own.
    Failed {
        /// What was tried, on what.
        message: String,
        /// Why, outermost first.
        causes: Vec<String>,
        /// What the user can do.
        hint: Option<String>,
    },
}

impl Refusal {
    /// The error's name without the interface.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoSuchGuest { .. } => "NoSuchGuest",
            Self::BadConfig { .. } => "BadConfig",
            Self::NameTaken { .. } => "NameTaken",
            Self::UuidTaken { .. } => "UuidTaken",
            Self::InUse { .. } => "InUse",
            Self::Busy { .. } => "Busy",
            Self::NotRunning { .. } => "NotRunning",
            Self::Paused { .. } => "Paused",
            Self::DeviceModelDead { .. } => "DeviceModelDead",
            Self::NoPvDrivers { .. } => "NoPvDrivers",
            Self::GuestDidNotAcknowledge { .. } => "GuestDidNotAcknowledge",
            Self::GuestDidNotRelease { .. } => "GuestDidNotRelease",
            Self::NeedsForce { .. } => "NeedsForce",
            Self::TrayLocked { .. } => "TrayLocked",
            Self::NoSuchDevice { .. } => "NoSuchDevice",
            Self::DeviceExists { .. } => "DeviceExists",
            Self::NotMigrated { .. } => "NotMigrated",
            Self::Unresolved { .. } => "Unresolved",
            Self::StepFailed { .. } => "StepFailed",
            Self::Failed { .. } => "Failed",
        }
    }

    /// What the user can do about it, if the error's own text does not say it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoSuchGuest { .. } => Some("`outrigger list` shows the guests"),
            Self::NameTaken { .. } => Some("destroy that domain, or choose another name="),
            Self::Busy { .. } => Some("`outrigger events` shows when it ends"),
            Self::NotRunning { .. } => Some("`outrigger list` shows the guest's state"),
            Self::Paused { .. } => Some("unpause it first"),
            Self::DeviceModelDead { .. } => Some("`outrigger dm-log` shows QEMU's last log lines"),
            Self::NoPvDrivers { .. } => None,
            Self::GuestDidNotAcknowledge { .. } => Some("it may still be booting, or hang"),
            Self::GuestDidNotRelease { .. } => {
                Some("stop using it in the guest and try again, or use --force")
            }
            Self::TrayLocked { .. } => {
                Some("the guest was asked to open it; try again once it has, or use --force")
            }
            Self::NoSuchDevice { .. } => {
                Some("`outrigger block-list` and `outrigger network-list` list the guest's devices")
            }
            Self::DeviceExists { .. } => Some("detach it first, or use another name, number or address"),
            Self::Unresolved { .. } => Some(
                "`outrigger migrate --resolve GUEST HOST` asks the other host; docs/migration.md says what to do \
                 if it does not answer",
            ),
            Self::StepFailed { hint, .. } | Self::Failed { hint, .. } => hint.as_deref(),
            // What is wrong says what to do.
            Self::BadConfig { .. }
            | Self::UuidTaken { .. }
            | Self::InUse { .. }
            | Self::NotMigrated { .. }
            | Self::NeedsForce { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::INTERFACE;

    #[test]
    fn each_error_of_the_text_is_a_refusal_with_the_same_parameters() {
        let mut names = Vec::new();
        for line in INTERFACE.lines().filter_map(|line| line.strip_prefix("error ")) {
            let (name, list) = line.split_once(" (").unwrap();
            let parameters: Map<String, Value> = list
                .trim_end_matches(')')
                .split(", ")
                .map(|parameter| {
                    let (name, kind) = parameter.split_once(": ").unwrap();
                    let value = match kind {
                        "string" | "?string" => json!("x"),
                        "int" => json!(1),
                        "bool" => json!(true),
                        "[]string" => json!(["x"]),
                        other => panic!("{other}"),
                    };
                    (name.to_owned(), value)
                })
                .collect();
            let written = json!({ "error": name, "parameters": parameters });
            let refusal: Refusal = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(refusal.name(), name);
            assert_eq!(serde_json::to_value(&refusal).unwrap(), written);
            names.push(name);
        }
        names.sort_unstable();
        let mut errors = ERRORS.to_vec();
        errors.sort_unstable();
        assert_eq!(names, errors);
    }
}
