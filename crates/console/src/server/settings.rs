//! The server's settings and its fatal errors.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use xenstore::StoreError;

use crate::logfile::LogStyle;
use crate::output::Overflow;

/// Where the server keeps its files, and what it does with bytes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the consoles' logs.
    pub log_dir: PathBuf,
    /// The folder of the consoles' sockets, `<domid>.<number>`, and of the control socket.
    pub socket_dir: PathBuf,
    /// What the logs are called.
    pub log_names: LogNames,
    /// Whether consoles have logs, where the toolstack does not say it.
    pub log_guests: bool,
    /// How logs are written, and files that a console has as its output.
    pub log_style: LogStyle,
    /// How the log of Xen's own console is written; nothing for none.
    pub hypervisor_log: Option<LogStyle>,
    /// What becomes of bytes that nobody reads from a pseudo-terminal or a socket, where the toolstack does not say it.
    pub overflow: Overflow,
    /// How long the server's loop, and so every console, may wait for one answer of xenstored.
    pub store_timeout: Duration,
}

impl Settings {
    /// Logs of all consoles in one folder, sockets in another, and everything else as it is usual.
    #[must_use]
    pub fn new(log_dir: PathBuf, socket_dir: PathBuf) -> Self {
        Self {
            log_dir,
            socket_dir,
            log_names: LogNames::default(),
            log_guests: true,
            log_style: LogStyle::default(),
            hypervisor_log: None,
            overflow: Overflow::Drop,
            store_timeout: Duration::from_secs(3),
        }
    }
}

/// What consoles' logs are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogNames {
    /// `<domain's name>.<number>.log`.
    #[default]
    Numbered,
    /// As xenconsoled calls them: `guest-<domain's name>.log`; those of secondary consoles, which it does not have,
    /// `guest-<domain's name>.<number>.log`.
    Xenconsoled,
}

/// Why the server cannot start or continue.
#[derive(Debug, Error)]
pub enum ServerError {
    /// xenstored does not answer at the start. Later, its loss is no error.
    #[error("Cannot use xenstore, where consoles are found")]
    Store(#[from] StoreError),
    /// Xen does not list its domains.
    #[error("Cannot list the domains")]
    Domains(#[source] io::Error),
    /// No more event channels can be received.
    #[error("Cannot receive event channels")]
    Events(#[source] io::Error),
    /// The poll itself fails.
    #[error("Cannot wait for consoles")]
    Poll(#[source] io::Error),
    /// A folder that is needed cannot be made, or nothing can be made in it.
    #[error("Cannot use the folder {path}; check the options for folders and who may write there")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
