//! Loop devices of dom0's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use super::clean::names;
use super::command::run;

/// A loop device of the case's own, as any block device of dom0; detached when this is dropped.
pub(crate) struct LoopDevice(pub(crate) String);

impl LoopDevice {
    /// Of a file.
    pub(crate) fn of(file: &Path) -> Result<Self> {
        let device = run("losetup", &["-f"])?.good()?.stdout.trim().to_owned();
        run("losetup", &[&device, &file.to_string_lossy()])?.good()?;
        Ok(Self(device))
    }

    /// Fails unless it has its file still.
    pub(crate) fn must_be_attached(&self) -> Result<()> {
        let name = self.0.trim_start_matches("/dev/");
        let file = format!("/sys/block/{name}/loop/backing_file");
        ensure!(Path::new(&file).exists(), "{} was detached", self.0);
        Ok(())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // What stays is seen by the comparison after the case.
        let _ = run("losetup", &["-d", &self.0]);
    }
}

/// The loop devices of a file, each with whether it goes at its last close.
pub(crate) fn loops_of(file: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for name in names("/sys/block")? {
        let folder = Path::new("/sys/block").join(&name).join("loop");
        let Ok(backing) = fs::read_to_string(folder.join("backing_file")) else { continue };
        if Path::new(backing.trim()) == file {
            let autoclear = fs::read_to_string(folder.join("autoclear")).unwrap_or_default();
            found.insert(
                format!("/dev/{name}"),
                format!("of {}, autoclear {}", backing.trim(), autoclear.trim()),
            );
        }
    }
    Ok(found)
}
