//! What is done to a guest as a whole, one file each: lists of steps, which the rooms below carry out.

mod cleanup;
mod create;
mod decide;
mod destroy;
mod memory;
mod pause;
mod recover;
mod rename;
mod restart;
mod restore;
mod save;
mod signals;
mod suspend;
mod vcpus;

pub use create::CreateOptions;
pub use decide::{Decision, GuestEvent, decide};
pub use pause::ShutdownWay;
pub use recover::{EndedWithHost, Recovered, Unfinished};
pub use restore::RestoreOptions;
pub use signals::Signal;
