//! Taking up what an earlier daemon left.

use api::types::{Failure, State as ApiState};
use toolstack::{Guest, Unfinished};

use super::{Driver, Shared, State, Wanted};
use crate::backoff::{Backoff, Turn};
use crate::change;
use crate::job::{self, Job};

/// Takes up a guest that is there, and whose restart an earlier daemon may have delayed. A change of it that was cut off
/// is settled first.
pub(crate) fn adopt(
    shared: &Shared,
    guest: Guest,
    turn: Option<Turn>,
    changing: bool,
) -> Result<(), Failure> {
    // One with another name than its configuration's was kept beside its successor: its end is an old story.
    let state = if guest.name == guest.config.name { State::Running } else { State::Kept };
    let (name, id) = (guest.name.clone(), guest.id());
    let mut driver = Driver::enter(shared, name, Some(guest), ApiState::Running, state)?;
    driver.backoff = turn.map(Backoff::resumed).unwrap_or_default();
    if changing {
        let job = Job::Change(change::SETTLE);
        driver.kept = matches!(driver.state, State::Kept);
        driver.state = State::Busy(job, None);
        driver.settling = true;
        let toolstack = shared.toolstack.clone();
        job::spawn(job, &driver.name, &driver.handle, None, move |_| toolstack.settle_change(id));
    }
    tokio::spawn(driver.run());
    Ok(())
}

/// Destroys a guest whose create or destroy was cut off, and makes the `next` one then.
pub(crate) fn finish(shared: &Shared, unfinished: Unfinished, next: Option<Wanted>) -> Result<(), Failure> {
    let Unfinished { id, name, guest } = unfinished;
    let state = State::Busy(Job::Destroy, None);
    let mut driver = Driver::enter(shared, name, guest, ApiState::Destroying, state)?;
    driver.leftover = true;
    driver.next = next;
    let toolstack = shared.toolstack.clone();
    job::spawn(Job::Destroy, &driver.name, &driver.handle, None, move |events| {
        toolstack.destroy(id, events).map(|()| None)
    });
    tokio::spawn(driver.run());
    Ok(())
}
