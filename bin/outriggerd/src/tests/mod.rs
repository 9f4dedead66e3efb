//! The daemon on a simulated host: its socket, its clients, its guests' lives.

mod changes;
mod clients;
mod creates;
mod ends;
mod hostile;
mod link;
mod migrations;
mod processors;
mod qemu;
mod release;
mod saves;
mod successors;
pub(crate) mod world;
