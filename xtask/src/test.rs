//! `cargo xtask test`: format, lints, every test, and the end-to-end suite on the embedded host.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use image::compiled::{Compiled, Program};
use image::manifest::Manifest;

use crate::host::{AccelOption, XenstoredOption};
use crate::releases::{DebianOptions, On};
use crate::stages::{Budget, Stages};
use crate::suite::Chosen;
use crate::view::View;
use crate::{binaries, bindings, checks, debian, guest, long, suite, tidy};

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Omits the end-to-end suite.
    #[arg(long)]
    no_e2e: bool,
    /// Runs only the end-to-end suite.
    #[arg(long, conflicts_with = "no_e2e")]
    only_e2e: bool,
    /// Runs a few of the cases on a host of the other Debian release, too, after the suite, with the image that the suite
    /// has tested.
    #[arg(long, conflicts_with = "no_e2e")]
    other_release: bool,
    /// Runs the long tests (hours) instead, all or these parts, and writes the results to docs/status.md. Whole runs
    /// are made in turn on both Debian releases, and on each with oxenstored and xenstored.
    #[arg(long, value_name = "PART,…", value_enum, value_delimiter = ',', num_args = 0..=1, require_equals = true,
        default_missing_value = "rounds,properties", conflicts_with_all = ["no_e2e", "only_e2e", "other_release", "filter", "junit"])]
    long: Option<Vec<long::Part>>,
    /// How many whole runs `--long` makes.
    #[arg(long, value_name = "N", default_value_t = 4, requires = "long")]
    rounds: usize,
    /// How many embedded hosts run at once; by default as many as the machine has processors and memory for.
    #[arg(long, short, value_name = "N", value_parser = parse_jobs)]
    jobs: Option<usize>,
    /// Writes the results of the end-to-end cases to this file, as JUnit XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    #[command(flatten)]
    xenstored: XenstoredOption,
    #[command(flatten)]
    debian: DebianOptions,
    #[command(flatten)]
    accel: AccelOption,
    /// Installs missing Debian packages without asking.
    #[arg(long)]
    yes: bool,
    /// Only tests and cases whose name contains this.
    filter: Option<String>,
}

fn parse_jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=64) => Ok(jobs),
        _ => Err("a number from 1 to 64 is expected".to_owned()),
    }
}

/// Prints the hashes of the stubdomain's image, to compare two machines: the same packages give the same bytes.
fn tell_image(debian: DebianOptions) -> Result<()> {
    let manifest = Manifest::read(&guest::image_folder(&debian.image_store()?))?;
    for output in manifest.outputs {
        eprintln!("== tested with {} {}, {} bytes", output.name, output.sha256, output.size);
    }
    Ok(())
}

/// Compares the compiled program with the recorded sum for the same sources and tools.
fn same_as_elsewhere(program: Program, compiled: &Compiled) -> Result<()> {
    let (name, sum) = (program.name(), compiled.sum()?);
    match program.known_sum(&compiled.key) {
        Some(known) if known == sum => eprintln!("== {name} matches the recorded sum"),
        Some(known) => bail!(
            "{name} has the sum {sum}, but {known} is recorded for the same sources and tools \
             (crates/image/src/compiled/sums.txt): the build depends on the machine"
        ),
        None => eprintln!(
            "== {name} has no recorded sum for these sources and tools: {}",
            program.record(&compiled.key, &sum)
        ),
    }
    Ok(())
}

/// Runs the stages one after the other; the first that fails ends it.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    debian::ensure(&[debian::BUILD.as_slice(), &debian::RUN_HOST].concat(), options.yes || ci)?;
    match &options.long {
        Some(parts) => long::main(parts, options.rounds, options.debian, |on| whole(options, on, ci)),
        None => {
            let on = On { debian: options.debian, xenstored: options.xenstored.xenstored };
            let said = whole(options, on, ci)?;
            eprintln!("== all good: {said}");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs the stages that are asked for, and says in a few words what they gave.
fn whole(options: &Options, on: On, ci: bool) -> Result<String> {
    let mut stages = Stages::begin()?;
    if !options.only_e2e {
        if options.filter.is_none() {
            lints(&mut stages, options.yes || ci)?;
        }
        stages.run("tests", Budget::minutes(4), || tests(options.filter.as_deref()))?;
    }
    if options.no_e2e {
        return stages.end();
    }
    let accel = options.accel.decide(&mut View::new(false, false))?;
    // What users are to run is what is tested.
    stages.run("the stubdomain's kernel and QEMU, the host's emulator", Budget::Compiling, || {
        let mut view = View::new(false, false);
        let compiled = crate::stubdom::compile_all(on.debian, options.yes || ci, &mut view)?;
        compiled.iter().try_for_each(|(program, compiled)| same_as_elsewhere(*program, compiled))
    })?;
    let suite = suite::Options {
        chosen: Chosen::All,
        filter: options.filter.as_deref(),
        must_match: options.only_e2e,
        jobs: options.jobs,
        junit: options.junit.clone(),
        accel,
        xenstored: on.xenstored,
        debian: on.debian,
    };
    let mut cases = 0;
    stages.run("end-to-end suite", Budget::minutes(15), || {
        cases = suite::run(&suite)?.cases;
        Ok(())
    })?;
    if options.other_release {
        let other = suite::Options {
            chosen: Chosen::OnEachDebian,
            must_match: false,
            junit: None,
            debian: on.debian.with_other_host(),
            ..suite
        };
        stages.run("a few cases on the other Debian release", Budget::minutes(6), || {
            cases += suite::run(&other)?.cases;
            Ok(())
        })?;
    }
    tell_image(on.debian)?;
    Ok(format!("{}; {cases} cases passed", stages.end()?))
}

/// Everything that needs no test to run.
fn lints(stages: &mut Stages, yes: bool) -> Result<()> {
    stages.run("format, tidy", Budget::minutes(1), || checks::format().and_then(|()| tidy::check()))?;
    stages.run("lints", Budget::minutes(2), checks::lints)?;
    stages.run("documentation", Budget::minutes(2), checks::documentation)?;
    // The first time, bindgen and libFuzzer are compiled.
    stages.run("bindings, fuzz targets, dependencies", Budget::Compiling, || {
        debian::ensure(&debian::FUZZ, yes)?;
        bindings::check(yes)?;
        checks::releases()?;
        checks::fuzz_targets()?;
        checks::dependencies()
    })
}

/// Runs unit, property and integration tests and the examples in the documentation, the former with nextest where it is
/// installed, else all with cargo's own runner.
fn tests(filter: Option<&str>) -> Result<()> {
    let nextest = checks::has("nextest");
    let mut arguments = if nextest {
        vec!["nextest", "run", "--workspace", "--locked", "--no-tests=pass", "--no-fail-fast"]
    } else {
        eprintln!("cargo-nextest is not installed (cargo install --locked cargo-nextest): using cargo test");
        vec!["test", "--workspace", "--locked", "--quiet"]
    };
    arguments.extend(["--features", binaries::DEV_FEATURES]);
    arguments.extend(filter);
    checks::cargo(&arguments)?;
    if nextest && filter.is_none() { checks::examples() } else { Ok(()) }
}
