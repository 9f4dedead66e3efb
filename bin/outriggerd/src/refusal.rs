//! From the errors of jobs and of the toolstack to those of the interface.

use std::error::Error as StdError;
use std::time::Duration;

use api::types::Refusal;
use config::HostRefusal;
use thiserror::Error;
use toolstack::host::HostError;
use toolstack::{Cause, Error, HandoverError};
use xen::Errno;

/// Why a job of a guest did not succeed.
#[derive(Debug, Error)]
pub(crate) enum JobError {
    /// The toolstack failed.
    #[error(transparent)]
    Toolstack(#[from] Error),
    /// The job's thread panicked.
    #[error("Guest {guest} was left as it is because of a bug in outriggerd; restart outriggerd to clean up")]
    Panicked {
        /// The guest's name.
        guest: String,
    },
    /// The disk with the state files does not answer.
    #[error(
        "Nothing was done, because the guest's state file is still being written after {} s; make the disk with \
         /var/lib/outrigger respond again, then repeat the command",
        after.as_secs()
    )]
    DiskHangs {
        /// How long it was waited for.
        after: Duration,
    },
    /// The client did not read what it asked for.
    #[error("The client of guest {guest} read the screenshot too slowly; it is incomplete")]
    SlowClient {
        /// The guest's UUID.
        guest: toolstack::GuestId,
    },
    /// There is no thread for it.
    #[error("Guest {guest} cannot be handled, because no thread can be started")]
    NoThread {
        /// The guest's name.
        guest: String,
        /// The system's error.
        source: std::io::Error,
    },
}

impl From<Cause> for JobError {
    fn from(cause: Cause) -> Self {
        Self::Toolstack(cause.into())
    }
}

impl JobError {
    /// The error with all its causes and the stubdomain's last log lines, for the log.
    pub(crate) fn report(&self) -> String {
        match self {
            Self::Toolstack(error) => error.report(),
            other => chain(other),
        }
    }
}

/// An error with its causes in one line, for the log.
pub(crate) fn chain(error: &dyn StdError) -> String {
    std::iter::once(error.to_string()).chain(causes(error)).collect::<Vec<_>>().join(": ")
}

fn causes(error: &dyn StdError) -> Vec<String> {
    std::iter::successors(error.source(), |&error| error.source()).map(ToString::to_string).collect()
}

/// The failure of a guest's job, which has this name.
pub(crate) fn of_job(guest: &str, lifecycle: &str, error: JobError) -> Refusal {
    let step = match error {
        JobError::Toolstack(Error::Step(step)) => step,
        JobError::Toolstack(error) => return of(guest, &error),
        error @ (JobError::Panicked { .. }
        | JobError::DiskHangs { .. }
        | JobError::NoThread { .. }
        | JobError::SlowClient { .. }) => {
            return Refusal::Failed { message: error.to_string(), causes: causes(&error), hint: None };
        }
    };
    if step.undo.is_empty()
        && let Some(refusal) = own(&step.cause)
    {
        return refusal;
    }
    Refusal::StepFailed {
        lifecycle: lifecycle.to_owned(),
        id: step.id.to_owned(),
        step: step.label.to_owned(),
        message: step.cause.to_string(),
        causes: causes(&step.cause),
        hint: hint(&step.cause).map(str::to_owned),
        undo_failures: step.undo.iter().map(|left| chain(left)).collect(),
        log: step.stubdomain_log,
    }
}

/// The failure of an operation without steps, or of one that completed all of them, on the guest of this name.
pub(crate) fn of(guest: &str, error: &Error) -> Refusal {
    let hint = match error {
        Error::Step(step) => hint(&step.cause),
        Error::NotRestarted { cause, .. } => hint(cause),
        Error::NotClean { .. } => Some("run `outrigger destroy` again to finish"),
        Error::NotDetached { .. } => Some("run the same command again to finish"),
        Error::Cause(Cause::NoGuest(_)) => return Refusal::NoSuchGuest { guest: guest.to_owned() },
        Error::Cause(cause) => match own(cause) {
            Some(refusal) => return refusal,
            None => hint(cause),
        },
    };
    Refusal::Failed { message: error.to_string(), causes: causes(error), hint: hint.map(str::to_owned) }
}

/// The refusal of everything that is asked of a guest about which another host has to decide.
pub(crate) fn unresolved(guest: &str, host: &str) -> Refusal {
    let (guest, host) = (guest.to_owned(), host.to_owned());
    let cause = if host.is_empty() {
        Cause::Held { name: guest.clone() }
    } else {
        HandoverError::Unresolved { name: guest.clone(), host: host.clone() }.into()
    };
    Refusal::Unresolved { guest, host, message: cause.to_string() }
}

/// The host that has to decide about the guest, after a failure that leaves the guest to it.
pub(crate) fn decider(error: &JobError) -> Option<String> {
    let JobError::Toolstack(error) = error else { return None };
    let cause = match error {
        Error::Step(step) => &step.cause,
        Error::Cause(cause) => cause,
        Error::NotClean { .. } | Error::NotDetached { .. } | Error::NotRestarted { .. } => return None,
    };
    match cause {
        Cause::Handover(HandoverError::Unresolved { host, .. }) => Some(host.clone()),
        _ => None,
    }
}

/// The failure of a query to Xen or xenstore.
pub(crate) fn of_query(cause: &Cause) -> Refusal {
    let hint = hint(cause).map(str::to_owned);
    Refusal::Failed { message: cause.to_string(), causes: causes(cause), hint }
}

/// The refusal of a guest or a network interface by what `xl.conf` says.
pub(crate) fn of_host(refused: HostRefusal) -> Refusal {
    let message = refused.to_string();
    match refused {
        HostRefusal::Broken { errors } => {
            let hint =
                Some("correct the file and restart outriggerd; running guests are not affected".to_owned());
            Refusal::Failed { message, causes: errors, hint }
        }
        HostRefusal::NoCpuAllowed => Refusal::BadConfig { diagnostics: format!("error: {message}\n") },
    }
}

/// The error that the interface has for just this cause.
fn own(cause: &Cause) -> Option<Refusal> {
    let mut inner = cause;
    while let Cause::Device { source, .. } = inner {
        inner = source;
    }
    let message = cause.chain();
    Some(match inner {
        Cause::NameTaken { name, domid } => Refusal::NameTaken { name: name.clone(), domid: *domid },
        Cause::UuidTaken(uuid) => Refusal::UuidTaken { uuid: uuid.to_string(), message },
        Cause::DiskInUse { path, .. } => Refusal::InUse { path: path.clone(), message },
        Cause::NotRunning { name, .. } => Refusal::NotRunning { guest: name.clone(), message },
        Cause::Paused { name } => Refusal::Paused { guest: name.clone(), message },
        Cause::DeviceModelDead { name } => Refusal::DeviceModelDead { guest: name.clone(), message },
        Cause::NoPvDrivers { name, .. } => Refusal::NoPvDrivers { guest: name.clone(), message },
        Cause::NotAcknowledged { name, .. } => {
            Refusal::GuestDidNotAcknowledge { guest: name.clone(), message }
        }
        Cause::NotReleased { name, device, .. } => {
            Refusal::GuestDidNotRelease { guest: name.clone(), device: device.clone(), message }
        }
        Cause::NeedsForce { name, device, .. } => {
            Refusal::NeedsForce { guest: name.clone(), device: device.clone(), message }
        }
        Cause::TrayLocked { name, vdev } => {
            Refusal::TrayLocked { guest: name.clone(), vdev: vdev.to_string(), message }
        }
        Cause::NoDevice { name, device } => {
            Refusal::NoSuchDevice { guest: name.clone(), device: device.clone(), message }
        }
        Cause::DeviceExists { name, device } => {
            Refusal::DeviceExists { guest: name.clone(), device: device.clone(), message }
        }
        Cause::Handover(
            HandoverError::Unresolved { name, host } | HandoverError::Unsettled { name, peer: host },
        ) => Refusal::Unresolved { guest: name.clone(), host: host.clone(), message },
        Cause::Handover(error @ HandoverError::NotMigrated { name, host, .. }) => {
            let waits = error.is_waited_for();
            Refusal::NotMigrated { guest: name.clone(), host: host.clone(), waits, message }
        }
        Cause::Held { name } => Refusal::Unresolved { guest: name.clone(), host: String::new(), message },
        _ => return None,
    })
}

/// What the user can do, if the cause's own text does not say it.
fn hint(cause: &Cause) -> Option<&'static str> {
    match cause {
        Cause::Device { source, .. } => hint(source),
        Cause::Hypervisor(error) => match error.errno() {
            Some(Errno::ENOMEM) => {
                Some("`outrigger info` shows the free memory; stop a guest, or lower memory=")
            }
            Some(Errno::ENOSPC) => Some("free some space, or name a file on another file system"),
            // The text covers these two.
            Some(Errno::EPERM | Errno::ESRCH) => None,
            _ => Some("`xl dmesg` shows Xen's own messages"),
        },
        Cause::Host(HostError::ScriptStuck { .. }) => {
            Some("make the device or the server respond again, then destroy the guest")
        }
        Cause::Host(HostError::ScriptFailed { .. }) => {
            Some("Xen's scripts write their own log, /var/log/xen/xen-hotplug.log")
        }
        Cause::StubdomainDied { .. } => {
            Some("the stubdomain's log may show why; `outrigger image info` shows what its image contains")
        }
        Cause::Backend { .. } => {
            Some("dom0 needs the modules xen-blkback for disks and xen-netback for vifs")
        }
        Cause::DomainStays { .. } => Some("close whatever uses it in dom0, then destroy the guest again"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use toolstack::{Failure, UndoFailure};

    use super::*;

    fn failed(cause: Cause, undo: Vec<UndoFailure>) -> JobError {
        let failure = Failure { id: "open", label: "open the tray", cause, undo, stubdomain_log: Vec::new() };
        JobError::Toolstack(failure.into())
    }

    fn locked() -> Cause {
        Cause::TrayLocked { name: "hello".to_owned(), vdev: config::device_name("hdc").unwrap() }
    }

    #[test]
    fn locked_tray_and_dead_device_model_are_told_apart_by_their_variants() {
        let refused = |cause| of_job("hello", "cd-eject", failed(cause, Vec::new()));
        let tray = refused(locked());
        assert!(matches!(&tray, Refusal::TrayLocked { vdev, .. } if vdev == "hdc"), "{tray:?}");
        assert!(tray.hint().unwrap().contains("--force"));
        let dead = refused(Cause::DeviceModelDead { name: "hello".to_owned() });
        assert!(matches!(&dead, Refusal::DeviceModelDead { guest, .. } if guest == "hello"), "{dead:?}");
    }

    #[test]
    fn cause_about_a_device_keeps_its_variant_and_names_the_device() {
        let cause = Cause::NotReleased {
            name: "hello".to_owned(),
            device: "disk xvdb".to_owned(),
            after: Duration::from_secs(10),
        };
        let refusal = of("hello", &cause.about("Disk xvdb (/a)").into());
        let Refusal::GuestDidNotRelease { device, message, .. } = refusal else { panic!("{refusal:?}") };
        assert_eq!(device, "disk xvdb");
        assert!(message.starts_with("Disk xvdb (/a): Guest hello did not release"), "{message}");
    }

    #[test]
    fn step_that_left_something_is_told_as_a_failed_step() {
        let left = UndoFailure { id: "x", label: "x", cause: locked() };
        let refusal = of_job("hello", "cd-eject", failed(locked(), vec![left]));
        assert!(
            matches!(&refusal, Refusal::StepFailed { undo_failures, .. } if undo_failures.len() == 1),
            "{refusal:?}"
        );
    }

    #[test]
    fn guest_that_is_gone_meanwhile_is_no_guest() {
        let error = Error::from(Cause::NoGuest("with the UUID 1".to_owned()));
        assert_eq!(of("hello", &error), Refusal::NoSuchGuest { guest: "hello".to_owned() });
    }
}
