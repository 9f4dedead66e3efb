//! `cargo xtask bindings`: makes the committed bindings to Xen's libraries again, or checks that they are current.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{debian, workspace};

/// The version of bindgen whose output is committed; another one writes the same bindings differently.
const BINDGEN: &str = "0.73.2";
/// The line of the arguments before the file that bindgen writes.
const OUTPUT: &str = "--output";

/// What to do.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Changes nothing; fails when the committed file is not what bindgen writes.
    #[arg(long)]
    check: bool,
    /// Installs missing Debian packages without asking.
    #[arg(long)]
    yes: bool,
}

/// Fails when the committed bindings are not what bindgen writes. Where bindgen cannot be had, it says so and passes.
pub(crate) fn check(yes: bool) -> Result<()> {
    if let Err(error) = bindgen() {
        eprintln!("the bindings to Xen's libraries are not checked: {error:#}");
        return Ok(());
    }
    main(&Options { check: true, yes }).map(drop)
}

/// Runs bindgen in the folder of `xen-sys` with the arguments in `bindgen.args`.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    debian::ensure(&["libxen-dev", "libclang-dev"], options.yes)?;
    let bindgen = bindgen()?;
    let folder = workspace::root().join("crates/xen-sys");
    let text = std::fs::read_to_string(folder.join("bindgen.args")).context("Cannot read bindgen.args")?;
    let mut arguments: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let position = arguments.iter().position(|argument| *argument == OUTPUT).map(|at| at + 1);
    let place = position.and_then(|at| arguments.get_mut(at)).context("bindgen.args names no --output")?;
    let committed = folder.join(*place);
    let temporary = tempfile::tempdir()?;
    let written = temporary.path().join("bindings.rs");
    let written_text = written.to_string_lossy().into_owned();
    if options.check {
        *place = &written_text;
    }
    let status = Command::new(&bindgen).args(&arguments).current_dir(&folder).status();
    let status = status.with_context(|| format!("Cannot start {bindgen}"))?;
    if !status.success() {
        bail!("bindgen failed ({status})");
    }
    if options.check && std::fs::read(&written)? != std::fs::read(&committed)? {
        bail!(
            "{} differs from the output of bindgen {BINDGEN}; run: cargo xtask bindings",
            committed.display()
        );
    }
    println!("{} is current", committed.display());
    Ok(ExitCode::SUCCESS)
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
