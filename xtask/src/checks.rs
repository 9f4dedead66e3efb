//! Checks of the whole workspace, which `cargo xtask test` and `cargo xtask prepush` have in common.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{binaries, bindings, workspace};

/// Runs cargo in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    run(Command::new(env!("CARGO")).args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.current_dir(workspace::root()).status().context("Cannot start cargo")?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        bail!("cargo {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// Whether cargo has a command that is installed apart from it.
pub(crate) fn has(command: &str) -> bool {
    let output = Command::new(env!("CARGO")).args([command, "--version"]).output();
    output.is_ok_and(|output| output.status.success())
}

/// The format of all Rust files.
pub(crate) fn format() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])
}

/// Clippy and the compiler's own lints.
pub(crate) fn lints() -> Result<()> {
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
}

/// What stands on the bindings compiles with those of every release of Xen, whether its libraries are here or not.
pub(crate) fn releases() -> Result<()> {
    for minor in bindings::MINORS {
        let arguments =
            ["check", "--package", "xen", "--tests", "--features", "testing", "--locked", "--quiet"];
        run(Command::new(env!("CARGO"))
            .args(arguments)
            .args(["--target-dir", &workspace::target().join("releases").to_string_lossy()])
            .env("XEN_SYS_CHECK", format!("4.{minor}")))
        .with_context(|| format!("On the bindings of Xen 4.{minor}"))?;
    }
    Ok(())
}

/// The documentation of all crates: no broken link, nothing that rustdoc warns of.
pub(crate) fn documentation() -> Result<()> {
    let arguments = ["doc", "--workspace", "--no-deps", "--locked", "--quiet"];
    run(Command::new(env!("CARGO")).args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// The examples in the documentation. Cargo's own runner has them among its tests, nextest has not.
pub(crate) fn examples() -> Result<()> {
    cargo(&["test", "--doc", "--workspace", "--locked", "--quiet", "--features", binaries::DEV_FEATURES])
}

/// Every fuzz target compiles. They are a workspace of their own, with a target folder in ours. Where the crates that
/// they alone need cannot be fetched, it says so and passes.
pub(crate) fn fuzz_targets() -> Result<()> {
    if let Err(error) = cargo(&["fetch", "--manifest-path", "fuzz/Cargo.toml", "--locked", "--quiet"]) {
        eprintln!("the fuzz targets are not compiled: {error:#}");
        return Ok(());
    }
    let folder = workspace::target().join("fuzz");
    let arguments = ["check", "--manifest-path", "fuzz/Cargo.toml", "--bins", "--locked", "--quiet"];
    run(Command::new(env!("CARGO")).args(arguments).arg("--target-dir").arg(folder))
}

/// Licences, sources and versions of others' crates, where cargo-deny is installed. Advisories are left out: they change
/// without a change of ours.
pub(crate) fn dependencies() -> Result<()> {
    if has("deny") {
        return cargo(&["deny", "check", "licenses", "bans", "sources"]);
    }
    eprintln!("cargo-deny is not installed (cargo install --locked cargo-deny): deny.toml is not checked");
    Ok(())
}
