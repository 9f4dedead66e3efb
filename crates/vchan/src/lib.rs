//! libxenvchan-compatible byte streams between domains, over event channels and grants.
//!
//! A vchan is two rings of bytes in pages that one domain (the [`Server`]) grants to another (the [`Client`]), and an
//! event channel over which each wakes the other. The memory is that of `xen/include/public/io/libxenvchan.h`, so that
//! stock libxenvchan is at ease at either end. Only the kernel's device files are used, no library of Xen.
//!
//! - [`ring`] holds the rules without I/O, for any memory: a fuzzer's, a model checker's, [`RingPages`].
//! - [`Server`] offers a vchan in xenstore and takes one client after the other; [`Client`] connects to one.
//! - `AsyncClient` (feature `tokio`) is a client as `AsyncRead` and `AsyncWrite`.
//!
//! # Sessions
//! Stock servers let the next client go on in the ring that the last one left, so that a client that is quick misses
//! the server's first words, or reads the last ones of its forerunner. This server gives every client a ring of its
//! own or one that is proved clean, says so in xenstore ([`Advert::fresh`]), and this client waits for it. A stock
//! client of this server that comes before a clean ring is ready is served in place; it is sent away (its ring is
//! closed) only when it would read what was meant for another.
//!
//! # Trust
//! The other side is hostile: it writes to the shared pages whenever it wants. Its indices are read once and checked,
//! own indices are kept outside of the shared pages, sizes and grants are copied once. What it can do is to send
//! bytes, to stop, and to wake this side for nothing.
#![forbid(unsafe_code)]

mod advert;
mod channel;
mod client;
mod error;
mod layout;
mod pages;
mod place;
pub mod ring;
mod server;
#[cfg(feature = "tokio")]
mod throttle;
#[cfg(feature = "tokio")]
mod tokio;

#[cfg(feature = "tokio")]
pub use crate::tokio::AsyncClient;
pub use advert::{Advert, Snapshot};
pub use client::{Attempt, Client};
pub use error::VchanError;
pub use layout::{RingSizes, RingSizesError};
pub use pages::RingPages;
pub use place::Place;
pub use server::{Change, Server};
