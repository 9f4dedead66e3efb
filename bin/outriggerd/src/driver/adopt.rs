//! Adopting what the previous daemon left.

use api::types::{Refusal, State as ApiState};
use toolstack::{Guest, Unfinished};

use super::{Driver, Shared, State, Wanted};
use crate::backoff::{Backoff, Turn};
use crate::change;
use crate::job::{self, Job};

/// Adopts an existing guest, whose restart the previous daemon may have delayed. An interrupted change of it is
/// completed or undone first.
pub(crate) fn adopt(
    shared: &Shared,
    guest: Guest,
    turn: Option<Turn>,
    changing: bool,
) -> Result<(), Refusal> {
    // One with another name than in its configuration was preserved under that name: its end has been handled.
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
        job::spawn(job, &driver.name, &driver.handle, None, move |_| Ok(toolstack.settle_change(id)?));
    }
    tokio::spawn(driver.run());
    Ok(())
}

/// Destroys a guest whose create or destroy was interrupted, then creates the `next` one.
pub(crate) fn finish(shared: &Shared, unfinished: Unfinished, next: Option<Wanted>) -> Result<(), Refusal> {
    let Unfinished { id, name, guest } = unfinished;
    let state = State::Busy(Job::Destroy, None);
    let mut driver = Driver::enter(shared, name, guest, ApiState::Destroying, state)?;
    driver.leftover = true;
    driver.next = next;
    let toolstack = shared.toolstack.clone();
    job::spawn(Job::Destroy, &driver.name, &driver.handle, None, move |events| {
        Ok(toolstack.destroy(id, events).map(|()| None)?)
    });
    tokio::spawn(driver.run());
    Ok(())
}
