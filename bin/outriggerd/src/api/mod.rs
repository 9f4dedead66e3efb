//! The varlink API: the socket, and each call of it.
//!
//! [`server`] moves frames, [`calls`] has each call answered: by a guest's driver, or by a query on a thread that may
//! block.

mod calls;
mod changes;
mod inspect;
mod lists;
mod migrations;
mod processors;
pub(crate) mod server;
mod show;

pub(crate) use calls::Calls;
