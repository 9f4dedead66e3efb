//! What a driver does when its lifecycle has ended.

use api::types::{Progress, State as ApiState};
use toolstack::{Guest, GuestEvent};

use super::{Driver, Event, Replies, State, create};
use crate::answer::Answer;
use crate::backoff;
use crate::change;
use crate::convert;
use crate::job::{Ended, Job};
use crate::refusal::{self, JobError, chain};

impl Driver {
    /// A change has ended: it was either undone or completed.
    pub(super) fn changed(&mut self, name: &'static str, before: Option<Guest>, ended: Ended) -> Answer {
        self.state = if self.kept { State::Kept } else { State::Running };
        let answer = match ended {
            Ok(guest) => {
                self.guest = guest.or(before);
                if let Some(guest) =
                    self.guest.as_ref().filter(|_| ![change::SCREENSHOT, change::SETTLE].contains(&name))
                {
                    self.shared.registry.tell(guest, "changed", name);
                }
                Answer::last(&Progress::default())
            }
            Err(error) => {
                tracing::error!(lifecycle = name, error = error.report(), "lifecycle failed");
                self.guest = before;
                Answer::failure(&refusal::of_job(&self.name, name, error))
            }
        };
        if let Some(guest) = self.guest.clone() {
            self.name.clone_from(&guest.name);
            self.shared.registry.update(self.key, |entry| {
                entry.name.clone_from(&guest.name);
                entry.guest = Some(guest);
            });
        }
        // Events that occurred meanwhile.
        let _ = self.handle.send(Event::Look);
        answer
    }

    pub(super) fn ended(&mut self, ended: Ended) {
        let State::Busy(job, replies) = std::mem::replace(&mut self.state, State::Running) else {
            return;
        };
        self.settling = false;
        let leftover = std::mem::take(&mut self.leftover);
        for event in self.deferred.drain(..) {
            let _ = self.handle.send(event);
        }
        let before = self.guest.take();
        if let Job::Change(name) = job {
            let answer = self.changed(name, before, ended);
            return answer_later(replies, answer);
        }
        if job == Job::SetAside {
            return self.set_aside(before.as_ref(), ended);
        }
        let answer = match ended {
            Ok(Some(guest)) => self.has_guest(guest),
            Ok(None) => {
                // Its name is free before its end is reported and the client answered.
                self.shared.registry.forget(self.key);
                if leftover {
                    tracing::warn!(
                        guest = self.name,
                        "removed a guest that a previous daemon left incomplete"
                    );
                } else if let Some(guest) = &before {
                    self.shared.registry.tell(guest, "destroyed", "");
                }
                self.create_next();
                Answer::last(&Progress::default())
            }
            Err(error) => {
                tracing::error!(lifecycle = job.name(), error = error.report(), "lifecycle failed");
                self.failed(job, before, &error);
                Answer::failure(&refusal::of_job(&self.name, job.name(), error))
            }
        };
        answer_later(replies, answer);
    }

    /// Creates the guest that waited for the name.
    fn create_next(&mut self) {
        let Some(next) = self.next.take() else { return };
        if let Err(failure) = create(&self.shared, next, None) {
            tracing::error!(guest = self.name, ?failure, "cannot create a guest again");
        }
    }

    pub(super) fn has_guest(&mut self, guest: Guest) -> Answer {
        self.shared.registry.update(self.key, |entry| {
            entry.guest = Some(guest.clone());
            entry.state = ApiState::Running;
        });
        self.backoff.started(backoff::now());
        self.shared.registry.tell(&guest, "created", "");
        // Events that occurred meanwhile.
        self.seen = None;
        let _ = self.handle.send(Event::Look);
        self.guest = Some(guest);
        let entry = self.shared.registry.entry(self.key);
        let shown = entry.and_then(|entry| convert::guest(&self.shared.toolstack, &entry));
        Answer::last(&Progress { guest: shown, ..Progress::default() })
    }

    pub(super) fn failed(&mut self, job: Job, before: Option<Guest>, error: &JobError) {
        let Some(guest) = before else { return self.shared.registry.forget(self.key) };
        let gone = match error {
            // A restart's create: its destroy was complete.
            JobError::Toolstack(toolstack::Error::Step(_)) => true,
            // It was destroyed externally.
            JobError::Toolstack(toolstack::Error::Cause(toolstack::Cause::NoGuest(_))) => true,
            JobError::Toolstack(toolstack::Error::NotRestarted { .. }) => {
                self.shared.registry.tell(&guest, "create-failed", chain(error));
                self.guest = Some(guest.clone());
                let ended = self.seen.clone().unwrap_or(GuestEvent::Gone);
                return self.keep(&guest, &ended);
            }
            _ => false,
        };
        if gone {
            self.shared.registry.forget(self.key);
            if job == Job::Restart {
                self.shared.registry.tell(&guest, "create-failed", chain(error));
            }
            self.shared.registry.tell(&guest, "destroyed", "");
            return;
        }
        // What is left of it is destroyed when a client asks again or the daemon restarts.
        self.shared.registry.update(self.key, |entry| entry.state = ApiState::ShutDown);
        self.shared.registry.tell(&guest, "destroy-failed", chain(error));
        self.seen = Some(GuestEvent::Gone);
        self.state = State::Kept;
        self.guest = Some(guest);
    }
}

/// Sends an answer to the client that waits for it, without waiting for a slow client.
fn answer_later(replies: Option<Replies>, answer: Answer) {
    if let Some(replies) = replies {
        tokio::spawn(async move { replies.send(answer).await });
    }
}
