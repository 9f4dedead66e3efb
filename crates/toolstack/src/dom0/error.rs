use std::io;
use std::path::PathBuf;
use std::time::Duration;

use linux_loop::LoopError;
use thiserror::Error;

use super::{DiskId, ScriptProcess};

/// Why something in dom0 could not be done.
#[derive(Debug, Error)]
pub enum HostError {
    /// An operation on a file.
    #[error("Cannot {operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is longer than it may be.
    #[error("{path} is longer than {limit} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// What a stream is to be read from or written to is neither a file nor a pipe.
    #[error("{path} is neither a regular file nor a named pipe")]
    NoStream {
        /// The path.
        path: PathBuf,
    },
    /// The other end of a pipe did not come.
    #[error(
        "Nothing has opened the other end of the pipe {path}; start its reader (save) or its writer (restore) first"
    )]
    LonelyPipe {
        /// The pipe.
        path: PathBuf,
    },
    /// The path of a disk is neither a file nor a block device.
    #[error("{path} is neither a file nor a block device")]
    NoDisk {
        /// The path.
        path: PathBuf,
    },
    /// A block device that was opened for writing is in use in dom0.
    #[error(
        "{path} is in use in dom0: it is mounted, or LVM, MD, swap or another program has claimed it. Release it first \
         (lsblk {path} shows what uses it)"
    )]
    DiskBusy {
        /// The path.
        path: PathBuf,
        /// Its identity.
        id: Box<DiskId>,
    },
    /// Requests to a disk that do not end.
    #[error(
        "Requests to the guest's disks are still under way after {after:?} (see {path}); the storage may hang"
    )]
    DiskBusyFor {
        /// The disk.
        path: PathBuf,
        /// How long was waited.
        after: Duration,
    },
    /// A loop device.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// An operation on a network interface.
    #[error("Cannot {operation} the network interface {interface}")]
    Network {
        /// What was tried.
        operation: &'static str,
        /// On which interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such bridge.
    #[error(
        "There is no bridge {0} in dom0; create it (ip link add {0} type bridge) or use another in the vif"
    )]
    NoBridge(String),
    /// A name that no interface can have.
    #[error("\"{0}\" cannot be the name of a network interface (1 to 15 bytes, no slash, no space)")]
    InterfaceName(String),
    /// A script could not be run.
    #[error("Cannot run the hotplug script {script}")]
    Script {
        /// The script.
        script: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A script failed.
    #[error("The hotplug script {script} {what}: {}", reported.as_ref().unwrap_or(output))]
    ScriptFailed {
        /// The script.
        script: PathBuf,
        /// `ended with status 1`, `ran for more than 40 s and was killed`.
        what: String,
        /// The end of what it printed.
        output: String,
        /// What it wrote to its device's `hotplug-error`, as Xen's scripts do.
        reported: Option<String>,
    },
    /// A script has not ended although it was killed.
    #[error(
        "The hotplug script {script} (process {}) did not end within {} s and cannot be killed, so it may still be \
         running: the kernel waits for a device or a server that it uses. It is not started again before it has ended",
        process.pid, after.as_secs()
    )]
    ScriptStuck {
        /// The script.
        script: PathBuf,
        /// The process that runs it.
        process: ScriptProcess,
        /// Its deadline.
        after: Duration,
    },
    /// dom0's time zone.
    #[error(
        "Cannot read dom0's time zone ({why}); set it, or use rtc_timeoffset in seconds instead of localtime"
    )]
    TimeZone {
        /// What is wrong with it.
        why: String,
    },
    /// The kernel's boot ID is not a UUID.
    #[error("Cannot identify the host's current boot: {path} contains no UUID")]
    BootId {
        /// The kernel's file.
        path: PathBuf,
    },
    /// A simulated host's injected failure.
    #[error("Injected failure of the host's call {call} ({operation})")]
    Injected {
        /// The call's number, from 1.
        call: u64,
        /// Which operation.
        operation: &'static str,
    },
}
