//! `cargo xtask prepush`: what finds most mistakes within a minute, before a branch is pushed.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::{binaries, checks, git, tidy, workspace};

/// Folders whose folders are crates.
const FOLDERS: [&str; 2] = ["bin/", "crates/"];
/// Folders that are crates.
const CRATES: [&str; 2] = ["vm-tests", "xtask"];
/// What a change of makes every crate another one.
const EVERYWHERE: [&str; 4] = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo/config.toml"];

/// Runs the checks one after the other; the first that fails ends it.
pub(crate) fn main() -> Result<ExitCode> {
    let begun = Instant::now();
    let base = git::base(workspace::root()).unwrap_or_else(|| "HEAD~1".to_owned());
    let changed = git::changed_files(workspace::root(), &base)?;
    timed("format", checks::format)?;
    timed("tidy", tidy::check)?;
    timed("lints", checks::lints)?;
    match Tests::of(&changed) {
        Tests::None => eprintln!("== no crate changed since {base}"),
        tests => timed("unit tests", || tests.run())?,
    }
    eprintln!("== all good after {:.0} s; cargo xtask test runs the rest", begun.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn timed(name: &str, what: impl FnOnce() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    what().with_context(|| format!("The check \"{name}\" failed"))?;
    eprintln!("== {name}: {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The crates whose unit tests run.
#[derive(Debug, PartialEq, Eq)]
enum Tests {
    None,
    All,
    Some(Vec<String>),
}

impl Tests {
    /// The crates that have changed files. Folders and crates have the same names.
    fn of(changed: &[String]) -> Self {
        if changed.iter().any(|file| EVERYWHERE.contains(&file.as_str())) {
            return Self::All;
        }
        let mut crates: Vec<String> = changed.iter().filter_map(|file| crate_of(file)).collect();
        crates.sort();
        crates.dedup();
        if crates.is_empty() { Self::None } else { Self::Some(crates) }
    }

    /// Runs the unit tests of these crates and, with nextest, of those that use them.
    fn run(&self) -> Result<()> {
        let nextest = checks::has("nextest");
        let mut arguments = if nextest { vec!["nextest", "run"] } else { vec!["test", "--quiet"] };
        // With all crates and the features of cargo xtask test, so that nothing is compiled in two ways.
        arguments.extend([
            "--lib",
            "--bins",
            "--locked",
            "--features",
            binaries::DEV_FEATURES,
            "--workspace",
        ]);
        let filter = match self {
            Self::Some(crates) if nextest => {
                crates.iter().map(|name| format!("rdeps(={name})")).collect::<Vec<_>>().join(" + ")
            }
            Self::Some(_) | Self::All | Self::None => String::new(),
        };
        if nextest {
            arguments.extend(["--no-tests=pass", "--status-level=fail", "--final-status-level=fail"]);
        }
        if !filter.is_empty() {
            arguments.extend(["--filterset", &filter]);
        }
        checks::cargo(&arguments)
    }
}

/// The crate that a file belongs to.
fn crate_of(file: &str) -> Option<String> {
    let name = match FOLDERS.iter().find_map(|folder| file.strip_prefix(folder)) {
        Some(below) => below.split_once('/')?.0,
        None => CRATES.into_iter().find(|name| file.split_once('/').is_some_and(|(top, _)| top == *name))?,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[&str]) -> Tests {
        Tests::of(&files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn changed_files_name_their_crates() {
        assert_eq!(of(&["README.md", "docs/qmp.md", "fuzz/Cargo.lock"]), Tests::None);
        let files =
            ["xtask/src/main.rs", "crates/qmp/src/lib.rs", "crates/qmp/Cargo.toml", "bin/outriggerd/a.rs"];
        let names = ["outriggerd", "qmp", "xtask"].map(str::to_owned).to_vec();
        assert_eq!(of(&files), Tests::Some(names));
        assert_eq!(of(&["crates/qmp/src/lib.rs", "Cargo.lock"]), Tests::All);
    }
}
