//! Frontends and backends of PV devices: their identity, their places in xenstore, and their states.
//!
//! A PV device has two ends: a *frontend* in the domain that uses it, and a *backend* in the domain that has what is
//! behind it, which is often dom0. Each end has a directory in xenstore, and they tell each other in the `state`
//! there how far they are (`xen/include/public/io/xenbus.h`). This crate names the directories and reads the states.
//! It does no I/O, and knows nothing of the other keys of a kind of device.
#![forbid(unsafe_code)]

mod device;
mod state;

pub use device::{DeviceId, DeviceKind, backend_parent, errors_dir, errors_parent, kind_dir};
pub use state::XenbusState;
