//! Jobs on threads of their own: they block for seconds in libxenguest and in waits for backends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::types::{Moved, Outcome, Progress, Round, Step};
use toolstack::Guest;

use crate::refusal::JobError;
use crate::reply::{Answer, Replies};

/// The result of a job: the guest that exists now, if any.
pub(crate) type Ended = Result<Option<Guest>, JobError>;

/// Runs a job on a thread named after it and the guest, and calls `done` with its end, on that thread or at once.
pub(super) fn spawn(
    job: &'static str,
    name: &str,
    replies: Option<Replies>,
    work: impl FnOnce(&mut dyn FnMut(toolstack::Event)) -> Ended + Send + 'static,
    done: impl FnOnce(Ended) + Send + 'static,
) {
    let guest = name.to_owned();
    // The thread takes it, unless there is none.
    let done = Arc::new(Mutex::new(Some(done)));
    let kept = Arc::clone(&done);
    let call = move |ended| {
        let done = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(done) = done {
            done(ended);
        }
    };
    let body = {
        let call = call.clone();
        move || {
            let mut count = 0;
            let mut tell = |event| {
                log(&event);
                let progress = progress(job, &mut count, event);
                if let Some(replies) = &replies {
                    // A client that does not read misses steps, and never delays the job.
                    let _ = replies.try_send(Answer::more(&progress));
                }
            };
            // A bug in one guest's job is reported as a failure: its driver must not wait forever.
            let ended = catch_unwind(AssertUnwindSafe(|| work(&mut tell)))
                .unwrap_or(Err(JobError::Panicked { guest }));
            // A driver that is told closes the client's channel.
            drop(replies);
            call(ended);
        }
    };
    if let Err(source) = std::thread::Builder::new().name(format!("{job} {name}")).spawn(body) {
        tracing::error!(error = %source, "cannot start a thread for a job");
        call(Err(JobError::NoThread { guest: name.to_owned(), source }));
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
        toolstack::Event::Round { round, dirty, rate, downtime } => {
            tracing::debug!(round, dirty, rate, ?downtime, "round");
        }
        toolstack::Event::StoodStill { took } => tracing::info!(?took, "the guest stood still"),
        toolstack::Event::StepStarted { .. } | toolstack::Event::Progress { .. } => {}
    }
}

/// A step as the interface tells it; `count` remembers the number of steps between calls.
fn progress(job: &'static str, count: &mut u32, event: toolstack::Event) -> Progress {
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
        toolstack::Event::Progress { done, total } => {
            return Progress { moved: Some(Moved { done, total }), ..Progress::default() };
        }
        toolstack::Event::Round { round: number, dirty, rate, downtime } => {
            let downtime_ms = downtime.map(millis);
            let round = Some(Round { number, dirty, rate, downtime_ms });
            return Progress { round, ..Progress::default() };
        }
        toolstack::Event::StoodStill { took } => {
            let stood_still_ms = u64::try_from(took.as_millis()).ok();
            return Progress { stood_still_ms, ..Progress::default() };
        }
        toolstack::Event::Warning { text } => {
            return Progress { warning: Some(text), ..Progress::default() };
        }
    };
    let millis = took.map(millis);
    let (lifecycle, id, name) = (job.to_owned(), id.to_owned(), name.to_owned());
    Progress {
        step: Some(Step { lifecycle, index, count: *count, id, name, outcome, millis }),
        ..Progress::default()
    }
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}
