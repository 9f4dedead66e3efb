//! A name in the file system that this process made. It is removed only while it still leads to the file made then.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A path, with the identity of the file that was made there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnPath {
    path: PathBuf,
    made: (u64, u64),
}

impl OwnPath {
    /// Records the file that this process just made at `path`: a socket or a link.
    pub(crate) fn of(path: PathBuf) -> io::Result<Self> {
        let about = fs::symlink_metadata(&path)?;
        Ok(Self::known(path, &about))
    }

    /// The same for an open file.
    pub(crate) fn known(path: PathBuf, about: &Metadata) -> Self {
        Self { path, made: identity(about) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the name, unless another file has it now.
    pub(crate) fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|about| identity(&about) == self.made) {
            // It may be gone with the whole folder.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(about: &Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_another_program_made_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("name");
        fs::write(&path, "mine").unwrap();
        let own = OwnPath::of(path.clone()).unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "theirs").unwrap();
        fs::rename(&other, &path).unwrap();
        own.remove();
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        OwnPath::of(path.clone()).unwrap().remove();
        assert!(!path.exists());
    }
}
