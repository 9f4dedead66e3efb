//! The tools that compile: the machine's, or those of another Debian in a tree of their own.
//!
//! Sources of another Debian than the machine's are compiled by the compiler and against the libraries of that Debian,
//! which are unpacked for it and used in namespaces without network, so that the result is the same as on a machine of
//! that Debian, and the machine needs neither root nor those packages.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    Debian, ImageError, Result,
    debian::Recipe,
    files::create_dir_all,
    packages::{Package, Progress, Store},
    root::Root,
    tools::{complaint, run, tells_of_full_disk},
};

use super::{Program, merge::merge};

/// What every Debian has, and builds use, though nothing depends on it.
const ALWAYS: [&str; 15] = [
    "base-files",
    "bash",
    "bzip2",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "libc-bin",
    "mawk",
    "patch",
    "perl-base",
    "sed",
    "tar",
];
/// Folders that are links into /usr, in every Debian since 12; older packages still have files in them.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// Where builds are.
const BUILD: &str = "build";
/// Links that the installation of packages makes, as far as builds use them.
const LINKS: [(&str, &str); 3] = [("usr/bin/awk", "mawk"), ("usr/bin/cc", "gcc"), ("usr/bin/sh", "dash")];
/// Certificates, one a file, and the file that the installation of their package makes of them. Python's installer of
/// packages refuses to start without it, though it fetches nothing.
const CERTIFICATES: (&str, &str) = ("usr/share/ca-certificates/mozilla", "etc/ssl/certs/ca-certificates.crt");
/// What the machine itself needs to compile in a tree: for namespaces, and for unpacking.
pub(super) const MACHINE_NEEDS: [&str; 4] = ["dpkg-dev", "tar", "util-linux", "xz-utils"];

/// Tools and libraries, known by name and version.
#[derive(Debug)]
pub(super) enum Toolchain {
    /// Those that are installed.
    Machine {
        /// Names and versions of those that decide on the result.
        versions: Vec<String>,
    },
    /// Packages of another Debian.
    Tree {
        /// Names and versions of those that decide on the result.
        versions: Vec<String>,
        /// All packages of the tree.
        packages: Vec<Package>,
    },
}

impl Toolchain {
    /// Finds out what a program would be compiled with.
    pub(super) fn find(store: &Store, program: Program, recipe: &Recipe) -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(ImageError::WrongArchitecture {
                what: format!("this machine, which is to compile {},", program.name()),
                found: std::env::consts::ARCH.to_owned(),
                needed: "x86_64",
            });
        }
        let needs = program.tools(recipe);
        // The first are those whose versions decide on the bytes, though they come with others.
        let deciding: Vec<&str> =
            [recipe.compiler, "binutils"].into_iter().chain(needs.iter().copied()).collect();
        if is_machines(program, recipe.debian) {
            return Ok(Self::Machine { versions: installed(program, &deciding, &needs)? });
        }
        installed(program, &MACHINE_NEEDS, &MACHINE_NEEDS)?;
        let wanted: Vec<&str> = needs.iter().copied().chain(ALWAYS).collect();
        let packages = store.resolve(&wanted)?;
        let versions = packages
            .iter()
            .filter(|package| deciding.contains(&package.name.as_str()))
            .map(|package| format!("{} {}", package.name, package.version))
            .collect();
        Ok(Self::Tree { versions: sorted(versions), packages })
    }

    pub(super) fn versions(&self) -> &[String] {
        match self {
            Self::Machine { versions } | Self::Tree { versions, .. } => versions,
        }
    }

    /// Unpacks the tools into a folder, if they are not the machine's, and names their tree.
    pub(super) fn prepare(
        &self,
        store: &Store,
        folder: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<PathBuf>> {
        let Self::Tree { packages, .. } = self else { return Ok(None) };
        let tree = folder.join("tree");
        make_merged(&tree)?;
        for (package, deb) in packages.iter().zip(store.fetch(packages, progress)?) {
            progress(Progress::Unpacking { package });
            unpack_into(&deb, &tree)
                .map_err(|error| named(error, format!("{} {}", package.name, package.version)))?;
        }
        finish(&tree)?;
        Ok(Some(tree))
    }
}

/// Whether the machine's own tools compile a program. The emulator runs on this machine, wherever its sources are from.
pub(super) fn is_machines(program: Program, debian: Debian) -> bool {
    Debian::of_machine() == Some(debian) || program == Program::Emulator
}

/// A command that runs in a tree, in a folder of it, without network. The caller's environment and arguments go on.
pub(super) fn command_in(tree: &Path, folder: &Path, program: &std::ffi::OsStr) -> Command {
    let inside = Path::new("/").join(folder.strip_prefix(tree).unwrap_or(folder));
    let mut chdir = std::ffi::OsString::from("--chdir=");
    chdir.push(inside);
    let mut command = Command::new("unshare");
    command
        .current_dir(tree)
        .args(["--map-root-user", "--mount", "--net", "--", "/bin/sh", "-c"])
        .arg(ENTER)
        .arg(tree)
        .arg(chdir)
        .arg(program);
    command
}

/// What enters a tree, its first argument, and runs the others there. The shell adds `PWD`, a path outside of the tree.
const ENTER: &str = r#"mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" &&
exec chroot "$0" /usr/bin/env -u PWD "$@""#;

/// Names the versions of packages that are installed on the machine; those that are needed must be.
fn installed(program: Program, wanted: &[&str], needs: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new("dpkg-query");
    command.env("LC_ALL", "C").args(["--show", "--showformat=${db:Status-Status} ${Package} ${Version}\\n"]);
    let output = run(command.args(wanted), "dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect();
    let found = sorted(found);
    let has = |name: &str| found.iter().any(|line| line.split(' ').next() == Some(name));
    let missing: Vec<&str> = needs.iter().copied().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return Ok(found);
    }
    Err(ImageError::NoBuildPackages { program: program.name(), missing: missing.join(" ") })
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// Makes the folders that no package of an older Debian makes.
fn make_merged(tree: &Path) -> Result<()> {
    for name in MERGED {
        create_dir_all(&tree.join("usr").join(name))?;
        link(&Path::new("usr").join(name), &tree.join(name))?;
    }
    for name in [BUILD, "dev", "proc", "tmp"] {
        create_dir_all(&tree.join(name))?;
    }
    let temp = tree.join("tmp");
    fs::set_permissions(&temp, fs::Permissions::from_mode(0o1777)).map_err(ImageError::io("open up", &temp))
}

/// Does what the packages' scripts would do, as far as builds need it.
fn finish(tree: &Path) -> Result<()> {
    for (place, target) in LINKS {
        let place = tree.join(place);
        if fs::symlink_metadata(&place).is_err() {
            link(Path::new(target), &place)?;
        }
    }
    // Builds have it for themselves.
    let build = tree.join(BUILD);
    fs::remove_dir_all(&build).map_err(ImageError::io("remove", &build))?;
    create_dir_all(&build)?;
    put_certificates(tree)
}

/// Makes the bundle of certificates, by way of a folder of its own: it goes to its place as packages do.
fn put_certificates(tree: &Path) -> Result<()> {
    let root = Root::of_folder(tree);
    let Some(folder) = root.lookup(CERTIFICATES.0)? else { return Ok(()) };
    let mut text = Vec::new();
    for name in root.list(&folder.path)? {
        text.extend(root.read(&format!("{}/{name}", folder.path))?);
    }
    let part = tree.with_extension("part");
    let bundle = part.join(CERTIFICATES.1);
    create_dir_all(bundle.parent().unwrap_or(&part))?;
    fs::write(&bundle, text).map_err(ImageError::io("write", &bundle))?;
    merge(&part, tree)?;
    fs::remove_dir_all(&part).map_err(ImageError::io("remove", &part))
}

fn link(target: &Path, place: &Path) -> Result<()> {
    symlink(target, place).map_err(ImageError::io("make the link", place))
}

/// Unpacks a package into a tree with others. It is unpacked alone first: tar lets no link of an archive lead out of
/// where it unpacks, but would follow those of other packages.
fn unpack_into(deb: &Path, tree: &Path) -> Result<()> {
    let part = tree.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    create_dir_all(&part)?;
    unpack(deb, &part)?;
    merge(&part, tree)?;
    fs::remove_dir_all(&part).map_err(ImageError::io("remove", &part))
}

/// Unpacks a package into an empty folder. With `dpkg-deb --extract`, files would be root's for root.
fn unpack(deb: &Path, folder: &Path) -> Result<()> {
    let failed = |source| ImageError::NoTool { program: "dpkg-deb", source };
    let mut unpacker = Command::new("dpkg-deb")
        .env("LC_ALL", "C")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let archive = unpacker.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let output = Command::new("tar")
        .env("LC_ALL", "C")
        .args(["--extract", "--no-same-owner", "--warning=no-timestamp", "--directory"])
        .arg(folder)
        .stdin(archive)
        .output();
    let status = unpacker.wait().map_err(failed)?;
    let output = output.map_err(|source| ImageError::NoTool { program: "tar", source })?;
    if status.success() && output.status.success() {
        return Ok(());
    }
    let stderr = complaint(&output);
    Err(if tells_of_full_disk(&stderr) {
        ImageError::DiskFull { path: folder.to_owned() }
    } else {
        ImageError::Unpack { package: deb.display().to_string(), stderr }
    })
}

/// Puts a package's name in the place of its file's.
fn named(error: ImageError, package: String) -> ImageError {
    match error {
        ImageError::Unpack { stderr, .. } => ImageError::Unpack { package, stderr },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a package of what `fill` makes in a folder.
    fn package(dir: &Path, fill: impl FnOnce(&Path)) -> PathBuf {
        let parts = tempfile::tempdir_in(dir).unwrap();
        fs::set_permissions(parts.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(parts.path().join("DEBIAN")).unwrap();
        let control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: d\n";
        fs::write(parts.path().join("DEBIAN/control"), control).unwrap();
        fill(parts.path());
        let deb = parts.path().with_extension("deb");
        let output = Command::new("dpkg-deb").arg("--build").arg(parts.path()).arg(&deb).output().unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
        deb
    }

    fn write(place: &Path, text: &str) {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    }

    #[test]
    fn test_no_package_reaches_the_machine_by_links_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        make_merged(&tree).unwrap();
        let links = package(dir.path(), |parts| {
            for place in ["opt/absolute", "build/sources", "etc", CERTIFICATES.0] {
                fs::create_dir_all(parts.join(place).parent().unwrap()).unwrap();
                symlink(&outside, parts.join(place)).unwrap();
            }
            symlink("../../../../../../../../../..", parts.join("opt/up")).unwrap();
        });
        let up = Path::new("opt/up").join(outside.strip_prefix("/").unwrap());
        let files = package(dir.path(), |parts| {
            write(&parts.join("opt/absolute/one"), "1");
            write(&parts.join(up).join("two"), "2");
        });
        unpack_into(&links, &tree).unwrap();
        unpack_into(&files, &tree).unwrap();
        finish(&tree).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        // The first link leads nowhere in the tree, and the second one to its top.
        assert_eq!(fs::read(tree.join("opt/absolute/one")).unwrap(), b"1");
        assert_eq!(fs::read(tree.join(outside.strip_prefix("/").unwrap()).join("two")).unwrap(), b"2");
        assert_eq!(fs::read_dir(tree.join("build")).unwrap().count(), 0);
        assert!(!tree.with_extension("part").exists());
    }

    #[test]
    fn test_packages_go_behind_the_links_of_a_merged_tree() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        make_merged(&tree).unwrap();
        let deb = package(dir.path(), |parts| {
            write(&parts.join("bin/old"), "x");
            write(&parts.join(CERTIFICATES.0).join("b.crt"), "b");
            write(&parts.join(CERTIFICATES.0).join("a.crt"), "a");
        });
        unpack_into(&deb, &tree).unwrap();
        finish(&tree).unwrap();
        assert_eq!(fs::read_link(tree.join("bin")).unwrap(), Path::new("usr/bin"));
        assert_eq!(fs::read(tree.join("usr/bin/old")).unwrap(), b"x");
        assert_eq!(fs::read_link(tree.join("usr/bin/awk")).unwrap(), Path::new("mawk"));
        assert_eq!(fs::read(tree.join(CERTIFICATES.1)).unwrap(), b"ab");
        fs::write(&deb, "no package").unwrap();
        assert!(matches!(unpack_into(&deb, &tree), Err(ImageError::Unpack { .. })));
    }

    #[test]
    fn test_command_runs_in_a_folder_of_the_tree() {
        let command = command_in(Path::new("/t"), Path::new("/t/build/sources"), "make".as_ref());
        let arguments: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(arguments[7..], ["/t", "--chdir=/build/sources", "make"]);
    }
}
