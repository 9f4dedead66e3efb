//! Requests of clients.

use api::types::{Refusal, Via};
use toolstack::{Guest, ShutdownWay, Signal, Toolstack};

use super::restart::remove;
use super::{Driver, Replies, State};
use crate::answer::Answer;
use crate::change::Change;
use crate::job::{self, Job};
use crate::refusal;

/// Requests that need no lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Pause it.
    Pause,
    /// Unpause it.
    Unpause,
    /// Ask it to power off.
    Shutdown,
    /// Ask it to reboot.
    Reboot,
    /// Signal its virtual hardware, at this vCPU.
    Trigger(Signal, u32),
    /// Send a magic SysRq key.
    Sysrq(char),
}

impl Driver {
    pub(super) fn destroy_for(&mut self, replies: Replies) {
        match (&self.state, self.guest.clone()) {
            (State::Running | State::Kept | State::Waiting(_), Some(guest)) => {
                self.destroy(&guest, Some(replies));
            }
            (State::Busy(job, _), _) => self.busy_answer(*job, &replies),
            (_, None) => self.no_guest_answer(&replies),
        }
    }

    pub(super) fn change_for(&mut self, change: Change, replies: Replies) {
        let guest = match (&self.state, self.guest.clone()) {
            (State::Busy(job, _), _) => return self.busy_answer(*job, &replies),
            (State::Waiting(_), _) => return self.busy_answer(Job::Restart, &replies),
            (_, None) => return self.no_guest_answer(&replies),
            (state, Some(guest)) => {
                self.kept = matches!(state, State::Kept);
                guest
            }
        };
        // From now on no other guest can take the name.
        if let Some(name) = &change.new_name
            && let Err(failure) = self.shared.registry.rename(self.key, name)
        {
            let _ = replies.try_send(Answer::failure(&failure));
            return;
        }
        let toolstack = self.shared.toolstack.clone();
        let (job, id) = (Job::Change(change.name), guest.id());
        job::spawn(job, &guest.name, &self.handle, Some(replies.clone()), move |events| {
            (change.work)(&toolstack, id, events).map(Some)
        });
        self.state = State::Busy(job, Some(replies));
    }

    pub(super) fn no_guest_answer(&self, replies: &Replies) {
        let _ = replies.try_send(Answer::failure(&Refusal::NoSuchGuest { guest: self.name.clone() }));
    }

    pub(super) fn busy_answer(&self, job: Job, replies: &Replies) {
        let failure = Refusal::Busy { guest: self.name.clone(), lifecycle: job.name().to_owned() };
        let _ = replies.try_send(Answer::failure(&failure));
    }

    pub(super) fn destroy(&mut self, guest: &Guest, replies: Option<Replies>) {
        let toolstack = self.shared.toolstack.clone();
        let id = guest.id();
        let note = self.take_turn();
        let cut_off = self.next.take().and_then(|next| next.note);
        // One that failed to go with its restart. That of a guest under another name is its successor's.
        let forgotten = (guest.name == guest.config.name).then(|| self.shared.restarts.note_of(guest.uuid));
        job::spawn(Job::Destroy, &guest.name, &self.handle, replies.clone(), move |events| {
            // First: a guest that a client destroys must not be restarted.
            remove(note);
            for note in cut_off.into_iter().chain(forgotten) {
                note.done();
            }
            Ok(toolstack.destroy(id, events).map(|()| None)?)
        });
        self.busy(Job::Destroy, replies);
    }

    pub(super) fn request(&mut self, request: Request, replies: Replies) {
        let guest = match (&self.state, &self.guest) {
            (State::Busy(job, _), _) => return self.busy_answer(*job, &replies),
            (_, Some(guest)) => guest.clone(),
            (_, None) => return self.no_guest_answer(&replies),
        };
        let toolstack = self.shared.toolstack.clone();
        tokio::task::spawn_blocking(move || {
            let answer = match perform(&toolstack, &guest, request) {
                Ok(Some(via)) => Answer::last(&Via { via }),
                Ok(None) => Answer::last(&serde_json::json!({})),
                Err(error) => Answer::failure(&refusal::of(&guest.name, &error)),
            };
            let _ = replies.blocking_send(answer);
        });
    }
}

/// Executes a quick request; the answer contains how the guest was asked.
fn perform(
    toolstack: &Toolstack,
    guest: &Guest,
    request: Request,
) -> Result<Option<String>, toolstack::Error> {
    let way = match request {
        Request::Pause => return toolstack.pause(guest.id()).map(|()| None),
        Request::Unpause => return toolstack.unpause(guest.id()).map(|()| None),
        Request::Trigger(signal, vcpu) => {
            return toolstack.trigger(guest.id(), signal, vcpu).map(|()| None);
        }
        Request::Sysrq(key) => return toolstack.sysrq(guest.id(), key).map(|()| None),
        Request::Shutdown => toolstack.shutdown(guest.id())?,
        Request::Reboot => toolstack.reboot(guest.id())?,
    };
    Ok(Some(match way {
        ShutdownWay::PvDrivers => "pv".to_owned(),
        ShutdownWay::PowerButton => "acpi".to_owned(),
    }))
}
