use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use stubdom_abi::{ArgvError, StubConsole};
use thiserror::Error;
use vchan::VchanError;
use xen_types::DomIdError;
use xenstore::{PathError, StoreError};

/// Why the device model could not be started.
#[derive(Debug, Error)]
pub(crate) enum AgentError {
    #[error("Cannot mount {what} on {on}; the kernel lacks it")]
    Mount { what: &'static str, on: &'static str, source: Errno },
    #[error("Cannot make the folder {0}")]
    MakeDir(PathBuf, #[source] io::Error),
    #[error("Cannot read {0}; the image is incomplete")]
    ReadConfig(PathBuf, #[source] io::Error),
    #[error("{0} is not a valid description; rebuild the image")]
    BadConfig(PathBuf, #[source] serde_json::Error),
    #[error("The device {0} is missing: the kernel or the image lacks its module")]
    NoDevice(&'static str),
    #[error("Cannot use console {number} ({0})", number = .0.number())]
    Console(StubConsole, #[source] Errno),
    #[error("The arguments name an incoming state, but there is no console 2 to read it from")]
    NoIncomingConsole,
    #[error("Descriptor {expected} is in use; the kernel assigned {found}")]
    Descriptor { expected: i32, found: i32 },
    #[error("Cannot use xenstore")]
    Store(#[from] StoreError),
    #[error("xenstore has no {0}; the toolstack must write it before the stubdomain runs")]
    Absent(&'static str),
    #[error("The key \"target\" is not a domid")]
    Target(#[from] DomIdError),
    #[error("The target's \"vm\" is not a path")]
    Vm(#[from] PathError),
    #[error("The device model's arguments cannot be used")]
    Argv(#[from] ArgvError),
    #[error("The disk {device} did not appear within {seconds} s; {backend}")]
    NoDisk { device: String, seconds: u64, backend: String },
    #[error("Cannot open the medium {0}")]
    Medium(String, #[source] io::Error),
    #[error("The PV NIC {devid} did not appear within {seconds} s; check its backend in dom0")]
    NoNic { devid: u32, seconds: u64 },
    #[error("Cannot {what} the interface {name}")]
    Link { what: &'static str, name: String, source: io::Error },
    #[error("Cannot serve {0}")]
    Vchan(&'static str, #[source] VchanError),
    #[error("Cannot connect to {0}")]
    Socket(&'static str, #[source] Errno),
    #[error("Cannot start {0}")]
    Spawn(String, #[source] io::Error),
    #[error("Cannot {0}")]
    System(&'static str, #[source] io::Error),
}

impl AgentError {
    /// For `map_err`: a vchan, by its key's name.
    pub(crate) fn vchan(name: &'static str) -> impl FnOnce(VchanError) -> Self {
        move |source| Self::Vchan(name, source)
    }

    /// For `map_err`: a call of the kernel that has no object worth naming.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System(what, errno.into())
    }
}

/// The error and its causes on one line.
pub(crate) fn chain(error: &dyn core::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
