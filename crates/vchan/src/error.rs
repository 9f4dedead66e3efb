use thiserror::Error;
use xen::XenError;
use xen_types::DomId;
use xenstore::{PathError, StoreError};

use crate::layout::RingSizesError;
use crate::place::Place;
use crate::ring::RingLie;

/// Why a vchan could not be opened or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VchanError {
    /// The other side is gone, and all that it wrote has been read.
    #[error("The other end of the vchan has closed it")]
    Closed,
    /// The other side's index is invalid. The vchan cannot be used any more.
    #[error(transparent)]
    Lie(#[from] RingLie),
    /// A size was asked for, or offered, that no vchan has.
    #[error(transparent)]
    Sizes(#[from] RingSizesError),
    /// Xen's drivers refused.
    #[error("Could not {what} of a vchan with domain {peer}")]
    Xen {
        /// What was tried.
        what: &'static str,
        /// The other end's domain.
        peer: DomId,
        /// What the driver said.
        source: XenError,
    },
    /// xenstore refused.
    #[error("Could not {what} the vchan at {place}")]
    Store {
        /// What was tried.
        what: &'static str,
        /// The vchan's directory.
        place: Place,
        /// What xenstore said.
        source: StoreError,
    },
    /// The vchan's directory cannot have the keys of a vchan below it.
    #[error("{place} is not a valid place for a vchan")]
    Place {
        /// The directory.
        place: Place,
        /// Why not.
        source: PathError,
    },
    /// This domain does not know its own number, which it has to name as the owner of its keys.
    #[error(
        "xenstore holds no domid of this domain, which its toolstack has to write; no vchan can be offered"
    )]
    NoDomId,
    /// What a server wrote into xenstore is not what it has to be.
    #[error("The vchan at {place} cannot be used: its {key} is not a valid decimal number")]
    BadAdvert {
        /// The vchan's directory.
        place: Place,
        /// The key.
        key: &'static str,
    },
    /// No server took this client in time.
    #[error("Timed out while connecting to the vchan at {place} of domain {peer}: {why}")]
    Timeout {
        /// The vchan's directory.
        place: Place,
        /// The server's domain.
        peer: DomId,
        /// What was in the way at the last look.
        why: &'static str,
    },
}

impl VchanError {
    /// For `map_err`: a call of Xen's drivers.
    pub(crate) fn xen(what: &'static str, peer: DomId) -> impl FnOnce(XenError) -> Self {
        move |source| Self::Xen { what, peer, source }
    }

    /// For `map_err`: a request to xenstore.
    pub(crate) fn store(what: &'static str, place: &Place) -> impl FnOnce(StoreError) -> Self {
        let place = place.clone();
        move |source| Self::Store { what, place, source }
    }
}
