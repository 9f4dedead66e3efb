//! Builds the programs that go into dom0 and into the stubdomain.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use image::packages::Store;
use testhost::Put;
use xen_types::Release;

use crate::sysroot::{self, Sysroot};
use crate::workspace;

/// Programs of dom0: the binary's name and its place there.
const DOM0: [(&str, &str); 3] = [
    ("outrigger", "/usr/bin/outrigger"),
    ("outriggerd", "/usr/sbin/outriggerd"),
    ("outrigger-consoled", "/usr/sbin/outrigger-consoled"),
];

/// Packages with programs or examples that dom0 of an embedded host gets.
const FOR_DOM0: [&str; 6] = ["outrigger", "outriggerd", "outrigger-consoled", "vm-tests", "xen", "xenstore"];

/// Features without which some examples are not built. The unit tests get them too, so that both are built of the same.
pub(crate) const DEV_FEATURES: &str = "xen/testing,xenstore/server";

/// How programs are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build; the debug information is taken away before it goes into the host.
    Dev,
    /// What users get.
    Release,
    /// What the stubdomain gets: small.
    Agent,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
            Self::Agent => "agent",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
            Self::Agent => "agent",
        }
    }
}

/// What programs of dom0 are linked with.
#[derive(Debug, Clone)]
pub(crate) enum Xen {
    /// The libraries that are installed.
    Installed,
    /// Those of another release.
    Other(Sysroot),
}

impl Xen {
    /// The libraries of a release, installed or from the packages of a Debian that has it.
    pub(crate) fn of(store: &Store, release: Release) -> Result<Self> {
        if sysroot::is_installed(release) {
            Ok(Self::Installed)
        } else {
            Ok(Self::Other(Sysroot::of(store, release)?))
        }
    }

    /// The folder with what was built.
    fn programs(&self, profile: Profile) -> PathBuf {
        match self {
            Self::Installed => workspace::target().join(profile.folder()),
            Self::Other(sysroot) => sysroot.programs(profile.folder()),
        }
    }
}

/// Says where each program of dom0 goes, and builds them first if `build`.
pub(crate) fn dom0(profile: Profile, build: bool, xen: &Xen) -> Result<Vec<Put>> {
    if build {
        let packages: Vec<&str> = DOM0.iter().map(|(name, _)| *name).collect();
        self::build(&packages, profile, &[], xen)?;
    }
    let folder = xen.programs(profile);
    DOM0.iter()
        .map(|(name, target)| {
            Ok(Put { source: stripped(&folder.join(name), profile)?, target: PathBuf::from(target) })
        })
        .collect()
}

/// Builds one more program, such as a test runner for dom0.
pub(crate) fn program(package: &str, profile: Profile, xen: &Xen) -> Result<PathBuf> {
    build(&[package], profile, &[], xen)?;
    stripped(&xen.programs(profile).join(package), profile)
}

/// Builds a crate's example, such as a measuring tool for dom0.
pub(crate) fn example(package: &str, example: &str, profile: Profile, xen: &Xen) -> Result<PathBuf> {
    build(&[package], profile, &["--example", example], xen)?;
    stripped(&xen.programs(profile).join("examples").join(example), profile)
}

/// Builds programs that go into dom0.
fn build(packages: &[&str], profile: Profile, more: &[&str], xen: &Xen) -> Result<()> {
    let all = ["--bins", "--examples", "--features", DEV_FEATURES];
    match (profile, xen) {
        // All of them at once, with the features that the unit tests are built with. For a part of the packages cargo
        // would choose other features of what they have in common, and compile all of that again.
        (Profile::Dev, Xen::Installed) => {
            cargo_build(&[], profile, &[&["--workspace"], &all[..]].concat(), xen)
        }
        // What is for this machine only need not be built again.
        (Profile::Dev, Xen::Other(_)) => cargo_build(&FOR_DOM0, profile, &all, xen),
        (Profile::Release | Profile::Agent, _) => cargo_build(packages, profile, more, xen),
    }
}

/// Builds the stubdomain's agent and names the file.
pub(crate) fn agent(build: bool) -> Result<PathBuf> {
    in_stubdomain(&["--package", "outrigger-agent"], "outrigger-agent", build)
}

/// Builds what tests have in the place of the agent: a stubdomain that an attacker has taken over.
pub(crate) fn hostile_stub() -> Result<PathBuf> {
    in_stubdomain(&["--package", "hostile-stub"], "hostile-stub", true)
}

/// Builds what measures QEMU's monitor from within the stubdomain: its first process, and the program that measures.
pub(crate) fn qmp_probe() -> Result<(PathBuf, PathBuf)> {
    let probe = in_stubdomain(&["--package", "hostile-stub"], "qmp-probe", true)?;
    let load = in_stubdomain(&["--package", "qmp", "--example", "qmp_load"], "examples/qmp_load", true)?;
    Ok((probe, load))
}

/// Builds a program for a stubdomain, static, and names the file.
///
/// It has a target folder of its own: the flag for a static C library would otherwise rebuild everything each time.
fn in_stubdomain(what: &[&str], file: &str, build: bool) -> Result<PathBuf> {
    let folder = workspace::target().join("agent");
    let triple = "x86_64-unknown-linux-gnu";
    let flags = format!("target.{triple}.rustflags=[\"-C\", \"target-feature=+crt-static\"]");
    let folder_text = folder.to_string_lossy();
    let more = ["--target", triple, "--config", &flags, "--target-dir", &folder_text];
    if build {
        cargo_build(&[], Profile::Agent, &[what, &more].concat(), &Xen::Installed)?;
    }
    Ok(folder.join(triple).join(Profile::Agent.folder()).join(file))
}

fn cargo_build(packages: &[&str], profile: Profile, more: &[&str], xen: &Xen) -> Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.arg("build").args(["--profile", profile.name()]).args(more).current_dir(workspace::root());
    for package in packages {
        command.args(["--package", package]);
    }
    if let Xen::Other(sysroot) = xen {
        sysroot.apply(&mut command);
    }
    let status = command.stdout(std::io::stderr()).status().context("Cannot start cargo")?;
    if !status.success() {
        bail!("Building {} failed; with --bare the host comes without our programs", packages.join(", "));
    }
    Ok(())
}

/// A copy without debug information: dom0's memory holds every byte of it.
fn stripped(program: &Path, profile: Profile) -> Result<PathBuf> {
    if profile != Profile::Dev {
        return Ok(program.to_owned());
    }
    std::fs::metadata(program).with_context(|| format!("{} has not been built", program.display()))?;
    let copy = program.with_extension("stripped");
    let status =
        Command::new("strip").arg("--output-target=elf64-x86-64").arg("-o").args([&copy, program]).status();
    let status = status.context("Cannot start strip; install the Debian package binutils")?;
    if !status.success() {
        bail!("strip {} failed ({status})", program.display());
    }
    Ok(copy)
}
