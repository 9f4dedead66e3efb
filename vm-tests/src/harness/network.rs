//! Bridges of dom0's.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use super::command::run;

/// The bridge that guests' NICs join.
pub(crate) const BRIDGE: &str = "xenbr0";
/// Another one.
pub(crate) const OTHER_BRIDGE: &str = "xenbr1";

/// Makes the bridge of guests' NICs if it is missing, and returns its name.
pub(crate) fn bridge() -> Result<&'static str> {
    up(BRIDGE)?;
    Ok(BRIDGE)
}

/// Makes a bridge if it is missing, and gives dom0 this address on it.
pub(crate) fn bridge_with(name: &str, address: &str) -> Result<()> {
    up(name)?;
    run("ip", &["addr", "replace", address, "dev", name])?.good().map(drop)
}

fn up(name: &str) -> Result<()> {
    if !Path::new("/sys/class/net").join(name).exists() {
        run("ip", &["link", "add", name, "type", "bridge"])?.good()?;
    }
    run("ip", &["link", "set", name, "up"])?.good().map(drop)
}

/// The interfaces on a bridge, sorted.
pub(crate) fn ports(bridge: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(Path::new("/sys/class/net").join(bridge).join("brif"))?;
    let mut names: Vec<String> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Fails unless no interface is on the bridge of guests' NICs.
pub(crate) fn no_ports() -> Result<()> {
    let ports = ports(BRIDGE)?;
    ensure!(ports.is_empty(), "{ports:?} are left on the bridge");
    Ok(())
}
