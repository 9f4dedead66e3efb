//! Files that a killed process left in the folder of the sockets.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use tracing::{info, warn};
use uuid::Uuid;
use xen_types::DomId;

use super::console::with_cause;
use super::id::ConsoleId;
use super::writer::{Done, Job, Owner};
use super::{Server, ServerError};
use crate::own_path::OwnPath;
use crate::platform::Platform;
use crate::ring::OUT_SIZE;
use crate::spool::{Kept, Spool};

impl<P: Platform> Server<P> {
    /// Removes the journals of consoles that are gone, once their files have all the bytes. A journal without a UUID is
    /// discarded: another domain may have its domid now. Returns the journals that were `given` to threads before and
    /// now.
    pub(crate) fn finish_journals(
        &mut self,
        given: &[OwnPath],
        is_gone: impl Fn(&Self, ConsoleId, Uuid) -> bool,
    ) -> Vec<OwnPath> {
        let mut all = given.to_vec();
        let Ok(entries) = fs::read_dir(&self.settings.socket_dir) else { return all };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(console) = name.to_str().and_then(|name| name.strip_suffix(".journal")) else {
                continue;
            };
            // A channel's name may end like a journal's.
            let Some(id) = ConsoleId::parse(console) else { continue };
            let Ok(journal) = OwnPath::of(entry.path()) else { continue };
            if given.contains(&journal) {
                continue;
            }
            match Spool::read_kept(&entry.path(), OUT_SIZE) {
                Some(kept) if !is_gone(self, id, kept.uuid) => {}
                Some(kept) => {
                    self.finish_journal(kept, &journal);
                    all.push(journal);
                }
                None => {
                    info!(console, "discarded a journal that another version wrote");
                    journal.remove();
                }
            }
        }
        all
    }

    fn finish_journal(&mut self, kept: Kept, journal: &OwnPath) {
        let paths: Vec<&Path> =
            [&kept.log, &kept.file].into_iter().flatten().map(|file| file.path.as_path()).collect();
        match self.writers.writer(&paths) {
            Ok(writer) => {
                let owner = Owner::Journal(self.consoles.new_key());
                let (kept, style) = (Box::new(kept), self.settings.log_style);
                writer.send(owner, Job::FinishEarlier { kept, style, journal: Some(journal.clone()) });
            }
            Err(error) => warn!("cannot start a thread for the log of a console that is gone: {error}"),
        }
    }

    /// Whether this console is served and belongs to this domain.
    pub(crate) fn serves(&self, id: ConsoleId, uuid: Uuid) -> bool {
        self.consoles.named(id).is_some_and(|console| console.uuid() == uuid)
    }
}

/// Reports what has become of a console of an earlier process.
pub(super) fn report(what: &Done) {
    if let Done::Finished(Err(error)) = what {
        warn!("the log of a console that is gone lacks its last bytes: {}", with_cause(error));
    }
}

pub(super) fn make_folder(path: &Path) -> Result<(), ServerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| ServerError::Folder { path: path.to_owned(), source })
}

/// Makes the folder of the logs. Its disk may hang: then it is waited for no longer than this, and logs are opened when it
/// answers.
pub(super) fn make_log_folder(path: &Path, patience: Duration) -> Result<(), ServerError> {
    let (done, answer) = channel();
    let own = path.to_owned();
    // Without a receiver, it was too late.
    let work = move || drop(done.send(make_folder(&own)));
    std::thread::Builder::new().name("log folder".to_owned()).spawn(work).map_err(ServerError::Writers)?;
    answer.recv_timeout(patience).unwrap_or_else(|_| {
        warn!(
            "the disk of {} does not answer; consoles are served without logs until it does",
            path.display()
        );
        Ok(())
    })
}

/// Removes the sockets, the links to them, and incomplete journals. Those of consoles that still exist are created
/// again.
pub(super) fn remove_stale_names(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let is_link = || entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let is_named_console =
            || name.split_once('.').is_some_and(|(domid, _)| domid.parse::<DomId>().is_ok()) && is_link();
        if ConsoleId::parse(name).is_some() || is_named_console() || name.ends_with(".journal.new") {
            // Whatever cannot be removed is reported when a console needs the name.
            let _ = fs::remove_file(entry.path());
        }
    }
}
