//! The step engine: a lifecycle is a list of named steps, each with its undo.
//!
//! A step does one thing that can be named to a person. Its undo puts back what the step did, looks at what was
//! really done rather than at what should have been (a step may fail half-way), and does nothing when nothing was.
//! So the engine undoes the failed step too, then its predecessors, last first. What an undo cannot put back at
//! first is tried once more after all others, then reported; it never keeps the others from running.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::error::{Cause, Failure, UndoFailure};
use crate::event::Event;

/// What a step or its undo gives back.
pub type StepResult = Result<(), Cause>;

/// One named step of a lifecycle over the context `C`.
pub struct Step<C: ?Sized> {
    name: &'static str,
    run: fn(&mut C) -> StepResult,
    undo: Option<fn(&mut C) -> StepResult>,
}

impl<C: ?Sized> Step<C> {
    /// Makes a step without an undo.
    #[must_use]
    pub const fn new(name: &'static str, run: fn(&mut C) -> StepResult) -> Self {
        Self { name, run, undo: None }
    }

    /// Gives the step the function that puts back what it did.
    #[must_use]
    pub const fn undo(mut self, undo: fn(&mut C) -> StepResult) -> Self {
        self.undo = Some(undo);
        self
    }

    /// The name, as shown to people and used by fault injection.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

impl<C: ?Sized> Clone for Step<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: ?Sized> Copy for Step<C> {}

/// On which side of a step an injected fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Instead of the step.
    Before,
    /// When the step has done its work.
    After,
}

/// Faults to inject, for tests: the steps (by name) that shall fail, and on which side.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    at: BTreeSet<(String, Side)>,
}

impl Faults {
    /// No faults.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a fault at the step `name`.
    #[must_use]
    pub fn at(mut self, name: &str, side: Side) -> Self {
        self.at.insert((name.to_owned(), side));
        self
    }

    fn strike(&self, name: &str, side: Side) -> StepResult {
        if self.at.is_empty() || !self.at.contains(&(name.to_owned(), side)) {
            return Ok(());
        }
        Err(Cause::Injected { step: name.to_owned() })
    }
}

/// Runs the steps in order; when one fails, undoes it and those before it, last first.
///
/// Every step's start, end and duration goes to `events`.
///
/// # Errors
/// The failed step, its cause, and what could not be undone.
pub fn run_all<C: ?Sized>(
    steps: &[Step<C>],
    context: &mut C,
    faults: &Faults,
    events: &mut dyn FnMut(Event),
) -> Result<(), Failure> {
    for (index, step) in steps.iter().enumerate() {
        events(Event::StepStarted { step: step.name, index, of: steps.len() });
        let start = Instant::now();
        let result = faults
            .strike(step.name, Side::Before)
            .and_then(|()| (step.run)(context))
            .and_then(|()| faults.strike(step.name, Side::After));
        let took = start.elapsed();
        match result {
            Ok(()) => events(Event::StepFinished { step: step.name, index, took }),
            Err(cause) => {
                events(Event::StepFailed { step: step.name, index, took, error: cause.chain() });
                let reached = steps.get(..=index).unwrap_or(steps);
                let undo = undo_all(reached, context, events);
                return Err(Failure { step: step.name, cause, undo, stubdomain_log: Vec::new() });
            }
        }
    }
    Ok(())
}

/// Undoes the steps, last first; those that fail are tried once more at the end.
pub fn undo_all<C: ?Sized>(
    steps: &[Step<C>],
    context: &mut C,
    events: &mut dyn FnMut(Event),
) -> Vec<UndoFailure> {
    let undo: Vec<Step<C>> = steps.iter().rev().filter(|s| s.undo.is_some()).copied().collect();
    let once_more: Vec<Step<C>> =
        undo.into_iter().filter(|step| undo_one(step, context, events).is_err()).collect();
    once_more
        .into_iter()
        .filter_map(|step| {
            let cause = undo_one(&step, context, events).err()?;
            Some(UndoFailure { step: step.name, cause })
        })
        .collect()
}

fn undo_one<C: ?Sized>(step: &Step<C>, context: &mut C, events: &mut dyn FnMut(Event)) -> StepResult {
    let Some(undo) = step.undo else { return Ok(()) };
    events(Event::Undoing { step: step.name });
    undo(context).inspect_err(|cause| {
        events(Event::Warning { text: format!("Undoing \"{}\" failed: {}", step.name, cause.chain()) });
    })
}

/// Runs every step even if some fail, for tearing down: those that failed are tried once more at the end.
///
/// Returns what still failed at the second try.
pub fn run_every<C: ?Sized>(
    steps: &[Step<C>],
    context: &mut C,
    faults: &Faults,
    events: &mut dyn FnMut(Event),
) -> Vec<UndoFailure> {
    let mut again = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        events(Event::StepStarted { step: step.name, index, of: steps.len() });
        let start = Instant::now();
        let result = faults
            .strike(step.name, Side::Before)
            .and_then(|()| (step.run)(context))
            .and_then(|()| faults.strike(step.name, Side::After));
        let took = start.elapsed();
        match result {
            Ok(()) => events(Event::StepFinished { step: step.name, index, took }),
            Err(cause) => {
                events(Event::StepFailed { step: step.name, index, took, error: cause.chain() });
                again.push(*step);
            }
        }
    }
    again
        .into_iter()
        .filter_map(|step| {
            let cause = (step.run)(context).err()?;
            Some(UndoFailure { step: step.name, cause })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log {
        done: Vec<String>,
        stubborn: u32,
    }

    fn fail() -> StepResult {
        Err(Cause::Injected { step: "c".to_owned() })
    }

    fn steps() -> Vec<Step<Log>> {
        vec![
            Step::new("a", |l: &mut Log| {
                l.done.push("a".into());
                Ok(())
            })
            .undo(|l| {
                l.done.push("-a".into());
                Ok(())
            }),
            Step::new("b", |l: &mut Log| {
                l.done.push("b".into());
                Ok(())
            })
            .undo(|l| {
                if l.stubborn > 0 {
                    l.stubborn -= 1;
                    return fail();
                }
                l.done.push("-b".into());
                Ok(())
            }),
            Step::new("c", |l: &mut Log| {
                l.done.push("c".into());
                fail()
            })
            .undo(|l| {
                l.done.push("-c".into());
                Ok(())
            }),
        ]
    }

    #[test]
    fn a_failure_undoes_itself_and_those_before_it_last_first() {
        let mut log = Log::default();
        let failure = run_all(&steps(), &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
        assert_eq!(failure.step, "c");
        assert_eq!(log.done, ["a", "b", "c", "-c", "-b", "-a"]);
        assert!(failure.undo.is_empty());
    }

    #[test]
    fn an_undo_that_fails_once_is_tried_again_after_the_others() {
        let mut log = Log { stubborn: 1, ..Log::default() };
        let failure = run_all(&steps(), &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
        assert_eq!(log.done, ["a", "b", "c", "-c", "-a", "-b"]);
        assert!(failure.undo.is_empty());
    }

    #[test]
    fn an_undo_that_fails_twice_is_reported_and_stops_no_other() {
        let mut log = Log { stubborn: 2, ..Log::default() };
        let failure = run_all(&steps(), &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
        assert_eq!(log.done, ["a", "b", "c", "-c", "-a"]);
        assert_eq!(failure.undo.iter().map(|u| u.step).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn an_injected_fault_strikes_before_or_after() {
        let mut log = Log::default();
        let faults = Faults::none().at("b", Side::Before);
        run_all(&steps(), &mut log, &faults, &mut |_| ()).unwrap_err();
        assert_eq!(log.done, ["a", "-b", "-a"]);
        let mut log = Log::default();
        let faults = Faults::none().at("b", Side::After);
        run_all(&steps(), &mut log, &faults, &mut |_| ()).unwrap_err();
        assert_eq!(log.done, ["a", "b", "-b", "-a"]);
    }

    #[test]
    fn tearing_down_runs_every_step_and_retries_the_failed() {
        let mut log = Log::default();
        let left = run_every(&steps(), &mut log, &Faults::none().at("a", Side::Before), &mut |_| ());
        assert_eq!(log.done, ["b", "c", "a", "c"]);
        assert_eq!(left.len(), 1);
    }
}
