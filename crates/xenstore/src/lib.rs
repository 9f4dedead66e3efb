//! The xenstore wire protocol, a client, and an in-process server for tests.
//!
//! xenstore is the small tree of names and values through which domains, backends and toolstacks find each other
//! (`docs/misc/xenstore.txt` and `xen/include/public/io/xs_wire.h` in Xen's source). This crate knows the protocol
//! and nothing of what the tree means.
//!
//! - [`wire`] is the codec: bytes to messages and back, without I/O.
//! - [`Connection`] is a client for one thread, with a file descriptor to poll and no thread of its own.
//! - [`Xenstore`] is a client that many threads share; one thread of its own sorts answers and watch events.
//! - [`Store`] is what both, and a [`Transaction`] on either, can do with nodes.
//! - `server` (feature `server`) is a xenstored in this process that speaks the same protocol, for tests, and
//!   `testing` the cases that it and the real xenstored both pass.
//!
//! No call waits longer than its time limit ([`DEFAULT_TIMEOUT`] unless told otherwise; [`Connection`] names one
//! exception), and what comes from the other side is bounded before it is stored.
#![forbid(unsafe_code)]

mod client;
mod codes;
mod connection;
mod error;
mod event;
mod fuzz;
mod operation;
mod path;
mod permissions;
#[cfg(feature = "server")]
pub mod server;
mod store;
#[cfg(feature = "server")]
pub mod testing;
mod transport;
pub mod wire;

pub use client::{Watch, WatchGuard, Xenstore};
pub use connection::Connection;
pub use error::StoreError;
pub use event::{EventPath, WatchEvent};
pub use fuzz::fuzz;
pub use operation::Operation;
pub use path::{ABS_PATH_MAX, NodePath, PathError, REL_PATH_MAX, RelPath, SpecialWatch, WatchPath, XsPath};
pub use permissions::{Access, Permissions, PermissionsError};
pub use store::{Store, Transaction, parse_number, parse_string};
pub use transport::DEFAULT_TIMEOUT;
pub use wire::Request;
