//! The lists of what one guest has. They ask Xen and xenstore.

use api::types::{Channels, Disks, Nics};
use toolstack::{Error, GuestId, Toolstack};

use super::{processors, show};
use crate::reply::Answer;

/// Lists what a guest has.
pub(super) type List = fn(&Toolstack, GuestId) -> Result<Answer, Error>;

/// Its disks.
pub(super) fn disks(toolstack: &Toolstack, id: GuestId) -> Result<Answer, Error> {
    let disks = toolstack.disks(id)?.into_iter().map(show::disk).collect();
    Ok(Answer::last(&Disks { disks }))
}

/// Its network interfaces.
pub(super) fn nics(toolstack: &Toolstack, id: GuestId) -> Result<Answer, Error> {
    let nics = toolstack.nics(id)?.into_iter().map(show::nic).collect();
    Ok(Answer::last(&Nics { nics }))
}

/// Its channels.
pub(super) fn channels(toolstack: &Toolstack, id: GuestId) -> Result<Answer, Error> {
    let channels = toolstack.channels(id)?.into_iter().map(show::channel).collect();
    Ok(Answer::last(&Channels { channels }))
}

/// Its vCPUs, and those of its stubdomain.
pub(super) fn vcpus(toolstack: &Toolstack, id: GuestId) -> Result<Answer, Error> {
    Ok(Answer::last(&processors::vcpus(toolstack, id)?))
}
