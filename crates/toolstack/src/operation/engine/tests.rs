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
