//! One daemon a host.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Takes the lock beside the socket, and makes the socket's folder.
///
/// # Errors
/// When another daemon has it, or the folder cannot be used.
pub(crate) fn take(socket: &Path) -> Result<Flock<File>> {
    let path = socket.with_extension("lock");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("Cannot make the folder {}; are you root?", folder.display()))?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("Cannot open the lock {}; are you root?", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // Only for people who look; the lock is what counts.
            let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
            Ok(lock)
        }
        Err((_, Errno::EWOULDBLOCK)) => {
            bail!("Another outriggerd is already running (it holds {})", path.display())
        }
        Err((_, errno)) => Err(errno).with_context(|| format!("Cannot lock {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn second_daemon_is_refused() {
        let dir = std::env::temp_dir().join(format!("outriggerd-lock-{}", std::process::id()));
        let socket = dir.join("d.sock");
        let first = super::take(&socket).unwrap();
        assert!(super::take(&socket).unwrap_err().to_string().contains("already running"));
        drop(first);
        assert!(super::take(&socket).is_ok());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
