//! One console daemon per host: two would tear each other's rings.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use thiserror::Error;

/// Why this daemon may not run.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another one runs.
    #[error("Another outrigger-consoled runs{} (it holds {path}); stop it first", process(holder))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The other one's process number, as it wrote it.
        holder: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("Cannot lock {path}; check that its directory exists and is writable")]
    Unusable {
        /// The lock file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn process(holder: &Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" as process {pid}"))
}

/// The right to be the only daemon; given up when dropped or when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for the lock's life")] Flock<File>);

impl Lock {
    /// Takes the lock file, without waiting, and writes this process's number into it.
    ///
    /// # Errors
    /// When another process has it, or the file cannot be opened.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(path)
            .map_err(unusable)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let number = format!("{}\n", std::process::id());
                lock.set_len(0).and_then(|()| lock.write_all(number.as_bytes())).map_err(unusable)?;
                Ok(Self(lock))
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                Err(LockError::Held { path: path.to_owned(), holder: number_in(file) })
            }
            Err((_, errno)) => Err(unusable(errno.into())),
        }
    }
}

fn number_in(mut file: File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_learns_who_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path).unwrap();
        let Err(LockError::Held { holder, .. }) = Lock::take(&path) else { panic!("two daemons") };
        assert_eq!(holder, Some(std::process::id()));
        drop(first);
        Lock::take(&path).unwrap();
    }
}
