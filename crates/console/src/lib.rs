//! PV console rings to pty, log file and socket.
//!
//! - [`ring`]: the shared page's rules, over any memory.
//! - [`handshake`]: the handshake of secondary consoles, as a pure function.
//! - [`history`]: the last bytes of a console, for all of its readers; [`spool`]: the same, and how far everyone is, in
//!   memory that outlives the process.
//! - [`logfile`], [`output`], [`pty`]: where bytes go.
//! - [`server`]: the daemon's core: finds consoles and serves them, over a [`platform`] that a test can play.
//! - [`xen_platform`]: the real one.
//! - [`request`]: what clients of the daemon say.
//! - [`attach`]: the viewer's side, for command lines.
//! - [`stream`]: a console as a stream with an end, for toolstacks.
//! - [`lock`]: one daemon per host.
#![forbid(unsafe_code)]

pub mod attach;
pub mod handshake;
pub mod history;
pub mod lock;
pub mod logfile;
pub mod output;
mod own_path;
pub mod platform;
pub mod pty;
pub mod request;
pub mod ring;
pub mod server;
pub mod spool;
pub mod stream;
pub mod xen_platform;

pub use uuid::Uuid;
