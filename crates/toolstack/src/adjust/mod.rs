//! Changes of a running guest that are not of its devices: memory, processors, name, signals.

mod memory;
mod rename;
mod signal;
mod vcpus;

pub use signal::Signal;
