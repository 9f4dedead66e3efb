//! The errors of the interface `io.outrigger`, as its definition names them.

use serde::{Deserialize, Serialize};
use xen_types::DomId;

/// Every error of the interface.
pub const ERRORS: [&str; 6] = ["NoSuchGuest", "BadConfig", "NameTaken", "StepFailed", "Busy", "Failed"];

/// An error of the interface, with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "error", content = "parameters")]
pub enum Failure {
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
    /// Another lifecycle of this guest is in progress.
    Busy {
        /// The guest's name.
        guest: String,
        /// The lifecycle in progress.
        lifecycle: String,
    },
    /// Xen or xenstore refused, or could not be reached.
    Failed {
        /// What was tried, on what.
        message: String,
        /// Why, outermost first.
        causes: Vec<String>,
        /// What the user can do.
        hint: Option<String>,
    },
}
