//! Disks that another simulated host has too, and files that are written in place.

use std::path::{Path, PathBuf};

use super::disks::missing;
use super::{SimHost, SimState};
use crate::dom0::HostError;

impl SimState {
    pub(super) fn put_at(&mut self, path: &Path, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
        let content = self.files.get_mut(path).ok_or_else(|| missing(path))?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let place = content.get_mut(start..start.saturating_add(bytes.len())).ok_or_else(|| missing(path))?;
        place.copy_from_slice(bytes);
        Ok(())
    }
}

impl SimHost {
    /// Gives a disk another storage, or one that nothing identifies.
    pub fn put_storage(&self, path: impl Into<PathBuf>, identity: Option<&str>) {
        self.lock().storage.insert(path.into(), identity.map(str::to_owned));
    }

    /// Lets the host's random numbers differ from those of others.
    pub fn seed(&self, seed: u64) {
        self.lock().random = seed << 32;
    }

    pub(super) fn storage(&self, path: &Path) -> Result<Option<String>, HostError> {
        let state = self.call("storage_of")?;
        state.disk(path).ok_or_else(|| missing(path))?;
        let usual = || Some(format!("storage of {}", path.display()));
        Ok(state.storage.get(path).cloned().unwrap_or_else(usual))
    }

    pub(super) fn disk_is_there(&self, operation: &'static str, path: &Path) -> Result<(), HostError> {
        let state = self.call(operation)?;
        state.disk(path).map(drop).ok_or_else(|| missing(path))
    }
}
