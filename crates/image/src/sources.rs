//! Debian source packages, fetched without root and without a change to apt's own configuration.
//!
//! Most machines have no lists of sources. Ours are kept in the cache: they are asked of the same mirrors that the
//! machine has its binary packages from, checked by apt against Debian's keys, and asked again when the machine's own
//! lists have changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};

use crate::{
    ImageError, Result,
    apt::{KEYRING, check_update},
    files::{create_dir_all, rename_into_place, sha256_file},
    packages::Store,
    resolved,
    tools::{complaint, run, tells_of_full_disk},
};

/// A source package of apt's lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourcePackage {
    pub(crate) name: String,
    pub(crate) version: String,
    files: Vec<SourceFile>,
}

/// One of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SourceFile {
    name: String,
    size: u64,
    sha256: String,
}

impl SourcePackage {
    /// The file that lists the others with their hashes.
    fn description(&self) -> Option<&SourceFile> {
        self.files.iter().find(|file| file.name.ends_with(".dsc"))
    }

    /// SHA-256 of the .dsc file, which names the hashes of all others.
    pub(crate) fn sha256(&self) -> &str {
        self.description().map_or("", |file| &file.sha256)
    }

    /// The size of all files, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl Store {
    /// Asks apt for the newest version of a source package.
    ///
    /// # Errors
    /// That the lists cannot be fetched, or that there is no such source package.
    pub(crate) fn resolve_source(&self, name: &str) -> Result<SourcePackage> {
        self.apt().refresh()?;
        let place = resolved::place(&self.folder().join("resolved"), &["source of", name], self.apt());
        if let Some(known) = place.as_deref().and_then(resolved::read) {
            return Ok(known);
        }
        self.update_source_lists()?;
        let temp = self.temp()?;
        let mut command = self.source_apt(temp.path())?;
        // apt names no file that the current folder has.
        command.current_dir(temp.path());
        let output = run(
            command.args(["source", "--print-uris", "--quiet=2", "--only-source", "--", name]),
            "apt-get",
        )?;
        if !output.status.success() {
            let stderr = complaint(&output);
            return Err(if stderr.contains("Unable to find a source package") {
                ImageError::NoSuchPackage { package: format!("{name} (source)"), debian: self.debian() }
            } else {
                ImageError::Unresolvable { wanted: format!("the source of {name}"), stderr }
            });
        }
        let source = parse_source_uris(name, &String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
            ImageError::Unresolvable {
                wanted: format!("the source of {name}"),
                stderr: "its output is invalid".to_owned(),
            }
        })?;
        if let Some(place) = place {
            resolved::write(&place, &source)?;
        }
        Ok(source)
    }

    /// Fetches a source package, as far as the cache does not have it, and names the folder of its files.
    ///
    /// # Errors
    /// That a download failed or is not what apt's lists promise, or that the disk is full.
    pub(crate) fn fetch_source(&self, source: &SourcePackage) -> Result<PathBuf> {
        let version = source.version.replace(':', "%3a");
        let hash = source.sha256().get(..16).unwrap_or_default();
        let place = self.folder().join("sources").join(format!("{}_{version}_{hash}", source.name));
        if place.is_dir() {
            return Ok(place);
        }
        let temp = self.temp()?;
        let folder = temp.path().join("files");
        create_dir_all(&folder)?;
        let mut command = self.source_apt(temp.path())?;
        command.current_dir(&folder).args(["source", "--download-only", "--quiet=2", "--only-source", "--"]);
        // Without the version: the file's name lacks its epoch. Lists are renewed only where the newest is looked up,
        // and the hashes below tell.
        let output = run(command.arg(&source.name), "apt-get")?;
        let package = format!("the source of {} {}", source.name, source.version);
        if !output.status.success() {
            let stderr = complaint(&output);
            return Err(if tells_of_full_disk(&stderr) {
                ImageError::DiskFull { path: folder }
            } else {
                ImageError::Fetch { package, stderr }
            });
        }
        for file in &source.files {
            let found = sha256_file(&folder.join(&file.name))?;
            if found != file.sha256 {
                return Err(ImageError::WrongHash { package, expected: file.sha256.clone(), found });
            }
        }
        rename_into_place(&folder, &place)?;
        Ok(place)
    }

    /// Unpacks a fetched source package with Debian's changes into a folder that does not exist yet.
    ///
    /// # Errors
    /// That it cannot be unpacked, or that the disk is full.
    pub(crate) fn unpack_source(&self, source: &SourcePackage, files: &Path, folder: &Path) -> Result<()> {
        let description = source.description().map_or("", |file| &file.name);
        // Its signature is that of a developer; the hash from Debian's signed lists was compared already.
        let output = run(
            Command::new("dpkg-source")
                .env("LC_ALL", "C")
                .args(["--no-check", "--extract"])
                .arg(files.join(description))
                .arg(folder),
            "dpkg-source",
        )?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = complaint(&output);
        Err(if tells_of_full_disk(&stderr) {
            ImageError::DiskFull { path: folder.to_owned() }
        } else {
            ImageError::Unpack {
                package: format!("the source of {} {}", source.name, source.version),
                stderr,
            }
        })
    }

    /// Fetches Debian's lists of sources.
    fn update_source_lists(&self) -> Result<()> {
        let temp = self.temp()?;
        let status = temp.path().join("status");
        fs::write(&status, "").map_err(ImageError::io("create", &status))?;
        let mut command = self.apt().command("apt-get", &status);
        let format = "$(ORIGIN)|$(SITE)|$(RELEASE)|$(COMPONENT)";
        let output =
            run(command.args(["indextargets", "--format", format, "Created-By: Packages"]), "apt-get")?;
        let text = deb822(&String::from_utf8_lossy(&output.stdout), Path::new(KEYRING).exists());
        if text.is_empty() {
            return Err(ImageError::NoPackageLists);
        }
        let (list, lists) = self.apt().source_lists(self.folder());
        create_dir_all(&lists.join("partial"))?;
        fs::write(&list, text).map_err(ImageError::io("write", &list))?;
        let output = run(self.source_apt(temp.path())?.args(["update", "--quiet=2"]), "apt-get")?;
        check_update(&output, self.debian(), &lists)
    }

    /// apt that knows the lists of sources and nothing else.
    fn source_apt(&self, temp: &Path) -> Result<Command> {
        let status = temp.join("status");
        fs::write(&status, "").map_err(ImageError::io("create", &status))?;
        let mut command = self.apt().command("apt-get", &status);
        let (list, lists) = self.apt().source_lists(self.folder());
        for option in [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", lists.display()),
        ] {
            command.arg("-o").arg(option);
        }
        Ok(command)
    }
}

/// Apt's sources of source packages, from lines `origin|site|release|component` of its binary ones.
fn deb822(targets: &str, keyring: bool) -> String {
    let signed = if keyring { format!("Signed-By: {KEYRING}\n") } else { String::new() };
    let mut stanzas: Vec<String> = targets
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('|');
            let (origin, site, release, component) =
                (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            (origin == "Debian").then(|| {
                format!("Types: deb-src\nURIs: {site}\nSuites: {release}\nComponents: {component}\n{signed}")
            })
        })
        .collect();
    stanzas.sort();
    stanzas.dedup();
    stanzas.join("\n")
}

/// Reads what `apt-get source --print-uris` prints: `'URI' file size SHA256:hash`, among other lines.
fn parse_source_uris(name: &str, text: &str) -> Option<SourcePackage> {
    let files: Vec<SourceFile> = text
        .lines()
        .filter(|line| line.starts_with('\''))
        .map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (name, size, hash) = (words.next()?, words.next()?, words.next()?);
            // It becomes a path.
            let plain = !name.contains('/') && !name.starts_with('.');
            Some(SourceFile {
                name: Some(name).filter(|_| plain)?.to_owned(),
                size: size.parse().ok()?,
                sha256: hash.strip_prefix("SHA256:")?.to_owned(),
            })
        })
        .collect::<Option<_>>()?;
    let description = files.iter().find_map(|file| file.name.strip_suffix(".dsc"))?;
    let version = description.split_once('_')?.1.to_owned();
    Some(SourcePackage { name: name.to_owned(), version, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    const URIS: &str = "\
NOTICE: 'qemu' packaging is maintained elsewhere
'http://mirror.example/q/qemu_7.2%2bdfsg-7.dsc' qemu_7.2+dfsg-7.dsc 6909 SHA256:00aa
'http://mirror.example/q/qemu_7.2%2bdfsg.orig.tar.xz' qemu_7.2+dfsg.orig.tar.xz 23 SHA256:00bb
";

    #[test]
    fn test_parse_source_uris_reads_version_and_hashes() {
        let source = parse_source_uris("qemu", URIS).unwrap();
        assert_eq!((source.version.as_str(), source.sha256()), ("7.2+dfsg-7", "00aa"));
        assert_eq!(source.size(), 6932);
        for bad in ["", "'u' qemu.tar 1 SHA256:0", "'u' ../q_1.dsc 1 SHA256:0", "'u' q_1.dsc 1 MD5Sum:0"] {
            assert_eq!(parse_source_uris("qemu", bad), None, "{bad}");
        }
    }

    #[test]
    fn test_deb822_takes_debians_mirrors_once() {
        let targets = "Debian|http://mirror.example/debian|bookworm|main\n\
                       Debian|http://mirror.example/debian|bookworm|main\n\
                       Else|http://else.example|stable|main\n";
        let stanza =
            "Types: deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n";
        assert_eq!(deb822(targets, false), stanza);
        assert_eq!(deb822(targets, true), format!("{stanza}Signed-By: {KEYRING}\n"));
        assert_eq!(deb822("", true), "");
    }
}
