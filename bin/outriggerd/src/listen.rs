//! Unix sockets to listen on.

use std::io;
use std::path::Path;

use tokio::net::UnixListener;

/// Binds the socket so that only its owner can connect; the lock that the caller holds makes a stale one safe to
/// replace.
///
/// # Errors
/// The system's error.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;

    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Bound under a temporary name, so that no client can connect before the mode is set.
    let hidden = path.with_extension("new");
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}
