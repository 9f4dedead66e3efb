use std::io;
use std::path::PathBuf;
use std::time::Duration;

use migration::Reason;
use migration::frame::FrameError;
use migration::journal::JournalError;
use migration::resolve::ResolveError;
use thiserror::Error;

/// Why a guest could not be handed to another host, or taken from one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// The socket that leads to the other host.
    #[error("Cannot connect to {path}, where the connection to the other host should be")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection cannot be used.
    #[error("The connection to the other host failed: cannot {operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The other host sent what is no message.
    #[error(
        "What arrived from the other host is not a valid message; with ssh, check that root's shell profile there prints \
         nothing"
    )]
    Frame(#[from] FrameError),
    /// The connection ended.
    #[error(
        "The other host ended the connection; check that Outrigger runs there, and see its log (journalctl -u outriggerd)"
    )]
    Closed,
    /// Nothing came.
    #[error("The other host did not answer within {after:?}")]
    Silent {
        /// How long was waited.
        after: Duration,
    },
    /// The other host began with something else.
    #[error(
        "The other host did not identify itself; check that the command runs outrigger migrate-receive there"
    )]
    NoHello,
    /// There is no common version.
    #[error(
        "The other host speaks versions {} to {} of the protocol, this one {} to {}; install releases that fit",
        theirs.0, theirs.1, ours.0, ours.1
    )]
    Version {
        /// The other host's oldest and newest.
        theirs: (u16, u16),
        /// This host's.
        ours: (u16, u16),
    },
    /// A journal.
    #[error("The journal {path} of a migration cannot be used")]
    Journal {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: JournalError,
    },
    /// The file with the identity of this host's journals.
    #[error(
        "{path} does not contain this host's identity. Restore it; without it, other hosts cannot know whose answers \
         they get"
    )]
    Identity {
        /// The file.
        path: PathBuf,
    },
    /// The guest's description does not fit into a message.
    #[error("The configuration of guest {name} is too long to be sent")]
    TooLong {
        /// The guest's name.
        name: String,
    },
    /// What the other host said about the guest makes no sense.
    #[error("The other host's description of the guest cannot be used: {why}")]
    Offer {
        /// Why.
        why: String,
    },
    /// The configuration for the other host describes another machine.
    #[error(
        "The configuration for the other host would be another machine than the guest has; these differ: {}. Only paths of \
         disks, network interfaces' bridges, scripts and rates, outputs of serial ports, CPUs, the stubdomain's files and \
         what follows the guest's end may",
        differences.join(", ")
    )]
    OtherMachine {
        /// What differs, by the names of the state file.
        differences: Vec<String>,
    },
    /// Two of a guest's disks cannot be told apart.
    #[error(
        "The disks {first} and {second} identify themselves alike ({identity}), so the other host could confuse them: give \
         them different serial numbers, or use LVM"
    )]
    SameIdentity {
        /// The path of one.
        first: String,
        /// The path of the other.
        second: String,
        /// What both say that they are.
        identity: String,
    },
    /// The guest was migrated away.
    #[error(
        "Guest {name} was migrated to {peer} and may run there with the same disks. Migrate it back, or make sure that it \
         does not run there and never will, and use --force"
    )]
    Elsewhere {
        /// The guest's name.
        name: String,
        /// The other host.
        peer: String,
    },
    /// The disk is not the same one on both hosts.
    #[error(
        "The disk {disk} is not the sender's ({why}); a guest is migrated only with disks that both hosts share, under \
         the same paths"
    )]
    OtherDisk {
        /// Its path.
        disk: String,
        /// How that is known.
        why: String,
    },
    /// It cannot be known whether both hosts have the same disk.
    #[error(
        "Nothing identifies the storage of the disk {disk} on both hosts: use LVM, or a device with a WWID or a serial \
         number, or an image file in a folder that both hosts share"
    )]
    NoIdentity {
        /// Its path.
        disk: String,
    },
    /// An earlier migration is not settled.
    #[error(
        "A migration of guest {name} from or to {peer} is not settled. First run outrigger migrate --resolve {name} HOST on \
         the host that the guest left; HOST is the host that it was sent to"
    )]
    Unsettled {
        /// The guest's name.
        name: String,
        /// The other host.
        peer: String,
    },
    /// No migration of this guest is known.
    #[error("No migration of {guest} is known here; see outrigger migrations")]
    NoMigration {
        /// What was asked for.
        guest: String,
    },
    /// A guest was not migrated.
    #[error("Guest {name} was not migrated to {host} and stays here: {reason}{}", because(why.as_deref()))]
    NotMigrated {
        /// Its name.
        name: String,
        /// The other host.
        host: String,
        /// Why.
        reason: Reason,
        /// What this host knows of it.
        why: Option<String>,
    },
    /// A guest was not taken from another host.
    #[error("Guest {name} was not taken over from {host}: {reason}")]
    NotReceived {
        /// Its name.
        name: String,
        /// The other host.
        host: String,
        /// Why.
        reason: Reason,
    },
    /// A guest writes to its memory too fast.
    #[error(
        "Guest {name} was not migrated, because it writes to its memory too fast: after {rounds} rounds it would be suspended \
         for {expected:?}, more than the allowed {allowed:?}; raise --max-downtime, or migrate it when it is less busy"
    )]
    NotConverged {
        /// Its name.
        name: String,
        /// How many rounds there were.
        rounds: u32,
        /// How long it would be suspended.
        expected: Duration,
        /// How long it may be.
        allowed: Duration,
    },
    /// A guest was handed over, and it is not known whether the other host has taken it.
    #[error(
        "Guest {name} was handed over to {host}, which does not answer: it runs there or nowhere. Run outrigger migrate \
         --resolve {name} {host}"
    )]
    Unresolved {
        /// Its name.
        name: String,
        /// The other host.
        host: String,
    },
    /// Both hosts run a guest, or may.
    #[error("Guest {name} runs here, and on {host} too, or may: pause one of them now, and destroy it")]
    TwoCopies {
        /// Its name.
        name: String,
        /// The other host.
        host: String,
    },
    /// A guest that stays here could not be resumed.
    #[error(
        "Guest {name} stays on this host, and could not be resumed ({why}): it is still suspended. Remove the \
         cause and repeat the command"
    )]
    StillSuspended {
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
    /// A decision of an operator is refused.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

impl HandoverError {
    /// Whether the other host may still wait for a guest that was not migrated.
    #[must_use]
    pub const fn is_waited_for(&self) -> bool {
        matches!(self, Self::NotMigrated { reason: Reason::ConnectionLost | Reason::TimedOut, .. })
    }

    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}

fn because(why: Option<&str>) -> String {
    why.map(|why| format!(" ({why})")).unwrap_or_default()
}
