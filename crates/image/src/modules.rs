//! Kernel modules by name, with what they depend on, in load order.
//!
//! A kernel package has no `modules.dep` (it is made when the package is installed), so dependencies are read
//! from each module's own `.modinfo` section.

use std::{collections::BTreeMap, fs, path::PathBuf};

use elf::{ElfBytes, endian::AnyEndian};

use crate::{
    ImageError, Result,
    initramfs::Node,
    kernel::decompress,
    packages::Package,
    root::{Found, Root},
};

/// A module to load.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name, with `_` as the kernel writes it.
    pub name: String,
    /// Its path in the tree, without the ending of a packed file.
    pub path: String,
    /// The file on the build machine that holds it, possibly packed.
    pub host: PathBuf,
    /// Its package.
    pub package: Option<Package>,
}

/// The endings of module files. Debian packs them since 13.
const ENDINGS: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];

impl Module {
    /// The module as it goes into an archive. One that is packed is unpacked: the agent loads plain files only, and
    /// archives are packed as a whole.
    ///
    /// # Errors
    /// That it cannot be read or unpacked.
    pub fn node(&self) -> Result<Node> {
        if self.host.extension().is_some_and(|ending| ending == "ko") {
            return Ok(Node::Copy(self.host.clone()));
        }
        let bytes = fs::read(&self.host).map_err(ImageError::io("read", &self.host))?;
        Ok(Node::Bytes(unpack(&self.path, bytes)?))
    }
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
            if let Some(name) = path.rsplit('/').next().and_then(without_ending) {
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
        // Since Linux 7, Debian has it among the modules.
        match self.root.lookup(&format!("/lib/modules/{}/vmlinuz", self.release))? {
            Some(found) => Ok(found),
            None => self.root.find(&format!("/boot/vmlinuz-{}", self.release)),
        }
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
        let file = unpack(path, self.root.read(path)?)?;
        for dependency in dependencies(path, &file)? {
            self.visit(&dependency, name, above, order)?;
        }
        above.pop();
        order.push(Module {
            name: name.to_owned(),
            path: plain(path).to_owned(),
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

/// A module's name, from that of its file.
fn without_ending(file: &str) -> Option<&str> {
    ENDINGS.iter().find_map(|ending| file.strip_suffix(ending))
}

/// A module's path without what a packed file has behind `.ko`.
fn plain(path: &str) -> &str {
    ENDINGS.iter().find(|ending| path.ends_with(**ending)).map_or(path, |ending| {
        let packed = ending.len() - ".ko".len();
        path.get(..path.len() - packed).unwrap_or(path)
    })
}

/// Unpacks a module; one that is not packed stays as it is.
fn unpack(path: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if path.ends_with(".ko") && bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    decompress(&bytes)
        .map_err(|error| ImageError::BadElf { path: path.to_owned(), reason: error.to_string() })
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

    /// As Debian 13 has it: in /usr, packed.
    #[test]
    fn test_packed_modules_are_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("usr/lib/modules/6.12.1");
        fs::create_dir_all(folder.join("kernel")).unwrap();
        fs::create_dir_all(dir.path().join("boot")).unwrap();
        let packed = |bytes: &[u8]| {
            use std::io::Write as _;
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            packed.write_all(bytes).unwrap();
            packed.finish().unwrap()
        };
        fs::write(folder.join("kernel/xenfs.ko.gz"), packed(&module("xen-privcmd"))).unwrap();
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let zstd = ruzstd::encoding::compress_to_vec(&module("")[..], level);
        fs::write(folder.join("kernel/xen-privcmd.ko.zst"), zstd).unwrap();
        let root = Root::of_folder(dir.path());
        let kernel = Kernel::find(&root).unwrap();
        let modules = kernel.modules(&["xenfs"]).unwrap();
        let paths: Vec<&str> = modules.iter().map(|module| module.path.as_str()).collect();
        let folder = "/usr/lib/modules/6.12.1/kernel";
        assert_eq!(paths, [format!("{folder}/xen-privcmd.ko"), format!("{folder}/xenfs.ko")]);
        assert_eq!(modules[1].node().unwrap(), Node::Bytes(module("xen-privcmd")));
        // A kernel beside its modules goes before one in /boot.
        fs::write(dir.path().join("boot/vmlinuz-6.12.1"), "old place").unwrap();
        assert_eq!(kernel.image().unwrap().path, "/boot/vmlinuz-6.12.1");
        fs::write(dir.path().join("usr/lib/modules/6.12.1/vmlinuz"), "new place").unwrap();
        assert_eq!(kernel.image().unwrap().path, "/usr/lib/modules/6.12.1/vmlinuz");
        fs::write(dir.path().join(format!("{}/xenfs.ko.gz", &folder[1..])), "cut").unwrap();
        assert!(matches!(kernel.modules(&["xenfs"]), Err(ImageError::BadElf { .. })));
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
