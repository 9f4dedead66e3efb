//! The engine: runs the steps of an operation, and undoes them.
//!
//! What an undo cannot put back at first is tried once more after all others, then reported; it never keeps the others
//! from running.

use std::time::Instant;

use super::faults::{Faults, Side};
use super::step::{Step, StepResult};
use crate::error::{Cause, Failure, UndoFailure};
use crate::event::Event;

/// The ids of the steps, in order.
pub(crate) fn ids<C: ?Sized>(steps: &[Step<C>]) -> Vec<&'static str> {
    steps.iter().map(Step::id).collect()
}

/// Runs the steps in order. A failure before the point of no return undoes the failed step and those before it, last
/// first. From that point on every step is run, and those that failed are tried once more at the end.
///
/// Every step's start, end and duration goes to `events`. Returns what failed beyond the point of no return, also the
/// second time.
///
/// # Errors
/// The step that failed before it, its cause, and what could not be undone.
pub(crate) fn run<C: ?Sized>(
    steps: &[Step<C>],
    context: &mut C,
    faults: &Faults,
    events: &mut dyn FnMut(Event),
) -> Result<Vec<UndoFailure>, Failure> {
    run_from(0, steps, context, faults, events)
}

/// Continues an operation beyond its point of no return; an earlier process ran the steps before it.
///
/// Returns what failed, also the second time.
pub(crate) fn run_forward<C: ?Sized>(
    steps: &[Step<C>],
    context: &mut C,
    faults: &Faults,
    events: &mut dyn FnMut(Event),
) -> Vec<UndoFailure> {
    // Beyond that point a failure is no error.
    run_from(turn(steps), steps, context, faults, events).unwrap_or_default()
}

fn left_by<C: ?Sized>(step: &Step<C>, cause: Cause) -> UndoFailure {
    UndoFailure { id: step.id(), label: step.label(), cause }
}

/// Where only forward begins.
fn turn<C: ?Sized>(steps: &[Step<C>]) -> usize {
    steps.iter().position(|step| step.is_point_of_no_return).unwrap_or(steps.len())
}

fn run_from<C: ?Sized>(
    first: usize,
    steps: &[Step<C>],
    context: &mut C,
    faults: &Faults,
    events: &mut dyn FnMut(Event),
) -> Result<Vec<UndoFailure>, Failure> {
    let turn = turn(steps);
    let mut again = Vec::new();
    for (index, step) in steps.iter().enumerate().skip(first) {
        events(Event::StepStarted { id: step.id(), label: step.label(), index, of: steps.len() });
        let start = Instant::now();
        let result = faults
            .strike(step.id(), Side::Before)
            .and_then(|()| (step.run)(context))
            .and_then(|()| faults.strike(step.id(), Side::After));
        let took = start.elapsed();
        let Err(cause) = result else {
            events(Event::StepFinished { id: step.id(), label: step.label(), index, took });
            continue;
        };
        events(Event::StepFailed { id: step.id(), label: step.label(), index, took, error: cause.chain() });
        if index < turn {
            let reached = steps.get(..=index).unwrap_or(steps);
            let undo = undo_all(reached, context, events);
            return Err(Failure {
                id: step.id(),
                label: step.label(),
                cause,
                undo,
                stubdomain_log: Vec::new(),
            });
        }
        again.push(*step);
    }
    let once_more = |step: Step<C>| Some(left_by(&step, (step.run)(context).err()?));
    Ok(again.into_iter().filter_map(once_more).collect())
}

/// Undoes the steps, last first; those that fail are tried once more at the end. What was written down is removed last,
/// and stays when something else does.
pub(crate) fn undo_all<C: ?Sized>(
    steps: &[Step<C>],
    context: &mut C,
    events: &mut dyn FnMut(Event),
) -> Vec<UndoFailure> {
    let (records, others): (Vec<Step<C>>, Vec<Step<C>>) =
        steps.iter().rev().copied().partition(|step| step.is_record);
    let left = undo_in_order(others, context, events);
    if left.is_empty() { undo_in_order(records, context, events) } else { left }
}

fn undo_in_order<C: ?Sized>(
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
            Step::new("a", "does a", |l: &mut Log| {
                l.done.push("a".into());
                Ok(())
            })
            .undo(|l| {
                l.done.push("-a".into());
                Ok(())
            }),
            Step::new("b", "does b", |l: &mut Log| {
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
            Step::new("c", "does c", |l: &mut Log| {
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
        let failure = run(&steps(), &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
        assert_eq!(failure.id, "c");
        assert_eq!(log.done, ["a", "b", "c", "-c", "-b", "-a"]);
        assert!(failure.undo.is_empty());
    }

    #[test]
    fn an_undo_that_fails_once_is_tried_again_after_the_others() {
        let mut log = Log { stubborn: 1, ..Log::default() };
        let failure = run(&steps(), &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
        assert_eq!(log.done, ["a", "b", "c", "-c", "-a", "-b"]);
        assert!(failure.undo.is_empty());
    }

    #[test]
    fn an_undo_that_fails_twice_is_reported_and_stops_no_other() {
        let mut log = Log { stubborn: 2, ..Log::default() };
        let failure = run(&steps(), &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
        assert_eq!(log.done, ["a", "b", "c", "-c", "-a"]);
        assert_eq!(failure.undo.iter().map(|u| u.id).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn record_is_removed_last_and_stays_as_long_as_something_else_does() {
        let forget = |l: &mut Log| {
            l.done.push("forget".into());
            Ok(())
        };
        let with_record = |stubborn| {
            let record = Step::new("record", "writes it down", |_: &mut Log| Ok(())).record(forget);
            let mut log = Log { stubborn, ..Log::default() };
            // The undo of a step before the record's comes before the record's all the same.
            let steps: Vec<_> =
                steps().into_iter().take(1).chain([record]).chain(steps().into_iter().skip(1)).collect();
            let failure = run(&steps, &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
            (log.done.split_off(3).join(" "), failure.undo.len())
        };
        assert_eq!(with_record(0), ("-c -b -a forget".to_owned(), 0));
        assert_eq!(with_record(1), ("-c -a -b forget".to_owned(), 0));
        assert_eq!(with_record(2), ("-c -a".to_owned(), 1));
    }

    #[test]
    fn only_what_is_beyond_the_point_of_no_return_is_gone_on_with() {
        let mut steps = steps();
        steps[1] = steps[1].point_of_no_return();
        let mut log = Log::default();
        let left = run_forward(&steps, &mut log, &Faults::none(), &mut |_| ());
        assert_eq!((log.done.join(" ").as_str(), left.len()), ("b c c", 1));
    }

    #[test]
    fn an_injected_fault_strikes_before_or_after() {
        let mut log = Log::default();
        let faults = Faults::none().at("b", Side::Before);
        run(&steps(), &mut log, &faults, &mut |_| ()).unwrap_err();
        assert_eq!(log.done, ["a", "-b", "-a"]);
        let mut log = Log::default();
        let faults = Faults::none().at("b", Side::After);
        run(&steps(), &mut log, &faults, &mut |_| ()).unwrap_err();
        assert_eq!(log.done, ["a", "b", "-b", "-a"]);
    }

    #[test]
    fn from_the_point_of_no_return_on_every_step_runs_and_the_failed_ones_again() {
        let mut steps = steps();
        steps[0] = steps[0].point_of_no_return();
        let mut log = Log::default();
        let left = run(&steps, &mut log, &Faults::none().at("a", Side::Before), &mut |_| ()).unwrap();
        assert_eq!(log.done, ["b", "c", "a", "c"]);
        assert_eq!(left.iter().map(|left| left.id).collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn failure_before_the_point_of_no_return_runs_nothing_beyond_it() {
        let mut steps = steps();
        steps[2] = steps[2].point_of_no_return();
        let mut log = Log::default();
        let failure = run(&steps, &mut log, &Faults::none().at("b", Side::After), &mut |_| ()).unwrap_err();
        assert_eq!((failure.id, log.done.join(" ").as_str()), ("b", "a b -b -a"));
        let mut log = Log::default();
        let left = run(&steps, &mut log, &Faults::none(), &mut |_| ()).unwrap();
        assert_eq!((left.len(), log.done.join(" ").as_str()), (1, "a b c c"));
    }
}
