//! The output folder: the whole earlier image, or the whole new one.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::{ImageError, Result, files::create_dir_all, manifest::Manifest};

/// The names of unfinished folders begin so.
const PREFIX: &str = ".outrigger-image-";
/// A folder that nobody holds may have been made this moment.
const FRESH: Duration = Duration::from_secs(10);

/// A folder that is being written beside the place where it belongs.
#[derive(Debug)]
pub(super) struct OutputFolder {
    /// Locked as long as this process is at work on it.
    _held: fs::File,
    temp: tempfile::TempDir,
    place: PathBuf,
}

impl OutputFolder {
    /// Checks that an image can be put into a place.
    pub(super) fn check(place: &Path) -> Result<()> {
        let entries = match fs::read_dir(place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(ImageError::io("list the output folder", place))?,
        };
        for entry in entries {
            let name = entry.map_err(ImageError::io("list the output folder", place))?.file_name();
            let ours = [Manifest::KERNEL, Manifest::INITRAMFS, Manifest::FILE, Manifest::SBOM];
            if !ours.iter().any(|our| name == *our) {
                let name = name.to_string_lossy().into_owned();
                return Err(ImageError::ForeignOutput { folder: place.to_owned(), name });
            }
        }
        Ok(())
    }

    /// Begins a folder beside its place, on the same file system.
    pub(super) fn begin(place: &Path) -> Result<Self> {
        Self::check(place)?;
        let place = std::path::absolute(place).map_err(ImageError::io("find", place))?;
        let parent = place.parent().unwrap_or(Path::new("/")).to_owned();
        create_dir_all(&parent)?;
        sweep(&parent);
        let temp = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&parent)
            .map_err(ImageError::io("create a folder in", &parent))?;
        let held = fs::File::open(temp.path()).map_err(ImageError::io("open", temp.path()))?;
        held.lock().map_err(ImageError::io("lock", temp.path()))?;
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755))
            .map_err(ImageError::io("open up", temp.path()))?;
        Ok(Self { _held: held, temp, place })
    }

    /// The path of a file until [`OutputFolder::finish`].
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Writes a file.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, bytes).map_err(ImageError::io("write", &path))
    }

    /// Puts the folder into its place in one step. An earlier image is exchanged with it and then removed.
    pub(super) fn finish(self) -> Result<()> {
        for entry in fs::read_dir(self.temp.path()).map_err(ImageError::io("list", self.temp.path()))? {
            let path = entry.map_err(ImageError::io("list", self.temp.path()))?.path();
            let sync = || fs::File::open(&path)?.sync_all();
            sync().map_err(ImageError::io("write to disk", &path))?;
        }
        match fs::rename(self.temp.path(), &self.place) {
            // Also replaces an empty folder.
            Ok(()) => {
                let _ = self.temp.keep();
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                let flags = RenameFlags::RENAME_EXCHANGE;
                renameat2(AT_FDCWD, self.temp.path(), AT_FDCWD, &self.place, flags)
                    .map_err(io::Error::from)
                    .map_err(ImageError::io("exchange with the new image", &self.place))
                // The temporary folder, now the earlier image, is removed when it is dropped.
            }
            Err(error) => Err(ImageError::io("rename the new image to", &self.place)(error)),
        }
    }
}

/// Removes what builds left that were killed. A failure here is harmless.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
        let Ok(folder) = fs::File::open(entry.path()) else { continue };
        if age.is_some_and(|age| age >= FRESH) && folder.try_lock().is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn build(place: &Path, text: &str) {
        let output = OutputFolder::begin(place).unwrap();
        output.write(Manifest::KERNEL, text.as_bytes()).unwrap();
        output.finish().unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn test_finish_replaces_an_earlier_image() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("deep/image");
        for text in ["one", "two"] {
            build(&place, text);
            assert_eq!(fs::read_to_string(place.join(Manifest::KERNEL)).unwrap(), text);
            assert_eq!(names(&dir.path().join("deep")), ["image"]);
        }
    }

    #[test]
    fn test_abandoned_output_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("image");
        build(&place, "one");
        OutputFolder::begin(&place).unwrap().write(Manifest::KERNEL, b"half").unwrap();
        assert_eq!(names(dir.path()), ["image"]);
        assert_eq!(fs::read_to_string(place.join(Manifest::KERNEL)).unwrap(), "one");
    }

    #[test]
    fn test_begin_removes_what_a_killed_build_left() {
        let dir = tempfile::tempdir().unwrap();
        let age = |path: &Path| {
            fs::File::open(path).unwrap().set_modified(SystemTime::now() - 2 * FRESH).unwrap();
        };
        // A build that is killed runs no destructor and holds no lock.
        let mut killed = OutputFolder::begin(&dir.path().join("one")).unwrap();
        killed.write(Manifest::KERNEL, b"half").unwrap();
        killed.temp.disable_cleanup(true);
        let left = killed.temp.path().to_owned();
        drop(killed);
        let busy = OutputFolder::begin(&dir.path().join("two")).unwrap();
        assert!(left.exists(), "it is too young to be known as left");
        age(&left);
        age(busy.temp.path());
        build(&dir.path().join("three"), "three");
        assert!(!left.exists());
        busy.finish().unwrap();
        assert_eq!(names(dir.path()), ["three", "two"]);
    }

    #[test]
    fn test_begin_in_a_foreign_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "years").unwrap();
        let error = OutputFolder::begin(dir.path()).unwrap_err();
        assert!(matches!(error, ImageError::ForeignOutput { .. }), "{error:?}");
        assert_eq!(names(dir.path()), ["thesis.txt"]);
    }
}
