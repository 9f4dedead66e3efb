//! The engine: runs the steps of an operation, undoes them, and resumes what was interrupted.
//!
//! What an undo cannot put back at first is tried once more after all others, then reported; it never keeps the others
//! from running.

use std::time::Instant;

use super::entry::{Cursor, Way};
use super::faults::{Faults, Side};
use super::journal::{ENTRY, Journal};
use super::step::{Mark, Step, StepResult};
use crate::error::{Cause, Failure, UndoFailure};
use crate::event::Event;

/// What the entry's own failures are reported as.
const ENTRY_LABEL: &str = "update the state file";

/// The ids of the steps, in order.
pub(crate) fn ids<C: ?Sized>(steps: &[Step<C>]) -> Vec<&'static str> {
    steps.iter().map(Step::id).collect()
}

/// Runs the steps in order. A failure before the point of no return undoes the failed step and those before it, last
/// first. From that point on every step is run, and those that failed are tried once more at the end.
///
/// Every step's start, end and duration goes to `events`. Returns what failed beyond the point of no return, also the
/// second time; the entry stays then, unless all of it may fail.
///
/// # Errors
/// The step that failed before it, its cause, and what could not be undone.
pub(crate) fn run<C: Journal>(
    steps: &[Step<C>],
    context: &mut C,
    faults: &Faults,
    events: &mut dyn FnMut(Event),
) -> Result<Vec<UndoFailure>, Failure> {
    run_from(Origin::Start, steps, context, faults, events)
}

/// Where a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// At the first step.
    Start,
    /// At this step, of which the entry says that there is only forward.
    Resumed(usize),
}

/// What became of an operation that was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumed {
    /// It was undone: everything is as before it.
    Undone,
    /// It was completed.
    Completed,
    /// A peer has to decide; nothing was done.
    Held,
}

/// Undoes or completes an operation that an earlier process began, as its entry's cursor says.
///
/// # Errors
/// What could be neither undone nor completed; the entry stays.
pub(crate) fn resume<C: Journal>(
    steps: &[Step<C>],
    context: &mut C,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> Result<Resumed, Vec<UndoFailure>> {
    let failed = |cause| vec![of_entry(cause)];
    let mut cursor = cursor.clone();
    if cursor.way == Way::Back && context.has_passed().map_err(failed)? {
        cursor.way = Way::Forward;
    }
    // What was read of it may be only in the kernel's cache.
    context.enter(cursor.clone()).map_err(failed)?;
    let turn = turn(steps);
    // Another release may have had other steps.
    let known = steps.iter().position(|step| step.id() == cursor.step);
    let left = match cursor.way {
        Way::Peer => return Ok(Resumed::Held),
        Way::Forward => {
            let first = if turn < steps.len() { turn } else { known.unwrap_or(turn) };
            let origin = Origin::Resumed(first);
            run_from(origin, steps, context, &Faults::none(), events).unwrap_or_else(Failure::into_left)
        }
        Way::Back | Way::Undo => {
            let reached = known.map_or(turn, |index| index + 1).min(steps.len());
            let reached = steps.get(..reached).unwrap_or(steps);
            let left = undo_steps(reached, context, events);
            match reached.last() {
                // What was undone is not undone again.
                Some(last) if !left.is_empty() => {
                    let _ = context.enter(Cursor::back(last.id()));
                    left
                }
                _ => withdraw(reached, context, left, events),
            }
        }
    };
    match cursor.way {
        _ if left.iter().any(|failure| !may_fail(steps, failure)) => Err(left),
        Way::Back | Way::Undo => Ok(Resumed::Undone),
        _ => Ok(Resumed::Completed),
    }
}

fn left_by<C: ?Sized>(step: &Step<C>, cause: Cause) -> UndoFailure {
    UndoFailure { id: step.id(), label: step.label(), cause }
}

fn of_entry(cause: Cause) -> UndoFailure {
    UndoFailure { id: ENTRY, label: ENTRY_LABEL, cause }
}

fn may_fail<C: ?Sized>(steps: &[Step<C>], failure: &UndoFailure) -> bool {
    steps.iter().any(|step| step.id() == failure.id && step.may_fail)
}

/// Where only forward begins.
fn turn<C: ?Sized>(steps: &[Step<C>]) -> usize {
    place(steps, Mark::PointOfNoReturn).unwrap_or(steps.len())
}

fn place<C: ?Sized>(steps: &[Step<C>], mark: Mark) -> Option<usize> {
    steps.iter().position(|step| step.mark == Some(mark))
}

/// Moves the entry's cursor to a step before the step is run, if the step changes what becomes of the operation.
fn advance<C: Journal>(steps: &[Step<C>], index: usize, context: &mut C) -> StepResult {
    let Some(step) = steps.get(index) else { return Ok(()) };
    let is_entered = steps.get(..index).is_some_and(|before| before.iter().any(|step| step.is_entry));
    let peers = place(steps, Mark::Peer).is_some_and(|peer| index > peer);
    if !is_entered || index > turn(steps) {
        return Ok(());
    }
    match step.mark {
        Some(Mark::PointOfNoReturn) => context.enter(Cursor::forward(step.id())),
        Some(Mark::Peer) => context.enter(Cursor { step: step.id().to_owned(), way: Way::Peer }),
        None if step.undo.is_some() && !peers => context.enter(Cursor::back(step.id())),
        None => Ok(()),
    }
}

fn run_from<C: Journal>(
    origin: Origin,
    steps: &[Step<C>],
    context: &mut C,
    faults: &Faults,
    events: &mut dyn FnMut(Event),
) -> Result<Vec<UndoFailure>, Failure> {
    let (turn, peer) = (turn(steps), place(steps, Mark::Peer));
    let first = match origin {
        Origin::Start => 0,
        Origin::Resumed(index) => index,
    };
    let mut again = Vec::new();
    for (index, step) in steps.iter().enumerate().skip(first) {
        events(Event::StepStarted { id: step.id(), label: step.label(), index, of: steps.len() });
        let start = Instant::now();
        // What is resumed has its entry at this step already.
        let is_known = origin == Origin::Resumed(index);
        let advanced = if is_known { Ok(()) } else { advance(steps, index, context) };
        let is_before = index < turn || advanced.is_err();
        // What is resumed goes only forward: a failure leaves it, and its entry, to the next attempt.
        let is_resumed = origin != Origin::Start;
        let is_held = peer.is_some_and(|peer| index > peer || index == peer && advanced.is_ok());
        let is_last = index + 1 == steps.len() && turn == steps.len();
        let result = advanced
            .and_then(|()| faults.strike(step.id(), Side::Before))
            .and_then(|()| (step.run)(context))
            .and_then(|()| faults.strike(step.id(), Side::After))
            .and_then(|()| if is_last { context.complete() } else { Ok(()) });
        let took = start.elapsed();
        let Err(cause) = result else {
            events(Event::StepFinished { id: step.id(), label: step.label(), index, took });
            continue;
        };
        events(Event::StepFailed { id: step.id(), label: step.label(), index, took, error: cause.chain() });
        if is_before {
            let reached = steps.get(..=index).unwrap_or(steps);
            let mut undo = Vec::new();
            if !is_held && !is_resumed {
                note_undo(steps, index, context);
                let left = undo_steps(reached, context, events);
                undo = withdraw(reached, context, left, events);
            }
            let (id, label) = (step.id(), step.label());
            return Err(Failure { id, label, cause, undo, stubdomain_log: Vec::new() });
        }
        again.push(*step);
    }
    if turn == steps.len() {
        return Ok(Vec::new());
    }
    let once_more = |step: Step<C>| Some(left_by(&step, (step.run)(context).err()?));
    let mut left: Vec<UndoFailure> = again.into_iter().filter_map(once_more).collect();
    if left.iter().all(|failure| may_fail(steps, failure)) {
        left.extend(context.complete().or_else(|_| context.complete()).err().map(of_entry));
    } else if let Some(step) = steps.get(turn) {
        // For whoever completes it. The older entry says as much of what is left.
        let _ = context.enter(Cursor::forward(step.id()));
    }
    Ok(left)
}

/// Undoes the steps but the entry, last first; those that fail are tried once more at the end.
fn undo_steps<C: Journal>(
    steps: &[Step<C>],
    context: &mut C,
    events: &mut dyn FnMut(Event),
) -> Vec<UndoFailure> {
    undo_in_order(steps.iter().rev().filter(|step| !step.is_entry).copied().collect(), context, events)
}

/// Withdraws the entry, if the steps have come to it. Returns what is left, with this if it fails.
fn withdraw<C: Journal>(
    steps: &[Step<C>],
    context: &mut C,
    mut left: Vec<UndoFailure>,
    events: &mut dyn FnMut(Event),
) -> Vec<UndoFailure> {
    if let Some(entry) = steps.iter().find(|step| step.is_entry) {
        let is_clean = left.is_empty();
        if entry.undo.is_none() {
            events(Event::Undoing { id: entry.id(), label: entry.label() });
        }
        let mut once = || undo_one(entry, context, events).and_then(|()| context.withdraw(is_clean));
        left.extend(once().or_else(|_| once()).err().map(of_entry));
    }
    left
}

/// Notes that an operation is being undone, so that one that is interrupted in this is not taken for complete.
fn note_undo<C: Journal>(steps: &[Step<C>], index: usize, context: &mut C) {
    let is_entered = steps.get(..index).is_some_and(|before| before.iter().any(|step| step.is_entry));
    if let Some(step) = steps.get(index).filter(|_| is_entered) {
        // Without it, the entry still says how far the operation has come.
        let _ = context.enter(Cursor { step: step.id().to_owned(), way: Way::Undo });
    }
}

fn undo_in_order<C>(
    mut steps: Vec<Step<C>>,
    context: &mut C,
    events: &mut dyn FnMut(Event),
) -> Vec<UndoFailure> {
    steps.retain(|step| undo_one(step, context, events).is_err());
    let once_more = |step: Step<C>| Some(left_by(&step, undo_one(&step, context, events).err()?));
    steps.into_iter().filter_map(once_more).collect()
}

fn undo_one<C: ?Sized>(step: &Step<C>, context: &mut C, events: &mut dyn FnMut(Event)) -> StepResult {
    let Some(undo) = step.undo else { return Ok(()) };
    events(Event::Undoing { id: step.id(), label: step.label() });
    undo(context).inspect_err(|cause| {
        events(Event::Warning { text: format!("Undoing \"{}\" failed: {}", step.label(), cause.chain()) });
    })
}

#[cfg(test)]
mod tests;
