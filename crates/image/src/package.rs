//! One package, as apt describes it.

use serde::{Deserialize, Serialize};

/// A package of apt's lists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, as Debian writes it.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Debian's section of the archive: `libs`, `kernel`, ….
    pub section: String,
    /// Size of the .deb file in bytes.
    pub size: u64,
    /// SHA-256 of the .deb file, in hexadecimal.
    pub sha256: String,
}
