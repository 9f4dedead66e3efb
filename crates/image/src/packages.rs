//! Debian packages, fetched and unpacked without root into a cache.
//!
//! What is needed is asked of `apt-get` with an empty list of installed packages, so that the answer is the same
//! on every machine; versions and hashes come from apt's signed lists. A package counts as fetched or unpacked
//! only once it was renamed into its place, so an interrupted build leaves nothing that a later one would use,
//! and two builds at once do no harm.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

pub use crate::apt::Mirrors;
pub use crate::package::Package;
use crate::{
    Debian, ImageError, Result,
    apt::Apt,
    files::{create_dir_all, rename_into_place, sha256_file},
    resolved,
    root::{Layer, Root},
    tools::{complaint, run, tells_of_full_disk},
};

/// Which of the packages that apt would install are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// Those that were named.
    Named,
    /// Those that were named, and the libraries and kernels among what they depend on (a kernel, because
    /// `linux-image-amd64` is only a name for the newest one). What installation scripts would need is left out.
    Libraries,
    /// All.
    Everything,
}

/// A step of fetching, for showing progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Asks apt what is needed.
    Resolving,
    /// Fetches packages that are not in the cache.
    Fetching {
        /// How many.
        packages: usize,
        /// How much together, in bytes.
        bytes: u64,
    },
    /// Unpacks one package that is not unpacked in the cache.
    Unpacking {
        /// Which.
        package: &'a Package,
    },
}

/// The cache of packages, and the way to get them.
#[derive(Debug, Clone)]
pub struct Store {
    cache: PathBuf,
    apt: Apt,
}

/// Temporary folders of builds that died are removed when they are this old, and so are apt's answers, most of
/// which are about older lists by then.
const STALE: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// Opens the cache in `$OUTRIGGER_CACHE`, `$XDG_CACHE_HOME/outrigger` or `~/.cache/outrigger`.
    ///
    /// # Errors
    /// [`ImageError::NoCacheFolder`] when none is set, or that the folder cannot be made.
    pub fn from_environment() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
        let folder = set("OUTRIGGER_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("outrigger")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/outrigger")))
            .ok_or(ImageError::NoCacheFolder)?;
        Self::at(folder)
    }

    /// Opens the cache in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// That the folder cannot be made.
    pub fn at(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        for part in ["debs", "trees", "resolved", "tmp", "sources", "compiled"] {
            create_dir_all(&folder.join(part))?;
        }
        let cache = folder.canonicalize().map_err(ImageError::io("find", &folder))?;
        let apt = Apt::of_machine(&cache);
        let store = Self { cache, apt };
        store.sweep();
        Ok(store)
    }

    /// The same cache, with the packages of a certain Debian. Those of the machine's own release come through the
    /// machine's apt, unless a mirror is named.
    #[must_use]
    pub fn of(&self, debian: Debian, mirrors: &Mirrors) -> Self {
        Self { cache: self.cache.clone(), apt: Apt::of(&self.cache, debian, mirrors) }
    }

    /// The Debian that packages are of.
    pub fn debian(&self) -> Debian {
        self.apt.debian()
    }

    pub(crate) fn apt(&self) -> &Apt {
        &self.apt
    }

    /// The cache's folder. Other things that are made from packages may be kept in folders of their own in it.
    pub fn folder(&self) -> &Path {
        &self.cache
    }

    /// Fetches and unpacks packages, as far as the cache does not have them, and gives them as one tree.
    ///
    /// # Errors
    /// As [`Store::resolve`], [`Store::fetch`] and [`Store::unpack`].
    pub fn root(&self, wanted: &[&str], take: Take, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Root> {
        progress(Progress::Resolving);
        let packages = select(self.resolve(wanted)?, wanted, take);
        let debs = self.fetch(&packages, progress)?;
        let mut layers = Vec::with_capacity(packages.len());
        for (package, deb) in packages.into_iter().zip(debs) {
            let folder = self.unpack(&package, &deb, progress)?;
            layers.push(Layer { package: Some(package), folder });
        }
        Ok(Root::new(layers))
    }

    /// Asks apt which packages an empty Debian would have to install for the wanted ones, sorted by name.
    /// A name may carry a version: `name=version`.
    ///
    /// # Errors
    /// That apt has no lists, does not know a package, or cannot have them together.
    pub fn resolve(&self, wanted: &[&str]) -> Result<Vec<Package>> {
        self.apt.refresh()?;
        let place = resolved::place(&self.cache.join("resolved"), wanted, &self.apt);
        if let Some(known) = place.as_deref().and_then(resolved::read) {
            return Ok(known);
        }
        let packages = self.ask(wanted)?;
        if let Some(place) = place {
            resolved::write(&place, &packages)?;
        }
        Ok(packages)
    }

    /// Asks apt, whatever was asked before.
    fn ask(&self, wanted: &[&str]) -> Result<Vec<Package>> {
        let temp = self.temp()?;
        let status = temp.path().join("status");
        fs::write(&status, "").map_err(ImageError::io("create", &status))?;
        let mut command = self.apt.command("apt-get", &status);
        command.args(["install", "--print-uris", "--yes", "--quiet=2", "--no-install-recommends", "--"]);
        let output = run(command.args(wanted), "apt-get")?;
        if !output.status.success() {
            return Err(self.explain(&status, wanted, &output));
        }
        let names = parse_uris(&String::from_utf8_lossy(&output.stdout));
        let mut command = self.apt.command("apt-cache", &status);
        command.args(["show", "--no-all-versions", "--"]);
        let output =
            run(command.args(names.iter().map(|(name, version)| format!("{name}={version}"))), "apt-cache")?;
        let mut packages = parse_records(&String::from_utf8_lossy(&output.stdout));
        packages.retain(|package| names.contains(&(package.name.clone(), package.version.clone())));
        packages.sort();
        packages.dedup_by(|a, b| a.name == b.name && a.version == b.version);
        if let Some((name, _)) = names.iter().find(|(name, _)| !packages.iter().any(|p| p.name == *name)) {
            return Err(ImageError::NoSuchPackage { package: name.clone(), debian: self.debian() });
        }
        match packages.iter().find(|package| !["amd64", "all"].contains(&package.architecture.as_str())) {
            Some(package) => Err(ImageError::WrongArchitecture {
                what: format!("the package {}", package.name),
                found: package.architecture.clone(),
                needed: "amd64",
            }),
            None => Ok(packages),
        }
    }

    /// Fetches packages that the cache does not have yet, and gives the paths of all, in the same order.
    ///
    /// # Errors
    /// That a download failed or is not what apt's lists promise, or that the disk is full.
    pub fn fetch(
        &self,
        packages: &[Package],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<PathBuf>> {
        let missing: Vec<&Package> = packages
            .iter()
            .filter(|package| fs::metadata(self.deb(package)).map_or(true, |meta| meta.len() != package.size))
            .collect();
        if !missing.is_empty() {
            let bytes = missing.iter().map(|package| package.size).sum();
            progress(Progress::Fetching { packages: missing.len(), bytes });
            self.download(&missing)?;
        }
        Ok(packages.iter().map(|package| self.deb(package)).collect())
    }

    /// Unpacks a fetched package into its own folder of the cache, if it is not there yet, and names that folder.
    ///
    /// # Errors
    /// That the package cannot be unpacked, or that the disk is full.
    pub fn unpack(
        &self,
        package: &Package,
        deb: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf> {
        let place = self.cache.join("trees").join(label(package));
        if place.is_dir() {
            return Ok(place);
        }
        progress(Progress::Unpacking { package });
        let temp = self.temp()?;
        let tree = temp.path().join("tree");
        create_dir_all(&tree)?;
        let output = run(
            Command::new("dpkg-deb").env("LC_ALL", "C").arg("--extract").arg(deb).arg(&tree),
            "dpkg-deb",
        )?;
        if !output.status.success() {
            let stderr = complaint(&output);
            if tells_of_full_disk(&stderr) {
                return Err(ImageError::DiskFull { path: tree });
            }
            return Err(ImageError::Unpack { package: described(package), stderr });
        }
        rename_into_place(&tree, &place)?;
        Ok(place)
    }

    /// Downloads packages into a temporary folder, checks them and renames them into the cache.
    fn download(&self, packages: &[&Package]) -> Result<()> {
        let temp = self.temp()?;
        let status = temp.path().join("status");
        fs::write(&status, "").map_err(ImageError::io("create", &status))?;
        let folder = temp.path().join("download");
        create_dir_all(&folder)?;
        let mut command = self.apt.command("apt-get", &status);
        command.current_dir(&folder).args(["download", "--quiet=2", "--"]);
        command.args(packages.iter().map(|package| format!("{}={}", package.name, package.version)));
        let output = run(&mut command, "apt-get")?;
        if !output.status.success() {
            let stderr = complaint(&output);
            if tells_of_full_disk(&stderr) {
                return Err(ImageError::DiskFull { path: folder });
            }
            let names: Vec<String> = packages.iter().map(|package| described(package)).collect();
            return Err(ImageError::Fetch { package: names.join(", "), stderr });
        }
        for package in packages {
            let file = folder.join(format!(
                "{}_{}_{}.deb",
                package.name,
                package.version.replace(':', "%3a"),
                package.architecture
            ));
            let found = sha256_file(&file)?;
            if found != package.sha256 {
                return Err(ImageError::WrongHash {
                    package: described(package),
                    expected: package.sha256.clone(),
                    found,
                });
            }
            let place = self.deb(package);
            fs::rename(&file, &place).map_err(ImageError::io("rename into place", &place))?;
        }
        Ok(())
    }

    fn deb(&self, package: &Package) -> PathBuf {
        self.cache.join("debs").join(format!("{}.deb", label(package)))
    }

    /// A folder inside the cache, so that a rename out of it stays on one file system.
    pub(crate) fn temp(&self) -> Result<tempfile::TempDir> {
        let folder = self.cache.join("tmp");
        tempfile::Builder::new()
            .prefix("build-")
            .tempdir_in(&folder)
            .map_err(ImageError::io("create a folder in", &folder))
    }

    /// Removes what builds left that were killed, and old answers. A failure here is harmless.
    fn sweep(&self) {
        for folder in ["tmp", "resolved"] {
            let Ok(entries) = fs::read_dir(self.cache.join(folder)) else { continue };
            for entry in entries.flatten() {
                let Ok(meta) = entry.metadata() else { continue };
                let age = meta.modified().ok().and_then(|time| time.elapsed().ok());
                if age.is_none_or(|age| age < STALE) {
                    continue;
                }
                let _ = if meta.is_dir() {
                    fs::remove_dir_all(entry.path())
                } else {
                    fs::remove_file(entry.path())
                };
            }
        }
    }

    /// Finds out why apt refused.
    fn explain(&self, status: &Path, wanted: &[&str], output: &Output) -> ImageError {
        let words = String::from_utf8_lossy(&output.stderr);
        let unknown = unknown_packages(&words);
        if unknown.is_empty() {
            return ImageError::Unresolvable { wanted: wanted.join(", "), stderr: complaint(output) };
        }
        // dpkg itself is in every Debian's lists.
        let mut command = self.apt.command("apt-cache", status);
        match run(command.args(["show", "--no-all-versions", "dpkg"]), "apt-cache") {
            Ok(output) if output.status.success() && !output.stdout.is_empty() => {
                ImageError::NoSuchPackage { package: unknown.join(", "), debian: self.debian() }
            }
            Ok(_) => ImageError::NoPackageLists,
            Err(error) => error,
        }
    }
}

/// The packages that apt says it does not know, one a line.
fn unknown_packages(words: &str) -> Vec<&str> {
    words
        .lines()
        .filter_map(|line| line.split_once("Unable to locate package "))
        .map(|(_, name)| name.trim())
        .collect()
}

/// Keeps those packages that are to be taken.
fn select(packages: Vec<Package>, wanted: &[&str], take: Take) -> Vec<Package> {
    let named: BTreeSet<&str> =
        wanted.iter().map(|name| name.split_once('=').map_or(*name, |(name, _)| name)).collect();
    packages
        .into_iter()
        .filter(|package| {
            named.contains(package.name.as_str())
                || match take {
                    Take::Named => false,
                    Take::Libraries => ["libs", "oldlibs", "kernel"].contains(&package.section.as_str()),
                    Take::Everything => true,
                }
        })
        .collect()
}

/// Reads names and versions from what `apt-get --print-uris` prints: `'URI' name_version_arch.deb size hash`.
fn parse_uris(text: &str) -> BTreeSet<(String, String)> {
    text.lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| {
            let file = line.split_whitespace().nth(1)?;
            let mut parts = file.strip_suffix(".deb")?.split('_');
            let (name, version) = (parts.next()?, parts.next()?);
            Some((name.to_owned(), version.replace("%3a", ":").replace("%3A", ":")))
        })
        .collect()
}

/// Reads `apt-cache show` records: `Field: value` lines, continued by a leading blank, separated by empty lines.
fn parse_records(text: &str) -> Vec<Package> {
    let field = |record: &str, name: &str| {
        record
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
    };
    text.split("\n\n")
        .filter_map(|record| {
            Some(Package {
                name: field(record, "Package")?,
                version: field(record, "Version")?,
                architecture: field(record, "Architecture")?,
                section: field(record, "Section").unwrap_or_default(),
                size: field(record, "Size")?.parse().ok()?,
                sha256: field(record, "SHA256")?,
            })
        })
        .collect()
}

/// A file name that is the same only for the same bytes.
fn label(package: &Package) -> String {
    let version = package.version.replace(':', "%3a");
    let hash = package.sha256.get(..16).unwrap_or(&package.sha256);
    format!("{}_{version}_{}_{hash}", package.name, package.architecture)
}

fn described(package: &Package) -> String {
    format!("{} {}", package.name, package.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const URIS: &str = "\
'http://mirror.example/debian/pool/main/a/attr/libattr1_2.5.1-4_amd64.deb' libattr1_1%3a2.5.1-4_amd64.deb 22164 MD5Sum:52
'http://mirror.example/x/linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb' linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb 7 
";

    const RECORDS: &str = "\
Package: libattr1
Version: 1:2.5.1-4
Architecture: amd64
Section: libs
Size: 22164
SHA256: 00ff
Description: one
 Package: of lies

Package: linux-base
Version: 4
Architecture: all
Size: 12
SHA256: aa
";

    #[test]
    fn test_parse_uris_decodes_epoch() {
        let names: Vec<_> = parse_uris(URIS).into_iter().collect();
        assert_eq!(names[0], ("libattr1".into(), "1:2.5.1-4".into()));
        assert_eq!(names[1], ("linux-image-6.1.0-56-amd64".into(), "6.1.192-2".into()));
    }

    #[test]
    fn test_parse_records_reads_two() {
        let packages = parse_records(RECORDS);
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].name, "libattr1");
        assert_eq!(packages[0].size, 22164);
        assert_eq!(packages[1].section, "");
    }

    #[test]
    fn test_select_libraries_leaves_the_rest() {
        let of = |name: &str, section: &str| Package {
            name: name.into(),
            version: "1".into(),
            architecture: "all".into(),
            section: section.into(),
            size: 1,
            sha256: "00".into(),
        };
        let all = vec![of("adduser", "admin"), of("libc6", "libs"), of("seabios", "misc")];
        let names = |take| -> Vec<String> {
            select(all.clone(), &["seabios=1"], take).into_iter().map(|package| package.name).collect()
        };
        assert_eq!(names(Take::Named), ["seabios"]);
        assert_eq!(names(Take::Libraries), ["libc6", "seabios"]);
        assert_eq!(names(Take::Everything), ["adduser", "libc6", "seabios"]);
    }

    /// Makes a real .deb of one file.
    fn deb(dir: &Path, name: &str) -> (Package, PathBuf) {
        let tree = dir.join(name);
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        fs::create_dir_all(tree.join("usr/share/x")).unwrap();
        fs::write(
            tree.join("DEBIAN/control"),
            format!(
                "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: d\n"
            ),
        )
        .unwrap();
        fs::write(tree.join("usr/share/x/file"), name).unwrap();
        let file = dir.join(format!("{name}.deb"));
        let output = run(
            Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&tree).arg(&file),
            "dpkg-deb",
        )
        .unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
        let package = Package {
            name: name.into(),
            version: "1:2".into(),
            architecture: "all".into(),
            section: "misc".into(),
            size: fs::metadata(&file).unwrap().len(),
            sha256: sha256_file(&file).unwrap(),
        };
        (package, file)
    }

    #[test]
    fn test_unpack_twice_unpacks_once() {
        let dir = tempfile::tempdir().unwrap();
        let (package, file) = deb(dir.path(), "one");
        let store = Store::at(dir.path().join("cache")).unwrap();
        let mut steps = 0;
        let mut count = |_: Progress<'_>| steps += 1;
        let first = store.unpack(&package, &file, &mut count).unwrap();
        let second = store.unpack(&package, &file, &mut count).unwrap();
        assert_eq!(first, second);
        assert_eq!(steps, 1);
        assert_eq!(fs::read(first.join("usr/share/x/file")).unwrap(), b"one");
    }

    #[test]
    fn test_unpack_broken_package_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (package, file) = deb(dir.path(), "two");
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 40]).unwrap();
        let store = Store::at(dir.path().join("cache")).unwrap();
        let error = store.unpack(&package, &file, &mut |_| {}).unwrap_err();
        assert!(matches!(error, ImageError::Unpack { .. }), "{error:?}");
        assert_eq!(fs::read_dir(store.folder().join("trees")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(store.folder().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn test_fetch_cached_package_needs_no_network() {
        let dir = tempfile::tempdir().unwrap();
        let (package, file) = deb(dir.path(), "three");
        let store = Store::at(dir.path().join("cache")).unwrap();
        fs::copy(&file, store.deb(&package)).unwrap();
        let paths = store.fetch(&[package], &mut |step| panic!("{step:?}")).unwrap();
        assert_eq!(fs::read(&paths[0]).unwrap(), fs::read(&file).unwrap());
    }
}
