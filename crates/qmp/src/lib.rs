//! QMP, the protocol of QEMU's monitor, for a toolstack that does not trust QEMU.
//!
//! A hostile guest compromises QEMU first. So every message is bounded and checked ([`Decoder`], [`Limits`]), every
//! answer is checked against the type of its command before it is used ([`commands`]), and every wait has a deadline
//! ([`Monitor`]). Nothing here does I/O: protocols are state machines that take and return bytes.
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
pub use error::{ErrorClass, QmpError, harmless, is_deceptive};
pub use limits::Limits;
pub use message::{Kind, Member, Message};
pub use monitor::{Command, Event, Events, Monitor, Request, run};
pub use resync::{Leftovers, RESET, Resync};
