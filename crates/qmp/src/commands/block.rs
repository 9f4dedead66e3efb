use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Nothing, commands};
use crate::monitor::Command;

commands! {
    /// Asks for all emulated drives.
    QueryBlock = "query-block" -> Vec<Drive> {}
    /// Asks for all block nodes that have a name.
    QueryNamedBlockNodes = "query-named-block-nodes" -> Vec<BlockNode> {
        /// Without the nodes behind each of them.
        flat: bool,
    }
    /// Asks for the sets of descriptors.
    QueryFdsets = "query-fdsets" -> Vec<Fdset> {}
    /// Takes a descriptor, or all, out of a set.
    RemoveFd = "remove-fd" -> Nothing {
        /// The set.
        fdset_id: u32,
        /// The descriptor; all when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        fd: Option<i32>,
    }
    /// Opens a drive's tray. A guest that has locked it is asked instead, and `DEVICE_TRAY_MOVED` tells when it opens.
    BlockdevOpenTray = "blockdev-open-tray" -> Nothing {
        /// The drive's device.
        id: String,
        /// Whether to open it even if the guest has locked it.
        force: bool,
    }
    /// Closes a drive's tray.
    BlockdevCloseTray = "blockdev-close-tray" -> Nothing {
        /// The drive's device.
        id: String,
    }
    /// Takes the medium out of an open tray.
    BlockdevRemoveMedium = "blockdev-remove-medium" -> Nothing {
        /// The drive's device.
        id: String,
    }
    /// Puts a medium into an open, empty tray.
    BlockdevInsertMedium = "blockdev-insert-medium" -> Nothing {
        /// The drive's device.
        id: String,
        /// The medium.
        node_name: String,
    }
    /// Opens the tray, changes the medium, closes the tray.
    BlockdevChangeMedium = "blockdev-change-medium" -> Nothing {
        /// The drive's device.
        id: String,
        /// The new medium's file.
        filename: String,
        /// Its format: always specified, never probed.
        format: String,
        /// `retain`, `read-only` or `read-write`.
        read_only_mode: String,
    }
    /// Removes a node that no device uses.
    BlockdevDel = "blockdev-del" -> Nothing {
        /// The node.
        node_name: String,
    }
}

/// Makes a node; its arguments depend on the driver.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(pub Map<String, Value>);

impl Command for BlockdevAdd {
    const NAME: &'static str = "blockdev-add";
    type Answer = Nothing;
}

/// A block node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct BlockNode {
    /// Its name; every node has one since QEMU 2.5, where QEMU chooses it if nobody else does.
    #[serde(default)]
    pub node_name: Option<String>,
}

/// An emulated drive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Drive {
    /// Its backend's name; empty when it has none.
    pub device: String,
    /// Its device's id or path.
    #[serde(default)]
    pub qdev: Option<String>,
    /// Whether its medium can be changed.
    pub removable: bool,
    /// Whether the guest has locked the tray.
    pub locked: bool,
    /// Whether the tray is open; absent without a tray.
    #[serde(default)]
    pub tray_open: Option<bool>,
    /// The medium; absent without one.
    #[serde(default)]
    pub inserted: Option<Medium>,
}

/// The medium of a drive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Medium {
    /// Its file.
    pub file: String,
    /// Its node's name.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Whether it is read-only.
    pub ro: bool,
    /// Its format's driver.
    pub drv: String,
}

/// A set of descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fdset {
    /// Its number.
    pub fdset_id: u32,
    /// What is in it.
    pub fds: Vec<FdsetEntry>,
}

/// A descriptor of a set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FdsetEntry {
    /// Its number.
    pub fd: i32,
    /// The text that was given when it was added.
    #[serde(default)]
    pub opaque: Option<String>,
}
