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
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log {
        done: Vec<String>,
        stubborn: u32,
        /// What was written into the journal, in order.
        journal: Vec<String>,
        /// Writes of the journal that fail from now on, by number.
        fails: Vec<usize>,
        has_passed: bool,
    }

    impl Log {
        fn write(&mut self, text: String) -> StepResult {
            self.journal.push(text);
            if self.fails.contains(&self.journal.len()) { fail() } else { Ok(()) }
        }
    }

    impl Journal for Log {
        fn enter(&mut self, cursor: Cursor) -> StepResult {
            self.write(format!("{}:{:?}", cursor.step, cursor.way))
        }

        fn complete(&mut self) -> StepResult {
            self.write("complete".to_owned())
        }

        fn withdraw(&mut self, is_clean: bool) -> StepResult {
            self.done.push("withdraw".to_owned());
            self.write(if is_clean { "withdraw".to_owned() } else { "withdraw, unclean".to_owned() })
        }

        fn has_passed(&mut self) -> Result<bool, Cause> {
            Ok(self.has_passed)
        }
    }

    fn entry() -> Step<Log> {
        Step::new(ENTRY, "writes it down", |log: &mut Log| log.enter(Cursor::back(ENTRY))).entry()
    }

    /// Steps with an entry after the first of them, the last of which succeeds.
    fn with_entry() -> Vec<Step<Log>> {
        let mut steps = steps();
        steps.insert(1, entry());
        let done = |log: &mut Log| {
            log.done.push("d".into());
            Ok(())
        };
        *steps.last_mut().unwrap() = Step::new("d", "does d", done).undo(|log| {
            log.done.push("-d".into());
            Ok(())
        });
        steps
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
    fn entry_is_withdrawn_last_and_stays_as_long_as_something_else_does() {
        let check = |stubborn| {
            let mut log = Log { stubborn, ..Log::default() };
            let faults = Faults::none().at("d", Side::After);
            let failure = run(&with_entry(), &mut log, &faults, &mut |_| ()).unwrap_err();
            (log.done.split_off(3).join(" "), failure.undo.len(), log.journal.pop().unwrap())
        };
        assert_eq!(check(0), ("-d -b -a withdraw".to_owned(), 0, "withdraw".to_owned()));
        assert_eq!(check(1), ("-d -a -b withdraw".to_owned(), 0, "withdraw".to_owned()));
        assert_eq!(check(2), ("-d -a withdraw".to_owned(), 1, "withdraw, unclean".to_owned()));
        // What an earlier process left stays in the journal until it is undone.
        let mut log = Log { stubborn: 2, ..Log::default() };
        let left = resume(&with_entry(), &mut log, &Cursor::back("d"), &mut |_| ()).unwrap_err();
        assert_eq!((left.len(), log.journal.join(" ").as_str()), (1, "d:Back d:Back"));
    }

    #[test]
    fn cursor_is_durable_before_each_step_that_leaves_something() {
        let journal = |steps: &[Step<Log>]| {
            let mut log = Log::default();
            assert!(run(steps, &mut log, &Faults::none(), &mut |_| ()).unwrap().is_empty());
            log.journal.join(" ")
        };
        let mut steps = with_entry();
        assert_eq!(journal(&steps), "write-record:Back b:Back d:Back complete");
        steps[2] = steps[2].point_of_no_return();
        assert_eq!(journal(&steps), "write-record:Back b:Forward complete");
        steps[2] = with_entry()[2].peer_decides();
        steps[3] = steps[3].point_of_no_return();
        assert_eq!(journal(&steps), "write-record:Back b:Peer d:Forward complete");
    }

    #[test]
    fn failed_write_of_the_point_of_no_return_undoes_what_was_done() {
        let mut steps = with_entry();
        steps[3] = steps[3].point_of_no_return();
        let mut log = Log { fails: vec![3], ..Log::default() };
        let failure = run(&steps, &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
        assert_eq!((failure.id, log.done.join(" ").as_str()), ("d", "a b -d -b -a withdraw"));
        // That the operation is complete is written twice, then left to the next attempt.
        let mut log = Log { fails: vec![4], ..Log::default() };
        assert!(run(&steps, &mut log, &Faults::none(), &mut |_| ()).unwrap().is_empty());
        let mut log = Log { fails: vec![4, 5], ..Log::default() };
        let left = run(&steps, &mut log, &Faults::none(), &mut |_| ()).unwrap();
        assert_eq!(left.iter().map(|left| left.id).collect::<Vec<_>>(), [ENTRY]);
    }

    #[test]
    fn failure_while_a_peer_decides_is_neither_undone_nor_continued() {
        let mut steps = with_entry();
        steps.insert(3, Step::new("ask", "asks the peer", |_: &mut Log| fail()).peer_decides());
        steps[4] = steps[4].point_of_no_return();
        let mut log = Log::default();
        let failure = run(&steps, &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
        assert_eq!((failure.id, log.done.join(" ").as_str()), ("ask", "a b"));
        assert_eq!(log.journal.last().unwrap(), "ask:Peer");
        // Nor is it when an earlier process left it so.
        let cursor = Cursor { step: "ask".to_owned(), way: Way::Peer };
        let mut log = Log::default();
        assert_eq!(resume(&steps, &mut log, &cursor, &mut |_| ()).unwrap(), Resumed::Held);
        assert!(log.done.is_empty() && log.journal == ["ask:Peer"]);
        // A peer that was not asked, because that could not be written, has nothing to decide.
        let mut log = Log { fails: vec![3], ..Log::default() };
        run(&steps, &mut log, &Faults::none(), &mut |_| ()).unwrap_err();
        assert_eq!(log.done.join(" "), "a b -b -a withdraw");
    }

    #[test]
    fn resumed_operation_is_undone_from_its_cursor_or_completed() {
        let mut steps = with_entry();
        steps[3] = steps[3].point_of_no_return();
        let check = |cursor: Cursor, has_passed| {
            let mut log = Log { has_passed, ..Log::default() };
            let resumed = resume(&steps, &mut log, &cursor, &mut |_| ()).unwrap();
            (resumed, log.done.join(" "), log.journal.join(" "))
        };
        let undone = |done: &str, journal: &str| (Resumed::Undone, done.to_owned(), journal.to_owned());
        let completed = |journal: &str| (Resumed::Completed, "d".to_owned(), journal.to_owned());
        assert_eq!(check(Cursor::back(ENTRY), false), undone("-a withdraw", "write-record:Back withdraw"));
        assert_eq!(check(Cursor::back("b"), false), undone("-b -a withdraw", "b:Back withdraw"));
        // A step that only another release has.
        assert_eq!(check(Cursor::back("x"), false), undone("-b -a withdraw", "x:Back withdraw"));
        assert_eq!(check(Cursor::back("b"), true), completed("b:Forward complete"));
        assert_eq!(check(Cursor::forward("d"), false), completed("d:Forward complete"));
        // Nothing is done before the entry is durable again.
        let mut log = Log { fails: vec![1], ..Log::default() };
        let left = resume(&steps, &mut log, &Cursor::back("b"), &mut |_| ()).unwrap_err();
        assert!(left.len() == 1 && log.done.is_empty(), "{left:?}");
    }

    #[test]
    fn interrupted_undo_goes_on_and_what_is_resumed_forward_is_never_undone() {
        // While it is undone, the entry says so: it cannot be taken for complete any more.
        let mut log = Log::default();
        let faults = Faults::none().at("d", Side::After);
        run(&with_entry(), &mut log, &faults, &mut |_| ()).unwrap_err();
        assert_eq!(log.journal.join(" "), "write-record:Back b:Back d:Back d:Undo withdraw");
        let undoing = Cursor { step: "d".to_owned(), way: Way::Undo };
        let mut log = Log { has_passed: true, ..Log::default() };
        assert_eq!(resume(&with_entry(), &mut log, &undoing, &mut |_| ()).unwrap(), Resumed::Undone);
        assert_eq!(log.done.join(" "), "-d -b -a withdraw");
        // A list without a point of no return, which has passed all the same; that it is complete cannot be written.
        let mut log = Log { has_passed: true, fails: vec![2], ..Log::default() };
        let left = resume(&with_entry(), &mut log, &Cursor::back("d"), &mut |_| ()).unwrap_err();
        assert_eq!((left.len(), log.done.join(" ").as_str()), (1, "d"));
        assert_eq!(log.journal.join(" "), "d:Forward complete");
    }

    #[test]
    fn step_that_may_fail_does_not_keep_the_operation_from_its_end() {
        let mut steps = with_entry();
        steps[2] = steps[2].point_of_no_return();
        steps[3] = Step::new("d", "does d", |_: &mut Log| fail()).may_fail();
        let mut log = Log::default();
        let left = run(&steps, &mut log, &Faults::none(), &mut |_| ()).unwrap();
        assert_eq!((left.len(), log.journal.last().unwrap().as_str()), (1, "complete"));
        steps[3] = Step::new("d", "does d", |_: &mut Log| fail());
        let mut log = Log::default();
        let left = run(&steps, &mut log, &Faults::none(), &mut |_| ()).unwrap();
        assert_eq!((left.len(), log.journal.last().unwrap().as_str()), (1, "b:Forward"));
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
