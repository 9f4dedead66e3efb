//! Making a guest again that has ended.

use toolstack::{CreateOptions, Guest, GuestEvent};

use super::{Driver, Wanted, create};
use crate::job::{self, Ended, Job};

impl Driver {
    /// Destroys the guest and creates it again.
    pub(super) fn restart(&mut self, guest: &Guest) {
        let toolstack = self.shared.toolstack.clone();
        let id = guest.id();
        let note = self.shared.restarts.note_later(guest.uuid, &guest.config, Some(guest.uuid));
        job::spawn(Job::Restart, &guest.name, &self.handle, None, move |events| {
            let note = note.wait();
            let restarted = toolstack.restart(id, events);
            if let Some(note) = note {
                note.done();
            }
            restarted.map(Some)
        });
        self.busy(Job::Restart, None);
    }

    /// Preserves the ended guest under another name; a new one of its configuration follows.
    pub(super) fn rename_restart(&mut self, guest: Guest, event: &GuestEvent) {
        // As xl names what it preserves, but with the domid, which no other guest has.
        let name = format!("{}-{}", guest.name, guest.domid);
        let (toolstack, restarts) = (self.shared.toolstack.clone(), self.shared.restarts.clone());
        let thread = guest.name.clone();
        job::spawn(Job::SetAside, &thread, &self.handle, None, move |_| {
            let note = restarts.note(guest.uuid, &successor(&guest), None);
            match toolstack.set_aside(guest.id(), &name) {
                Ok(()) => Ok(Some(Guest { name, ..guest })),
                Err(error) => {
                    if let Some(note) = note {
                        note.done();
                    }
                    Err(error)
                }
            }
        });
        self.ended_by = Some(event.clone());
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
                    "cannot rename; it is preserved as it is"
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
        let wanted = Wanted { config: successor(&old), options: CreateOptions::default(), note };
        if let Err(failure) = create(&self.shared, wanted, None) {
            self.shared.registry.tell(&old, "create-failed", format!("{failure:?}"));
        }
        // What happened while nobody looked.
        let _ = self.handle.send(super::Event::Look);
    }
}

/// The configuration of the guest that follows one that is preserved: two guests cannot have one UUID.
fn successor(guest: &Guest) -> config::GuestConfig {
    config::GuestConfig { uuid: None, ..guest.config.clone() }
}
