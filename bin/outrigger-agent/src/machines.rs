//! State machines without I/O: each takes what happened and returns [effects](crate::effect::Effect).
//!
//! [`state`] is the exception: it moves bytes between any reader and any writer, and returns what was completed.

pub(crate) mod media;
pub(crate) mod pci;
pub(crate) mod state;
pub(crate) mod supervise;
