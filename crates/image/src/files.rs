//! Small helpers around files and hashes.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

use crate::{ImageError, Result};

/// SHA-256 of a file, in lower-case hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(ImageError::io("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).map_err(ImageError::io("read", path))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// SHA-256 of some bytes, in lower-case hexadecimal.
pub(crate) fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The size of a file in bytes.
pub(crate) fn size_of(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).map_err(ImageError::io("look at", path))?.len())
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Creates a folder and its parents.
pub(crate) fn create_dir_all(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(ImageError::io("create the folder", path))
}

/// Renames a finished folder into its place; a folder that someone else finished first stays.
pub(crate) fn rename_into_place(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) =>
        {
            Ok(())
        }
        other => other.map_err(ImageError::io("rename into place", to)),
    }
}
