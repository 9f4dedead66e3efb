//! What both programs that are compiled from Debian's source package of QEMU have in common.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    ImageError, Result,
    files::create_dir_all,
    packages::{Package, Store},
    sources::SourcePackage,
};

use super::{CompileStep, Steps};

/// Debian's source package.
pub(super) const SOURCE: &str = "qemu";

/// Fetches and unpacks the sources, with Debian's own changes, ready to be changed further.
pub(super) fn unpack(
    store: &Store,
    source: &SourcePackage,
    steps: &Steps,
    progress: &mut dyn FnMut(CompileStep<'_>),
) -> Result<PathBuf> {
    let program = steps.program();
    progress(CompileStep::Fetching { program, bytes: source.size() });
    let files = store.fetch_source(source)?;
    progress(CompileStep::Unpacking(program));
    let sources = steps.sources();
    store.unpack_source(source, &files, &sources)?;
    stand_in_for_blobs(&sources)?;
    Ok(sources)
}

/// Configures and compiles one target, and returns the stripped program.
pub(super) fn build(
    source: &SourcePackage,
    steps: &mut Steps,
    options: &[impl AsRef<std::ffi::OsStr>],
    target: &str,
    progress: &mut dyn FnMut(CompileStep<'_>),
) -> Result<Vec<u8>> {
    let program = steps.program();
    progress(CompileStep::Configuring(program));
    let sources = steps.sources();
    let build = sources.join("build");
    create_dir_all(&build)?;
    // Sources at a relative path: messages contain them, and the path of the cache should not appear. Headers are
    // looked for at whole paths all the same.
    let mut configure = steps.command("../configure", &build);
    configure
        .args(options)
        .arg(format!("--extra-cflags=-ffile-prefix-map={}=..", steps.inside(&sources).display()))
        .arg(format!("--with-pkgversion=Debian {}", source.version));
    steps.run("configuring", &mut configure)?;
    progress(CompileStep::Compiling(program));
    let mut ninja = steps.command("ninja", &build);
    steps.run("compiling", ninja.arg(steps.jobs()).arg(target))?;
    let mut strip = steps.command("strip", &build);
    steps.run("stripping", strip.args(["--strip-all", "-o", "stripped", target]))?;
    steps.made("build/stripped")
}

/// Keeps the licence, and describes the sources as a package.
pub(super) fn keep_facts(source: &SourcePackage, steps: &Steps) -> Result<Package> {
    let copyright = steps.sources().join("debian/copyright");
    steps.put(&format!("/usr/share/doc/{SOURCE}/copyright"), &read(&copyright)?)?;
    Ok(Package {
        name: SOURCE.to_owned(),
        version: source.version.clone(),
        architecture: "source".to_owned(),
        section: "otherosfs".to_owned(),
        size: source.size(),
        sha256: source.sha256().to_owned(),
    })
}

/// Debian's source package lacks firmware images that the build files unpack all the same; nothing reads them.
fn stand_in_for_blobs(sources: &Path) -> Result<()> {
    let folder = sources.join("pc-bios");
    let text = read(&folder.join("meson.build"))?;
    for name in blobs(&String::from_utf8_lossy(&text)) {
        let path = folder.join(format!("{name}.bz2"));
        if !path.exists() {
            write(&path, b"")?;
        }
    }
    Ok(())
}

/// Names in quotes such as `edk2-i386-code.fd`.
fn blobs(text: &str) -> Vec<&str> {
    text.split('\'').filter(|word| word.starts_with("edk2-") && word.ends_with(".fd")).collect()
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(ImageError::io("read", path))
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(ImageError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_blobs_are_found_by_their_names() {
        let text = "blobs = [\n  'edk2-i386-code.fd',\n  'other.bin', 'edk2-licenses.txt',\n]";
        assert_eq!(blobs(text), ["edk2-i386-code.fd"]);
    }
}
