//! Snapshots of the host: one of just after its daemons came up, and one after each preparation.
//!
//! The machine's memory is a file that the booting QEMU writes through to; the rest of its state, below one MB, is
//! saved by a migration that leaves shared memory out (`x-ignore-shared`). Later runs map the file privately, so any
//! number of them start from the same snapshot, at the same time, and none changes it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::boot::boot;
use crate::build::hex;
use crate::error::AtPath as _;
use crate::machine::{Machine, Memory};
use crate::preparation::prepare;
use crate::request::Preparation;
use crate::vm::{Places, Vm};
use crate::{HostError, Observer, TimeScale, qmp};

/// Changed whenever a snapshot of before no longer fits what restores it.
const FORMAT: &str = "3";
/// How many snapshots of one preparation are kept.
const KEPT: usize = 4;
/// The folder of all snapshots inside a host's folder.
const FOLDER: &str = "snapshots";

/// A complete snapshot on disk.
#[derive(Debug)]
pub(crate) struct Snapshot {
    folder: PathBuf,
    name: String,
}

impl Snapshot {
    /// Finds the snapshot of this host and machine after these preparations, or makes it: from the one before the last
    /// preparation, and the first of all by booting the host.
    ///
    /// A lock keeps a second run from making the same one; it waits and then finds it.
    pub(crate) fn find_or_make(
        machine: &Machine,
        preparations: &[Preparation],
        places: &Places<'_>,
        scale: TimeScale,
        observer: &mut dyn Observer,
    ) -> Result<Self, Attempt> {
        let maker = Maker { machine, places, scale };
        match preparations.split_last() {
            None => {
                let name = format!("booted-{}", booted(machine).map_err(Attempt::Snapshot)?);
                maker.find_or(&name, observer, |unfinished, observer| maker.boot(unfinished, observer))
            }
            Some((last, before)) => {
                let base = Self::find_or_make(machine, before, places, scale, observer)?;
                let key = hex(&Sha256::digest(format!("{} {}", base.name, last.key())));
                let name = format!("{}-{key}", last.name());
                maker.find_or(&name, observer, |unfinished, observer| {
                    maker.continue_from(&base, last, unfinished, observer)
                })
            }
        }
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

    /// Removes all but the newest snapshots of the same preparation. A run that has one open keeps it until it ends.
    fn remove_older(&self, all: &Path) {
        let kind = |name: &OsStr| name.to_string_lossy().split('-').next().map(str::to_owned);
        let Ok(entries) = fs::read_dir(all) else { return };
        let mut found: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir() && path.file_name().and_then(kind) == kind(self.name.as_ref()))
            .filter_map(|path| Some((path.join("state").metadata().ok()?.modified().ok()?, path)))
            .collect();
        found.sort();
        for (_, folder) in found.into_iter().rev().skip(KEPT) {
            // If it stays, it costs room.
            let _ = remove(&folder);
        }
    }

    /// Throws a snapshot away that did not restore.
    pub(crate) fn remove(&self) {
        // If it stays, the next run finds out again that it does not restore.
        let _ = remove(&self.folder);
    }
}

/// Why an attempt with a snapshot ended.
pub(crate) enum Attempt {
    /// The snapshot could not be saved or restored: booting without one may do.
    Snapshot(HostError),
    /// The host did not boot, or a job of it failed: another boot would do no better.
    Final(HostError),
}

/// A snapshot that is being made: its folder, and that folder's name.
struct Unfinished {
    folder: PathBuf,
    name: String,
}

/// Makes snapshots.
struct Maker<'a> {
    machine: &'a Machine,
    places: &'a Places<'a>,
    scale: TimeScale,
}

impl Maker<'_> {
    /// Finds the snapshot of this name, or has it made.
    fn find_or(
        &self,
        name: &str,
        observer: &mut dyn Observer,
        make: impl FnOnce(&Unfinished, &mut dyn Observer) -> Result<(), Attempt>,
    ) -> Result<Snapshot, Attempt> {
        let all = self.places.image.join(FOLDER);
        let snapshot = Snapshot { folder: all.join(name), name: name.to_owned() };
        let _lock = lock(&all, name).map_err(Attempt::Snapshot)?;
        if snapshot.folder.join("state").exists() {
            return Ok(snapshot);
        }
        let started = Instant::now();
        let name = format!("unfinished-{name}");
        let unfinished = Unfinished { folder: all.join(&name), name };
        let folder = &unfinished.folder;
        let fresh = remove(folder).and_then(|()| fs::create_dir(folder).at("make the folder", folder));
        fresh.map_err(Attempt::Snapshot)?;
        let made = make(&unfinished, observer);
        if made.is_err() {
            // It is large. What stays is removed by the next attempt.
            let _ = remove(folder);
        }
        made?;
        fs::rename(folder, &snapshot.folder).at("rename", folder).map_err(Attempt::Snapshot)?;
        snapshot.remove_older(&all);
        let took = started.elapsed().as_secs_f64();
        observer.progress(&format!("The snapshot {} was made in {took:.1} s", snapshot.name));
        Ok(snapshot)
    }

    /// Boots the host.
    fn boot(&self, unfinished: &Unfinished, observer: &mut dyn Observer) -> Result<(), Attempt> {
        observer.progress("Booting the host once to make a snapshot of it");
        let memory = unfinished.folder.join("memory");
        let started = Vm::start(self.machine, Memory::File(&memory), self.places, self.scale, observer);
        let mut vm = started.map_err(Attempt::Final)?;
        boot(&mut vm).map_err(Attempt::Final)?;
        unfinished.save(&mut vm).map_err(Attempt::Snapshot)
    }

    /// Restores the snapshot before and does one more preparation.
    fn continue_from(
        &self,
        base: &Snapshot,
        preparation: &Preparation,
        unfinished: &Unfinished,
        observer: &mut dyn Observer,
    ) -> Result<(), Attempt> {
        let memory = unfinished.folder.join("memory");
        copy_sparse(&base.memory(), &memory).map_err(Attempt::Snapshot)?;
        let started = Vm::start(self.machine, Memory::Continued(&memory), self.places, self.scale, observer);
        let mut vm = started.map_err(Attempt::Snapshot)?;
        if let Err(error) = base.restore(&mut vm) {
            base.remove();
            return Err(Attempt::Snapshot(error));
        }
        prepare(&mut vm, preparation, self.places.share, self.places.logs).map_err(Attempt::Final)?;
        unfinished.save(&mut vm).map_err(Attempt::Snapshot)
    }
}

impl Unfinished {
    /// Saves the state of a machine whose dom0 waits for the next thing to do.
    fn save(&self, vm: &mut Vm<'_>) -> Result<(), HostError> {
        let console = self.folder.join("console");
        fs::write(&console, vm.console_tail()).at("write", &console)?;
        vm.set_phase("saving of the snapshot");
        vm.command("stop", &Value::Null)?;
        vm.command("migrate-set-capabilities", &qmp::ignore_shared())?;
        // QEMU runs in the host's folder, so the path needs no quoting for the shell that `exec:` starts.
        vm.command("migrate", &json!({ "uri": format!("exec:cat >{FOLDER}/{}/state", self.name) }))?;
        vm.migrated()
    }
}

/// Waits until nobody else makes or looks for the snapshot of this name.
fn lock(all: &Path, name: &str) -> Result<File, HostError> {
    fs::create_dir_all(all).at("make the folder", all)?;
    let path = all.join(format!("{name}.lock"));
    let lock = File::create(&path).at("open", &path)?;
    lock.lock().at("lock", &path)?;
    Ok(lock)
}

/// Copies a file of 4 GB of which 400 MB are there.
fn copy_sparse(source: &Path, target: &Path) -> Result<(), HostError> {
    let output =
        Command::new("cp").args(["--sparse=auto", "--reflink=auto", "--"]).args([source, target]).output();
    let output =
        output.map_err(|source| HostError::Program { program: "cp", package: "coreutils", source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(HostError::ProgramFailed {
        program: "cp".to_owned(),
        status: output.status.to_string(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn remove(folder: &Path) -> Result<(), HostError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", folder),
        _ => Ok(()),
    }
}

/// A hash of everything but the host's own files, which lie beside it, that a boot depends on.
fn booted(machine: &Machine) -> Result<String, HostError> {
    let emulator = machine.emulator.identity()?;
    let mut hash = Sha256::new();
    for part in [FORMAT.as_bytes(), machine.identity().as_bytes(), emulator.as_bytes()] {
        hash.update(part);
        hash.update([0]);
    }
    Ok(hex(&hash.finalize()))
}
