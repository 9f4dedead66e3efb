//! Notes of restarts that are under way, so that a killed daemon's successor makes the guest again.
//!
//! A restart destroys first: between that and the end of its create, the guest is in no other file as one that shall
//! run. The note is written before the first and removed after the last.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use config::{GuestConfig, Uuid};
use serde::{Deserialize, Serialize};
use toolstack::host::BootId;

/// The largest note that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// What a note says.
#[derive(Serialize, Deserialize)]
struct Content {
    /// The boot of the host in which the note was written; absent in notes of releases that did not record it.
    #[serde(default)]
    boot: Option<BootId>,
    config: GuestConfig,
    /// The UUID that the guest gets; a new one when absent.
    uuid: Option<Uuid>,
}

/// The folder of the notes.
#[derive(Clone, Debug)]
pub(crate) struct Restarts {
    folder: PathBuf,
    boot: BootId,
}

/// One note, which stays until it is [`done`](Self::done), also when the daemon dies.
#[derive(Debug)]
pub(crate) struct Note {
    path: PathBuf,
}

impl Restarts {
    /// The notes in the daemon's folder for state.
    pub(crate) fn new(state: &Path, boot: BootId) -> Self {
        Self { folder: state.join("restarts"), boot }
    }

    /// Notes that the guest whose UUID is `which` is made again of `config`. Without a note, because the disk is
    /// full for example, the restart is still better done than not.
    pub(crate) fn note(&self, which: Uuid, config: &GuestConfig, uuid: Option<Uuid>) -> Option<Note> {
        let path = self.folder.join(format!("{which}.json"));
        let content = Content { boot: Some(self.boot), config: config.clone(), uuid };
        match self.write(&path, &content) {
            Ok(()) => Some(Note { path }),
            Err(error) => {
                let file = path.display();
                tracing::error!(%error, %file, "cannot note a restart; killing the daemon now would lose the guest");
                None
            }
        }
    }

    fn write(&self, path: &Path, content: &Content) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let fresh = path.with_extension("new");
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    }

    /// The notes that an earlier daemon left, each with its configuration and the UUID to take.
    ///
    /// A note from another boot of the host is removed: the guest ended with that boot, and may now be running on
    /// another host or under another toolstack.
    pub(crate) fn pending(&self) -> Vec<(Note, GuestConfig, Option<Uuid>)> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                tracing::error!(%error, folder = %self.folder.display(), "cannot look for restarts that were cut off");
                return Vec::new();
            }
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let paths = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
        paths.filter_map(|path| self.read(path)).collect()
    }

    fn read(&self, path: PathBuf) -> Option<(Note, GuestConfig, Option<Uuid>)> {
        let mut text = Vec::new();
        let content = fs::File::open(&path)
            .and_then(|file| file.take(LIMIT).read_to_end(&mut text))
            .and_then(|_| Ok(serde_json::from_slice::<Content>(&text)?));
        let note = Note { path };
        match content {
            Ok(Content { boot, config, .. }) if boot.is_some_and(|boot| boot != self.boot) => {
                let guest = config.name;
                tracing::warn!(
                    guest,
                    "the guest was not restarted, because the host went down meanwhile; create it again to start it"
                );
                note.done();
                None
            }
            Ok(Content { config, uuid, .. }) => Some((note, config, uuid)),
            Err(error) => {
                let file = note.path.display();
                tracing::error!(%error, %file, "cannot read the note of a restart; remove the file");
                None
            }
        }
    }
}

impl Note {
    /// The restart has ended, well or not.
    pub(crate) fn done(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::error!(%error, file = %self.path.display(), "cannot remove the note of a restart; remove it");
        }
    }
}
