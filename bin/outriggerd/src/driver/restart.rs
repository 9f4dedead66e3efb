//! Restarting a guest that has ended.

use api::types::State as ApiState;
use tokio::task::JoinHandle;
use toolstack::{Cause, CreateOptions, Guest, GuestEvent};

use super::{Driver, Event, State, Wanted, create};
use crate::backoff::{self, Turn};
use crate::job::{self, Ended, Job};
use crate::restarts::PendingNote;

/// How a guest is restarted.
#[derive(Debug)]
pub(super) enum Way {
    /// It is destroyed first.
    Restart,
    /// It is preserved under another name, because of this.
    RenameRestart(GuestEvent),
}

/// A restart that waits for its time.
#[derive(Debug)]
pub(super) struct Waiting {
    way: Way,
    turn: Turn,
    /// So that the next daemon waits only for the rest.
    note: PendingNote,
    timer: JoinHandle<()>,
}

/// Removes the note of a restart that will not be. Waits for the disk.
pub(super) fn remove(note: Option<PendingNote>) {
    if let Some(Ok(Some(note))) = note.map(PendingNote::wait) {
        note.done();
    }
}

impl Driver {
    /// Makes the guest again, now or when its time has come.
    pub(super) fn again(&mut self, guest: &Guest, way: Way) {
        if let State::Waiting(waiting) = &mut self.state {
            // It has ended in another way meanwhile.
            waiting.way = way;
            return;
        }
        let turn = self.backoff.next(backoff::now());
        let left = turn.left(backoff::now());
        if left.is_zero() {
            return self.begin(guest, way, turn, None);
        }
        let note = self.shared.restarts.note_later(guest.uuid, &guest.config, Some(guest.uuid), turn);
        let handle = self.handle.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(left).await;
            let _ = handle.send(Event::Due(turn));
        });
        self.state = State::Waiting(Waiting { way, turn, note, timer });
        self.shared.registry.update(self.key, |entry| entry.state = ApiState::Restarting);
        let (seconds, row) = (left.as_secs_f64().ceil(), turn.row);
        let detail =
            format!("in {seconds} s, because the guest ended soon after its start ({row} times in a row)");
        self.shared.registry.tell(guest, "restart-delayed", detail);
    }

    /// The time of a restart has come.
    pub(super) fn due(&mut self, turn: Turn) {
        if !matches!(&self.state, State::Waiting(waiting) if waiting.turn == turn) {
            return;
        }
        let state = std::mem::replace(&mut self.state, State::Running);
        if let (State::Waiting(waiting), Some(guest)) = (state, self.guest.clone()) {
            self.begin(&guest, waiting.way, turn, Some(waiting.note));
        }
    }

    /// Ends the wait for a restart that will not be; returns its note, which is to be removed.
    pub(super) fn take_turn(&mut self) -> Option<PendingNote> {
        match std::mem::replace(&mut self.state, State::Running) {
            State::Waiting(waiting) => {
                waiting.timer.abort();
                Some(waiting.note)
            }
            state => {
                self.state = state;
                None
            }
        }
    }

    /// Ends the wait for a cancelled restart, where nothing waits for the note's end.
    pub(super) fn forget_turn(&mut self) {
        if let Some(note) = self.take_turn() {
            tokio::task::spawn_blocking(move || remove(Some(note)));
        }
    }

    fn begin(&mut self, guest: &Guest, way: Way, turn: Turn, note: Option<PendingNote>) {
        match way {
            Way::Restart => self.restart(guest, turn, note),
            Way::RenameRestart(event) => self.rename_restart(guest, event, turn, note),
        }
    }

    /// Destroys the guest and creates it again.
    fn restart(&mut self, guest: &Guest, turn: Turn, note: Option<PendingNote>) {
        let toolstack = self.shared.toolstack.clone();
        let id = guest.id();
        let restarts = &self.shared.restarts;
        let note =
            note.unwrap_or_else(|| restarts.note_later(guest.uuid, &guest.config, Some(guest.uuid), turn));
        let name = guest.name.clone();
        job::spawn(Job::Restart, &guest.name, &self.handle, None, move |events| {
            let ends =
                |_| Cause::NotNow { name, why: "is not restarted, because outriggerd ends".to_owned() };
            let note = note.wait().map_err(ends)?;
            let restarted = toolstack.restart(id, events);
            if let Some(note) = note {
                note.done();
            }
            restarted.map(Some)
        });
        self.busy(Job::Restart, None);
    }

    /// Preserves the ended guest under another name; a new one of its configuration follows.
    fn rename_restart(&mut self, guest: &Guest, event: GuestEvent, turn: Turn, before: Option<PendingNote>) {
        // As xl names what it preserves, but with the domid, which no other guest has.
        let name = format!("{}-{}", guest.name, guest.domid);
        let (toolstack, restarts) = (self.shared.toolstack.clone(), self.shared.restarts.clone());
        let old = guest.clone();
        job::spawn(Job::SetAside, &guest.name, &self.handle, None, move |_| {
            // The new note replaces it.
            let _ = before.map(PendingNote::wait);
            let note = restarts.note(old.uuid, &successor(&old), None, turn);
            match toolstack.preserve_as(old.id(), &name) {
                Ok(()) => Ok(Some(Guest { name, ..old })),
                Err(error) => {
                    if let Some(note) = note {
                        note.done();
                    }
                    Err(error)
                }
            }
        });
        self.ended_by = Some(event);
        self.busy(Job::SetAside, None);
    }

    /// The ended guest has another name now, or could not get it.
    pub(super) fn set_aside(&mut self, before: Option<&Guest>, ended: Ended) {
        let event = self.ended_by.take().unwrap_or(GuestEvent::Gone);
        let old = match ended {
            Ok(old) => old,
            Err(error) => {
                tracing::error!(
                    guest = self.name,
                    error = error.report(),
                    "cannot rename; the guest is preserved under its name"
                );
                self.guest = before.cloned();
                if let Some(guest) = before {
                    self.keep(guest, &event);
                }
                return;
            }
        };
        let Some(old) = old else { return };
        self.name.clone_from(&old.name);
        self.guest = Some(old.clone());
        self.shared.registry.update(self.key, |entry| {
            entry.name.clone_from(&old.name);
            entry.guest = Some(old.clone());
        });
        self.keep(&old, &event);
        // In the same turn of the event loop in which the name became free.
        let note = Some(self.shared.restarts.note_of(old.uuid));
        let options = CreateOptions::default();
        let wanted = Wanted { config: successor(&old), options, note, backoff: self.backoff };
        if let Err(failure) = create(&self.shared, wanted, None) {
            self.shared.registry.tell(&old, "create-failed", format!("{failure:?}"));
        }
        // Events that occurred meanwhile.
        let _ = self.handle.send(Event::Look);
    }
}

/// The configuration of the guest that follows one that is preserved: two guests cannot have one UUID.
fn successor(guest: &Guest) -> config::GuestConfig {
    config::GuestConfig { uuid: None, ..guest.config.clone() }
}
