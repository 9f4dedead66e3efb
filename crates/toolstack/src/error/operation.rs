//! Why an operation as a whole did not happen.

use thiserror::Error;

use super::failure::list;
use super::{Cause, Failure, UndoFailure};

/// Why an operation of the toolstack did not happen.
#[derive(Debug, Error)]
pub enum ToolstackError {
    /// A step of a lifecycle failed; what it and its predecessors did was undone.
    #[error(transparent)]
    Step(Box<Failure>),
    /// A guest was not completely destroyed.
    #[error("Guest {name} is not completely destroyed: {}", list(left))]
    NotClean {
        /// The guest's name.
        name: String,
        /// What failed at the second try.
        left: Vec<UndoFailure>,
    },
    /// A device was released, but its cleanup is incomplete.
    #[error("Guest {name} released the device, but cleanup is incomplete: {}", list(left))]
    NotDetached {
        /// The guest's name.
        name: String,
        /// What failed at the second try.
        left: Vec<UndoFailure>,
    },
    /// A guest could not be created again, so it was not destroyed either.
    #[error("Guest {name} was not restarted and is unchanged: {}", cause.chain())]
    NotRestarted {
        /// The guest's name.
        name: String,
        /// What would have failed.
        cause: Cause,
    },
    /// Something else failed before anything was changed.
    #[error(transparent)]
    Cause(#[from] Cause),
}

impl ToolstackError {
    /// The error with all its causes and the stubdomain's last log lines, as text.
    #[must_use]
    pub fn report(&self) -> String {
        match self {
            Self::Step(failure) => failure.report(),
            Self::Cause(cause) => cause.chain(),
            Self::NotClean { .. } | Self::NotDetached { .. } | Self::NotRestarted { .. } => self.to_string(),
        }
    }
}

impl From<Failure> for ToolstackError {
    fn from(failure: Failure) -> Self {
        Self::Step(Box::new(failure))
    }
}
