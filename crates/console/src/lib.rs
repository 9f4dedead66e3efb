//! PV console rings to pty, log file and socket.

pub mod attach;
pub mod history;
pub mod logfile;
pub mod output;
pub mod platform;
pub mod pty;
pub mod ring;
pub mod xenbus;
