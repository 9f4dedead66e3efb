//! The folders of snapshots: which are whole, who uses them, and when they go.
//!
//! Beside each folder `NAME` lies a file `NAME.lock`. Who restores the snapshot holds that file's shared lock, who makes
//! or removes it the exclusive one. A folder gets its name when it is whole, and loses it before anything in it is
//! removed, so that a named folder is always a complete snapshot, even after a process is killed.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::AtPath as _;
use crate::{HostError, Observer};

/// The folder of all snapshots inside a host's folder.
const ALL: &str = "snapshots";
/// How many snapshots of one kind are kept: those that were used last.
const KEPT: usize = 4;
/// How the name of a folder begins in which a snapshot is being made.
const UNFINISHED: &str = "unfinished-";
/// How the name of a folder begins that is being removed.
const GONE: &str = "gone-";

/// The place of a snapshot, there or not.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    all: PathBuf,
    name: String,
}

/// The shared lock on a snapshot: nobody removes it.
#[derive(Debug)]
pub(super) struct InUse(#[expect(dead_code, reason = "it unlocks when it is dropped")] File);

/// The exclusive lock on a snapshot: nobody else makes, uses or removes it.
#[derive(Debug)]
pub(super) struct Owned(#[expect(dead_code, reason = "it unlocks when it is dropped")] File);

impl Folder {
    /// The snapshot `<kind>-<key>` of the host in `image`.
    pub(super) fn new(image: &Path, kind: &str, key: &str) -> Result<Self, HostError> {
        let all = image.join(ALL);
        fs::create_dir_all(&all).at("make the folder", &all)?;
        Ok(Self { all, name: format!("{kind}-{key}") })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is once it is whole.
    pub(super) fn path(&self) -> PathBuf {
        self.all.join(&self.name)
    }

    /// Where it is while it is made.
    pub(super) fn unfinished(&self) -> PathBuf {
        self.all.join(format!("{UNFINISHED}{}", self.name))
    }

    /// The file of the machine's state, from the host's folder.
    pub(super) fn state(&self) -> String {
        format!("{ALL}/{}/state", self.name)
    }

    /// The same file while it is made.
    pub(super) fn unfinished_state(&self) -> String {
        format!("{ALL}/{UNFINISHED}{}/state", self.name)
    }

    fn is_whole(&self) -> bool {
        self.path().join("state").exists()
    }

    fn lock_file(&self) -> Result<File, HostError> {
        let path = self.all.join(format!("{}.lock", self.name));
        File::options().create(true).append(true).open(&path).at("open", &path)
    }

    /// Acquires the shared lock and returns it if the snapshot exists. Waits while another run makes it.
    pub(super) fn take(&self, observer: &mut dyn Observer) -> Result<Option<InUse>, HostError> {
        let file = self.lock_file()?;
        if let Err(TryLockError::WouldBlock) = file.try_lock_shared() {
            observer.progress(&format!("Waiting for the run that makes the snapshot {}", self.name));
            file.lock_shared().at("lock", self.path())?;
        }
        if !self.is_whole() {
            return Ok(None);
        }
        // Those that were used last are kept. Without the note it only goes earlier.
        let state = self.path().join("state");
        let _ =
            File::options().append(true).open(state).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(InUse(file)))
    }

    /// Waits until nobody else makes, uses or removes it.
    pub(super) fn own(&self) -> Result<Owned, HostError> {
        let file = self.lock_file()?;
        file.lock().at("lock", self.path())?;
        Ok(Owned(file))
    }

    /// Gives a whole snapshot its name. What had the name was none.
    pub(super) fn finish(&self, _owned: &Owned) -> Result<(), HostError> {
        remove(&self.path())?;
        let unfinished = self.unfinished();
        fs::rename(&unfinished, self.path()).at("rename", unfinished)
    }

    /// Makes an empty folder to make the snapshot in.
    pub(super) fn begin(&self, _owned: &Owned) -> Result<(), HostError> {
        let folder = self.unfinished();
        remove(&folder)?;
        fs::create_dir(&folder).at("make the folder", folder)
    }

    /// Removes what was made of it so far. What stays is removed by the next attempt.
    pub(super) fn give_up(&self, _owned: &Owned) {
        let _ = remove(&self.unfinished());
    }

    /// Removes it unless a run uses it. If it stays, it costs room.
    pub(super) fn remove_if_unused(&self) {
        let Ok(file) = self.lock_file() else { return };
        if file.try_lock().is_ok() {
            let _ = remove(&self.path());
            let _ = remove(&self.unfinished());
        }
    }

    /// Removes what killed runs have left, and of each kind all but the snapshots used last.
    pub(super) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.all) else { return };
        let names = entries.flatten().filter(|entry| entry.path().is_dir());
        let names: Vec<String> =
            names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let other = |name: &str| Self { all: self.all.clone(), name: name.to_owned() };
        let mut whole: Vec<(&str, SystemTime, Self)> = Vec::new();
        for name in &names {
            if name.starts_with(GONE) {
                let _ = fs::remove_dir_all(self.all.join(name));
                continue;
            }
            let folder = other(name.strip_prefix(UNFINISHED).unwrap_or(name));
            match folder.path().join("state").metadata().and_then(|meta| meta.modified()) {
                Ok(used) if !name.starts_with(UNFINISHED) => {
                    whole.push((name.split('-').next().unwrap_or_default(), used, folder));
                }
                Ok(_) => {}
                Err(_) => folder.remove_if_unused(),
            }
        }
        whole.sort_by(|a, b| (a.0, b.1).cmp(&(b.0, a.1)));
        let mut seen = ("", 0);
        for (kind, _, folder) in &whole {
            seen = if seen.0 == *kind { (kind, seen.1 + 1) } else { (kind, 1) };
            if seen.1 > KEPT {
                folder.remove_if_unused();
            }
        }
    }
}

/// Removes a folder: its name goes first and at once.
fn remove(folder: &Path) -> Result<(), HostError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let gone = folder.with_file_name(format!("{GONE}{name}-{}", std::process::id()));
    match fs::rename(folder, &gone) {
        Ok(()) => fs::remove_dir_all(&gone).at("remove", gone),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).at("remove", folder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Deaf;
    impl Observer for Deaf {}

    fn made(image: &Path, kind: &str, key: &str, age: u64) -> Folder {
        let folder = Folder::new(image, kind, key).unwrap();
        let owned = folder.own().unwrap();
        folder.begin(&owned).unwrap();
        fs::write(folder.unfinished().join("state"), "x").unwrap();
        folder.finish(&owned).unwrap();
        let used = SystemTime::now() - std::time::Duration::from_secs(age);
        let state = File::options().append(true).open(folder.path().join("state")).unwrap();
        state.set_modified(used).unwrap();
        folder
    }

    #[test]
    fn snapshot_in_use_stays() {
        let image = tempfile::tempdir().unwrap();
        let folder = made(image.path(), "linux", "1", 0);
        let in_use = folder.take(&mut Deaf).unwrap().unwrap();
        folder.remove_if_unused();
        assert!(folder.is_whole());
        drop(in_use);
        folder.remove_if_unused();
        assert!(folder.take(&mut Deaf).unwrap().is_none());
    }

    #[test]
    fn those_used_last_of_each_kind_stay() {
        let image = tempfile::tempdir().unwrap();
        let linux: Vec<Folder> =
            (0..6).map(|age| made(image.path(), "linux", &age.to_string(), 100 * age)).collect();
        let other = made(image.path(), "files", "1", 10_000);
        linux[5].take(&mut Deaf).unwrap().unwrap();
        linux[0].sweep();
        let there: Vec<bool> = linux.iter().map(Folder::is_whole).collect();
        assert_eq!(there, [true, true, true, false, false, true]);
        assert!(other.is_whole());
    }

    #[test]
    fn what_killed_runs_have_left_goes_and_does_not_hinder() {
        let image = tempfile::tempdir().unwrap();
        let half = Folder::new(image.path(), "linux", "1").unwrap();
        fs::create_dir_all(half.path()).unwrap();
        fs::write(half.path().join("memory"), "x").unwrap();
        let unfinished = Folder::new(image.path(), "linux", "2").unwrap();
        fs::create_dir_all(unfinished.unfinished()).unwrap();
        assert!(half.take(&mut Deaf).unwrap().is_none(), "half a snapshot is none");
        let whole = made(image.path(), "linux", "3", 0);
        whole.sweep();
        assert!(!half.path().exists() && !unfinished.unfinished().exists());
        fs::create_dir_all(half.path().join("more")).unwrap();
        made(image.path(), "linux", "1", 0);
        assert!(half.is_whole());
    }
}
