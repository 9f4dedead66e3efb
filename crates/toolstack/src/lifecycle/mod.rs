//! What is done to a guest as a whole, one file each: lists of steps, which the rooms below carry out.

mod answer;
mod cleanup;
mod create;
mod decide;
mod destroy;
mod dump_core;
mod max_memory;
mod memory;
mod migrate;
mod pause;
mod pin;
mod receive;
mod reconcile;
mod recover;
mod rename;
mod renew;
mod resolve;
mod restart;
mod restore;
mod save;
mod signals;
mod suspend;
mod vcpus;

pub use answer::Incoming;
pub use create::CreateOptions;
pub use decide::{Decision, GuestEvent, decide};
pub use dump_core::WhileDumped;
pub use migrate::MigrateOptions;
pub use pause::{ShutdownWay, WithoutDrivers};
pub use pin::Pins;
pub use receive::IncomingGuest;
pub use recover::{EndedWithHost, Recovered, Unfinished};
pub use resolve::{MigrationInfo, Resolve, ResolveOutcome};
pub use restore::RestoreOptions;
pub use signals::Signal;
