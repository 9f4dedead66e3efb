//! Lifecycles on threads of their own: they block for seconds in libxenguest and in waits for backends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use api::types::{Outcome, Progress, Step};
use tokio::sync::mpsc;
use toolstack::Guest;

use crate::answer::Answer;
use crate::driver::{Event, Replies};
use crate::refusal::JobError;

/// Which lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Makes the guest.
    Create,
    /// Ends it.
    Destroy,
    /// Ends it and makes it again.
    Restart,
    /// Renames it, so that a new guest of its configuration gets its name.
    SetAside,
    /// Changes it while it runs; with the change's name.
    Change(&'static str),
}

impl Job {
    /// Its name, as steps and errors carry it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Destroy => "destroy",
            Self::Restart | Self::SetAside => "restart",
            Self::Change(name) => name,
        }
    }
}

/// How a lifecycle ended: with the guest that is there now, if one is.
pub(crate) type Ended = Result<Option<Guest>, JobError>;

/// Runs a lifecycle on a thread named after it and the guest; its end comes to the driver as an event.
pub(crate) fn spawn(
    job: Job,
    name: &str,
    driver: &mpsc::UnboundedSender<Event>,
    replies: Option<Replies>,
    work: impl FnOnce(&mut dyn FnMut(toolstack::Event)) -> Ended + Send + 'static,
) {
    let thread = format!("{} {name}", job.name());
    let guest = name.to_owned();
    let queue = driver.clone();
    let body = move || {
        let mut count = 0;
        let mut tell = |event| {
            log(&event);
            let progress = progress(job, &mut count, event);
            if let Some(replies) = &replies {
                // A client that does not read misses steps, and never delays the lifecycle.
                let _ = replies.try_send(Answer::more(&progress));
            }
        };
        // A bug in one guest's lifecycle is reported as a failure: its driver must not wait forever.
        let ended = catch_unwind(AssertUnwindSafe(|| work(&mut tell)))
            .unwrap_or_else(|_| Err(JobError::Panicked { guest }));
        // The driver lives until its lifecycle has ended.
        let _ = queue.send(Event::Ended(Box::new(ended)));
    };
    if let Err(source) = std::thread::Builder::new().name(thread).spawn(body) {
        tracing::error!(error = %source, "cannot start a thread for a lifecycle");
        let error = JobError::NoThread { guest: name.to_owned(), source };
        let _ = driver.send(Event::Ended(Box::new(Err(error))));
    }
}

fn log(event: &toolstack::Event) {
    match event {
        toolstack::Event::StepFinished { id, took, .. } => tracing::debug!(step = id, ?took, "step done"),
        toolstack::Event::StepFailed { label, took, error, .. } => {
            tracing::error!(step = label, ?took, error, "step failed");
        }
        toolstack::Event::Undoing { label, .. } => tracing::info!(step = label, "undoing"),
        toolstack::Event::Warning { text } => tracing::warn!("{text}"),
        toolstack::Event::StepStarted { .. } => {}
    }
}

/// A step as the interface tells it; `count` remembers the number of steps between calls.
fn progress(job: Job, count: &mut u32, event: toolstack::Event) -> Progress {
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let (id, name, index, outcome, took) = match event {
        toolstack::Event::StepStarted { id, label, index, of } => {
            *count = number(of);
            (id, label, number(index), Outcome::Started, None)
        }
        toolstack::Event::StepFinished { id, label, index, took } => {
            (id, label, number(index), Outcome::Done, Some(took))
        }
        toolstack::Event::StepFailed { id, label, index, took, .. } => {
            (id, label, number(index), Outcome::Failed, Some(took))
        }
        toolstack::Event::Undoing { id, label } => (id, label, 0, Outcome::Undone, None),
        toolstack::Event::Warning { text } => {
            return Progress { warning: Some(text), ..Progress::default() };
        }
    };
    let millis = took.map(|took: Duration| took.as_secs_f64() * 1000.0);
    let (lifecycle, id, name) = (job.name().to_owned(), id.to_owned(), name.to_owned());
    Progress {
        step: Some(Step { lifecycle, index, count: *count, id, name, outcome, millis }),
        ..Progress::default()
    }
}
