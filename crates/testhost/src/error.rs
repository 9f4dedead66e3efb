//! What can go wrong between a request and the end of a run.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failure of the embedded host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file or folder of the host could not be read, written or made.
    #[error("Cannot {action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program that the host needs could not be started.
    #[error("Cannot start {program}; install the Debian package {package} and try again")]
    Program {
        /// Its name.
        program: &'static str,
        /// The Debian package that holds it.
        package: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("{program} failed ({status}): {message}")]
    ProgramFailed {
        /// Its name.
        program: String,
        /// Its exit status in words.
        status: String,
        /// The end of what it said.
        message: String,
    },
    /// QEMU ended before the run did.
    #[error("QEMU ended during {phase} ({status}). Last console lines:\n{tail}\nThe logs are in {}", logs.display())]
    QemuDied {
        /// What the run was doing.
        phase: &'static str,
        /// QEMU's exit status in words, with the end of its stderr.
        status: String,
        /// The end of the Xen console.
        tail: String,
        /// The folder of logs.
        logs: PathBuf,
    },
    /// Xen or dom0's kernel panicked.
    #[error("The host crashed during {phase}: {line}\nLast console lines:\n{tail}\nThe logs are in {}", logs.display())]
    Crashed {
        /// What the run was doing.
        phase: &'static str,
        /// The console line that told.
        line: String,
        /// The end of the Xen console.
        tail: String,
        /// The folder of logs.
        logs: PathBuf,
    },
    /// Nothing was heard from the host for too long.
    #[error(
        "The host printed nothing for {} s during {phase}. Last console lines:\n{tail}\nThe logs are in {}; \
         on a slow machine set OUTRIGGER_TIME_SCALE to a number above 1", silence.as_secs(), logs.display()
    )]
    Hung {
        /// What the run was doing.
        phase: &'static str,
        /// The deadline that passed.
        silence: Duration,
        /// The end of the Xen console.
        tail: String,
        /// The folder of logs.
        logs: PathBuf,
    },
    /// The script did not end in time.
    #[error("The script did not end within {} s; the logs are in {}", limit.as_secs(), logs.display())]
    ScriptTimeout {
        /// The time that it had, scaled.
        limit: Duration,
        /// The folder of logs.
        logs: PathBuf,
    },
    /// dom0's init gave up.
    #[error("dom0 did not come up: {reason}\nLast console lines:\n{tail}\nThe logs are in {}", logs.display())]
    Init {
        /// What it said.
        reason: String,
        /// The end of the Xen console.
        tail: String,
        /// The folder of logs.
        logs: PathBuf,
    },
    /// What was to be done before the job failed.
    #[error("The preparation \"{name}\" ended with status {status}; the logs are in {}", logs.display())]
    Preparation {
        /// Its name.
        name: &'static str,
        /// Its exit status.
        status: i32,
        /// The folder of logs.
        logs: PathBuf,
    },
    /// QEMU's monitor answered with an error or not at all.
    #[error("QEMU's monitor did not execute {command}: {reason}")]
    Monitor {
        /// The QMP command.
        command: String,
        /// Its answer.
        reason: String,
    },
    /// A setting has a value that makes no sense.
    #[error("{name}={value} is not usable: {reason}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What was found.
        value: String,
        /// What would be accepted.
        reason: &'static str,
    },
    /// Another thread ended the run.
    #[error("The run was interrupted")]
    Stopped,
    /// One of a pair of hosts failed.
    #[error("{host} of the pair failed")]
    Pair {
        /// Its name.
        host: &'static str,
        /// What happened to it.
        #[source]
        source: Box<HostError>,
    },
    /// What was asked for to execute the machine's instructions cannot do it here.
    #[error("{option} kvm is not possible here: {reason}")]
    Accel {
        /// The option that asked.
        option: &'static str,
        /// Why not.
        reason: String,
    },
    /// The packages could not be fetched or unpacked, or a file was missing in them.
    #[error("Cannot collect {what} for the embedded host")]
    Packages {
        /// Which part was being gathered.
        what: String,
        /// The image crate's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// An error with all its causes, in one text.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Adds the path and the verb to an I/O result.
pub(crate) trait AtPath<T> {
    /// Turns the error into [`HostError::File`].
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, HostError>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, HostError> {
        self.map_err(|source| HostError::File { action, path: path.into(), source })
    }
}
