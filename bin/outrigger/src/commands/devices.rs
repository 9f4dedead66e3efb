//! Attaching and detaching devices of guests that run.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use api::client::Client;
use api::types::{
    BlockAttach, BlockDetach, CdEject, CdInsert, NetworkAttach, NetworkDetach, NetworkSetBridge,
};

use super::change::steps;

/// Attaches a disk, whose description may be in several words.
pub(super) fn block_attach(client: &mut Client, guest: String, disk: &[String]) -> Result<ExitCode> {
    steps(client, "BlockAttach", &BlockAttach { guest, disk: disk.join(",") })
}

/// Detaches a disk.
pub(super) fn block_detach(
    client: &mut Client,
    guest: String,
    vdev: String,
    force: bool,
) -> Result<ExitCode> {
    steps(client, "BlockDetach", &BlockDetach { guest, vdev, force })
}

/// Inserts a disc into a CD drive.
pub(super) fn cd_insert(
    client: &mut Client,
    guest: String,
    vdev: String,
    file: &Path,
    force: bool,
) -> Result<ExitCode> {
    // The daemon does not know this folder.
    let file = std::path::absolute(file)?.display().to_string();
    steps(client, "CdInsert", &CdInsert { guest, vdev, file, force })
}

/// Ejects the disc of a CD drive.
pub(super) fn cd_eject(client: &mut Client, guest: String, vdev: String, force: bool) -> Result<ExitCode> {
    steps(client, "CdEject", &CdEject { guest, vdev, force })
}

/// Attaches a network interface, whose description may be in several words.
pub(super) fn network_attach(client: &mut Client, guest: String, vif: &[String]) -> Result<ExitCode> {
    steps(client, "NetworkAttach", &NetworkAttach { guest, vif: vif.join(",") })
}

/// Detaches a network interface.
pub(super) fn network_detach(
    client: &mut Client,
    guest: String,
    nic: String,
    force: bool,
) -> Result<ExitCode> {
    steps(client, "NetworkDetach", &NetworkDetach { guest, nic, force })
}

/// Moves a network interface to another bridge.
pub(super) fn network_set_bridge(
    client: &mut Client,
    guest: String,
    nic: String,
    bridge: String,
) -> Result<ExitCode> {
    steps(client, "NetworkSetBridge", &NetworkSetBridge { guest, nic, bridge })
}
