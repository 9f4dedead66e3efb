//! The folder that dom0 mounts over 9p: the script and files go in, logs come out.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use crate::error::AtPath as _;
use crate::{HostError, Put};

/// The folder for one run, inside the folder of its logs.
#[derive(Debug)]
pub(crate) struct Share {
    folder: PathBuf,
    logs: PathBuf,
}

impl Share {
    /// Makes it, empty.
    pub(crate) fn new(logs: &Path) -> Result<Self, HostError> {
        let folder = logs.join("share");
        fs::create_dir_all(&folder).at("make the folder", &folder)?;
        Ok(Self { folder, logs: logs.to_owned() })
    }

    /// Copies the files in, in the place of those that were there.
    pub(crate) fn put(&self, puts: &[Put]) -> Result<(), HostError> {
        let all = self.folder.join("put");
        match fs::remove_dir_all(&all) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).at("remove", &all);
            }
            _ => {}
        }
        for put in puts {
            let target = all.join(inside(&put.target)?);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).at("make the folder", parent)?;
            }
            copy(&put.source, &target)?;
        }
        Ok(())
    }

    /// Copies the script in, in the place of the one that was there.
    pub(crate) fn script(&self, script: &Path) -> Result<(), HostError> {
        let target = self.folder.join("script");
        fs::copy(script, &target).at("copy the script", script)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).at("make executable", &target)
    }

    /// Its path.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Share {
    /// Moves dom0's logs so far to the folder `dom0` in `logs`.
    pub(crate) fn keep_logs(&self, logs: &Path) {
        // Logs are wanted but not owed: a run that failed before dom0 wrote any has none.
        let _ = fs::rename(self.folder.join("logs"), logs.join("dom0"));
    }
}

impl Drop for Share {
    /// Keeps dom0's logs as `dom0/` and drops the rest, which may be large.
    fn drop(&mut self) {
        self.keep_logs(&self.logs);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The path in dom0 as one below a folder.
fn inside(target: &Path) -> Result<PathBuf, HostError> {
    let bad = |reason| HostError::Setting { name: "--put", value: target.display().to_string(), reason };
    let mut path = PathBuf::new();
    for component in target.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            _ => return Err(bad("a path in dom0 without `..` is expected")),
        }
    }
    if path.as_os_str().is_empty() { Err(bad("a path in dom0 is expected")) } else { Ok(path) }
}

/// Copies a file, or a folder with everything in it.
fn copy(source: &Path, target: &Path) -> Result<(), HostError> {
    if !source.is_dir() {
        fs::copy(source, target).at("copy", source)?;
        return Ok(());
    }
    fs::create_dir_all(target).at("make the folder", target)?;
    for entry in fs::read_dir(source).at("read the folder", source)? {
        let entry = entry.at("read the folder", source)?;
        copy(&entry.path(), &target.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_arrive_with_their_mode_and_the_share_leaves_only_logs() {
        let logs = tempfile::tempdir().unwrap();
        let source = logs.path().join("tool");
        fs::write(&source, "x").unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
        let put = Put { source: source.clone(), target: "/usr/bin/tool".into() };
        let share = Share::new(logs.path()).unwrap();
        share.script(&source).unwrap();
        share.put(&[Put { source: source.clone(), target: "/usr/bin/gone".into() }]).unwrap();
        share.put(&[put]).unwrap();
        assert!(!share.folder().join("put/usr/bin/gone").exists());
        let mode = fs::metadata(share.folder().join("put/usr/bin/tool")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        fs::create_dir(share.folder().join("logs")).unwrap();
        fs::write(share.folder().join("logs/a.log"), "y").unwrap();
        drop(share);
        assert!(logs.path().join("dom0/a.log").exists() && !logs.path().join("share").exists());
    }

    #[test]
    fn path_that_leaves_dom0_is_refused() {
        assert!(inside(Path::new("/a/../../b")).is_err());
        assert!(inside(Path::new("/")).is_err());
        assert_eq!(inside(Path::new("/usr/bin/x")).unwrap(), Path::new("usr/bin/x"));
    }
}
