//! Names made of hashes, and the hash of a file or folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::HostError;
use crate::error::AtPath as _;

/// The first half of a hash: 64 bits of it are name enough.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Adds a file, or a folder's names with everything below it, with their modes.
pub(crate) fn add_content(hash: &mut Sha256, path: &Path) -> Result<(), HostError> {
    let mode = path.metadata().at("look at", path)?.permissions().mode();
    hash.update(mode.to_le_bytes());
    if !path.is_dir() {
        let content = fs::read(path).at("read", path)?;
        hash.update(content.len().to_le_bytes());
        hash.update(content);
        return Ok(());
    }
    let entries = fs::read_dir(path).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut entries: Vec<PathBuf> = entries.at("read the folder", path)?;
    entries.sort();
    hash.update(entries.len().to_le_bytes());
    for entry in entries {
        hash.update(entry.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update([0]);
        add_content(hash, &entry)?;
    }
    Ok(())
}
