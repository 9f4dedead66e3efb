//! The server's settings and its fatal errors.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use xenstore::StoreError;

use crate::logfile::{Disk, HostDisk, LogStyle};
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
    /// What happens to bytes that nothing reads from a pseudo-terminal or a socket, unless the toolstack specifies it.
    pub overflow: Overflow,
    /// How many bytes of one domain go to logs and files.
    pub log_pace: LogPace,
    /// How long the server's loop, and so every console, may wait for one answer of xenstored.
    pub store_timeout: Duration,
    /// How long a log's disk may be silent before nothing waits for it any more.
    pub log_timeout: Duration,
    /// The file system of logs and files; tests have others.
    pub disk: Arc<dyn Disk>,
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
            log_pace: LogPace::default(),
            store_timeout: Duration::from_secs(3),
            log_timeout: Duration::from_secs(3),
            disk: Arc::new(HostDisk),
        }
    }
}

/// How many bytes of one domain go to the logs of its consoles, and to files that are their outputs.
///
/// A log's size is limited, but not what is written to the disk: a full log is renamed over the one before, at which a
/// file system such as ext4 writes all of it. A guest that floods its console at the speed of the ring would write
/// 80 MB/s, and would wear out the disk that all guests share. A rate alone would cut what people read logs for, the
/// long output of a boot or a test, so that much may come at once.
///
/// What is beyond that is left out, and the domain does not wait, because how fast a guest runs must not depend on a log
/// that somebody may read later. The last 32 KiB are always logged, within a second of silence or at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPace {
    /// Bytes that may come at once. By default 256 MiB, which is over after three seconds at the speed of a ring.
    pub burst: u64,
    /// Bytes a second afterwards. By default 256 KiB, about as many as xenconsoled takes of a domain: 22 GB a day. The
    /// burst is available again after 17 minutes.
    pub per_second: u64,
}

impl Default for LogPace {
    fn default() -> Self {
        Self { burst: 256 * 1024 * 1024, per_second: 256 * 1024 }
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
    #[error("Cannot use xenstore to find consoles")]
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
    /// What the threads that write logs need cannot be made.
    #[error("Cannot prepare the writing of logs")]
    Writers(#[source] io::Error),
    /// A folder that is needed cannot be made, or nothing can be made in it.
    #[error("Cannot use the directory {path}; check the options for directories and its permissions")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}
