//! Finds snapshots, and makes those that are not there.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::folder::Folder;
use super::{Attempt, Snapshot};
use crate::boot::boot;
use crate::error::AtPath as _;
use crate::hash::hex;
use crate::machine::{Machine, Memory};
use crate::preparation::prepare;
use crate::request::Preparation;
use crate::vm::{Places, Vm};
use crate::{HostError, Observer, TimeScale, qmp};

/// Raised whenever older snapshots can no longer be restored.
const FORMAT: &str = "4";
/// The last bytes of a machine's state are on their way to a file.
const WRITTEN: Duration = Duration::from_secs(30);

/// Finds the snapshot of this host and machine after these preparations, or makes it: from the one before the last
/// preparation, and the first of all by booting the host. Another run that makes the same one is waited for.
pub(crate) fn find_or_make(
    machine: &Machine,
    preparations: &[Preparation],
    places: &Places<'_>,
    scale: TimeScale,
    observer: &mut dyn Observer,
) -> Result<Snapshot, Attempt> {
    let maker = Maker { machine, places, scale };
    match preparations.split_last() {
        None => {
            let key = booted(machine).map_err(Attempt::Snapshot)?;
            maker.find_or("booted", &key, observer, |folder, observer| maker.boot(folder, observer))
        }
        Some((last, before)) => {
            let base = find_or_make(machine, before, places, scale, observer)?;
            let key = hex(&Sha256::digest(format!("{} {}", base.folder.name(), last.key())));
            maker.find_or(last.name(), &key, observer, |folder, observer| {
                maker.continue_from(base, last, folder, observer)
            })
        }
    }
}

/// Makes snapshots.
struct Maker<'a> {
    machine: &'a Machine,
    places: &'a Places<'a>,
    scale: TimeScale,
}

impl Maker<'_> {
    /// Finds the snapshot `<kind>-<key>`, or has it made.
    fn find_or(
        &self,
        kind: &str,
        key: &str,
        observer: &mut dyn Observer,
        make: impl FnOnce(&Folder, &mut dyn Observer) -> Result<(), Attempt>,
    ) -> Result<Snapshot, Attempt> {
        let folder = Folder::new(self.places.image, kind, key).map_err(Attempt::Snapshot)?;
        if let Some(in_use) = folder.take(observer).map_err(Attempt::Snapshot)? {
            return Ok(Snapshot { folder, in_use });
        }
        let started = Instant::now();
        let owned = folder.own().map_err(Attempt::Snapshot)?;
        // Two may have found none, and the other was first.
        if !folder.path().join("state").exists() {
            folder.begin(&owned).map_err(Attempt::Snapshot)?;
            if let Err(attempt) = make(&folder, observer) {
                // It is large.
                folder.give_up(&owned);
                return Err(attempt);
            }
            folder.finish(&owned).map_err(Attempt::Snapshot)?;
            folder.sweep();
            let took = started.elapsed().as_secs_f64();
            observer.news(&format!("The snapshot {} was made in {took:.1} s", folder.name()));
        }
        drop(owned);
        let in_use = folder.take(observer).map_err(Attempt::Snapshot)?;
        let gone = || HostError::File {
            action: "find again",
            path: folder.path(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        let in_use = in_use.ok_or_else(|| Attempt::Snapshot(gone()))?;
        Ok(Snapshot { folder, in_use })
    }

    /// Boots the host.
    fn boot(&self, folder: &Folder, observer: &mut dyn Observer) -> Result<(), Attempt> {
        observer.progress("Booting the host once to make a snapshot of it");
        let memory = folder.unfinished().join("memory");
        let started = Vm::start(self.machine, Memory::File(&memory), self.places, self.scale, observer);
        let mut vm = started.map_err(Attempt::Final)?;
        boot(&mut vm).map_err(Attempt::Final)?;
        save(folder, &mut vm).map_err(Attempt::of_snapshot)
    }

    /// Restores the snapshot before and does one more preparation.
    fn continue_from(
        &self,
        base: Snapshot,
        preparation: &Preparation,
        folder: &Folder,
        observer: &mut dyn Observer,
    ) -> Result<(), Attempt> {
        let memory = folder.unfinished().join("memory");
        copy_sparse(&base.memory(), &memory).map_err(Attempt::Snapshot)?;
        let started = Vm::start(self.machine, Memory::Continued(&memory), self.places, self.scale, observer);
        let mut vm = started.map_err(Attempt::Final)?;
        if let Err(error) = base.restore(&mut vm) {
            base.discard();
            return Err(Attempt::of_snapshot(error));
        }
        prepare(&mut vm, preparation, self.places.share, self.places.logs).map_err(Attempt::Final)?;
        save(folder, &mut vm).map_err(Attempt::of_snapshot)
    }
}

/// Saves the state of a machine whose dom0 waits for the next thing to do.
fn save(folder: &Folder, vm: &mut Vm<'_>) -> Result<(), HostError> {
    let console = folder.unfinished().join("console");
    fs::write(&console, vm.console_tail()).at("write", &console)?;
    vm.set_phase("saving of the snapshot");
    vm.command("stop", &Value::Null)?;
    vm.command("migrate-set-capabilities", &qmp::ignore_shared())?;
    // QEMU says that it is done when it has written the last bytes; `cat` may not have.
    let state = folder.unfinished_state();
    let command = format!("exec:cat >{state}.part && mv {state}.part {state}");
    vm.command("migrate", &json!({ "uri": command }))?;
    vm.migrated()?;
    let path = folder.unfinished().join("state");
    let deadline = Instant::now() + vm.scaled(WRITTEN);
    while !path.exists() {
        if Instant::now() >= deadline {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut)).at("write", path);
        }
        vm.next(Instant::now() + Duration::from_millis(20))?;
    }
    Ok(())
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

/// A hash of what a boot depends on besides the host's own files, which lie beside the snapshot: the emulator and the
/// whole of its command line, without the places that change from run to run.
fn booted(machine: &Machine) -> Result<String, HostError> {
    let emulator = machine.emulator.identity()?;
    let mut hash = Sha256::new();
    for part in [FORMAT, &machine.identity(), &emulator] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    Ok(hex(&hash.finalize()))
}
