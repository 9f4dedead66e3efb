//! QMP, the protocol of QEMU's monitor, for a toolstack that does not believe QEMU.
//!
//! QEMU is the part that a hostile guest owns first. So every message is bounded and checked ([`Decoder`],
//! [`Limits`]), every answer is held against the type of its command before anyone acts on it ([`commands`]), and no
//! wait is without a deadline ([`Monitor`]). Nothing here does I/O: protocols are state machines that take bytes and
//! give bytes.
#![forbid(unsafe_code)]

pub mod commands;
mod decode;
mod error;
mod limits;
mod message;
mod monitor;
pub mod mux;
pub mod policy;
mod resync;
#[cfg(feature = "testing")]
pub mod testing;

pub use decode::{DecodeError, Decoder};
pub use error::{ErrorClass, QmpError, harmless};
pub use limits::Limits;
pub use message::{Kind, Member, Message};
pub use monitor::{Command, Event, Events, Monitor, Request, run};
pub use resync::{Leftovers, RESET, Resync};
