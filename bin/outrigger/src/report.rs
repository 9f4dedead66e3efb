//! Errors as a person sees them, and the exit status that stands for each.

use std::fmt::Write as _;
use std::process::ExitCode;

use api::client::ClientError;
use api::types::Failure;

/// The configuration file is wrong; what is wrong has been printed.
#[derive(Debug, thiserror::Error)]
#[error("The configuration is not usable")]
pub(crate) struct BadConfig;

const FAILED: u8 = 1;
const BAD_CONFIG: u8 = 3;
const NO_SUCH_GUEST: u8 = 4;
const NO_DAEMON: u8 = 5;

/// Prints an error with its causes and hints on standard error and returns the exit status.
pub(crate) fn print(error: &anyhow::Error) -> ExitCode {
    let (text, code) = describe(error);
    eprint!("{text}");
    ExitCode::from(code)
}

fn describe(error: &anyhow::Error) -> (String, u8) {
    if error.downcast_ref::<BadConfig>().is_some() {
        return (format!("error: {error}\n"), BAD_CONFIG);
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused { failure, .. }) => refused(failure),
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

fn refused(failure: &Failure) -> (String, u8) {
    let mut out = String::new();
    let code = match failure {
        Failure::NoSuchGuest { guest } => {
            let _ = writeln!(
                out,
                "error: There is no guest \"{guest}\"\n  hint: `outrigger list` shows the guests"
            );
            NO_SUCH_GUEST
        }
        Failure::BadConfig { diagnostics } => {
            out.push_str(diagnostics);
            BAD_CONFIG
        }
        Failure::NameTaken { name, domid } => {
            let _ = writeln!(
                out,
                "error: The name \"{name}\" is taken by domain {domid}\n  \
                 hint: destroy that domain, or choose another name="
            );
            FAILED
        }
        Failure::StepFailed { lifecycle, step, message, causes, hint, undo_failures, log, .. } => {
            let _ = writeln!(out, "error: {lifecycle} failed at step \"{step}\": {message}");
            explain(&mut out, causes, hint.as_deref());
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
            FAILED
        }
        Failure::Busy { guest, lifecycle } => {
            let _ = writeln!(
                out,
                "error: {lifecycle} of \"{guest}\" is in progress\n  \
                 hint: `outrigger events` shows when it ends"
            );
            FAILED
        }
        Failure::Failed { message, causes, hint } => {
            let _ = writeln!(out, "error: {message}");
            explain(&mut out, causes, hint.as_deref());
            FAILED
        }
    };
    (out, code)
}

fn explain(out: &mut String, causes: &[String], hint: Option<&str>) {
    for cause in causes {
        let _ = writeln!(out, "  because: {cause}");
    }
    if let Some(hint) = hint {
        let _ = writeln!(out, "  hint: {hint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_step_tells_cause_hint_and_log() {
        let failure = Failure::StepFailed {
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
        assert_eq!(refused(&Failure::NoSuchGuest { guest: "x".into() }).1, NO_SUCH_GUEST);
    }
}
