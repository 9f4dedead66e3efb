//! Explores the two machines under everything that may go wrong, for tests.
//!
//! The machines are the real ones; [`world`] is what surrounds them: hosts, domains, disks, journals with a cache,
//! and a network that keeps every message, so that each may arrive late, again and in any order until a fault drops
//! it. The following differ from reality only in name, so the model has one of them: a channel that breaks, a
//! cancel, a failure to build or load, and a timer that runs out.
//!
//! Not modelled: the bytes of the stream, the handles of a migration within one host, a wrong statement of an operator,
//! strangers that unpause or resume a domain.

mod check;
pub mod explore;
mod messages;
mod receiver;
mod sender;
mod steps;
pub mod world;

#[cfg(test)]
mod tests;
