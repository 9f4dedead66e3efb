//! Remembers what apt answered for as long as apt's lists stay the same, because asking takes seconds.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{ImageError, Result, apt::Apt, files::sha256_bytes};

/// Where the answer to a question is kept, or nothing when it cannot be told whether it would still be true.
pub(crate) fn place(folder: &Path, wanted: &[&str], apt: &Apt) -> Option<PathBuf> {
    let depends = apt.depends()?;
    place_for(folder, wanted, &depends.iter().map(PathBuf::as_path).collect::<Vec<_>>())
}

fn place_for(folder: &Path, wanted: &[&str], depends: &[&Path]) -> Option<PathBuf> {
    let mut state = String::new();
    for tree in depends {
        describe(tree, &mut state)?;
    }
    let question = format!("{}\n{state}", wanted.join(" "));
    Some(folder.join(format!("{}.json", sha256_bytes(question.as_bytes()))))
}

/// Adds names, sizes and times of all files below a folder, in a fixed order.
fn describe(folder: &Path, state: &mut String) -> Option<()> {
    let mut entries: Vec<_> = fs::read_dir(folder).ok()?.collect::<std::io::Result<_>>().ok()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        // apt's work in progress.
        if name == "lock" || name == "partial" || name == "auxfiles" {
            continue;
        }
        let meta = fs::metadata(entry.path()).ok()?;
        if meta.is_dir() {
            describe(&entry.path(), state)?;
            continue;
        }
        let time = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
        state.push_str(&format!("{} {} {time}\n", entry.path().display(), meta.len()));
    }
    Some(())
}

/// Reads an answer. One that cannot be read is asked for again.
pub(crate) fn read<T: DeserializeOwned>(place: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(place).ok()?).ok()
}

/// Keeps an answer.
pub(crate) fn write<T: Serialize + ?Sized>(place: &Path, answer: &T) -> Result<()> {
    let folder = place.parent().unwrap_or(Path::new("/"));
    let text = serde_json::to_vec(answer).expect("strings and numbers always make JSON");
    let mut file =
        tempfile::NamedTempFile::new_in(folder).map_err(ImageError::io("create a file in", folder))?;
    file.write_all(&text).map_err(ImageError::io("write", file.path()))?;
    file.persist(place).map_err(|error| ImageError::io("rename into place", place)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::Package;

    #[test]
    fn test_place_changes_with_question_and_lists() {
        let dir = tempfile::tempdir().unwrap();
        let lists = dir.path().join("lists");
        fs::create_dir_all(lists.join("partial")).unwrap();
        fs::write(lists.join("Packages"), "one").unwrap();
        let place = |wanted: &[&str]| place_for(Path::new("/c"), wanted, &[&lists]).unwrap();
        let first = place(&["a"]);
        assert_ne!(first, place(&["b"]));
        fs::write(lists.join("partial/x"), "half").unwrap();
        assert_eq!(first, place(&["a"]));
        fs::write(lists.join("Packages"), "other").unwrap();
        assert_ne!(first, place(&["a"]));
        assert_eq!(place_for(Path::new("/c"), &["a"], &[&dir.path().join("none")]), None);
    }

    #[test]
    fn test_read_damaged_answer_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("x.json");
        assert_eq!(read::<Vec<Package>>(&place), None);
        write::<[Package]>(&place, &[]).unwrap();
        assert_eq!(read::<Vec<Package>>(&place), Some(vec![]));
        fs::write(&place, "[{").unwrap();
        assert_eq!(read::<Vec<Package>>(&place), None);
    }
}
