//! Who this host is to others, and the identity of its journals.

use config::Uuid;
use migration::JournalId;
use migration::receiver::OwnJournal;
use serde::{Deserialize, Serialize};

use super::error::HandoverError;
use super::seconds_since_1970;
use crate::Toolstack;
use crate::dom0::FileKind;
use crate::error::Cause;

/// The most that the file may have, in bytes.
const LIMIT: u64 = 4096;

/// How this host introduces itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) host: String,
    pub(crate) journal: OwnJournal,
    pub(crate) boot: Uuid,
}

/// The file: made with the first migration, and never again. A host that was installed anew has another one, so that it
/// does not answer for its predecessor.
#[derive(Serialize, Deserialize)]
struct Stored {
    journal: JournalId,
    /// Seconds since 1970.
    since: u64,
}

impl Identity {
    /// This host's; made if there is none yet.
    pub(crate) fn find(ts: &Toolstack) -> Result<Self, Cause> {
        // Two threads must not each make one.
        let _one = ts.receptions.lock();
        let path = ts.paths.migrations().join("identity");
        let stored = if ts.host.file_kind(&path)? == FileKind::Missing {
            let mut id = [0; 16];
            ts.host.random(&mut id)?;
            let stored = Stored { journal: JournalId(id), since: seconds_since_1970() };
            ts.host.write_file(&path, &serde_json::to_vec(&stored).unwrap_or_default())?;
            stored
        } else {
            let content = ts.host.read_file(&path, LIMIT)?;
            serde_json::from_slice(&content).map_err(|_| HandoverError::Identity { path })?
        };
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        Ok(Self {
            host: plain(&host.unwrap_or_default()),
            journal: OwnJournal { id: stored.journal, since: stored.since },
            boot: ts.host.boot_id()?.0,
        })
    }

    #[cfg(test)]
    pub(super) fn of_tests(host: &str) -> Self {
        let journal = OwnJournal { id: JournalId([7; 16]), since: 1 };
        Self { host: host.to_owned(), journal, boot: Uuid::nil() }
    }
}

/// A name as a message can have it.
pub(crate) fn plain(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}
