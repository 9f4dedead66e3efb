//! Unix sockets to listen on.

use std::io;
use std::os::unix::net::UnixListener as Blocking;
use std::path::Path;

use tokio::net::UnixListener;

/// [`bind_blocking`], for the event loop.
///
/// # Errors
/// The system's error.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = bind_blocking(path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Binds the socket so that only its owner can connect; the lock that the caller holds makes a stale one safe to
/// replace.
///
/// # Errors
/// The system's error.
pub(crate) fn bind_blocking(path: &Path) -> io::Result<Blocking> {
    use std::os::unix::fs::PermissionsExt;

    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Bound under a temporary name, so that no client can connect before the mode is set.
    let hidden = path.with_extension("new");
    let _ = std::fs::remove_file(&hidden);
    let listener = Blocking::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}
