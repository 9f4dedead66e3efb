//! Operations: what is done to a guest, each as one list of named steps that one engine runs.
//!
//! ```text
//!   check   note   attach ... ask | let-go   unplug   remove
//!   <------ can be undone ------> | <--- only forward ---->
//!                                 point of no return
//! ```
//!
//! A failure before the point of no return undoes the failed step and those before it, last first, and the guest is as
//! before. From that point on each step is run whatever became of the others, and those that failed are tried once
//! more. A list without such a point can be undone to its end; one that begins with it, as destroying does, cannot be
//! undone at all.

mod engine;
mod faults;
mod step;

pub(crate) use engine::{ids, run, run_forward, undo_all};
pub use faults::{Faults, Side};
pub use step::{Step, StepResult};
