//! The daemon on a simulated host: its socket, its clients, its guests' lives.

mod changes;
mod clients;
mod creates;
mod ends;
mod hostile;
mod release;
mod successors;
pub(crate) mod world;
