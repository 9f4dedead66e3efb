//! Restarting a guest that has ended.

use toolstack::{Guest, Toolstack};

use super::job::Ended;
use super::shared::Shared;
use crate::backoff::Turn;
use crate::refusal::JobError;
use crate::restarts::{PendingNote, Restarts};

/// Records a restart. To be called in the event loop.
pub(super) fn record(shared: &Shared, guest: &Guest, turn: Turn) -> PendingNote {
    shared.restarts.note_later(guest.uuid, &guest.config, Some(guest.uuid), turn)
}

/// Removes the note of a restart that will not be. Waits for the disk.
pub(super) fn remove(note: Option<PendingNote>) {
    if let Some(Ok(Some(note))) = note.map(PendingNote::wait) {
        note.done();
    }
}

/// Destroys the guest and creates it again.
pub(super) fn restart(
    toolstack: &Toolstack,
    guest: &Guest,
    note: PendingNote,
    events: &mut dyn FnMut(toolstack::Event),
) -> Ended {
    let note = note.wait().map_err(|_| JobError::Ending { guest: guest.name.clone() })?;
    let restarted = toolstack.restart(guest.id(), events);
    if let Some(note) = note {
        note.done();
    }
    Ok(restarted.map(Some)?)
}

/// Preserves the ended guest under another name; a new one of its configuration follows.
pub(super) fn preserve_as(
    toolstack: &Toolstack,
    restarts: &Restarts,
    old: Guest,
    before: Option<PendingNote>,
    turn: Turn,
) -> Ended {
    // As xl names what it preserves, but with the domid, which no other guest has.
    let name = format!("{}-{}", old.name, old.domid);
    // The new note replaces it.
    let _ = before.map(PendingNote::wait);
    let note = restarts.note(old.uuid, &successor(&old), None, turn);
    match toolstack.set_aside(old.id(), &name) {
        Ok(()) => Ok(Some(Guest { name, ..old })),
        Err(error) => {
            if let Some(note) = note {
                note.done();
            }
            Err(error.into())
        }
    }
}

/// The configuration of the guest that follows one that is preserved: two guests cannot have one UUID.
pub(super) fn successor(guest: &Guest) -> config::GuestConfig {
    config::GuestConfig { uuid: None, ..guest.config.clone() }
}
