//! What all drivers and all methods share.

use std::sync::{Arc, OnceLock};

use config::{GuestConfig, HostDefaults};
use toolstack::{CreateOptions, GuestId, IncomingGuest, RestoreOptions, Saved, Toolstack};

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
    /// What `xl.conf` sets for every guest.
    pub(crate) host: Arc<HostDefaults>,
}

/// A guest to be created.
pub(crate) enum NewGuest {
    /// Of a configuration.
    Configured(Box<GuestConfig>, CreateOptions),
    /// Of a file.
    Saved(Box<Saved>, RestoreOptions),
    /// Of what another host sends. Dropped, it is refused there.
    Incoming(Box<IncomingGuest>),
}

impl NewGuest {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Configured(config, _) => &config.name,
            Self::Saved(saved, _) => &saved.config.name,
            Self::Incoming(guest) => guest.name(),
        }
    }

    /// Makes it; `known` gets its identity as soon as it has one.
    pub(super) fn make(
        self,
        toolstack: &Toolstack,
        known: &OnceLock<GuestId>,
        events: &mut dyn FnMut(toolstack::Event),
    ) -> Ended {
        match self {
            Self::Configured(config, options) => {
                let id = toolstack.choose_id(&config, options)?;
                let _ = known.set(id);
                let options = CreateOptions { uuid: Some(id.0), ..options };
                Ok(toolstack.create(&config, options, events).map(Some)?)
            }
            Self::Saved(saved, options) => {
                let _ = known.set(GuestId(saved.uuid));
                Ok(toolstack.restore(*saved, &options, events).map(Some)?)
            }
            Self::Incoming(guest) => {
                let _ = known.set(guest.id());
                Ok(toolstack.receive(*guest, events).map(Some)?)
            }
        }
    }
}
