//! Files that a killed process left in the folder of the sockets.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use tracing::{info, warn};
use uuid::Uuid;
use xen_types::DomId;

use super::console::with_cause;
use super::id::ConsoleId;
use super::sinks::Sinks;
use super::{Server, ServerError};
use crate::platform::Platform;
use crate::ring::OUT_SIZE;
use crate::spool::Spool;

impl<P: Platform> Server<P> {
    /// Removes the journals of consoles that are gone, once their files have all the bytes. A journal without a UUID is
    /// discarded: another domain may have its domid now.
    pub(crate) fn finish_journals(&self, is_gone: impl Fn(ConsoleId, Uuid) -> bool) {
        let Ok(entries) = fs::read_dir(&self.settings.socket_dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(console) = name.to_str().and_then(|name| name.strip_suffix(".journal")) else {
                continue;
            };
            match ConsoleId::parse(console).zip(Spool::read_kept(&entry.path(), OUT_SIZE)) {
                Some((id, kept)) if !is_gone(id, kept.uuid) => continue,
                Some((_, kept)) => {
                    if let Err(error) = Sinks::finish(&kept, self.settings.log_style) {
                        warn!(console, "{}", with_cause(&error));
                    }
                }
                None => info!(console, "discarded a journal that another version wrote"),
            }
            let _ = fs::remove_file(entry.path());
        }
    }

    /// Whether this console is served and belongs to this domain.
    pub(crate) fn serves(&self, id: ConsoleId, uuid: Uuid) -> bool {
        let console = self.names.get(&id).and_then(|key| self.consoles.get(key));
        console.is_some_and(|console| console.uuid == uuid)
    }
}

pub(super) fn make_folder(path: &Path) -> Result<(), ServerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| ServerError::Folder { path: path.to_owned(), source })
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
