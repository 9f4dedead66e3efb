//! Changes of a running guest that are not of its devices: memory, processors, name, signals.

mod memory;
mod rename;
mod signal;
mod vcpus;

pub(crate) use memory::resume_memory;
pub(crate) use rename::resume_rename;
pub(crate) use vcpus::resume_vcpus;

pub use signal::Signal;
