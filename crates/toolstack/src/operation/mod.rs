//! Operations: what is done to a guest, each as one list of named steps that one engine runs.
//!
//! ```text
//!   check   write-record   attach ... ask  |  unplug   remove
//!           <-------- can be undone ------> | <--- only forward ---->
//!                                    point of no return
//! ```
//!
//! An operation in progress has an entry in the guest's state file ([`Operation`]): what is done, and the step that it
//! has come to. The entry is durable before what it announces is done. A failure before the point of no return undoes
//! the failed step and those before it, last first, and the guest is as before. From that point on each step is run
//! whatever became of the others, and those that failed are tried once more. A list without such a point can be undone
//! to its end; one that begins with it, as destroying does, cannot be undone at all.
//!
//! What a killed daemon left is undone or completed by the same engine from the entry, with the same list. An
//! operation whose outcome a peer decides is left as it is, and locks the guest, until the peer has answered.
//!
//! The file is replaced as a whole (written beside it, synced, renamed, and the folder synced), so that it is always
//! one of the two. A write that failed is repeated with another new file: a repeated sync of the same one may succeed
//! although its first failure lost data. A daemon writes the entry anew before it acts on what it read: what it read
//! may have been in the kernel's cache only.

mod engine;
mod entry;
mod faults;
mod journal;
mod step;
mod turn;

pub(crate) use engine::{Resumed, ids, resume, run};
pub use entry::{AfterSave, Cursor, Kind, Operation, Pinned, Predecessor, Restart, Stage, Way};
pub use faults::{Faults, Side};
pub(crate) use journal::{ENTRY, Journal, OnGuest, must_be_free};
pub use step::{Step, StepResult};
pub use turn::Turn;
