//! `cargo xtask test`: format, lints, every test, and the end-to-end suite on the embedded host.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use image::compiled::{Compiled, Program};
use image::manifest::Manifest;
use image::packages::Store;
use testhost::Accel;

use crate::host::{self, AccelOption, BuildOptions};
use crate::view::View;
use crate::{debian, suite, watch, workspace};

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leaves the end-to-end suite out.
    #[arg(long)]
    no_e2e: bool,
    /// Runs nothing but the end-to-end suite.
    #[arg(long, conflicts_with = "no_e2e")]
    only_e2e: bool,
    /// Boots the embedded host from scratch (always so where CI=true).
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    accel: AccelOption,
    /// Installs missing Debian packages without asking.
    #[arg(long)]
    yes: bool,
    /// Only tests and cases whose name holds this; `watch` for the trials of the watch over the embedded host alone,
    /// `reboot` for that of a reboot of the whole host alone, `pair` for that of a pair of hosts alone.
    filter: Option<String>,
}

/// Says what the stubdomain's image is, so that two machines' can be compared: from the same packages, the same bytes.
fn tell_image() -> Result<()> {
    let manifest = Manifest::read(&workspace::kept("stubdom").join("current"))?;
    for output in manifest.outputs {
        eprintln!("== tested with {} {}, {} bytes", output.name, output.sha256, output.size);
    }
    Ok(())
}

/// Compares what this machine compiled with what is on record for the same sources and the same tools.
fn same_as_elsewhere(program: Program, compiled: &Compiled) -> Result<()> {
    let (name, sum) = (program.name(), compiled.sum()?);
    match program.known_sum(&compiled.key) {
        Some(known) if known == sum => eprintln!("== {name} is to the byte what is on record"),
        Some(known) => bail!(
            "{name} has the sum {sum}, but of the same sources by the same tools {known} is on record \
             (crates/image/src/compiled/sums.txt): something of the machine gets in"
        ),
        None => eprintln!("== {name} is of other sources or tools: {}", program.record(&compiled.key, &sum)),
    }
    Ok(())
}

/// Runs the stages one after the other; the first that fails ends it.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    debian::ensure(&[debian::BUILD.as_slice(), &debian::RUN_HOST].concat(), options.yes || ci)?;
    let started = Instant::now();
    let stage = |name: &str, what: &dyn Fn() -> Result<()>| -> Result<()> {
        eprintln!("== {name}");
        let begun = Instant::now();
        what().with_context(|| format!("The stage \"{name}\" failed"))?;
        eprintln!("== {name}: {:.0} s", begun.elapsed().as_secs_f64());
        Ok(())
    };
    if !options.only_e2e {
        if options.filter.is_none() {
            stage("format", &|| cargo(&["fmt", "--all", "--check"]))?;
            let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
            stage("lints", &|| cargo(&clippy))?;
        }
        stage("tests", &|| tests(options.filter.as_deref()))?;
    }
    if !options.no_e2e {
        let accel = options.accel.decide(&mut View::new(false, false))?;
        // What users are to run is what is tested.
        stage("the stubdomain's kernel and QEMU", &|| {
            let store = Store::from_environment()?;
            let mut view = View::new(false, false);
            let compiled = crate::stubdom::compile_missing(&store, options.yes || ci, &mut view)?;
            compiled.iter().try_for_each(|(program, compiled)| same_as_elsewhere(*program, compiled))
        })?;
        let is_asked = |name: &str| options.filter.as_deref().is_none_or(|filter| name.contains(filter));
        if is_asked("watch") {
            stage("watch over the embedded host", &|| watch(accel))?;
        }
        if is_asked("pair") {
            stage("a pair of hosts", &|| crate::pair::trial(accel))?;
        }
        if is_asked("reboot") {
            stage("reboot of the embedded host", &|| suite::reboot(accel))?;
        }
        if !matches!(options.filter.as_deref(), Some("watch" | "reboot" | "pair")) {
            stage("end-to-end suite", &|| suite::run(options.filter.as_deref(), options.fresh || ci, accel))?;
            tell_image()?;
        }
    }
    eprintln!("== all good after {:.0} s", started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let status = Command::new(env!("CARGO")).args(arguments).current_dir(workspace::root()).status()?;
    if !status.success() {
        bail!("cargo {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// Runs unit, property and integration tests with nextest where it is installed, else with cargo's own runner.
fn tests(filter: Option<&str>) -> Result<()> {
    let nextest = Command::new(env!("CARGO")).args(["nextest", "--version"]).output();
    let mut arguments = if nextest.is_ok_and(|output| output.status.success()) {
        vec!["nextest", "run", "--workspace", "--locked", "--no-tests=pass", "--no-fail-fast"]
    } else {
        eprintln!("cargo-nextest is not installed (cargo install --locked cargo-nextest): using cargo test");
        vec!["test", "--workspace", "--locked", "--quiet"]
    };
    arguments.extend(filter);
    cargo(&arguments)
}

/// Does harm to a host without programs of ours and sees whether each run tells of it at once.
fn watch(accel: Accel) -> Result<()> {
    let mut view = View::new(false, false);
    let build = BuildOptions { bare: true, ..BuildOptions::default() };
    let host = host::built(&build, &[], &mut view)?;
    watch::trials(&host, accel, &mut view)
}
