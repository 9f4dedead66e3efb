//! What all drivers and all methods share.

use std::sync::OnceLock;

use config::GuestConfig;
use toolstack::{CreateOptions, GuestId, RestoreOptions, Saved, Toolstack};

use super::job::Ended;
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
    /// What it is restored from, and whether its disks may have changed since.
    pub(crate) saved: Option<(Saved, bool)>,
}

impl NewGuest {
    /// Makes it; `known` gets its identity as soon as it has one.
    pub(super) fn make(
        self,
        toolstack: &Toolstack,
        known: &OnceLock<GuestId>,
        events: &mut dyn FnMut(toolstack::Event),
    ) -> Ended {
        let Self { config, options, saved } = self;
        if let Some((saved, force)) = saved {
            let _ = known.set(GuestId(saved.uuid));
            let options = RestoreOptions { paused: options.paused, force };
            return Ok(toolstack.restore(saved, &options, events).map(Some)?);
        }
        let id = toolstack.choose_id(&config, options)?;
        let _ = known.set(id);
        let options = CreateOptions { uuid: Some(id.0), ..options };
        Ok(toolstack.create(&config, options, events).map(Some)?)
    }
}
