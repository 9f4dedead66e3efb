//! The journals of migrations on this host's disk: one file for each migration and role.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use migration::journal::{Entry, JOURNAL_SIZE, Journal, JournalError, Sequence};
use migration::record::{About, Record};
use migration::{MigrationId, record};

use super::error::HandoverError;
use crate::Toolstack;
use crate::dom0::FileKind;
use crate::error::Cause;
use crate::operation::StepResult;

/// The ending of the names of the sender's journals, and of the receiver's.
const SENDER: &str = "sender";
const RECEIVER: &str = "receiver";
/// How long the journal of a migration that is settled is kept.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// Which side of a migration a journal is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationRole {
    /// The guest left this host.
    Sender,
    /// The guest came to it.
    Receiver,
}

impl MigrationRole {
    const fn ending(self) -> &'static str {
        match self {
            Self::Sender => SENDER,
            Self::Receiver => RECEIVER,
        }
    }
}

/// The journal of one migration.
#[derive(Clone, Debug)]
pub(crate) struct JournalFile {
    path: PathBuf,
    pub(crate) about: About,
    /// The last write that was tried; none before the first.
    sequence: Option<Sequence>,
}

impl JournalFile {
    /// A journal that is not written yet.
    pub(crate) fn new(ts: &Toolstack, role: MigrationRole, about: About) -> Self {
        Self { path: path_of(ts, role, about.id), about, sequence: None }
    }

    /// Reads a migration's journal; nothing where there is none.
    pub(crate) fn load(
        ts: &Toolstack,
        role: MigrationRole,
        id: MigrationId,
    ) -> Result<Option<(Self, Record)>, Cause> {
        Self::load_from(ts, &path_of(ts, role, id))
    }

    fn load_from(ts: &Toolstack, path: &Path) -> Result<Option<(Self, Record)>, Cause> {
        if ts.host.file_kind(path)? == FileKind::Missing {
            return Ok(None);
        }
        let bad = |source| HandoverError::Journal { path: path.to_owned(), source };
        let bytes = ts.host.read_file(path, JOURNAL_SIZE as u64 + 1)?;
        let Some((sequence, Entry { about, record })) = Journal::read(&bytes).map_err(bad)? else {
            return Err(bad(JournalError::Damaged).into());
        };
        Ok(Some((Self { path: path.to_owned(), about, sequence: Some(sequence) }, record)))
    }

    /// Writes and syncs a record. After a failure it may be there nevertheless; the next write uses the other slot.
    pub(crate) fn write(&mut self, ts: &Toolstack, record: Record) -> StepResult {
        let bad = |source| HandoverError::Journal { path: self.path.clone(), source };
        let entry = Entry { about: self.about.clone(), record };
        if ts.host.file_kind(&self.path)? == FileKind::Missing {
            self.sequence = Some(Sequence::FIRST);
            let bytes = Journal::create(&entry).map_err(bad)?;
            return Ok(ts.host.write_file(&self.path, &bytes)?);
        }
        let sequence = self.sequence.map_or(Sequence::FIRST, Sequence::next);
        let (offset, slot) = Journal::slot_to_write(sequence, &entry).map_err(bad)?;
        self.sequence = Some(sequence);
        Ok(ts.host.write_at(&self.path, offset, &slot)?)
    }
}

impl JournalFile {
    /// When it was last written, as far as that is known.
    pub(crate) fn written(&self, ts: &Toolstack) -> Option<SystemTime> {
        ts.host.modified(&self.path).ok().flatten()
    }
}

/// All journals of this host, and those that cannot be read.
pub(crate) fn all(ts: &Toolstack) -> Result<Found, Cause> {
    let mut found = Found::default();
    for path in ts.host.list_files(&ts.paths.migrations())? {
        let role = match path.extension().and_then(|ending| ending.to_str()) {
            Some(SENDER) => MigrationRole::Sender,
            Some(RECEIVER) => MigrationRole::Receiver,
            _ => continue,
        };
        match JournalFile::load_from(ts, &path) {
            Ok(Some((journal, record))) => found.journals.push((role, journal, record)),
            Ok(None) => {}
            Err(cause) => found.unreadable.push(cause),
        }
    }
    Ok(found)
}

/// What [`all`] finds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) journals: Vec<(MigrationRole, JournalFile, Record)>,
    pub(crate) unreadable: Vec<Cause>,
}

/// Removes the journals of migrations that have been settled for long.
pub(crate) fn remove_old(ts: &Toolstack, now: SystemTime) -> StepResult {
    for (_, journal, record) in all(ts)?.journals {
        let is_old = || -> Result<bool, Cause> {
            let written = ts.host.modified(&journal.path)?;
            Ok(written.and_then(|written| now.duration_since(written).ok()).is_some_and(|age| age > KEPT))
        };
        if is_settled(&record) && is_old()? {
            ts.host.remove_file(&journal.path)?;
        }
    }
    Ok(())
}

/// Whether the other host needs no answer any more, or would get the same one without the record.
fn is_settled(record: &Record) -> bool {
    use record::{ReceiverRecord, SenderRecord};
    match record {
        Record::Sender(record) => matches!(record, SenderRecord::Done(_) | SenderRecord::ForcedDone(_)),
        Record::Receiver(record) => {
            matches!(record, ReceiverRecord::Aborted(_) | ReceiverRecord::Owned | ReceiverRecord::Void(_))
        }
    }
}

fn path_of(ts: &Toolstack, role: MigrationRole, id: MigrationId) -> PathBuf {
    ts.paths.migrations().join(format!("{id}.{}", role.ending()))
}
