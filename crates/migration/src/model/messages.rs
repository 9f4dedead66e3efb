//! The network: a set of messages, as one bit for each kind. Contents follow from the migration.

use crate::message::{Body, Limits, Message};
use crate::record::Decision;
use crate::{Digest, JournalId, MigrationId, Outcome, Reason};

pub(super) const DIGEST: Digest = Digest([7; 16]);
/// The journal of the receiver's host as the sender knows it.
pub(super) const JOURNAL: JournalId = JournalId([1; 16]);
/// The journal of that host after it was installed again.
pub(super) const NEW_JOURNAL: JournalId = JournalId([2; 16]);

pub(super) fn id(migration: usize) -> MigrationId {
    MigrationId([u8::try_from(migration).unwrap_or(u8::MAX); 16])
}

pub(super) fn decision() -> Decision {
    Decision { operator: String::new(), time: 0 }
}

/// A kind of message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Offer,
    StreamEnd,
    Go,
    Settle,
    Ack,
    Forced,
    Accept,
    Ready,
    Committed,
    Aborted,
    Voided,
    /// UNKNOWN of the new journal.
    Unknown,
    /// ABORTED of the new journal, which a broken rule 7 lets out.
    StrangeAborted,
}

pub(super) const TO_RECEIVER: [Kind; 6] =
    [Kind::Offer, Kind::StreamEnd, Kind::Go, Kind::Settle, Kind::Ack, Kind::Forced];
pub(super) const TO_SENDER: [Kind; 7] = [
    Kind::Accept,
    Kind::Ready,
    Kind::Committed,
    Kind::Aborted,
    Kind::Voided,
    Kind::Unknown,
    Kind::StrangeAborted,
];

impl Kind {
    pub(super) fn bit(self) -> u16 {
        1 << self as u16
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Offer => "OFFER",
            Self::StreamEnd => "STREAM-END",
            Self::Go => "GO",
            Self::Settle => "SETTLE",
            Self::Ack => "ACK",
            Self::Forced => "FORCED",
            Self::Accept => "ACCEPT",
            Self::Ready => "READY",
            Self::Committed => "COMMITTED",
            Self::Aborted => "ABORTED",
            Self::Voided => "VOIDED",
            Self::Unknown => "UNKNOWN",
            Self::StrangeAborted => "ABORTED of another journal",
        }
    }

    /// The kind of a message, or none for PENDING, which changes nothing.
    pub(super) fn of(message: &Message) -> Option<Self> {
        Some(match &message.body {
            Body::Offer(_) => Self::Offer,
            Body::StreamEnd { .. } => Self::StreamEnd,
            Body::Go { .. } => Self::Go,
            Body::Settle => Self::Settle,
            Body::Ack => Self::Ack,
            Body::Forced(_) => Self::Forced,
            Body::Accept(_) => Self::Accept,
            Body::Ready { .. } => Self::Ready,
            Body::Committed(_) => Self::Committed,
            Body::Aborted(_) if message.journal == NEW_JOURNAL => Self::StrangeAborted,
            Body::Aborted(_) => Self::Aborted,
            Body::Voided(_) => Self::Voided,
            Body::Unknown { .. } => Self::Unknown,
            Body::Pending(_) | Body::Data(_) => return None,
        })
    }

    pub(super) fn message(self, migration: usize) -> Message {
        let journal =
            if matches!(self, Self::Unknown | Self::StrangeAborted) { NEW_JOURNAL } else { JOURNAL };
        let body = match self {
            Self::Offer => Body::Offer(Box::new(crate::message::Offer {
                guest: uuid::Uuid::nil(),
                name: String::new(),
                config: serde_json::Value::Null,
                machine: String::new(),
                xen_version: String::new(),
                disks: Vec::new(),
                compression: None,
            })),
            Self::StreamEnd => Body::StreamEnd { length: 1, digest: DIGEST },
            Self::Go => Body::Go { digest: DIGEST },
            Self::Settle => Body::Settle,
            Self::Ack => Body::Ack,
            Self::Forced => Body::Forced(decision()),
            Self::Accept => Body::Accept(Limits { data: 1 }),
            Self::Ready => Body::Ready { digest: DIGEST },
            Self::Committed => Body::Committed(Outcome::Running),
            Self::Aborted | Self::StrangeAborted => Body::Aborted(Reason::Other),
            Self::Voided => Body::Voided(decision()),
            Self::Unknown => Body::Unknown { since: 0 },
        };
        Message { id: id(migration), journal, body }
    }
}
