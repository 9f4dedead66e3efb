//! Errors as a person sees them, and the exit status that stands for each.

use std::fmt::Write as _;
use std::process::ExitCode;

use api::client::ClientError;
use api::types::Refusal;

/// The configuration file is wrong; what is wrong has been printed.
#[derive(Debug, thiserror::Error)]
#[error("The configuration is not usable")]
pub(crate) struct BadConfig;

/// The command line is wrong, which its grammar does not say.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

impl From<String> for Usage {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A guest was handed over, and the other host could not be asked what became of it.
#[derive(Debug, thiserror::Error)]
#[error("{guest} is suspended here, because {host} has not answered whether it has taken it over")]
pub(crate) struct StillUnresolved {
    /// The guest.
    pub(crate) guest: String,
    /// The other host.
    pub(crate) host: String,
}

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;
const BAD_CONFIG: u8 = 3;
const NO_SUCH_GUEST: u8 = 4;
const NO_DAEMON: u8 = 5;
const UNRESOLVED: u8 = 6;

/// Prints an error with its causes and hints on standard error and returns the exit status.
pub(crate) fn print(error: &anyhow::Error) -> ExitCode {
    let (text, code) = describe(error);
    eprint!("{text}");
    ExitCode::from(code)
}

/// The same, with this before each line.
pub(crate) fn print_for(whom: &str, error: &anyhow::Error) -> ExitCode {
    let (text, code) = describe(error);
    for line in text.lines() {
        eprintln!("{whom}{line}");
    }
    ExitCode::from(code)
}

/// The text for a person, and the exit status.
pub(crate) fn describe(error: &anyhow::Error) -> (String, u8) {
    if error.downcast_ref::<BadConfig>().is_some() {
        return (format!("error: {error}\n"), BAD_CONFIG);
    }
    if error.downcast_ref::<Usage>().is_some() {
        return (format!("error: {error}\n"), WRONG_USAGE);
    }
    if let Some(StillUnresolved { guest, host }) = error.downcast_ref() {
        let hint = format!(
            "make {host} respond again, then run `outrigger migrate --resolve {guest} {host}`; docs/migration.md says \
             what to do if it never will"
        );
        return (format!("error: {error}\n  hint: {hint}\n"), UNRESOLVED);
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused { refusal, .. }) => refused(refusal),
        Some(ClientError::Unreachable { .. } | ClientError::Ended { .. }) => (plain(error), NO_DAEMON),
        _ => (plain(error), FAILED),
    }
}

fn plain(error: &anyhow::Error) -> String {
    let mut out = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        let _ = writeln!(out, "  because: {cause}");
    }
    out
}

fn refused(refusal: &Refusal) -> (String, u8) {
    let mut out = String::new();
    let code = match refusal {
        Refusal::BadConfig { diagnostics } => {
            out.push_str(diagnostics);
            return (out, BAD_CONFIG);
        }
        Refusal::NoSuchGuest { .. } => NO_SUCH_GUEST,
        Refusal::Unresolved { .. } => UNRESOLVED,
        _ => FAILED,
    };
    let _ = writeln!(out, "error: {}", headline(refusal));
    let causes = match refusal {
        Refusal::StepFailed { causes, .. } | Refusal::Failed { causes, .. } => causes.as_slice(),
        _ => &[],
    };
    for cause in causes {
        let _ = writeln!(out, "  because: {cause}");
    }
    if let Some(hint) = refusal.hint() {
        let _ = writeln!(out, "  hint: {hint}");
    }
    if let Refusal::StepFailed { undo_failures, log, .. } = refusal {
        leftovers(&mut out, undo_failures, log);
    }
    (out, code)
}

/// What happened, in one line.
fn headline(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NoSuchGuest { guest } => format!("There is no guest \"{guest}\""),
        Refusal::NameTaken { name, domid } => format!("The name \"{name}\" is taken by domain {domid}"),
        Refusal::Busy { guest, lifecycle } => format!("{lifecycle} of \"{guest}\" is in progress"),
        Refusal::StepFailed { lifecycle, step, message, .. } => {
            format!("{lifecycle} failed at step \"{step}\": {message}")
        }
        Refusal::BadConfig { diagnostics: message }
        | Refusal::UuidTaken { message, .. }
        | Refusal::InUse { message, .. }
        | Refusal::NotRunning { message, .. }
        | Refusal::Paused { message, .. }
        | Refusal::DeviceModelDead { message, .. }
        | Refusal::NoPvDrivers { message, .. }
        | Refusal::GuestDidNotAcknowledge { message, .. }
        | Refusal::GuestDidNotRelease { message, .. }
        | Refusal::NeedsForce { message, .. }
        | Refusal::TrayLocked { message, .. }
        | Refusal::NoSuchDevice { message, .. }
        | Refusal::DeviceExists { message, .. }
        | Refusal::NotMigrated { message, .. }
        | Refusal::Unresolved { message, .. }
        | Refusal::Failed { message, .. } => message.clone(),
    }
}

/// What a failed step left, and the stubdomain's last log lines.
fn leftovers(out: &mut String, undo_failures: &[String], log: &[String]) {
    if undo_failures.is_empty() {
        let _ = writeln!(out, "  completed steps were undone");
    }
    for left in undo_failures {
        let _ = writeln!(out, "  left behind: {left}");
    }
    if !log.is_empty() {
        let _ = writeln!(out, "  last log lines of the stubdomain:");
    }
    for line in log {
        let _ = writeln!(out, "    | {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_step_tells_cause_hint_and_log() {
        let failure = Refusal::StepFailed {
            lifecycle: "create".into(),
            id: "await-qemu".into(),
            step: "wait for QEMU".into(),
            message: "QEMU did not get ready in 60 s".into(),
            causes: vec!["the stubdomain ended".into()],
            hint: Some("look at outrigger dm-log hello".into()),
            undo_failures: vec![],
            log: vec!["qemu: no such option".into()],
        };
        let (text, code) = refused(&failure);
        assert_eq!(code, FAILED);
        for part in ["wait for QEMU", "because: the stubdomain ended", "hint: look", "| qemu: no such option"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn unknown_guest_has_its_own_status() {
        assert_eq!(refused(&Refusal::NoSuchGuest { guest: "x".into() }).1, NO_SUCH_GUEST);
    }
}
