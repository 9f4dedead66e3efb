//! A snapshot of the host just after its daemons came up.
//!
//! The machine's memory is a file that the booting QEMU writes through to; the rest of its state, below one MB, is
//! saved by a migration that leaves shared memory out (`x-ignore-shared`). Later runs map the file privately, so any
//! number of them start from the same snapshot, at the same time, and none changes it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::build::hex;
use crate::error::AtPath as _;
use crate::machine::{Machine, Memory};
use crate::run::{Attempt, boot};
use crate::vm::{Places, Vm};
use crate::{HostError, Observer, TimeScale, qmp};

/// Changed whenever a snapshot of before no longer fits what restores it.
const FORMAT: &str = "2";
/// The folder of all snapshots inside a host's folder.
const FOLDER: &str = "snapshots";

/// A complete snapshot on disk.
#[derive(Debug)]
pub(crate) struct Snapshot {
    folder: PathBuf,
    name: String,
}

impl Snapshot {
    /// Finds the snapshot for this host and machine, or boots the host and makes it.
    ///
    /// A lock keeps a second run from making the same one; it waits and then finds it.
    pub(crate) fn find_or_make(
        machine: &Machine,
        places: &Places<'_>,
        scale: TimeScale,
        observer: &mut dyn Observer,
    ) -> Result<Self, Attempt> {
        let all = places.image.join(FOLDER);
        let (snapshot, lock) = Self::locked(machine, &all).map_err(Attempt::Snapshot)?;
        if snapshot.folder.join("state").exists() {
            return Ok(snapshot);
        }
        observer.progress("Booting the host once to make a snapshot of it");
        let unfinished = all.join("unfinished");
        let fresh = || {
            remove(&unfinished).and_then(|()| fs::create_dir(&unfinished).at("make the folder", &unfinished))
        };
        fresh().map_err(Attempt::Snapshot)?;
        let started = Instant::now();
        let memory = unfinished.join("memory");
        {
            let started = Vm::start(machine, Memory::File(&memory), places, scale, observer);
            let mut vm = started.map_err(Attempt::Final)?;
            boot(&mut vm).map_err(Attempt::Final)?;
            let console = unfinished.join("console");
            let kept = fs::write(&console, vm.console_tail()).at("write", &console);
            kept.and_then(|()| save(&mut vm)).map_err(Attempt::Snapshot)?;
        }
        fs::rename(&unfinished, &snapshot.folder).at("rename", &unfinished).map_err(Attempt::Snapshot)?;
        drop(lock);
        observer.progress(&format!("The snapshot was made in {:.1} s", started.elapsed().as_secs_f64()));
        Ok(snapshot)
    }

    /// The snapshot for this machine, there or not, and the lock on all of this host.
    fn locked(machine: &Machine, all: &Path) -> Result<(Self, File), HostError> {
        fs::create_dir_all(all).at("make the folder", all)?;
        let path = all.join("lock");
        let lock = File::create(&path).at("open", &path)?;
        lock.lock().at("lock", &path)?;
        let name = name(machine)?;
        Ok((Self { folder: all.join(&name), name }, lock))
    }

    /// The file of the machine's memory.
    pub(crate) fn memory(&self) -> PathBuf {
        self.folder.join("memory")
    }

    /// Loads the state into a machine that waits for it, and lets it go on.
    pub(crate) fn restore(&self, vm: &mut Vm<'_>) -> Result<(), HostError> {
        vm.set_phase("restoring of the snapshot");
        let console = self.folder.join("console");
        vm.seed_console(&fs::read_to_string(&console).at("read", &console)?);
        vm.command("migrate-set-capabilities", &qmp::ignore_shared())?;
        vm.command("migrate-incoming", &json!({ "uri": format!("exec:cat {FOLDER}/{}/state", self.name) }))?;
        vm.migrated()?;
        vm.command("cont", &Value::Null)?;
        Ok(())
    }

    /// Throws a snapshot away that did not restore.
    pub(crate) fn remove(&self) {
        // If it stays, the next run finds out again that it does not restore.
        let _ = remove(&self.folder);
    }
}

/// Saves the state of a machine that has booted into the unfinished snapshot.
fn save(vm: &mut Vm<'_>) -> Result<(), HostError> {
    vm.set_phase("saving of the snapshot");
    vm.command("stop", &Value::Null)?;
    vm.command("migrate-set-capabilities", &qmp::ignore_shared())?;
    // QEMU runs in the host's folder, so the path needs no quoting for the shell that `exec:` starts.
    vm.command("migrate", &json!({ "uri": format!("exec:cat >{FOLDER}/unfinished/state") }))?;
    vm.migrated()
}

fn remove(folder: &Path) -> Result<(), HostError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", folder),
        _ => Ok(()),
    }
}

/// The snapshot's name: everything but the host's own files, which lie beside it, that it depends on.
fn name(machine: &Machine) -> Result<String, HostError> {
    let emulator = machine.emulator.identity()?;
    let mut hash = Sha256::new();
    for part in [FORMAT.as_bytes(), machine.identity().as_bytes(), emulator.as_bytes()] {
        hash.update(part);
        hash.update([0]);
    }
    Ok(hex(&hash.finalize()))
}
