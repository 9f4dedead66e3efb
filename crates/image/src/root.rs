//! Several unpacked packages seen as one file tree, confined to them.
//!
//! Each package stays in its own folder (a layer). A path is looked up one component after the other in all
//! layers; symbolic links, absolute ones too, are followed inside the tree only, and a component is looked for
//! only in layers where everything above it is a real directory. So no link in a package can lead to a file of
//! the build machine.
//!
//! In Debian, `/bin`, `/lib` and their like are links into `/usr`, which come with no library. Where no package has
//! such a folder of its own, the tree has the link.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use crate::{ImageError, Result, package::Package};

/// The kernel gives up after 40 links, too.
const MAX_LINKS: usize = 40;
/// Folders that are links to those of the same name in `/usr`.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// One unpacked package.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The package, or nothing when the folder came from somewhere else.
    pub package: Option<Package>,
    /// Where it is unpacked.
    pub folder: PathBuf,
}

/// A file tree made of unpacked packages.
#[derive(Debug, Clone, Default)]
pub struct Root {
    layers: Vec<Layer>,
}

/// What was found at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Whether someone may execute it.
        executable: bool,
    },
    /// A directory, possibly of several packages at once.
    Directory,
    /// Neither (devices, sockets).
    Other,
}

/// A file or directory of the tree, after all links were followed.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its absolute path in the tree, free of links.
    pub path: String,
    /// The file on the build machine that holds it.
    pub host: PathBuf,
    /// The package that it belongs to.
    pub package: Option<Package>,
    /// What it is.
    pub kind: Kind,
}

impl Root {
    /// Makes a tree of layers. Where two have the same file, the first one counts.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers }
    }

    /// Makes a tree of one folder that belongs to no package.
    pub fn of_folder(folder: impl Into<PathBuf>) -> Self {
        Self { layers: vec![Layer { package: None, folder: folder.into() }] }
    }

    /// Its layers.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Its packages.
    pub fn packages(&self) -> impl Iterator<Item = &Package> {
        self.layers.iter().filter_map(|layer| layer.package.as_ref())
    }

    /// Finds a path, following links inside the tree.
    ///
    /// # Errors
    /// [`ImageError::NotInRoot`] when no layer has it, [`ImageError::LinkLoop`] after 40 links.
    pub fn find(&self, path: &str) -> Result<Found> {
        self.lookup(path)?
            .ok_or_else(|| ImageError::NotInRoot { path: path.to_owned(), hint: self.describe() })
    }

    /// Finds a path like [`Root::find`], where a missing one is no error.
    ///
    /// # Errors
    /// [`ImageError::LinkLoop`] after 40 links, or that a layer cannot be read.
    pub fn lookup(&self, path: &str) -> Result<Option<Found>> {
        let mut todo = components(path);
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(component) = todo.pop_front() {
            if component == ".." {
                done.pop();
                continue;
            }
            done.push(component);
            match self.step(&done)?.or_else(|| merged(&done)) {
                None => return Ok(None),
                Some(Step::Link(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(ImageError::LinkLoop { path: path.to_owned() });
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    let mut rest = components(&target);
                    rest.append(&mut todo);
                    todo = rest;
                }
                Some(Step::Found(found)) if todo.is_empty() => return Ok(Some(found)),
                Some(Step::Found(found)) if found.kind == Kind::Directory => {}
                Some(Step::Found(_)) => return Ok(None),
            }
        }
        // The path was empty, `/`, or ended in `..`.
        if done.is_empty() {
            let Some(layer) = self.layers.first() else { return Ok(None) };
            return Ok(Some(Found {
                path: "/".into(),
                host: layer.folder.clone(),
                package: None,
                kind: Kind::Directory,
            }));
        }
        match self.step(&done)? {
            Some(Step::Found(found)) => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    /// Names what a directory has in all layers together, sorted.
    ///
    /// # Errors
    /// [`ImageError::NotInRoot`] when there is no such directory.
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let found = self.find(path)?;
        let parts: Vec<String> = components(&found.path).into();
        let mut names = BTreeSet::new();
        for (_, host) in self.places(&parts) {
            if !fs::symlink_metadata(&host).is_ok_and(|meta| meta.is_dir()) {
                continue;
            }
            for entry in fs::read_dir(&host).map_err(ImageError::io("list", &host))? {
                let entry = entry.map_err(ImageError::io("list", &host))?;
                if let Ok(name) = entry.file_name().into_string() {
                    names.insert(name);
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Names all regular files and links below a directory, as absolute sorted paths; links are not followed.
    ///
    /// # Errors
    /// [`ImageError::NotInRoot`] when there is no such directory.
    pub fn walk(&self, path: &str) -> Result<Vec<String>> {
        let start = self.find(path)?.path;
        let mut files = BTreeSet::new();
        for (_, host) in self.places(&Vec::from(components(&start))) {
            let mut todo = vec![(host, start.trim_end_matches('/').to_owned())];
            while let Some((host, directory)) = todo.pop() {
                if !fs::symlink_metadata(&host).is_ok_and(|meta| meta.is_dir()) {
                    continue;
                }
                for entry in fs::read_dir(&host).map_err(ImageError::io("list", &host))? {
                    let entry = entry.map_err(ImageError::io("list", &host))?;
                    let Ok(name) = entry.file_name().into_string() else { continue };
                    let path = format!("{directory}/{name}");
                    if entry.file_type().map_err(ImageError::io("look at", entry.path()))?.is_dir() {
                        todo.push((entry.path(), path));
                    } else {
                        files.insert(path);
                    }
                }
            }
        }
        Ok(files.into_iter().collect())
    }

    /// Reads a file of the tree.
    ///
    /// # Errors
    /// That it is missing or cannot be read.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let found = self.find(path)?;
        fs::read(&found.host).map_err(ImageError::io("read", &found.host))
    }

    /// Looks at one path whose parents are known to be directories in the tree.
    fn step(&self, parts: &[String]) -> Result<Option<Step>> {
        let mut result: Option<Step> = None;
        for (layer, host) in self.places(parts) {
            let Ok(meta) = fs::symlink_metadata(&host) else { continue };
            if meta.is_dir() {
                // A directory in one package wins over a link to one in another.
                if !matches!(result, Some(Step::Found(_))) {
                    result = Some(Step::Found(Found {
                        path: join(parts),
                        host,
                        package: layer.package.clone(),
                        kind: Kind::Directory,
                    }));
                }
                continue;
            }
            if result.is_some() {
                continue;
            }
            result = Some(if meta.is_symlink() {
                let target = fs::read_link(&host).map_err(ImageError::io("read the link", &host))?;
                Step::Link(target.to_string_lossy().into_owned())
            } else {
                let kind = if meta.is_file() {
                    use std::os::unix::fs::PermissionsExt as _;
                    Kind::File { executable: meta.permissions().mode() & 0o111 != 0 }
                } else {
                    Kind::Other
                };
                Step::Found(Found { path: join(parts), host, package: layer.package.clone(), kind })
            });
        }
        Ok(result)
    }

    /// The places that may hold a path: in each layer where all its parents are real directories.
    fn places(&self, parts: &[String]) -> Vec<(&Layer, PathBuf)> {
        let (parents, last) = match parts {
            [] => (parts, None),
            [parents @ .., last] => (parents, Some(last)),
        };
        self.layers
            .iter()
            .filter_map(|layer| {
                let mut host = layer.folder.clone();
                for part in parents {
                    host.push(part);
                    if !fs::symlink_metadata(&host).is_ok_and(|meta| meta.is_dir()) {
                        return None;
                    }
                }
                if let Some(last) = last {
                    host.push(last);
                }
                Some((layer, host))
            })
            .collect()
    }

    /// Names the packages, for an error.
    fn describe(&self) -> String {
        let names: Vec<&str> = self.packages().map(|package| package.name.as_str()).collect();
        match names.len() {
            0 => self.layers.first().map_or_else(
                || "no package was requested".to_owned(),
                |layer| format!("looked in {}", layer.folder.display()),
            ),
            1..=8 => format!("looked in {}", names.join(", ")),
            more => format!("looked in {}, … and {} more", names[..8].join(", "), more - 8),
        }
    }
}

/// One step of a look-up.
enum Step {
    Link(String),
    Found(Found),
}

/// The link of a merged `/usr`, for a folder that no layer has.
fn merged(parts: &[String]) -> Option<Step> {
    match parts {
        [name] if MERGED.contains(&name.as_str()) => Some(Step::Link(format!("usr/{name}"))),
        _ => None,
    }
}

fn components(path: &str) -> VecDeque<String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
}

fn join(parts: &[String]) -> String {
    format!("/{}", parts.join("/"))
}

/// Names the folder part of an absolute path of the tree.
pub(crate) fn parent(path: &str) -> &str {
    Path::new(path).parent().and_then(Path::to_str).unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Two packages: `a` has the file and links, `b` has a link where `a` has a directory.
    fn two_layers() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(a.join("lib/x")).unwrap();
        fs::create_dir_all(b.join("usr/lib")).unwrap();
        fs::write(a.join("lib/x/libfoo.so.1.2"), "foo").unwrap();
        symlink("libfoo.so.1.2", a.join("lib/x/libfoo.so.1")).unwrap();
        symlink("/lib/x/libfoo.so.1", b.join("usr/lib/abs")).unwrap();
        symlink("../../../../../../lib/x/libfoo.so.1", b.join("usr/lib/far")).unwrap();
        symlink("/etc", b.join("lib")).unwrap();
        symlink("/etc/passwd", b.join("usr/lib/out")).unwrap();
        symlink("loop", b.join("usr/lib/loop")).unwrap();
        let layer = |folder| Layer { package: None, folder };
        (dir, Root::new(vec![layer(b), layer(a)]))
    }

    #[test]
    fn test_find_follows_links_across_packages() {
        let (_dir, root) = two_layers();
        for path in ["/lib/x/libfoo.so.1", "/usr/lib/abs", "usr/lib/../lib/far"] {
            assert_eq!(root.find(path).unwrap().path, "/lib/x/libfoo.so.1.2", "{path}");
        }
        assert_eq!(root.read("/usr/lib/abs").unwrap(), b"foo");
    }

    #[test]
    fn test_find_link_out_of_tree_stays_inside() {
        let (_dir, root) = two_layers();
        assert!(matches!(root.find("/usr/lib/out"), Err(ImageError::NotInRoot { .. })));
        // `/lib` is a link to the machine's /etc in one package, and a directory in the other.
        assert!(matches!(root.find("/lib/passwd"), Err(ImageError::NotInRoot { .. })));
    }

    #[test]
    fn test_find_link_to_itself_is_an_error() {
        let (_dir, root) = two_layers();
        assert!(matches!(root.find("/usr/lib/loop"), Err(ImageError::LinkLoop { .. })));
    }

    #[test]
    fn test_find_file_as_directory_is_missing() {
        let (_dir, root) = two_layers();
        assert!(root.lookup("/lib/x/libfoo.so.1/more").unwrap().is_none());
    }

    #[test]
    fn test_merged_folders_lead_into_usr_where_no_package_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(a.join("usr/lib/modules/6.12")).unwrap();
        fs::create_dir_all(a.join("usr/lib64")).unwrap();
        symlink("../lib/x/ld.so", a.join("usr/lib64/ld.so")).unwrap();
        fs::create_dir_all(b.join("usr/lib/x")).unwrap();
        fs::write(b.join("usr/lib/x/ld.so"), "ld").unwrap();
        let layer = |folder| Layer { package: None, folder };
        let root = Root::new(vec![layer(a.clone()), layer(b.clone())]);
        assert_eq!(root.list("/lib/modules").unwrap(), ["6.12"]);
        assert_eq!(root.find("/lib64/ld.so").unwrap().path, "/usr/lib/x/ld.so");
        assert!(root.lookup("/opt/modules").unwrap().is_none() && root.lookup("/sbin").unwrap().is_none());
        // A folder of its own counts, as in packages of older releases.
        fs::create_dir_all(b.join("lib")).unwrap();
        assert!(root.lookup("/lib/modules").unwrap().is_none());
    }

    #[test]
    fn test_list_and_walk_merge_layers() {
        let (_dir, root) = two_layers();
        assert_eq!(root.list("/").unwrap(), ["lib", "usr"]);
        assert_eq!(root.list("/lib/x").unwrap(), ["libfoo.so.1", "libfoo.so.1.2"]);
        assert_eq!(root.walk("/lib").unwrap(), ["/lib/x/libfoo.so.1", "/lib/x/libfoo.so.1.2"]);
    }
}
