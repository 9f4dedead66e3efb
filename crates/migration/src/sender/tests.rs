use super::*;
use crate::message::{Limits, Waiting};
use crate::reason::Outcome;
use crate::record::Decision;
use crate::shown::State;

const ID: MigrationId = MigrationId([1; 16]);
const PEER: JournalId = JournalId([2; 16]);
const DIGEST: Digest = Digest([3; 16]);
const GO: Record = Record::Go { digest: DIGEST };

fn from_peer(body: Body) -> Event {
    Event::Received(Message { id: ID, journal: PEER, body })
}

fn to_peer(body: Body) -> Effect {
    Effect::Send(Message { id: ID, journal: PEER, body })
}

fn aborted(reason: Reason) -> Effect {
    Effect::Write(Record::Done(Done::Aborted(reason)))
}

/// A sender after these events.
fn after(events: &[Event]) -> Sender {
    let (mut sender, effects) = Sender::begin(ID, PEER);
    assert_eq!(effects, [Effect::Write(Record::Start)], "nothing is sent before START");
    events.iter().for_each(|event| _ = sender.step(event.clone()));
    sender
}

/// The events up to GO being sent.
fn way() -> Vec<Event> {
    vec![
        Event::Written,
        from_peer(Body::Accept(Limits { data: 1 })),
        Event::Converged,
        Event::Suspended,
        Event::Saved { length: 9, digest: DIGEST },
        from_peer(Body::Ready { digest: DIGEST }),
        Event::StillSuspended,
        Event::Written,
    ]
}

#[test]
fn a_guest_is_moved_step_by_step() {
    let (mut sender, _) = Sender::begin(ID, PEER);
    let effects: Vec<Vec<Effect>> = way().into_iter().map(|event| sender.step(event)).collect();
    let end = to_peer(Body::StreamEnd { length: 9, digest: DIGEST });
    assert_eq!(
        effects,
        [
            vec![Effect::SendOffer, Effect::StartTimer(Timer::Progress)],
            vec![Effect::Stream(Limits { data: 1 })],
            vec![Effect::Suspend],
            vec![Effect::StopAndSave],
            vec![end, Effect::StartTimer(Timer::Progress)],
            vec![Effect::VerifySuspended],
            vec![Effect::Write(GO)],
            vec![to_peer(Body::Go { digest: DIGEST }), Effect::StartTimer(Timer::Answer)],
        ]
    );
    assert_eq!(sender.state(), State::NoAnswer);
    assert!(!sender.allows_operation());
    let moved = from_peer(Body::Committed(Outcome::Running));
    assert_eq!(sender.step(moved.clone()), [Effect::Write(Record::Done(Done::Moved))]);
    assert_eq!(sender.step(Event::Written), [to_peer(Body::Ack), Effect::DestroyCopy]);
    assert_eq!(sender.step(Event::Destroyed), [Effect::Finished]);
    assert_eq!(sender.step(moved), [to_peer(Body::Ack)], "a lost ACK is repeated");
    assert!(sender.allows_operation());
    assert_eq!(sender.state(), State::Moved);
}

#[test]
fn every_failure_before_go_resumes_the_guest() {
    let failures = [
        (Event::Timeout(Timer::Progress), Reason::TimedOut),
        (Event::Cut, Reason::ConnectionLost),
        (Event::Cancel, Reason::Cancelled),
        (from_peer(Body::Aborted(Reason::Busy)), Reason::Busy),
    ];
    for length in 1..=6 {
        for (failure, reason) in &failures {
            let mut sender = after(&way()[..length]);
            assert_eq!(sender.step(failure.clone()), [Effect::Resume], "{length}");
            assert_eq!(sender.step(Event::Resumed), [aborted(*reason)]);
            assert_eq!(sender.step(Event::Written), [to_peer(Body::Settle), Effect::Finished]);
            assert_eq!(sender.state(), State::NotMigrated(*reason));
        }
    }
}

#[test]
fn a_failure_while_go_is_written_ends_it_because_go_was_not_sent() {
    for failure in [Event::Cut, Event::Cancel, Event::GuestEnded, from_peer(Body::Aborted(Reason::TimedOut))]
    {
        let mut sender = after(&way()[..7]);
        assert_eq!(sender.step(failure), [], "the write is not replaced");
        assert_eq!(sender.step(Event::Written), [Effect::Resume]);
    }
}

#[test]
fn go_is_never_sent_when_its_write_failed() {
    for doubtful in [false, true] {
        let mut sender = after(&way()[..7]);
        assert_eq!(sender.step(Event::WriteFailed { doubtful }), [Effect::Resume]);
        assert_eq!(sender.step(Event::Connected), []);
        assert_eq!(sender.step(Event::Resumed), [aborted(Reason::JournalFailed)]);
        assert_eq!(sender.step(Event::WriteFailed { doubtful }), [Effect::StartTimer(Timer::Retry)]);
        assert!(!sender.allows_operation());
        assert_eq!(sender.step(Event::Timeout(Timer::Retry)), [aborted(Reason::JournalFailed)]);
    }
}

#[test]
fn a_failed_start_is_refused_or_overwritten() {
    let mut sender = after(&[]);
    assert_eq!(sender.step(Event::WriteFailed { doubtful: false }), [Effect::Finished]);
    assert_eq!(sender.state(), State::NotMigrated(Reason::JournalFailed));
    let mut sender = after(&[]);
    assert_eq!(sender.step(Event::WriteFailed { doubtful: true }), [Effect::Resume]);
}

#[test]
fn after_go_only_an_answer_resumes() {
    let settle = [to_peer(Body::Settle), Effect::StartTimer(Timer::Answer)];
    for event in [Event::Timeout(Timer::Answer), Event::Cut, Event::Cancel] {
        let mut sender = after(&way());
        assert_eq!(sender.step(event), settle);
        assert_eq!(sender.state(), State::Unresolved { other_journal: false });
        assert_eq!(sender.step(from_peer(Body::Pending(Waiting::TakingOver))), []);
        assert_eq!(sender.step(Event::Connected), settle);
        assert_eq!(sender.step(from_peer(Body::Aborted(Reason::ArmFailed))), [Effect::Resume]);
    }
}

#[test]
fn another_journal_and_another_migration_are_no_answer() {
    let mut sender = after(&way());
    for (id, journal) in [(MigrationId([9; 16]), PEER), (ID, JournalId([9; 16]))] {
        for body in
            [Body::Aborted(Reason::Other), Body::Committed(Outcome::Running), Body::Unknown { since: 1 }]
        {
            assert_eq!(sender.step(Event::Received(Message { id, journal, body })), []);
        }
    }
    sender.step(Event::Cut);
    assert_eq!(sender.state(), State::Unresolved { other_journal: true });
}

#[test]
fn a_restarted_daemon_writes_before_it_acts_and_never_sends_go() {
    let (mut sender, effects) = Sender::restored(ID, PEER, GO);
    assert_eq!(effects, [Effect::Write(GO)]);
    assert_eq!(sender.state(), State::Restarting);
    assert_eq!(sender.step(from_peer(Body::Aborted(Reason::Other))), []);
    assert_eq!(sender.step(Event::Written), [to_peer(Body::Settle), Effect::StartTimer(Timer::Answer)]);
    let (mut sender, _) = Sender::restored(ID, PEER, Record::Start);
    assert_eq!(sender.step(Event::WriteFailed { doubtful: true }), [Effect::StartTimer(Timer::Retry)]);
    assert_eq!(sender.step(Event::Timeout(Timer::Retry)), [Effect::Write(Record::Start)]);
    assert_eq!(sender.step(Event::Written), [Effect::Resume]);
    assert_eq!(sender.step(Event::GuestEnded), [aborted(Reason::GuestEnded)]);
    assert_eq!(sender.step(Event::Written), [to_peer(Body::Settle), Effect::Finished]);
    assert_eq!(sender.state(), State::EndedHere);
}

#[test]
fn a_receiver_that_is_assumed_dead_gets_forced_until_it_confirms() {
    let decision = Decision { operator: "root".to_owned(), time: 1 };
    let mut sender = after(&way());
    let assume = || Event::AssumeReceiverDead(decision.clone());
    assert_eq!(sender.step(assume()), [Effect::Write(Record::Forced(decision.clone()))]);
    let forced = to_peer(Body::Forced(decision.clone()));
    assert_eq!(sender.step(Event::Written), [forced.clone(), Effect::DestroyCopy]);
    let voided = from_peer(Body::Voided(decision.clone()));
    assert_eq!(sender.step(voided.clone()), [], "the copy is still there");
    assert_eq!(sender.step(Event::Destroyed), [Effect::BootAnew, Effect::Finished]);
    assert!(!sender.allows_operation());
    assert_eq!(sender.step(assume()), [Effect::BootAnew]);
    assert_eq!(sender.step(Event::Connected), [forced]);
    assert_eq!(sender.step(from_peer(Body::Committed(Outcome::Running))), [Effect::ReportTwoCopies]);
    assert_eq!(sender.step(voided), [Effect::Write(Record::ForcedDone(decision.clone()))]);
    assert_eq!(sender.step(Event::Written), [Effect::Finished]);
    assert_eq!(sender.state(), State::StartedAnew { operator: "root".to_owned(), confirmed: true });
    // A daemon that is restarted in between does not boot by itself.
    let (mut sender, _) = Sender::restored(ID, PEER, Record::Forced(decision));
    sender.step(Event::Written);
    assert_eq!(sender.step(Event::Destroyed), [Effect::Finished]);
}
