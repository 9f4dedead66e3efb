//! Kernel modules by name, with what they depend on, in load order.
//!
//! A kernel package has no `modules.dep` (it is made when the package is installed), so dependencies are read
//! from each module's own `.modinfo` section.

use std::{collections::BTreeMap, path::PathBuf};

use elf::{ElfBytes, endian::AnyEndian};

use crate::{
    ImageError, Result,
    packages::Package,
    root::{Found, Root},
};

/// A module to load.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name, with `_` as the kernel writes it.
    pub name: String,
    /// Its path in the tree.
    pub path: String,
    /// The file on the build machine that holds it.
    pub host: PathBuf,
    /// Its package.
    pub package: Option<Package>,
}

/// The one kernel of a tree.
#[derive(Debug)]
pub struct Kernel<'a> {
    root: &'a Root,
    release: String,
    available: BTreeMap<String, String>,
    builtin: Vec<String>,
}

impl<'a> Kernel<'a> {
    /// Finds the kernel of a tree.
    ///
    /// # Errors
    /// [`ImageError::KernelCount`] when there is none, or more than one.
    pub fn find(root: &'a Root) -> Result<Self> {
        let releases = match root.lookup("/lib/modules")? {
            Some(_) => root.list("/lib/modules")?,
            None => Vec::new(),
        };
        let [release] = releases.as_slice() else {
            let found = if releases.is_empty() { "no kernel".to_owned() } else { releases.join(", ") };
            return Err(ImageError::KernelCount { found });
        };
        let folder = format!("/lib/modules/{release}");
        let mut available = BTreeMap::new();
        for path in root.walk(&folder)? {
            if let Some(name) = path.rsplit('/').next().and_then(|file| file.strip_suffix(".ko")) {
                available.insert(canonical(name), path);
            }
        }
        let builtin = match root.lookup(&format!("{folder}/modules.builtin"))? {
            Some(found) => builtin_names(&root.read(&found.path)?),
            None => Vec::new(),
        };
        Ok(Self { root, release: release.clone(), available, builtin })
    }

    /// Its release, as `uname -r` says it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Its bzImage.
    ///
    /// # Errors
    /// [`ImageError::NotInRoot`] when the package has none.
    pub fn image(&self) -> Result<Found> {
        self.root.find(&format!("/boot/vmlinuz-{}", self.release))
    }

    /// Finds modules and all that they depend on, each after its dependencies, without doubles. Modules that are
    /// built into the kernel are left out.
    ///
    /// # Errors
    /// [`ImageError::MissingModule`] when one is neither there nor built in.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(&canonical(name), "the image", &mut Vec::new(), &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        needed_by: &str,
        above: &mut Vec<String>,
        order: &mut Vec<Module>,
    ) -> Result<()> {
        let known = order.iter().any(|module| module.name == name) || above.iter().any(|other| other == name);
        if known || self.builtin.iter().any(|builtin| builtin == name) {
            return Ok(());
        }
        let path = self.available.get(name).ok_or_else(|| ImageError::MissingModule {
            kernel: self.release.clone(),
            module: name.to_owned(),
            needed_by: needed_by.to_owned(),
        })?;
        let found = self.root.find(path)?;
        above.push(name.to_owned());
        for dependency in dependencies(path, &self.root.read(path)?)? {
            self.visit(&dependency, name, above, order)?;
        }
        above.pop();
        order.push(Module {
            name: name.to_owned(),
            path: path.clone(),
            host: found.host,
            package: found.package,
        });
        Ok(())
    }
}

/// The kernel takes `-` and `_` as the same, and uses `_` itself.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Reads `modules.builtin`: one path a line.
fn builtin_names(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes)
        .lines()
        .filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"))
        .map(canonical)
        .collect()
}

/// Reads the `depends=` field of a module's `.modinfo` section (zero-terminated `key=value` strings).
fn dependencies(path: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let bad = |reason: String| ImageError::BadElf { path: path.to_owned(), reason };
    let file = ElfBytes::<AnyEndian>::minimal_parse(bytes).map_err(|error| bad(error.to_string()))?;
    let section = file
        .section_header_by_name(".modinfo")
        .map_err(|error| bad(error.to_string()))?
        .ok_or_else(|| bad("it has no .modinfo section".to_owned()))?;
    let (data, _) = file.section_data(&section).map_err(|error| bad(error.to_string()))?;
    Ok(data
        .split(|byte| *byte == 0)
        .filter_map(|entry| entry.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| canonical(&String::from_utf8_lossy(name)))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::module;

    fn tree(modules: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("lib/modules/6.1.0-9-amd64");
        fs::create_dir_all(folder.join("kernel/net")).unwrap();
        fs::write(folder.join("modules.builtin"), "kernel/fs/proc/kcore.ko\nkernel/lib/crc-t10.ko\n")
            .unwrap();
        for (name, depends) in modules {
            fs::write(folder.join(format!("kernel/net/{name}.ko")), module(depends)).unwrap();
        }
        let root = Root::of_folder(dir.path());
        (dir, root)
    }

    fn order(root: &Root, names: &[&str]) -> Result<Vec<String>> {
        Ok(Kernel::find(root)?.modules(names)?.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn test_modules_dependencies_come_first_and_once() {
        let (_dir, root) =
            tree(&[("bridge", "stp,llc,crc-t10"), ("stp", "llc"), ("llc", ""), ("xen-net", "llc")]);
        assert_eq!(
            order(&root, &["xen_net", "bridge", "crc_t10"]).unwrap(),
            ["llc", "xen_net", "stp", "bridge"]
        );
    }

    #[test]
    fn test_modules_circle_ends() {
        let (_dir, root) = tree(&[("a", "b"), ("b", "a")]);
        assert_eq!(order(&root, &["a"]).unwrap(), ["b", "a"]);
    }

    #[test]
    fn test_modules_missing_names_who_needs_it() {
        let (_dir, root) = tree(&[("bridge", "stp")]);
        let error = order(&root, &["bridge"]).unwrap_err().to_string();
        assert!(error.contains("stp") && error.contains("bridge"), "{error}");
    }

    #[test]
    fn test_find_wants_one_kernel() {
        let (dir, root) = tree(&[]);
        assert_eq!(Kernel::find(&root).unwrap().release(), "6.1.0-9-amd64");
        assert!(matches!(Kernel::find(&root).unwrap().image(), Err(ImageError::NotInRoot { .. })));
        fs::create_dir(dir.path().join("lib/modules/6.2")).unwrap();
        let error = Kernel::find(&root).unwrap_err().to_string();
        assert!(error.contains("6.1.0-9-amd64, 6.2"), "{error}");
        assert!(matches!(Kernel::find(&Root::default()), Err(ImageError::KernelCount { .. })));
    }

    #[test]
    fn test_modules_damaged_one_is_refused() {
        let (dir, root) = tree(&[("a", "")]);
        let file = dir.path().join("lib/modules/6.1.0-9-amd64/kernel/net/a.ko");
        let bytes = fs::read(&file).unwrap();
        for cut in [0, 3, 63, 80, bytes.len() - 1] {
            fs::write(&file, &bytes[..cut]).unwrap();
            assert!(matches!(order(&root, &["a"]), Err(ImageError::BadElf { .. })), "cut at {cut}");
        }
    }
}
