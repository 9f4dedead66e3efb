//! Speaks QMP with the QEMU of a guest.

pub(crate) mod client;
pub(crate) mod line;
pub(crate) mod prompt;
pub(crate) mod schema;
pub(crate) mod session;
