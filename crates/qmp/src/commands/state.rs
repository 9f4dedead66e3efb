use serde::{Deserialize, Serialize};

use super::{Nothing, commands};
use crate::monitor::Command;

commands! {
    /// Writes the state of all devices, not the memory, into a file.
    XenSaveDevicesState = "xen-save-devices-state" -> Nothing {
        /// The file, such as `/dev/fdset/1`.
        filename: String,
        /// Whether this is the last save of a migration, so that images are left to another QEMU.
        live: bool,
    }
    /// Reads the state of all devices from a file.
    XenLoadDevicesState = "xen-load-devices-state" -> Nothing {
        /// The file.
        filename: String,
    }
    /// Has every write of QEMU to the guest's memory noted, or not.
    XenSetGlobalDirtyLog = "xen-set-global-dirty-log" -> Nothing {
        /// Which.
        enable: bool,
    }
    /// Asks how the migration goes.
    QueryMigrate = "query-migrate" -> Migration {}
}

/// How a migration goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Migration {
    /// `active`, `completed`, `failed`, …; absent when there was none.
    pub status: Option<String>,
    /// Why it failed.
    pub error_desc: Option<String>,
}
