//! How a driver starts its jobs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use toolstack::{Cause, Error, GuestId};

use super::super::job::{self, Ended};
use super::super::names::Reservation;
use super::super::request::{Change, screenshot};
use super::super::resolve::Resolving;
use super::super::state::{Job, RequestId};
use super::super::{restart, watch};
use super::{Driver, Message, Work};
use crate::refusal::JobError;
use crate::reply::Replies;

impl Driver {
    /// Starts a job on a guest that exists, or on what is left of one.
    pub(super) fn start(&mut self, job: Job, request: Option<RequestId>) {
        let Some(id) = self.state.id() else { return };
        let pending = request.and_then(|request| self.pending.get_mut(&request));
        let (work, replies) = pending
            .map(|pending| (std::mem::replace(&mut pending.work, Work::Nothing), pending.replies.clone()))
            .unzip();
        let (toolstack, write) = (self.shared.toolstack.clone(), self.write.clone());
        let patience = toolstack.deadlines().state_file;
        match (job, work) {
            (Job::Change(_), Some(Work::Change(Change { work, new_name, .. }))) => {
                self.spawn(job, replies, new_name, move |events| {
                    write.wait(patience)?;
                    work(&toolstack, id, events)
                });
            }
            (Job::Screenshot, _) => {
                let (client, runtime) = (replies.clone(), tokio::runtime::Handle::current());
                self.spawn(job, replies, None, move |events| {
                    write.wait(patience)?;
                    if let Some(client) = client {
                        screenshot(&toolstack, id, events, (&runtime, &client))?;
                    }
                    Ok(None)
                });
            }
            (Job::Destroy, _) => {
                // Without a handle, only the record says what its domains are.
                let expected = self.state.guest().is_none().then(|| self.state.view().name);
                let vanished = if request.is_none() { self.state.vanished() } else { None };
                self.spawn(job, replies, None, move |events| {
                    vanished.inspect(|guest| watch::until_stub_is_gone(&toolstack, guest));
                    write.wait(patience)?;
                    if let Some(name) = expected
                        && !toolstack.is_incomplete(id, &name)
                    {
                        return Err(Error::Cause(Cause::NoGuest(name)).into());
                    }
                    Ok(toolstack.destroy(id, events).map(|()| None)?)
                });
            }
            (Job::Resolve, Some(Work::Resolve(resolving))) => self.resolve(id, request, resolving, replies),
            (Job::Restart(turn), _) => {
                self.spawn(job, None, None, move |events| {
                    write.wait(patience)?;
                    Ok(toolstack.restart(id, turn, events).map(Some)?)
                });
            }
            (Job::PreserveAs(turn, _), _) => {
                let Some(guest) = self.state.guest().cloned() else { return };
                let sender = self.sender.clone();
                self.spawn(job, None, None, move |_| {
                    write.wait(patience)?;
                    restart::preserve_as(&toolstack, &guest, turn, |next| {
                        let _ = sender.send(Message::Successor(next));
                    })
                });
            }
            (Job::Pause, _) => {
                self.spawn(job, None, None, move |_| {
                    write.wait(patience)?;
                    Ok(toolstack.pause_once(id).map(|()| None)?)
                });
            }
            (Job::Settle, _) => self.settle(id),
            // They are started with their drivers.
            (Job::Create | Job::CleanUp | Job::Change(_) | Job::Resolve, _) => {}
        }
    }

    /// Ends what was left of a change that was given up.
    fn settle(&self, id: GuestId) {
        let (toolstack, write) = (self.shared.toolstack.clone(), self.write.clone());
        self.spawn(Job::Settle, None, None, move |events| {
            write.wait(toolstack.deadlines().state_file)?;
            Ok(toolstack.settle_change(id, events)?)
        });
    }

    /// Settles a migration; what became of it is a part of the answer.
    fn resolve(
        &mut self,
        id: GuestId,
        request: Option<RequestId>,
        resolving: Resolving,
        replies: Option<Replies>,
    ) {
        let outcome = Arc::new(OnceLock::new());
        if let Some(pending) = request.and_then(|request| self.pending.get_mut(&request)) {
            pending.work = Work::Resolving(Arc::clone(&outcome));
        }
        let (toolstack, write) = (self.shared.toolstack.clone(), self.write.clone());
        self.spawn(Job::Resolve, replies, None, move |events| {
            write.wait(toolstack.deadlines().state_file)?;
            let (guest, resolved) = resolving.run(&toolstack, &id.to_string(), events)?;
            let _ = outcome.set(resolved);
            Ok(guest)
        });
    }

    pub(super) fn spawn(
        &self,
        job: Job,
        replies: Option<Replies>,
        reservation: Option<Reservation>,
        work: impl FnOnce(&mut dyn FnMut(toolstack::Event)) -> Ended + Send + 'static,
    ) {
        let (sender, toolstack, id) =
            (self.sender.clone(), self.shared.toolstack.clone(), Arc::clone(&self.id));
        let name = self.state.view().name;
        job::spawn(job.name(), &name.clone(), replies, work, move |ended| {
            let recorded = id.get().copied().filter(|id| match &ended {
                Ok(_) => false,
                // Nothing was done. This may be the event loop, and the disk may hang: it is not read.
                Err(JobError::NoThread { .. } | JobError::DiskHangs { .. }) => true,
                // A bug there must not keep the driver waiting.
                Err(_) => {
                    catch_unwind(AssertUnwindSafe(|| toolstack.is_incomplete(*id, &name))).unwrap_or(true)
                }
            });
            // The driver lives until its job has ended.
            let _ = sender.send(Message::Ended(Box::new(ended), reservation, recorded));
        });
    }
}
