//! Records of restarts in progress (notes), so that the next daemon completes them if this one is killed.
//!
//! A restart destroys first: between that and the end of its create, the guest is in no other file as one that shall
//! run. The note is written before the first and removed after the last. It is written as state files are: durable,
//! and for root alone, because a configuration may contain secrets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvError};

use config::{GuestConfig, Uuid};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use toolstack::Guest;
use toolstack::host::{BootId, HostDevices, HostError};

use crate::backoff::Turn;

/// The form (format version) of the notes that are written. Notes of releases that did not record it have this one.
const FORM: u32 = 1;
/// The largest note that is read or written, in bytes.
const LIMIT: u64 = 1 << 20;
/// The extension of notes.
const EXTENSION: &str = "json";
/// What is added to the name of a note that cannot be read.
const UNREADABLE: &str = ".unreadable";

/// What a note says.
#[derive(Serialize, Deserialize)]
struct Content {
    #[serde(default = "first_form")]
    form: u32,
    /// The boot of the host in which the note was written; absent in notes of releases that did not record it.
    #[serde(default)]
    boot: Option<BootId>,
    config: GuestConfig,
    /// The UUID that the guest gets; a new one when absent.
    uuid: Option<Uuid>,
    /// When it begins; absent in notes of releases that did not delay restarts.
    #[serde(default)]
    turn: Turn,
}

/// The part that every release reads.
#[derive(Deserialize)]
struct Outer {
    #[serde(default = "first_form")]
    form: u32,
}

const fn first_form() -> u32 {
    FORM
}

/// Why a note cannot be written or read.
#[derive(Debug, Error)]
enum NoteError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("The file is damaged")]
    Damaged(#[from] serde_json::Error),
    #[error("The file has format {0}, which a later release wrote")]
    TooNew(u32),
    #[error("The file would exceed the limit of {LIMIT} bytes")]
    TooLong,
}

/// The folder of the notes.
#[derive(Clone)]
pub(crate) struct Restarts {
    host: Arc<dyn HostDevices>,
    folder: PathBuf,
    boot: BootId,
}

/// One note, which stays until it is [`done`](Self::done), also when the daemon dies.
pub(crate) struct Note {
    host: Arc<dyn HostDevices>,
    path: PathBuf,
}

/// A note that is being written on another thread.
pub(crate) struct PendingNote {
    written: mpsc::Receiver<Option<Note>>,
}

impl PendingNote {
    /// Waits until it is written; nothing when it could not be. An error when nobody tries to any more, because the daemon
    /// ends: then nothing may begin that needs it.
    pub(crate) fn wait(self) -> Result<Option<Note>, RecvError> {
        self.written.recv()
    }
}

impl std::fmt::Debug for PendingNote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingNote").finish_non_exhaustive()
    }
}

/// A restart that an earlier daemon did not complete.
pub(crate) struct CutOff {
    /// Its note.
    pub(crate) note: Note,
    /// What the guest is made of.
    pub(crate) config: GuestConfig,
    /// The UUID that it gets; a new one when absent.
    pub(crate) uuid: Option<Uuid>,
    /// When it begins.
    pub(crate) turn: Turn,
}

impl CutOff {
    /// Whether it is the restart of this guest, or has made it.
    pub(crate) fn is_of(&self, guest: &Guest) -> bool {
        self.config.name == guest.name && self.uuid.is_none_or(|uuid| uuid == guest.uuid)
    }
}

impl Restarts {
    /// The notes in the daemon's folder for state.
    pub(crate) fn new(host: Arc<dyn HostDevices>, state: &Path, boot: BootId) -> Self {
        Self { host, folder: state.join("restarts"), boot }
    }

    /// Notes that the guest whose UUID is `which` is made again of `config`. Without a note, because the disk is
    /// full for example, the restart is still better done than not. Waits for the disk.
    pub(crate) fn note(
        &self,
        which: Uuid,
        config: &GuestConfig,
        uuid: Option<Uuid>,
        turn: Turn,
    ) -> Option<Note> {
        let note = self.note_of(which);
        let content = Content { form: FORM, boot: Some(self.boot), config: config.clone(), uuid, turn };
        match self.write(&note.path, &content) {
            Ok(()) => Some(note),
            Err(error) => {
                tracing::error!(
                    error = crate::refusal::chain(&error),
                    file = %note.path.display(),
                    "cannot record a restart; if outriggerd is killed meanwhile, the guest is not restarted"
                );
                None
            }
        }
    }

    /// The same on a thread that may wait for the disk. To be called in the event loop.
    pub(crate) fn note_later(
        &self,
        which: Uuid,
        config: &GuestConfig,
        uuid: Option<Uuid>,
        turn: Turn,
    ) -> PendingNote {
        let (done, written) = mpsc::channel();
        let (restarts, config) = (self.clone(), config.clone());
        tokio::task::spawn_blocking(move || {
            // The receiver may have timed out; the note stays then.
            let _ = done.send(restarts.note(which, &config, uuid, turn));
        });
        PendingNote { written }
    }

    /// The note of this guest, which was written before.
    pub(crate) fn note_of(&self, which: Uuid) -> Note {
        let path = self.folder.join(format!("{which}.{EXTENSION}"));
        Note { host: Arc::clone(&self.host), path }
    }

    fn write(&self, path: &Path, content: &Content) -> Result<(), NoteError> {
        let text = serde_json::to_vec(content)?;
        if text.len() as u64 > LIMIT {
            return Err(NoteError::TooLong);
        }
        Ok(self.host.write_file(path, &text)?)
    }

    /// The restarts that an earlier daemon did not complete.
    ///
    /// A note from another boot of the host is removed: the guest ended with that boot, and may now be running on
    /// another host or under another toolstack. A note that cannot be read is moved aside.
    pub(crate) fn pending(&self) -> Vec<CutOff> {
        let mut paths = match self.host.list_files(&self.folder) {
            Ok(paths) => paths,
            Err(error) => {
                let (error, folder) = (crate::refusal::chain(&error), self.folder.display());
                tracing::error!(error, %folder, "cannot look for interrupted restarts");
                return Vec::new();
            }
        };
        paths.retain(|path| path.extension().is_some_and(|end| end == EXTENSION));
        paths.into_iter().filter_map(|path| self.take(path)).collect()
    }

    fn take(&self, path: PathBuf) -> Option<CutOff> {
        let note = Note { host: Arc::clone(&self.host), path };
        match self.read(&note.path) {
            Ok(Content { boot, config, .. }) if boot.is_some_and(|boot| boot != self.boot) => {
                let guest = config.name;
                tracing::warn!(
                    guest,
                    "the guest was not restarted, because the host went down meanwhile; create it to start it"
                );
                note.done();
                None
            }
            Ok(Content { config, uuid, turn, .. }) => Some(CutOff { note, config, uuid, turn }),
            Err(error) => {
                self.set_aside(note, &error);
                None
            }
        }
    }

    fn read(&self, path: &Path) -> Result<Content, NoteError> {
        let text = self.host.read_file(path, LIMIT)?;
        let Outer { form } = serde_json::from_slice(&text)?;
        if form > FORM {
            return Err(NoteError::TooNew(form));
        }
        Ok(serde_json::from_slice(&text)?)
    }

    /// Moves a note that cannot be read to where the guest's next note does not replace it.
    fn set_aside(&self, note: Note, why: &NoteError) {
        let error = crate::refusal::chain(why);
        let mut aside = note.path.clone().into_os_string();
        aside.push(UNREADABLE);
        let aside = PathBuf::from(aside);
        let copied =
            self.host.read_file(&note.path, LIMIT).and_then(|text| self.host.write_file(&aside, &text));
        let file = match copied {
            Ok(()) => {
                note.done();
                aside
            }
            // It stays where it is, and is reported again at the next start.
            Err(_) => note.path,
        };
        tracing::error!(
            error,
            file = %file.display(),
            "cannot read the record of a restart, so its guest may not be running; create the guest if it is \
             missing, then remove the file"
        );
    }
}

impl Note {
    /// The UUID of the guest that was to be destroyed or preserved.
    pub(crate) fn which(&self) -> Option<Uuid> {
        self.path.file_stem()?.to_str()?.parse().ok()
    }

    /// The restart has ended, well or not.
    pub(crate) fn done(self) {
        if let Err(error) = self.host.remove_file(&self.path) {
            let (error, file) = (crate::refusal::chain(&error), self.path.display());
            tracing::error!(error, %file, "cannot remove the record of a restart; remove the file");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use toolstack::host::{RealHost, SimHost};

    use super::*;

    fn config() -> GuestConfig {
        config::load_str("c", "type=\"hvm\"\nname=\"hello\"\nmemory=64").config.unwrap()
    }

    fn restarts(host: Arc<dyn HostDevices>, folder: &Path, boot: u128) -> Restarts {
        Restarts::new(host, folder, BootId(Uuid::from_u128(boot)))
    }

    #[test]
    fn note_is_for_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let restarts = restarts(Arc::new(RealHost), folder.path(), 1);
        let note = restarts.note(Uuid::from_u128(3), &config(), None, Turn::default()).unwrap();
        let mode = std::fs::metadata(&note.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        note.done();
        assert!(restarts.pending().is_empty());
    }

    #[test]
    fn restart_from_another_boot_is_not_completed() {
        let host = Arc::new(SimHost::new());
        let [before, now] = [1, 2].map(|boot| restarts(host.clone(), Path::new("/state"), boot));
        let _note = before.note(Uuid::from_u128(3), &config(), None, Turn::default()).unwrap();
        assert_eq!(before.pending().len(), 1);
        assert!(now.pending().is_empty());
        assert!(before.pending().is_empty(), "the note is removed");
    }

    #[test]
    fn note_that_cannot_be_read_is_moved_aside_and_hides_no_other() {
        let host = Arc::new(SimHost::new());
        let restarts = restarts(host.clone(), Path::new("/state"), 1);
        let note = restarts.note(Uuid::from_u128(3), &config(), None, Turn::default()).unwrap();
        let text = String::from_utf8(host.state().files[&note.path].clone()).unwrap();
        let later = text.replacen("\"form\":1", "\"form\":9", 1);
        host.put_file("/state/restarts/a.json", later.as_bytes());
        host.put_file("/state/restarts/b.json", b"{");
        for _ in 0..2 {
            assert_eq!(restarts.pending().len(), 1);
            let files = host.state().files;
            assert_eq!(files[Path::new("/state/restarts/a.json.unreadable")], later.as_bytes());
            assert_eq!(files[Path::new("/state/restarts/b.json.unreadable")], b"{");
            assert_eq!(files.len(), 3);
        }
    }

    #[test]
    fn note_of_a_release_without_forms_is_read() {
        let host = Arc::new(SimHost::new());
        let restarts = restarts(host.clone(), Path::new("/state"), 1);
        let note = restarts.note(Uuid::from_u128(3), &config(), None, Turn::default()).unwrap();
        let text = String::from_utf8(host.state().files[&note.path].clone()).unwrap();
        host.put_file(&note.path, text.replacen("\"form\":1,", "", 1).as_bytes());
        assert_eq!(restarts.pending().len(), 1);
    }
}
