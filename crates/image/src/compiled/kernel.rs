//! The stubdomain's kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    ImageError, Result,
    debian::Recipe,
    files::{create_dir_all, sha256_bytes},
    kernel::extract_elf,
    packages::{Package, Progress, Store, Take},
};

use super::{CompileStep, Steps, versioned::lines_for};

/// The options, on top of none, of all versions.
const OPTIONS: &str = include_str!("../../kernel/stubdom.config");
/// To be raised when the code of this file makes other kernels of the same options.
const RECIPE: u32 = 1;

/// Tools and headers.
pub(super) const NEEDS: [&str; 9] =
    ["bc", "binutils", "bison", "flex", "gcc", "libc6-dev", "libelf-dev", "make", "xz-utils"];

/// Settings that would otherwise name the build machine and the time.
const FIXED: [(&str, &str); 4] = [
    ("KBUILD_BUILD_USER", "outrigger"),
    ("KBUILD_BUILD_HOST", "outrigger"),
    ("KBUILD_BUILD_TIMESTAMP", "Wed Jan  1 00:00:00 UTC 2020"),
    ("KBUILD_BUILD_VERSION", "1"),
];

pub(super) fn recipe(recipe: &Recipe) -> String {
    let source = recipe.linux_source();
    sha256_bytes(format!("{RECIPE} {source} {FIXED:?}\n{}", options(recipe)).as_bytes())
}

/// The options that the version has.
fn options(recipe: &Recipe) -> String {
    lines_for(OPTIONS, recipe.linux)
}

/// Fetches and unpacks the package of Linux's sources with Debian's patches.
pub(super) fn source(
    store: &Store,
    recipe: &Recipe,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(PathBuf, Package)> {
    let name = recipe.linux_source();
    let root = store.root(&[&name], Take::Named, progress)?;
    root.layers()
        .iter()
        .find_map(|layer| Some((layer.folder.clone(), layer.package.clone()?)))
        .ok_or(ImageError::NoSuchPackage { package: name, debian: recipe.debian })
}

/// Compiles the kernel of an unpacked package.
pub(super) fn compile(
    package_tree: &Path,
    package: &Package,
    recipe: &Recipe,
    steps: &mut Steps,
    progress: &mut dyn FnMut(CompileStep<'_>),
) -> Result<Package> {
    let program = steps.program();
    let sources = steps.sources();
    create_dir_all(&sources)?;
    progress(CompileStep::Unpacking(program));
    let source = recipe.linux_source();
    let mut tar = steps.machines("tar", &sources);
    tar.args(["--extract", "--xz", "--strip-components=1", "--file"])
        .arg(package_tree.join(format!("usr/src/{source}.tar.xz")));
    steps.run("unpacking the sources", &mut tar)?;

    progress(CompileStep::Configuring(program));
    let (place, options) = (sources.join("stubdom.config"), options(recipe));
    fs::write(&place, &options).map_err(ImageError::io("write", &place))?;
    let mut configure = make(steps, &sources);
    configure.arg("KCONFIG_ALLCONFIG=stubdom.config").arg("allnoconfig");
    steps.run("configuring", &mut configure)?;
    let result = steps.made(".config")?;
    let differences = differences(&options, &String::from_utf8_lossy(&result));
    if !differences.is_empty() {
        let words = format!("these sources do not accept {}", differences.join(", "));
        return Err(steps.failed("configuring", words));
    }

    progress(CompileStep::Compiling(program));
    let mut compile = make(steps, &sources);
    compile.arg(steps.jobs()).arg("vmlinux");
    steps.run("compiling", &mut compile)?;
    let release = steps.made("include/config/kernel.release")?;
    let release = String::from_utf8_lossy(&release).trim().to_owned();
    let kernel = extract_elf("vmlinux", &steps.made("vmlinux")?)?;
    steps.put(&format!("/boot/vmlinuz-{release}"), &kernel)?;
    steps.put(&format!("/boot/config-{release}"), &result)?;
    let builtin = steps.made("modules.builtin")?;
    steps.put(&format!("/lib/modules/{release}/modules.builtin"), &builtin)?;
    let copyright = format!("usr/share/doc/{source}/copyright");
    steps.put(&copyright, &read(&package_tree.join(&copyright))?)?;
    Ok(package.clone())
}

fn make(steps: &Steps, sources: &Path) -> Command {
    let mut command = steps.command("make", sources);
    command.envs(FIXED).args(["--silent", "ARCH=x86_64"]);
    command
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(ImageError::io("read", path))
}

/// The lines of our options that a finished configuration does not have.
fn differences(options: &str, result: &str) -> Vec<String> {
    let wanted = |line: &&str| line.starts_with("CONFIG_") || off(line).is_some();
    options
        .lines()
        .filter(wanted)
        .filter(|line| match off(line) {
            // What is off need not be named: its menu may be off as a whole.
            Some(name) => result
                .lines()
                .any(|other| other.strip_prefix(name).is_some_and(|value| value.starts_with('='))),
            None => !result.lines().any(|other| other == *line),
        })
        .map(str::to_owned)
        .collect()
}

/// The name of an option that a line switches off.
fn off(line: &str) -> Option<&str> {
    line.strip_prefix("# ")?.strip_suffix(" is not set").filter(|name| name.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Debian, compiled::versioned::is_well_formed};

    #[test]
    fn test_differences_finds_what_was_not_taken() {
        let result = "CONFIG_A=y\nCONFIG_B=16\nCONFIG_AB=y\n# CONFIG_C is not set\nCONFIG_D=y\n";
        let found = |options| differences(options, result);
        let nothing: Vec<String> = Vec::new();
        assert_eq!(found("# words\nCONFIG_A=y\nCONFIG_B=16\n# CONFIG_C is not set\n"), nothing);
        assert_eq!(found("# CONFIG_E is not set\n\n"), nothing);
        let wrong = "CONFIG_B=17\n# CONFIG_D is not set\nCONFIG_E=y\nCONFIG_C=y";
        assert_eq!(found(wrong), wrong.lines().collect::<Vec<_>>());
    }

    #[test]
    fn test_options_of_each_version_are_said_once_and_well_formed() {
        assert!(is_well_formed(OPTIONS));
        for recipe in Debian::ALL.into_iter().filter_map(Debian::recipe) {
            let options = options(&recipe);
            let mut seen = BTreeSet::new();
            for line in options.lines() {
                let name = match (line.split_once('='), off(line)) {
                    (Some((name, _)), None) if name.starts_with("CONFIG_") => name,
                    (None, Some(name)) => name,
                    _ => {
                        assert!(line.is_empty() || line.starts_with("# "), "{line}");
                        continue;
                    }
                };
                assert!(seen.insert(name), "{name} is said twice");
            }
            // What QEMU's sandbox needs.
            for name in ["CONFIG_SECCOMP_FILTER", "CONFIG_MODULES", "CONFIG_USER_NS", "CONFIG_DEVMEM"] {
                assert!(seen.contains(name), "{name}");
            }
        }
    }

    #[test]
    fn test_protection_from_speculation_is_named_as_each_version_has_it() {
        let options = |debian: Debian| options(&debian.recipe().unwrap());
        let (old, new) = (options(Debian::Bookworm), options(Debian::Trixie));
        assert!(old.contains("\nCONFIG_RETPOLINE=y\n") && !old.contains("CONFIG_MITIGATION_"));
        // What 6.1 always has is an option in 6.12, and off if it is not named.
        for name in ["RETPOLINE", "SPECTRE_V2", "MDS", "RETBLEED"] {
            assert!(new.contains(&format!("\nCONFIG_MITIGATION_{name}=y\n")), "{name}");
        }
    }
}
