use std::fmt;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;
use xen_types::{DomId, KiB, Release};

/// What every call of this crate returns.
pub type Result<T, E = XenError> = core::result::Result<T, E>;

/// Why something that was asked of the hypervisor did not happen.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum XenError {
    /// Xen, or a library or driver in front of it, refused.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// A device file of the Xen drivers could not be opened.
    #[error("Could not open {device}{}", open_hint(source))]
    Open {
        /// The device file.
        device: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that goes into the domain's memory could not be read.
    #[error("Could not read {what} from {}", path.display())]
    ReadFile {
        /// What the file is for.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The request makes no sense to Xen and was not sent.
    #[error("Could not {operation}: {reason}")]
    Invalid {
        /// What was to be done.
        operation: &'static str,
        /// What is wrong with the request, and what would be right.
        reason: String,
    },
    /// Waiting took longer than the caller allows.
    #[error("{operation} of domain {domid} did not complete within {waited_ms} ms")]
    Timeout {
        /// What was waited for.
        operation: &'static str,
        /// The domain.
        domid: DomId,
        /// How long it was waited, in milliseconds.
        waited_ms: u64,
    },
    /// A save or restore was given up although nothing was wrong with it.
    #[error("{operation} of domain {domid} was given up: {why}")]
    Abandoned {
        /// What was given up.
        operation: &'static str,
        /// The domain.
        domid: DomId,
        /// Why.
        why: Abandoned,
    },
    /// The process that writes or reads a domain's memory did not return a result.
    #[error(
        "{operation} of domain {domid} failed because its helper process failed: {reason}{}",
        listed(said)
    )]
    Helper {
        /// What it was for.
        operation: &'static str,
        /// The domain.
        domid: DomId,
        /// How it ended, or what it did wrong.
        reason: String,
        /// The last lines that it and the library wrote, oldest first.
        said: Vec<String>,
    },
    /// The running Xen is not of the release that this program was built for.
    #[error(
        "Xen {running} is running, but this program was built for Xen {built}: the package that fits is {}; to use \
         this one, boot Xen {built}",
        running.daemons_package()
    )]
    Release {
        /// The release that runs.
        running: Release,
        /// The release whose libraries this program is linked with.
        built: Release,
    },
}

impl XenError {
    /// The `errno` with which Xen or the kernel refused, when there is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            Self::Open { source, .. } | Self::ReadFile { source, .. } => {
                source.raw_os_error().map(Errno::from_raw)
            }
            Self::Invalid { .. }
            | Self::Timeout { .. }
            | Self::Abandoned { .. }
            | Self::Helper { .. }
            | Self::Release { .. } => None,
        }
    }

    /// Whether the reason is that no domain has this number (any more).
    #[must_use]
    pub fn is_no_domain(&self) -> bool {
        self.errno() == Some(Errno::ESRCH)
    }

    pub(crate) fn refused(operation: &'static str, domid: Option<DomId>, errno: Errno) -> Self {
        Self::Refused(Box::new(Refusal { operation, domid, errno, said: Vec::new(), free: None }))
    }
}

/// Why a save or restore was given up although nothing was wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// [`Cancel::cancel`](crate::Cancel::cancel) was called.
    Cancelled,
    /// [`SaveEvents::suspend`](crate::SaveEvents::suspend) returned `false`.
    NotSuspended,
    /// [`SaveEvents::log_dirty`](crate::SaveEvents::log_dirty) returned `false`.
    NoLogDirty,
    /// [`SaveEvents::precopy`](crate::SaveEvents::precopy) returned [`Verdict::Abort`](crate::Verdict::Abort).
    Aborted,
}

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cancelled => "it was cancelled",
            Self::NotSuspended => "the domain was not suspended",
            Self::NoLogDirty => "the device model does not report the memory that it writes",
            Self::Aborted => "the domain changes its memory too fast",
        })
    }
}

/// Lines to follow a sentence.
fn listed(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!(": {}", lines.join("; ")) }
}

/// A refusal: which operation, on which domain, why, and what the library said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The name of the call, as in Xen's headers.
    pub operation: &'static str,
    /// The domain that it was about.
    pub domid: Option<DomId>,
    /// The reason as a number.
    pub errno: Errno,
    /// What libxenctrl and libxenguest logged during the call, oldest first.
    pub said: Vec<String>,
    /// Memory that the host had free, when that was not enough.
    pub free: Option<KiB>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation)?;
        if let Some(domid) = self.domid {
            write!(f, " for domain {domid}")?;
        }
        write!(f, " failed: {}", self.errno.desc())?;
        if !self.said.is_empty() {
            write!(f, " (the library reports: {})", self.said.join("; "))?;
        }
        match self.errno {
            Errno::EPERM | Errno::EACCES => {
                write!(f, ". Only root in a privileged domain (dom0) may do this")
            }
            Errno::ENOMEM => match self.free {
                Some(free) => write!(f, ". The host has {free} free"),
                None => Ok(()),
            },
            Errno::ESRCH if self.domid.is_some() => write!(f, ". There is no such domain"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

fn open_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            ": this is not a Xen domain, or the driver's module (xen_privcmd, xen_evtchn, xen_gntdev, xen_gntalloc) \
             is not loaded"
        }
        io::ErrorKind::PermissionDenied => ": only root may open it",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_whom_why_and_what_to_do() {
        let domid = DomId::new(5).expect("a small number");
        let mut refusal = Refusal {
            operation: "xc_dom_boot_mem_init",
            domid: Some(domid),
            errno: Errno::ENOMEM,
            said: vec!["can't allocate low memory".to_owned()],
            free: Some(KiB::from_mib(3)),
        };
        assert_eq!(
            refusal.to_string(),
            "xc_dom_boot_mem_init for domain 5 failed: Out of memory (the library reports: can't allocate low \
             memory). The host has 3 MiB free"
        );
        refusal.errno = Errno::EPERM;
        refusal.said.clear();
        let text = refusal.to_string();
        assert!(text.ends_with("Only root in a privileged domain (dom0) may do this"), "{text}");
    }
}
