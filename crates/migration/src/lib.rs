//! The hand-over of a migrating guest: at most one copy executes, whatever fails.
//!
//! The two hosts' journals decide which copy that is; a timer or a connection never does. This crate has no I/O and no
//! clock. A shell performs the [`sender::Effect`]s and [`receiver::Effect`]s and reports what happened as events.
//!
//! | module | has |
//! |---|---|
//! | [`record`], [`journal`] | what each host writes down, and the file with two slots that it is in |
//! | [`message`], [`frame`] | what the hosts tell each other, and its bytes |
//! | [`sender`], [`receiver`] | the two machines |
//! | [`shown`] | what users see of them |
//! | [`resolve`] | what an operator may decide when the other host does not answer |
//!
//! The rules, with their numbers as the code cites them:
//!
//! 1. The sender syncs GO before it sends GO, and only after READY, when the guest is still suspended by us.
//! 2. From then on it resumes the guest only after ABORTED.
//! 3. Only the process that wrote GO sends GO. A restarted one sends SETTLE: "abort unless you committed".
//! 4. The receiver syncs COMMITTED before it arms a disk or unpauses, and answers COMMITTED after it unpaused. If
//!    arming fails, the same process may still write ABORTED; a restarted one only goes forward.
//! 5. The receiver syncs ABORTED before it answers ABORTED. A final record changes by rule 8 only.
//! 6. A restarted daemon writes and syncs what it read before it acts on it: that may have been cached only.
//! 7. A journal of another identity answers UNKNOWN, which is not ABORTED.
//! 8. `--assume-receiver-dead` destroys the suspended copy and boots the guest anew: its memory may be outdated.
//! 9. A host starts a guest after a reboot only if its records say that the guest is its own.
//! 10. The next operation on the guest begins when DONE is synced and the machine is idle; an incoming guest
//!     migrates on when it is OWNED.
//!
//! `model` (feature `testing`) explores these machines under crashes, lost and repeated messages and failing disks.
#![forbid(unsafe_code)]

pub mod frame;
mod ids;
pub mod journal;
pub mod message;
#[cfg(any(test, feature = "testing"))]
pub mod model;
mod mutation;
mod reason;
pub mod receiver;
pub mod record;
pub mod resolve;
pub mod sender;
pub mod shown;

pub use ids::{Digest, IdError, JournalId, MigrationId};
#[cfg(any(test, feature = "testing"))]
pub use mutation::Mutation;
pub use reason::{Ended, Outcome, Reason};
