//! Folders of the workspace.

use std::path::{Path, PathBuf};

/// The workspace's root: the folder above this crate's.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace's folder")
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where hosts, images and logs are kept: below the target folder, so that `cargo clean` removes them.
pub(crate) fn kept(name: &str) -> PathBuf {
    target().join("testhost").join(name)
}
