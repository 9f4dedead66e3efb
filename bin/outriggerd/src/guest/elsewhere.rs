//! Guests that are at another host, and of which this one may get one.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use api::types::{Progress, Refusal};
use tokio::runtime::Handle;
use toolstack::{Cause, Error, Guest, HandoverError, Incoming};

use super::request::Request;
use super::resolve::Resolving;
use super::shared::{NewGuest, Shared};
use super::view::View;
use super::{driver, job, show};
use crate::refusal::{self, JobError};
use crate::reply::{Answer, Replies};

/// Receives a guest, or answers another host. Blocks on that host; to be called where the event loop can be entered.
///
/// # Errors
/// When there is no connection, or the guest's name or UUID is taken: the other host is told so.
pub(crate) fn receive(
    shared: &Shared,
    runtime: &Handle,
    path: &Path,
    replies: &Replies,
) -> Result<(), Refusal> {
    let failed = |error| refusal::of(&path.display().to_string(), &error);
    let channel = shared.toolstack.connect_peer(path).map_err(failed)?;
    // The client that is told so is the other host's.
    let accepted = shared.toolstack.accept_peer(channel).inspect_err(|error| {
        tracing::warn!(error = error.report(), "cannot answer another host");
    });
    let guest = match accepted.map_err(failed)? {
        Incoming::Answered => {
            let _ = replies.blocking_send(Answer::last(&Progress::default()));
            return Ok(());
        }
        Incoming::Told { migration, guest, channel } => {
            let resolving = Resolving::through(channel, migration.clone());
            let _guard = runtime.enter();
            match shared.registry.find(&guest.to_string(), None) {
                Ok(entry) if entry.view.guest.is_some() => {
                    return entry.ask(Request::Resolve(resolving), replies);
                }
                _ => resolve(shared, migration, resolving, replies.clone()),
            }
            return Ok(());
        }
        Incoming::Guest(guest) => guest,
    };
    let uuid = guest.id().to_string();
    if let Ok(entry) = shared.registry.find(guest.name(), None) {
        let name = guest.name().to_owned();
        guest.refuse(&shared.toolstack);
        return Err(match &entry.view.guest {
            Some(other) => Refusal::NameTaken { name, domid: other.domid },
            None => entry.view.busy(),
        });
    }
    if shared.registry.find(&uuid, None).is_ok() {
        guest.refuse(&shared.toolstack);
        let message = format!("The UUID {uuid} is already used by another guest of this host");
        return Err(Refusal::UuidTaken { uuid, message });
    }
    let _guard = runtime.enter();
    driver::create(shared, NewGuest::Incoming(guest), Some(replies.clone()))
}

/// Settles a migration of a guest that no driver has. If it is here then, it gets one.
pub(crate) fn resolve(shared: &Shared, asked: String, resolving: Resolving, replies: Replies) {
    let outcome = Arc::new(OnceLock::new());
    let (toolstack, told, name) = (shared.toolstack.clone(), Arc::clone(&outcome), asked.clone());
    let work = move |events: &mut dyn FnMut(toolstack::Event)| {
        let (guest, resolved) = resolving.run(&toolstack, &name, events)?;
        let _ = told.set(resolved);
        Ok(guest)
    };
    let (shared, runtime) = (shared.clone(), Handle::current());
    let client = replies.clone();
    job::spawn("resolve", &asked.clone(), Some(replies), work, move |ended| {
        let answer = ended.map_err(|error| unknown(&asked, error)).map(|guest| {
            let resolved = outcome.get().cloned();
            let guest = guest.and_then(|guest| adopt(&shared, &runtime, guest));
            let guest = guest.and_then(|view| show::guest(&shared.toolstack, &view));
            Answer::last(&Progress { resolved, guest, ..Progress::default() })
        });
        let answer = answer.unwrap_or_else(|refusal| Answer::refusal(&refusal));
        // This is a thread of its own, unless none could be started.
        if let Err(tokio::sync::mpsc::error::TrySendError::Full(answer)) = client.try_send(answer) {
            runtime.spawn(async move { client.send(answer).await });
        }
    });
}

/// Where the journals know nothing of it either, there is no such guest.
fn unknown(asked: &str, error: JobError) -> Refusal {
    match error {
        JobError::Toolstack(Error::Cause(Cause::Handover(HandoverError::NoMigration { .. }))) => {
            Refusal::NoSuchGuest { guest: asked.chars().take(256).collect() }
        }
        error => refusal::of_job(asked, "resolve", error),
    }
}

/// Has a guest handled that is here now. One that is still being received has a driver.
fn adopt(shared: &Shared, runtime: &Handle, guest: Guest) -> Option<View> {
    let _guard = runtime.enter();
    let (name, uuid) = (guest.name.clone(), guest.uuid.to_string());
    if let Err(refusal) = driver::adopt(shared, guest, None, false) {
        tracing::info!(guest = name, ?refusal, "a resolved guest is handled already");
    }
    shared.registry.find(&uuid, None).ok().map(|entry| entry.view)
}
