//! The embedded host's disk, for what has to outlive a boot, and the file system on it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::command::run;

/// The disk, once the modules are loaded.
const DEVICE: &str = "/dev/vda";
/// Where it is mounted.
const ROOT: &str = "/disk";
/// What is on the disk rather than in dom0's memory: our daemon's state, and what the cases make.
const FOLDERS: [(&str, &str); 2] = [("outrigger", "/var/lib/outrigger"), ("vm-tests", "/tmp/vm-tests")];

/// Loads the modules for the disk and for ext4; those that are loaded already are fine.
pub(crate) fn load_modules() -> Result<()> {
    let order = fs::read_to_string("/modules/disk-order").context("this dom0 has no modules for a disk")?;
    for module in order.lines() {
        let name = module.trim_end_matches(".ko");
        if !Path::new("/sys/module").join(name).exists() {
            run("insmod", &[&format!("/modules/{module}")])?.good()?;
        }
    }
    Ok(())
}

/// Makes an empty file system on the disk.
pub(crate) fn format() -> Result<()> {
    run("mke2fs", &[DEVICE])?.good()?;
    Ok(())
}

/// Mounts the disk, and its folders where they are used.
pub(crate) fn mount() -> Result<()> {
    fs::create_dir_all(ROOT)?;
    run("mount", &["-t", "ext4", DEVICE, ROOT])?.good()?;
    for (folder, place) in FOLDERS {
        let folder = Path::new(ROOT).join(folder);
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(place)?;
        run("mount", &["-o", "bind", &folder.to_string_lossy(), place])?.good()?;
    }
    Ok(())
}
