//! `cargo xtask bindings`: makes the committed bindings to Xen's libraries again, or checks that they are current.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use xen_types::Release;

use crate::{debian, workspace};

/// The version of bindgen whose output is committed; another one writes the same bindings differently.
const BINDGEN: &str = "0.73.2";
/// The releases of Xen that have bindings: 4.N of each of these.
pub(crate) const MINORS: std::ops::RangeInclusive<u16> = 17..=22;
/// The processors whose own header Xen makes from the others.
const FOREIGN: [&str; 2] = ["x86_32", "x86_64"];

/// What to do.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Changes nothing; fails when a committed file is not what bindgen writes.
    #[arg(long)]
    check: bool,
    /// A clone of Xen's repository (<https://xenbits.xen.org/git-http/xen.git>), whose tags have the headers of all
    /// releases; without it only the bindings of the installed libxen-dev are made or checked.
    #[arg(long, value_name = "FOLDER")]
    source: Option<PathBuf>,
    /// Installs missing Debian packages without asking.
    #[arg(long)]
    yes: bool,
}

/// Fails when the committed bindings of the installed release are not what bindgen writes. Where bindgen cannot be
/// had, it says so and passes.
pub(crate) fn check(yes: bool) -> Result<()> {
    if let Err(error) = bindgen() {
        eprintln!("the bindings to Xen's libraries are not checked: {error:#}");
        return Ok(());
    }
    main(&Options { check: true, source: None, yes }).map(drop)
}

/// Runs bindgen for each release whose headers are there.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    debian::ensure(&["libxen-dev", "libclang-dev"], options.yes)?;
    let bindgen = bindgen()?;
    let Some(source) = &options.source else {
        let installed = installed()?;
        ensure!(
            installed.major == 4 && MINORS.contains(&installed.minor),
            "libxen-dev is of Xen {installed}, which has no bindings yet; see MINORS in xtask/src/bindings.rs"
        );
        one(options, &bindgen, installed, None)?;
        return Ok(ExitCode::SUCCESS);
    };
    for minor in MINORS {
        let release = Release::new(4, minor);
        let headers = tempfile::tempdir()?;
        lay_out(source, release, headers.path())?;
        one(options, &bindgen, release, Some(headers.path()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The release of the installed libxen-dev.
fn installed() -> Result<Release> {
    let output = Command::new("pkg-config").args(["--modversion", "xencontrol"]).output();
    let output = output.context("Cannot start pkg-config")?;
    let version = String::from_utf8_lossy(&output.stdout);
    Release::parse(version.trim())
        .with_context(|| format!("pkg-config calls libxen-dev's version {version:?}"))
}

/// Makes or checks the bindings of one release.
fn one(options: &Options, bindgen: &str, release: Release, headers: Option<&Path>) -> Result<()> {
    let folder = workspace::root().join("crates/xen-sys");
    let text = fs::read_to_string(folder.join("bindgen.args")).context("Cannot read bindgen.args")?;
    let arguments = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let temporary = tempfile::tempdir()?;
    let written = temporary.path().join("bindings.rs");
    let mut command = Command::new(bindgen);
    command.current_dir(&folder).arg("--output").arg(&written).args(arguments);
    if let Some(headers) = headers {
        command.arg("-I").arg(headers);
    }
    let status = command.status().with_context(|| format!("Cannot start {bindgen}"))?;
    ensure!(status.success(), "bindgen failed for Xen {release} ({status})");
    let committed = folder.join(format!("src/v{}_{}.rs", release.major, release.minor));
    if options.check {
        ensure!(
            fs::read(&written)? == fs::read(&committed)?,
            "{} differs from the output of bindgen {BINDGEN}; run: cargo xtask bindings",
            committed.display()
        );
    } else {
        fs::copy(&written, &committed).with_context(|| format!("Cannot write {}", committed.display()))?;
    }
    println!("{} is current", committed.display());
    Ok(())
}

/// Lays the headers of a release out as `make install-headers` of Xen does.
fn lay_out(source: &Path, release: Release, into: &Path) -> Result<()> {
    // The interface of a release does not change in its point releases.
    let tag = format!("RELEASE-{release}.0");
    let tree = tempfile::tempdir()?;
    let mut archive = Command::new("git")
        .arg("-C")
        .arg(source)
        .args(["archive", &tag, "tools/include", "xen/include/public"])
        .stdout(Stdio::piped())
        .spawn()
        .context("Cannot start git")?;
    let output = archive.stdout.take().context("git has no output")?;
    let unpacked = Command::new("tar").arg("x").arg("-C").arg(tree.path()).stdin(output).status();
    let archived = archive.wait()?;
    ensure!(archived.success(), "{} has no tag {tag} that can be read ({archived})", source.display());
    ensure!(unpacked.context("Cannot start tar")?.success(), "The headers of {tag} cannot be unpacked");
    let (tools, public) = (tree.path().join("tools/include"), tree.path().join("xen/include/public"));
    copy_tree(&public, &into.join("xen"))?;
    for entry in fs::read_dir(&tools)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "h") {
            fs::copy(&path, into.join(path.file_name().context("a file without a name")?))?;
        }
    }
    let foreign = into.join("xen/foreign");
    fs::create_dir_all(&foreign)?;
    for processor in FOREIGN {
        make_foreign(&tools.join("xen-foreign/mkheader.py"), &public, processor, &foreign)?;
    }
    Ok(())
}

/// Makes the header that names one processor's structures apart from those of the others.
fn make_foreign(script: &Path, public: &Path, processor: &str, into: &Path) -> Result<()> {
    let name = format!("{processor}.h");
    let status = Command::new("python3")
        .current_dir(into)
        // The script names a macro after the file.
        .args([script.as_os_str(), processor.as_ref(), name.as_ref()])
        .arg(public.join(format!("arch-x86/xen-{processor}.h")))
        .args([public.join("arch-x86/xen.h"), public.join("xen.h")])
        .status()
        .context("Cannot start python3")?;
    ensure!(status.success(), "{} failed ({status})", script.display());
    // As Xen's own Makefile does: an alignment must not stand in a cast.
    let path = into.join(name);
    let text = fs::read_to_string(&path)?;
    fs::write(&path, text.replace("(__align8__ uint64_t)", "(uint64_t)"))?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &place)?;
        } else {
            fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

/// Finds bindgen in the right version, or installs it below the target folder.
fn bindgen() -> Result<String> {
    let root = workspace::kept("tools");
    let own = root.join("bin/bindgen").to_string_lossy().into_owned();
    for candidate in ["bindgen".to_owned(), own.clone()] {
        let output = Command::new(&candidate).arg("--version").output();
        if output.is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout).trim() == format!("bindgen {BINDGEN}")
        }) {
            return Ok(candidate);
        }
    }
    eprintln!("Installing bindgen {BINDGEN} into {}", root.display());
    let status = Command::new(env!("CARGO"))
        .args(["install", "--locked", "--quiet", "bindgen-cli", "--version", BINDGEN, "--root"])
        .arg(&root)
        .status()
        .context("Cannot start cargo")?;
    if !status.success() {
        bail!("bindgen {BINDGEN} could not be installed ({status})");
    }
    Ok(own)
}
