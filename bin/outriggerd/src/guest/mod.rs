//! Guests: one driver task each, which alone decides what is done with its guest.
//!
//! [`driver`] runs the effects of [`state`], which is pure. Requests reach a driver through its [`handle`]; what others
//! know of the guest is its [`view`], which the driver publishes in the [`registry`].

pub(crate) mod driver;
pub(crate) mod elsewhere;
pub(crate) mod events;
pub(crate) mod handle;
mod heartbeat;
mod job;
mod names;
pub(crate) mod observer;
pub(crate) mod registry;
pub(crate) mod request;
pub(crate) mod resolve;
mod restart;
pub(crate) mod shared;
pub(crate) mod show;
mod state;
pub(crate) mod view;
mod watch;
