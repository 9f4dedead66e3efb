//! Putting unpacked packages together into one tree.
//!
//! Links of packages are often absolute, and mean the tree. So each file goes to the place that its path has when links
//! are followed inside of the tree only: no link leads to a file of the build machine.

use std::{
    fs::{self, Metadata, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{
    ImageError, Result,
    root::{Kind, Root},
};

/// Moves all files of a folder into a tree in the same file system. What is in the folder becomes part of the tree, in
/// the place of files and links that were there; a folder stays, and so does a link to one.
pub(super) fn merge(part: &Path, tree: &Path) -> Result<()> {
    let root = Root::of_folder(tree);
    // Those above come before those below.
    let mut todo = vec![(part.to_owned(), String::new())];
    while let Some((folder, path)) = todo.pop() {
        let target =
            if path.is_empty() { tree.to_owned() } else { folder_of(&root, &path, &meta(&folder)?)? };
        for entry in fs::read_dir(&folder).map_err(ImageError::io("list", &folder))? {
            let entry = entry.map_err(ImageError::io("list", &folder))?;
            if entry.file_type().map_err(ImageError::io("look at", entry.path()))?.is_dir() {
                let name = entry.file_name().into_string().map_err(|_| not_text(&entry.path()))?;
                todo.push((entry.path(), format!("{path}/{name}")));
            } else {
                let place = target.join(entry.file_name());
                fs::rename(entry.path(), &place).map_err(ImageError::io("move into place", &place))?;
            }
        }
    }
    Ok(())
}

/// The folder that a path of the tree means, which is made if there is none. Its parents are there.
fn folder_of(root: &Root, path: &str, like: &Metadata) -> Result<PathBuf> {
    if let Some(found) = root.lookup(path)?
        && found.kind == Kind::Directory
    {
        return Ok(found.host);
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or_default();
    let place = root.find(if parent.is_empty() { "/" } else { parent })?.host.join(name);
    // A file, or a link that leads nowhere.
    if fs::symlink_metadata(&place).is_ok() {
        fs::remove_file(&place).map_err(ImageError::io("replace", &place))?;
    }
    fs::create_dir(&place).map_err(ImageError::io("create the folder", &place))?;
    let mode = Permissions::from_mode(like.permissions().mode() & 0o7777 | 0o700);
    fs::set_permissions(&place, mode).map_err(ImageError::io("set the mode of", &place))?;
    Ok(place)
}

fn meta(path: &Path) -> Result<Metadata> {
    fs::symlink_metadata(path).map_err(ImageError::io("look at", path))
}

fn not_text(path: &Path) -> ImageError {
    ImageError::io("read the name of", path)(std::io::Error::other("it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree with two files in `usr/lib`, a folder of the machine beside it, and a part to be merged.
    struct Scene {
        dir: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let scene = Self { dir: tempfile::tempdir().unwrap() };
            for folder in ["tree/usr/lib", "outside", "part"] {
                fs::create_dir_all(scene.path(folder)).unwrap();
            }
            fs::write(scene.path("outside/file"), "the machine's").unwrap();
            scene
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn part(&self, path: &str, text: &str) {
            let place = self.path("part").join(path);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, text).unwrap();
        }

        fn merge(&self) -> Result<()> {
            merge(&self.path("part"), &self.path("tree"))
        }

        #[track_caller]
        fn must_have(&self, path: &str, text: &str) {
            assert_eq!(fs::read_to_string(self.path("tree").join(path)).unwrap(), text);
            assert_eq!(fs::read_dir(self.path("outside")).unwrap().count(), 1);
            assert_eq!(fs::read_to_string(self.path("outside/file")).unwrap(), "the machine's");
        }
    }

    #[test]
    fn test_folders_go_behind_links_inside_of_the_tree() {
        let scene = Scene::new();
        symlink("usr/lib", scene.path("tree/lib")).unwrap();
        symlink("/usr/lib", scene.path("tree/absolute")).unwrap();
        scene.part("lib/one", "1");
        scene.part("absolute/two", "2");
        scene.part("new/three", "3");
        scene.merge().unwrap();
        scene.must_have("usr/lib/one", "1");
        scene.must_have("usr/lib/two", "2");
        scene.must_have("new/three", "3");
        assert!(scene.path("tree/lib").is_symlink());
    }

    #[test]
    fn test_no_link_leads_out_of_the_tree() {
        let scene = Scene::new();
        let outside = scene.path("outside");
        symlink(&outside, scene.path("tree/absolute")).unwrap();
        symlink("../../../../../..", scene.path("tree/usr/up")).unwrap();
        symlink(outside.join("file"), scene.path("tree/file")).unwrap();
        scene.part("absolute/file", "1");
        let from_top = outside.strip_prefix("/").unwrap().join("file");
        scene.part(&format!("usr/up/{}", from_top.display()), "2");
        scene.part("file", "3");
        scene.merge().unwrap();
        scene.must_have("absolute/file", "1");
        scene.must_have(from_top.to_str().unwrap(), "2");
        scene.must_have("file", "3");
    }

    #[test]
    fn test_links_in_a_circle_are_an_error() {
        let scene = Scene::new();
        symlink("b", scene.path("tree/a")).unwrap();
        symlink("a", scene.path("tree/b")).unwrap();
        scene.part("a/file", "1");
        assert!(matches!(scene.merge(), Err(ImageError::LinkLoop { .. })));
    }

    #[test]
    fn test_a_file_does_not_take_the_place_of_a_folder() {
        let scene = Scene::new();
        scene.part("usr/lib", "1");
        assert!(scene.merge().is_err());
        assert!(scene.path("tree/usr/lib").is_dir());
    }
}
