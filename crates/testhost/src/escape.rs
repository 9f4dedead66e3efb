//! QEMU's option syntax.

use std::path::Path;

/// Doubles the commas of a path, as QEMU's option syntax wants.
pub(crate) fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
