//! What failed of an operation, and what could not be undone.

use thiserror::Error;

use super::Cause;

/// A failed step, and how undoing went.
#[derive(Debug, Error)]
#[error("The step \"{label}\" failed")]
pub struct Failure {
    /// What names the step to programs.
    pub id: &'static str,
    /// What the step does.
    pub label: &'static str,
    /// Why it failed.
    #[source]
    pub cause: Cause,
    /// What could not be undone, although it was tried twice. Empty: nothing was left behind.
    pub undo: Vec<UndoFailure>,
    /// The last lines of the stubdomain's log, when it came that far.
    pub stubdomain_log: Vec<String>,
}

impl Failure {
    /// What is left of an operation that should have been completed.
    pub(crate) fn into_left(self) -> Vec<UndoFailure> {
        let Self { id, label, cause, undo, .. } = self;
        std::iter::once(UndoFailure { id, label, cause }).chain(undo).collect()
    }

    pub(super) fn report(&self) -> String {
        let mut text = format!("{self}: {}", self.cause.chain());
        if !self.undo.is_empty() {
            text.push_str(&format!("\nNot undone: {}", list(&self.undo)));
        }
        if !self.stubdomain_log.is_empty() {
            text.push_str("\nLast log lines of the stubdomain:");
        }
        for line in &self.stubdomain_log {
            text.push_str("\n  | ");
            text.push_str(line);
        }
        text
    }
}

/// A step that could not be undone.
#[derive(Debug, Error)]
#[error("the step \"{label}\" could not be undone")]
pub struct UndoFailure {
    /// What names the step to programs.
    pub id: &'static str,
    /// What the step does.
    pub label: &'static str,
    /// Why.
    #[source]
    pub cause: Cause,
}

pub(super) fn list(failures: &[UndoFailure]) -> String {
    let all: Vec<_> = failures.iter().map(|f| format!("{} ({})", f.label, f.cause.chain())).collect();
    all.join("; ")
}
