//! What all drivers and all methods share.

use config::GuestConfig;
use toolstack::{CreateOptions, Toolstack};

use super::registry::Registry;
use crate::qmp::Qmp;

/// The parts of the daemon. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Shared {
    /// Does the work.
    pub(crate) toolstack: Toolstack,
    /// Knows all guests.
    pub(crate) registry: Registry,
    /// The sessions with device models.
    pub(crate) qmp: Qmp,
}

/// A guest to be created.
pub(crate) struct NewGuest {
    /// Of this.
    pub(crate) config: GuestConfig,
    /// In this way.
    pub(crate) options: CreateOptions,
}
