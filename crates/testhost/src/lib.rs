//! The embedded Xen host: builds it, boots it under QEMU, runs a script in its dom0.
//!
//! The host is real Xen, a real Linux dom0 and real HVM guests, under QEMU's software emulation of AMD SVM, or under
//! KVM where that can nest ([`accel`]). It needs no special hardware and no root. [`run()`] boots it, or restores a
//! snapshot of it that was taken when its daemons were up or when a [`Preparation`] was done, and gives a script's output
//! and exit status back; a crash or silence ends a run at once with the last console lines.
#![forbid(unsafe_code)]

pub mod accel;
mod boot;
mod build;
mod console;
mod contents;
mod emulator;
mod error;
mod escape;
mod events;
mod guests;
mod hash;
mod job;
mod machine;
mod member;
pub mod pair;
mod preparation;
mod qmp;
mod request;
mod run;
mod scale;
mod share;
mod shell;
mod snapshot;
mod stubdom;
mod vm;
mod xenstored;

pub use accel::{Accel, Extension};
pub use build::{Recipe, build};
pub use emulator::Emulator;
pub use error::{HostError, chain};
pub use events::Stopper;
pub use guests::hello;
pub use machine::Machine;
pub use request::{Host, Job, Observer, Origin, Preparation, Put, Report, Request};
pub use run::{fresh_log_folder, run};
pub use scale::TimeScale;
pub use stubdom::stubdom;
pub use xenstored::Xenstored;
