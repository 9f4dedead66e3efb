use super::*;
use crate::reason::Ended;
use crate::record::Decision;
use crate::shown::State;

const ID: MigrationId = MigrationId([1; 16]);
const OWN: OwnJournal = OwnJournal { id: JournalId([2; 16]), since: 5 };
const DIGEST: Digest = Digest([3; 16]);

fn message(body: Body) -> Message {
    Message { id: ID, journal: OWN.id, body }
}

fn got(body: Body) -> Event {
    Event::Received(message(body))
}

fn say(body: Body) -> Effect {
    Effect::Send(message(body))
}

fn offer() -> Body {
    Body::Offer(Box::new(crate::message::Offer {
        guest: uuid::Uuid::nil(),
        name: String::new(),
        config: serde_json::Value::Null,
        machine: String::new(),
        xen_version: String::new(),
        disks: Vec::new(),
        compression: None,
    }))
}

fn decision() -> Decision {
    Decision { operator: "root".to_owned(), time: 1 }
}

/// The events from OPEN to COMMITTED being answered.
fn way() -> Vec<Event> {
    vec![
        Event::Written,
        Event::Built,
        got(Body::StreamEnd { length: 9, digest: DIGEST }),
        Event::Loaded,
        got(Body::Go { digest: DIGEST }),
        Event::StillPaused,
        Event::Written,
        Event::Armed,
        Event::Unpaused,
    ]
}

/// A receiver after these events.
fn after(events: &[Event]) -> Receiver {
    let First::Machine(mut receiver, effects) = Receiver::first(&message(offer()), OWN, None) else {
        panic!()
    };
    assert_eq!(effects, [Effect::Write(Record::Open)], "nothing is built before OPEN");
    events.iter().for_each(|event| _ = receiver.step(event.clone()));
    receiver
}

#[test]
fn a_guest_is_taken_over_step_by_step() {
    let mut receiver = after(&[]);
    let effects: Vec<Vec<Effect>> = way().into_iter().map(|event| receiver.step(event)).collect();
    let data = u32::try_from(MAX_DATA).unwrap();
    assert_eq!(
        effects,
        [
            vec![Effect::Build, Effect::StartTimer(Timer::Progress)],
            vec![say(Body::Accept(Limits { data }))],
            vec![Effect::Load { length: 9, digest: DIGEST }],
            vec![say(Body::Ready { digest: DIGEST }), Effect::StartTimer(Timer::Progress)],
            vec![Effect::VerifyPaused],
            vec![Effect::Write(Record::Committed)],
            vec![Effect::Arm],
            vec![Effect::Unpause],
            vec![say(Body::Committed(Outcome::Running)), Effect::StartTimer(Timer::Repeat)],
        ]
    );
    assert!(receiver.is_unacknowledged() && !receiver.allows_operation());
    assert_eq!(receiver.step(got(Body::Ack)), [Effect::Write(Record::Owned)]);
    assert_eq!(receiver.step(Event::Written), [Effect::Finished]);
    assert!(receiver.allows_operation());
    assert_eq!(receiver.step(Event::CopyGone(Ended::PoweredOff)), []);
    assert_eq!(receiver.step(got(Body::Settle)), [say(Body::Committed(Outcome::Ended(Ended::PoweredOff)))]);
}

#[test]
fn before_committed_everything_aborts_and_the_record_comes_first() {
    for length in 2..=5 {
        for (event, reason) in [
            (got(Body::Settle), Reason::Settled),
            (Event::Timeout(Timer::Progress), Reason::TimedOut),
            (Event::Cancel, Reason::Cancelled),
            (Event::CopyGone(Ended::Destroyed), Reason::CopyDestroyed),
        ] {
            let mut receiver = after(&way()[..length]);
            assert_eq!(receiver.step(event), [Effect::Write(Record::Aborted(reason))]);
            let pending = say(Body::Pending(Waiting::Journal));
            assert_eq!(receiver.step(got(Body::Settle)), std::slice::from_ref(&pending));
            assert_eq!(receiver.step(Event::WriteFailed), [pending, Effect::StartTimer(Timer::Retry)]);
            assert_eq!(receiver.state(), State::JournalBlocked { cancelled: true });
            receiver.step(Event::Timeout(Timer::Retry));
            assert_eq!(receiver.step(Event::Written), [say(Body::Aborted(reason)), Effect::DestroyIncoming]);
            assert_eq!(receiver.step(Event::Destroyed), [Effect::Finished]);
            for body in [offer(), Body::Go { digest: DIGEST }, Body::Settle] {
                assert_eq!(receiver.step(got(body)), [say(Body::Aborted(reason))], "for ever");
            }
            assert_eq!(receiver.step(got(Body::Forced(decision()))), [say(Body::Voided(decision()))]);
        }
    }
}

#[test]
fn a_failed_write_of_committed_or_failed_arming_aborts() {
    let mut receiver = after(&way()[..6]);
    assert_eq!(receiver.step(Event::WriteFailed), [Effect::Write(Record::Aborted(Reason::JournalFailed))]);
    let mut receiver = after(&way()[..7]);
    assert_eq!(receiver.step(got(Body::Settle)), [say(Body::Pending(Waiting::TakingOver))]);
    assert_eq!(receiver.step(Event::ArmFailed), [Effect::Write(Record::Aborted(Reason::ArmFailed))]);
    assert_eq!(receiver.answer(), None, "COMMITTED is on disk, but is not the answer");
}

#[test]
fn a_restarted_daemon_writes_before_it_acts_and_goes_forward() {
    let (mut receiver, effects) = Receiver::restored(ID, OWN, Record::Committed);
    assert_eq!(effects, [Effect::Write(Record::Committed)]);
    assert_eq!(receiver.step(Event::Written), [Effect::Inspect]);
    assert_eq!(receiver.step(Event::Inspected(Copy::Paused)), [Effect::Arm]);
    assert_eq!(receiver.step(Event::ArmFailed), [Effect::StartTimer(Timer::Retry)]);
    assert_eq!(receiver.step(Event::Timeout(Timer::Retry)), [Effect::Arm]);
    let (mut receiver, _) = Receiver::restored(ID, OWN, Record::Open);
    assert_eq!(receiver.step(Event::Written), [Effect::Write(Record::Aborted(Reason::DaemonRestarted))]);
    let (mut receiver, _) = Receiver::restored(ID, OWN, Record::Committed);
    receiver.step(Event::Written);
    let ended = Outcome::Ended(Ended::HostRebooted);
    let effects = receiver.step(Event::Inspected(Copy::Gone(Ended::HostRebooted)));
    assert_eq!(effects, [say(Body::Committed(ended)), Effect::StartTimer(Timer::Repeat)]);
    assert_eq!(receiver.state(), State::TakenOver { outcome: ended, acknowledged: false });
}

#[test]
fn a_migration_without_a_record_is_aborted_and_another_journals_is_unknown() {
    for body in [Body::Settle, Body::Go { digest: DIGEST }, Body::Forced(decision())] {
        let First::Machine(_, effects) = Receiver::first(&message(body.clone()), OWN, None) else { panic!() };
        assert_eq!(effects, [Effect::Write(Record::Aborted(Reason::NeverOffered))]);
        let other = Message { journal: JournalId([9; 16]), ..message(body) };
        let First::Reply(reply) = Receiver::first(&other, OWN, None) else { panic!() };
        assert_eq!(reply, message(Body::Unknown { since: 5 }));
        assert_eq!(after(&way()).step(Event::Received(other)), [Effect::Send(reply)]);
    }
    assert!(matches!(Receiver::first(&message(Body::Ack), OWN, None), First::Nothing));
    let First::Machine(_, effects) = Receiver::first(&message(offer()), OWN, Some(Reason::Busy)) else {
        panic!()
    };
    assert_eq!(effects, [Effect::Write(Record::Aborted(Reason::Busy))]);
}

#[test]
fn go_with_another_digest_aborts() {
    let mut receiver = after(&way()[..4]);
    let effects = receiver.step(got(Body::Go { digest: Digest([9; 16]) }));
    assert_eq!(effects, [Effect::Write(Record::Aborted(Reason::DigestMismatch))]);
}

#[test]
fn forced_voids_what_is_gone_and_pauses_what_runs() {
    let mut receiver = after(&way());
    assert_eq!(receiver.step(got(Body::Forced(decision()))), [Effect::PauseCopy, Effect::ReportTwoCopies]);
    receiver.step(Event::CopyGone(Ended::HostRebooted));
    assert_eq!(receiver.step(got(Body::Forced(decision()))), [Effect::Write(Record::Void(decision()))]);
    assert_eq!(receiver.step(Event::Written), [say(Body::Voided(decision())), Effect::DestroyIncoming]);
    assert_eq!(receiver.step(got(offer())), [say(Body::Voided(decision()))]);
}

#[test]
fn a_sender_that_is_assumed_dead_lets_the_guest_start_here() {
    let mut receiver = after(&way());
    receiver.step(Event::CopyGone(Ended::HostRebooted));
    assert_eq!(
        receiver.step(Event::AssumeSenderDead(decision())),
        [Effect::Write(Record::Claimed(decision()))]
    );
    assert_eq!(receiver.step(Event::Written), [Effect::BootAnew]);
    assert_eq!(receiver.step(got(Body::Forced(decision()))), [Effect::ReportTwoCopies]);
    assert_eq!(receiver.step(got(Body::Ack)), [Effect::Write(Record::Owned)]);
}
