//! The journals of migrations on this host's disk: one file for each migration and role.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use migration::journal::{Entry, JOURNAL_SIZE, Journal, JournalError, Sequence};
use migration::record::{About, Claim, Record};
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
/// How many of them are kept at most: another host may ask about migrations that never were, and each answer is one.
const MOST: usize = 1000;

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
    /// Removes it.
    pub(crate) fn remove(&self, ts: &Toolstack) -> StepResult {
        Ok(ts.host.remove_file(&self.path)?)
    }

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

/// The number of the next migration of a guest, greater than those of all before.
pub(crate) fn next_number(ts: &Toolstack) -> Result<u64, Cause> {
    let greatest = all(ts)?.journals.iter().map(|(_, journal, _)| journal.about.begun).max();
    Ok(greatest.unwrap_or(0).saturating_add(1))
}

/// Whether a migration has taken its guest away from this host, and no later one has brought it back.
pub(crate) fn is_away(
    all: &[(MigrationRole, JournalFile, Record)],
    journal: &JournalFile,
    record: &Record,
) -> bool {
    let is_later = |other: &JournalFile| {
        other.about.guest == journal.about.guest && other.about.begun > journal.about.begun
    };
    claim(record) == Claim::Theirs
        && !all.iter().any(|(_, other, record)| is_later(other) && claim(record) == Claim::Ours)
}

fn claim(record: &Record) -> Claim {
    match record {
        Record::Sender(record) => record.claim(),
        Record::Receiver(record) => record.claim(),
    }
}

/// Removes the journals of migrations that have been settled for long, and the oldest of too many. Those of guests that
/// are away stay: nothing else says so when someone creates such a guest.
pub(crate) fn remove_old(ts: &Toolstack, now: SystemTime) -> StepResult {
    remove_but(ts, now, MOST)
}

fn remove_but(ts: &Toolstack, now: SystemTime, most: usize) -> StepResult {
    let found = all(ts)?.journals;
    let removable = |(_, journal, record): &&_| is_settled(record) && !is_away(&found, journal, record);
    let mut settled: Vec<_> = found.iter().filter(removable).collect();
    let surplus = settled.len().saturating_sub(most);
    // What was never a guest's is worth least.
    settled.sort_by_cached_key(|(_, journal, _)| (!journal.about.guest.is_nil(), journal.written(ts)));
    for (index, (_, journal, _)) in settled.iter().enumerate() {
        let age = journal.written(ts).and_then(|written| now.duration_since(written).ok());
        if index < surplus || age.is_some_and(|age| age > KEPT) {
            journal.remove(ts)?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use migration::record::{Decision, Done, ReceiverRecord, SenderRecord};
    use migration::{JournalId, Reason};
    use uuid::Uuid;
    use xen::SimHypervisor;
    use xen_types::DomId;
    use xenstore::server::Server;

    use super::*;
    use crate::dom0::SimHost;

    fn write(ts: &Toolstack, id: u8, guest: Uuid, record: ReceiverRecord) {
        write_as(ts, MigrationRole::Receiver, id, guest, Record::Receiver(record));
    }

    /// Their identities say in which order they began.
    fn write_as(ts: &Toolstack, role: MigrationRole, id: u8, guest: Uuid, record: Record) {
        let about = About {
            id: MigrationId([id; 16]),
            guest,
            name: "x".to_owned(),
            peer: "b".to_owned(),
            peer_journal: JournalId([9; 16]),
            boot: Uuid::nil(),
            domid: None,
            begun: id.into(),
            stood_still_ms: None,
        };
        JournalFile::new(ts, role, about).write(ts, record).unwrap();
    }

    #[test]
    fn of_too_many_journals_the_settled_ones_of_no_guest_go_first() {
        let store = Server::start().connect(DomId::DOM0);
        let ts = Toolstack::new(Arc::new(SimHypervisor::new()), store, Arc::new(SimHost::new()));
        let (nobody, somebody) = (Uuid::nil(), Uuid::from_u128(1));
        // The simulated host wrote all of them then.
        let now = SystemTime::UNIX_EPOCH;
        write(&ts, 1, somebody, ReceiverRecord::Owned);
        write(&ts, 2, nobody, ReceiverRecord::Committed);
        for id in 3..8 {
            write(&ts, id, nobody, ReceiverRecord::Aborted(Reason::Other));
        }
        remove_but(&ts, now, 3).unwrap();
        let left = |ts: &Toolstack| {
            let mut ids: Vec<_> =
                all(ts).unwrap().journals.iter().map(|(_, of, _)| of.about.id.0[0]).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(left(&ts).len(), 4);
        assert!(left(&ts).starts_with(&[1, 2]), "{:?}", left(&ts));
        remove_but(&ts, now, 0).unwrap();
        assert_eq!(left(&ts), [2], "an unsettled one stays");
    }

    #[test]
    fn guest_that_is_away_stays_so_whichever_journal_is_written_last() {
        use crate::handover::{check_here, forget_moved};
        let store = Server::start().connect(DomId::DOM0);
        let ts = Toolstack::new(Arc::new(SimHypervisor::new()), store, Arc::new(SimHost::new()));
        let guest = Uuid::from_u128(1);
        let is_away = || check_here(&ts, guest, "y").is_err();
        let sent = |id, record| write_as(&ts, MigrationRole::Sender, id, guest, Record::Sender(record));
        sent(2, SenderRecord::Done(Done::Moved));
        assert!(is_away());
        // The first migration, which was forced, is confirmed only now.
        let decision = Decision { operator: "root".to_owned(), time: 0 };
        sent(1, SenderRecord::ForcedDone(decision));
        assert!(is_away());
        remove_but(&ts, SystemTime::now(), 0).unwrap();
        assert!(is_away(), "its journal is no longer there");
        write(&ts, 3, guest, ReceiverRecord::Owned);
        assert!(!is_away(), "it has come back");
        sent(4, SenderRecord::Done(Done::Moved));
        forget_moved(&ts, Uuid::from_u128(9), "x", &mut |event| panic!("{event:?}"));
        assert!(!is_away(), "it was made here on request");
    }
}
