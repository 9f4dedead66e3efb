//! What the two hosts tell each other.
//!
//! Any message may be lost, late or repeated without harm. All formats but those of OFFER, ACCEPT and DATA are
//! frozen, so that daemons that were upgraded meanwhile can still settle an old migration; [`crate::frame`] has the
//! bytes.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Digest, JournalId, MigrationId};
use crate::reason::{Outcome, Reason};
use crate::record::Decision;

/// What is in one frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Packet {
    /// The first one on each channel, in both directions.
    Hello(Hello),
    /// Why the receiver is about to refuse a guest, in words: for people, and for nothing else.
    Note(String),
    /// All others.
    Message(Message),
}

/// How the hosts introduce themselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The oldest version of OFFER, ACCEPT and DATA that the host has.
    pub oldest: u16,
    /// The newest one.
    pub newest: u16,
    /// The host's name: at most 255 bytes.
    pub host: String,
    /// The identity of its journal.
    pub journal: JournalId,
    /// This boot of the host.
    pub boot: Uuid,
}

/// A message about one migration.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Message {
    /// The migration.
    pub id: MigrationId,
    /// The receiver's journal: that of START in the sender's messages, the answering host's in the receiver's.
    pub journal: JournalId,
    /// What it says.
    pub body: Body,
}

/// What a message says. The first six lines of the sender's and the receiver's parts are in the order of a migration.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Body {
    /// S: a guest is to come.
    Offer(Box<Offer>),
    /// S: bytes of the stream, which are opaque here.
    Data(Vec<u8>),
    /// S: the guest is suspended, its disks are fenced, and this was the whole stream.
    StreamEnd {
        /// Its length in bytes.
        length: u64,
        /// Its digest.
        digest: Digest,
    },
    /// S: the guest is the receiver's if it commits.
    Go {
        /// The digest of READY.
        digest: Digest,
    },
    /// S: abort unless you committed, and answer.
    Settle,
    /// S: COMMITTED was received, DONE(moved) is on disk.
    Ack,
    /// S: an operator decided that the receiver is dead; the guest was started anew.
    Forced(Decision),
    /// R: OPEN is on disk, the domains are built.
    Accept(Limits),
    /// R: all is loaded, and QEMU is paused and checked.
    Ready {
        /// The digest of what was loaded.
        digest: Digest,
    },
    /// R: the guest was taken over.
    Committed(Outcome),
    /// R: the guest was not taken over and never will be.
    Aborted(Reason),
    /// R: it is not decided yet. This changes nothing.
    Pending(Waiting),
    /// R: the message is for another journal. This is not ABORTED (rule 7).
    Unknown {
        /// When this journal was made, in seconds since 1970; only shown.
        since: u64,
    },
    /// R: the decision was recorded, there is no copy here.
    Voided(Decision),
}

/// The guest that is to come. Its format may change with the version.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The guest's UUID.
    pub guest: Uuid,
    /// The guest's name.
    pub name: String,
    /// The whole configuration.
    pub config: serde_json::Value,
    /// QEMU's versioned machine type.
    pub machine: String,
    /// The sender's release of Xen.
    pub xen_version: String,
    /// What identifies the disks on both hosts, in the configuration's order.
    pub disks: Vec<String>,
    /// How the bytes of each DATA are compressed; absent: not at all. A receiver that does not know it refuses the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
}

/// What the receiver accepts. Its format may change with the version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// The length of a DATA's bytes.
    pub data: u32,
}

/// What a receiver waits for that has not decided yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Waiting {
    /// The guest is being built, received or loaded.
    Loading,
    /// It takes the guest over.
    TakingOver,
    /// Its journal cannot be written.
    Journal,
    /// Something that a newer version knows.
    Other,
}

impl Waiting {
    /// Returns the number in messages.
    pub fn code(self) -> u8 {
        match self {
            Self::Loading => 1,
            Self::TakingOver => 2,
            Self::Journal => 3,
            Self::Other => 255,
        }
    }

    /// Returns the one with a number in messages.
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Loading,
            2 => Self::TakingOver,
            3 => Self::Journal,
            _ => Self::Other,
        }
    }
}
