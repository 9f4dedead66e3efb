//! What an operator may decide about a migration that is unresolved, and the answer that he may carry by hand.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::ids::{JournalId, MigrationId};
use crate::message::{Body, Message};
use crate::reason::{Ended, Outcome, Reason};
use crate::receiver::{Event as ReceiverEvent, Receiver};
use crate::record::Decision;
use crate::sender::{Event as SenderEvent, Sender};
use crate::shown::State;

/// Whether the other host answers now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contact {
    /// It does not.
    Silent,
    /// It said HELLO with this journal.
    Answers(JournalId),
}

/// Why an operator's decision is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResolveError {
    /// The migration is not at GO.
    #[error("--assume-receiver-dead is only for a guest that was handed over without an answer")]
    NotHandedOver,
    /// The guest was not taken over here, or the sender has acknowledged it.
    #[error("--assume-sender-dead is only for a guest that was taken over here and not acknowledged")]
    NotTakenOver,
    /// The other host answers, and its journal decides.
    #[error(
        "The other host answers and has this migration in its journal; use --resolve without an assumption"
    )]
    PeerAnswers,
    /// The line is not an answer.
    #[error("{line:?} is not an answer; copy the whole line that --resolve has printed on the other host")]
    NotAnAnswer {
        /// Its beginning.
        line: String,
    },
}

/// Checks `--assume-receiver-dead`: the operator has confirmed that the receiver's host is off.
///
/// # Errors
/// Fails unless the migration is at GO, or the decision was made before, and while the receiver named in START answers.
pub fn assume_receiver_dead(
    sender: &Sender,
    peer: JournalId,
    contact: Contact,
    decision: Decision,
) -> Result<SenderEvent, ResolveError> {
    if !sender.is_unresolved() && !matches!(sender.state(), State::StartedAnew { confirmed: false, .. }) {
        return Err(ResolveError::NotHandedOver);
    }
    if contact == Contact::Answers(peer) {
        return Err(ResolveError::PeerAnswers);
    }
    Ok(SenderEvent::AssumeReceiverDead(decision))
}

/// Checks `--assume-sender-dead`: the operator has confirmed that the sender's host is off.
///
/// # Errors
/// Fails unless the guest was taken over here without an acknowledgement, and while the sender answers.
pub fn assume_sender_dead(
    receiver: &Receiver,
    peer: JournalId,
    contact: Contact,
    decision: Decision,
) -> Result<ReceiverEvent, ResolveError> {
    if !receiver.is_unacknowledged() {
        return Err(ResolveError::NotTakenOver);
    }
    if contact == Contact::Answers(peer) {
        return Err(ResolveError::PeerAnswers);
    }
    Ok(ReceiverEvent::AssumeSenderDead(decision))
}

/// A receiver's final answer as a line of text, for hosts without a network between them.
///
/// `ID JOURNAL committed running`, `ID JOURNAL committed ended CODE` or `ID JOURNAL aborted CODE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnswerLine {
    id: MigrationId,
    journal: JournalId,
    answer: Answer,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Committed(Outcome),
    Aborted(Reason),
}

impl AnswerLine {
    /// Returns the line of a final answer; others have none.
    pub fn new(message: &Message) -> Option<Self> {
        let answer = match message.body {
            Body::Committed(outcome) => Answer::Committed(outcome),
            Body::Aborted(reason) => Answer::Aborted(reason),
            _ => return None,
        };
        Some(Self { id: message.id, journal: message.journal, answer })
    }

    /// Returns the message that the line stands for. The sender's machine compares migration and journal.
    pub fn message(self) -> Message {
        let body = match self.answer {
            Answer::Committed(outcome) => Body::Committed(outcome),
            Answer::Aborted(reason) => Body::Aborted(reason),
        };
        Message { id: self.id, journal: self.journal, body }
    }
}

impl fmt::Display for AnswerLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.id, self.journal)?;
        match self.answer {
            Answer::Committed(Outcome::Running) => f.write_str("committed running"),
            Answer::Committed(Outcome::Ended(why)) => write!(f, "committed ended {}", why.code()),
            Answer::Aborted(reason) => write!(f, "aborted {}", reason.code()),
        }
    }
}

impl FromStr for AnswerLine {
    type Err = ResolveError;

    fn from_str(line: &str) -> Result<Self, ResolveError> {
        parse(line).ok_or_else(|| ResolveError::NotAnAnswer { line: line.chars().take(80).collect() })
    }
}

fn parse(line: &str) -> Option<AnswerLine> {
    let mut words = line.split_whitespace();
    let (id, journal) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let answer = match (words.next()?, words.next()?) {
        ("committed", "running") => Answer::Committed(Outcome::Running),
        ("committed", "ended") => {
            Answer::Committed(Outcome::Ended(Ended::from_code(words.next()?.parse().ok()?)))
        }
        ("aborted", code) => Answer::Aborted(Reason::from_code(code.parse().ok()?)),
        _ => return None,
    };
    words.next().is_none().then_some(AnswerLine { id, journal, answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let (id, journal) = (MigrationId([0xab; 16]), JournalId([0xcd; 16]));
        for body in [
            Body::Committed(Outcome::Running),
            Body::Committed(Outcome::Ended(Ended::Crashed)),
            Body::Aborted(Reason::TimedOut),
        ] {
            let message = Message { id, journal, body };
            let line = AnswerLine::new(&message).unwrap().to_string();
            assert_eq!(line.parse::<AnswerLine>().unwrap().message(), message, "{line}");
        }
        assert_eq!(AnswerLine::new(&Message { id, journal, body: Body::Settle }), None);
    }

    #[test]
    fn a_line_that_was_not_copied_completely_is_refused() {
        let line = format!("{} {} aborted 12", MigrationId([1; 16]), JournalId([2; 16]));
        for wrong in ["", &line[1..], &line[..line.len() - 3], &format!("{line}x"), &format!("{line} x")] {
            let refused = matches!(wrong.parse::<AnswerLine>(), Err(ResolveError::NotAnAnswer { .. }));
            assert!(refused, "{wrong}");
        }
    }

    #[test]
    fn the_sender_is_not_assumed_dead_while_it_answers_or_nothing_was_taken_over() {
        use crate::receiver::{Copy, OwnJournal};
        use crate::record::ReceiverRecord::Committed;
        let (id, peer) = (MigrationId([1; 16]), JournalId([2; 16]));
        let own = OwnJournal { id: JournalId([3; 16]), since: 0 };
        let decision = || Decision { operator: "root".to_owned(), time: 1 };
        let (mut receiver, _) = Receiver::restored(id, own, Committed);
        receiver.step(ReceiverEvent::Written);
        let refused = assume_sender_dead(&receiver, peer, Contact::Silent, decision());
        assert_eq!(refused, Err(ResolveError::NotTakenOver), "it is not known yet what there is");
        receiver.step(ReceiverEvent::Inspected(Copy::Gone(Ended::HostRebooted)));
        let refused = assume_sender_dead(&receiver, peer, Contact::Answers(peer), decision());
        assert_eq!(refused, Err(ResolveError::PeerAnswers));
        assert!(assume_sender_dead(&receiver, peer, Contact::Silent, decision()).is_ok());
    }

    #[test]
    fn the_receiver_is_not_assumed_dead_while_it_answers() {
        let (id, peer) = (MigrationId([1; 16]), JournalId([2; 16]));
        let digest = crate::Digest([3; 16]);
        let decision = || Decision { operator: "root".to_owned(), time: 1 };
        let (mut sender, _) = Sender::restored(id, peer, crate::record::SenderRecord::Go { digest });
        let refused = assume_receiver_dead(&sender, peer, Contact::Silent, decision());
        assert_eq!(refused, Err(ResolveError::NotHandedOver), "the record is being rewritten");
        sender.step(SenderEvent::Written);
        let refused = assume_receiver_dead(&sender, peer, Contact::Answers(peer), decision());
        assert_eq!(refused, Err(ResolveError::PeerAnswers));
        for contact in [Contact::Silent, Contact::Answers(JournalId([9; 16]))] {
            assert!(assume_receiver_dead(&sender, peer, contact, decision()).is_ok());
        }
    }
}
