//! Snapshots of the host: one of just after its daemons came up, and one after each preparation.
//!
//! The machine's memory is a file that the booting QEMU writes through to; the rest of its state, below one MB, is
//! saved by a migration that leaves shared memory out (`x-ignore-shared`). Later runs map the file privately, so any
//! number of them start from the same snapshot, at the same time, and none changes it.

mod folder;
mod make;

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use self::folder::{Folder, InUse};
use crate::error::AtPath as _;
use crate::vm::Vm;
use crate::{HostError, qmp};

pub(crate) use self::make::find_or_make;

/// A complete snapshot on disk. As long as this is held, nobody removes it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    folder: Folder,
    in_use: InUse,
}

/// Why an attempt with a snapshot ended.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// The snapshot could not be saved or restored: booting without one may do.
    Snapshot(HostError),
    /// The host did not boot, or a job of it failed: another boot would do no better.
    Final(HostError),
}

impl Attempt {
    /// A failure of the snapshot, unless the run was stopped from outside.
    pub(crate) fn of_snapshot(error: HostError) -> Self {
        match error {
            HostError::Stopped => Self::Final(error),
            error => Self::Snapshot(error),
        }
    }
}

impl Snapshot {
    /// The file of the machine's memory.
    pub(crate) fn memory(&self) -> PathBuf {
        self.folder.path().join("memory")
    }

    /// Loads the state into a machine that waits for it, and lets it go on.
    pub(crate) fn restore(&self, vm: &mut Vm<'_>) -> Result<(), HostError> {
        vm.set_phase("restoring of the snapshot");
        let console = self.folder.path().join("console");
        vm.seed_console(&fs::read_to_string(&console).at("read", &console)?);
        vm.command("migrate-set-capabilities", &qmp::ignore_shared())?;
        // QEMU runs in the host's folder, so the path needs no quoting for the shell that `exec:` starts.
        vm.command("migrate-incoming", &json!({ "uri": format!("exec:cat {}", self.folder.state()) }))?;
        vm.migrated()?;
        vm.command("cont", &Value::Null)?;
        Ok(())
    }

    /// Throws a snapshot away that did not restore, unless another run uses it: that one then finds out by itself.
    pub(crate) fn discard(self) {
        let Self { folder, in_use } = self;
        drop(in_use);
        folder.remove_if_unused();
    }
}
