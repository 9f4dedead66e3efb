//! `cargo xtask image`: the stubdomain's image as the embedded host has it, with kernel and QEMU compiled for it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use image::Debian;
use image::compiled::{CompileStep, Compiled, Program};
use image::packages::{Mirrors, Progress, Store};
use testhost::Observer as _;

use crate::releases::DebianOptions;
use crate::view::View;
use crate::{debian, guest};

/// How to make the image.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Installs missing Debian packages without asking.
    #[arg(long)]
    yes: bool,
    /// The Debian that sources and packages are of: bookworm or trixie; by default the machine's own.
    #[arg(long)]
    debian: Option<Debian>,
}

/// Compiles what is not in the cache, builds the image, and prints its folder.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    debian::ensure(&debian::BUILD, options.yes)?;
    let store = Store::from_environment()?;
    let store = store.of(options.debian.unwrap_or(store.debian()), &Mirrors::default());
    let mut view = View::new(false, false);
    compile_missing(&store, options.yes, &mut view)?;
    let puts = guest::stubdom(&store, true, &mut view)?;
    if let Some(folder) = puts.first().and_then(|put| put.source.parent()).map(Path::display) {
        println!("{folder}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Compiles the stubdomain's kernel and QEMU, as far as the cache does not have them; the image and the embedded host
/// take them from there.
pub(crate) fn compile_missing(store: &Store, yes: bool, view: &mut View) -> Result<Vec<(Program, Compiled)>> {
    compile(store, &[Program::Kernel, Program::Qemu], yes, view)
}

/// As [`compile_missing`], and the emulator of the embedded host.
///
/// The emulator is this machine's, whatever Debian the host is made of.
pub(crate) fn compile_all(
    debian: DebianOptions,
    yes: bool,
    view: &mut View,
) -> Result<Vec<(Program, Compiled)>> {
    let mut done = compile_missing(&debian.image_store()?, yes, view)?;
    done.extend(compile(&Store::from_environment()?, &[Program::Emulator], yes, view)?);
    Ok(done)
}

/// Compiles programs, as far as the cache does not have them.
pub(crate) fn compile(
    store: &Store,
    programs: &[Program],
    yes: bool,
    view: &mut View,
) -> Result<Vec<(Program, Compiled)>> {
    let needs: Vec<&str> = programs.iter().flat_map(|program| program.needs(store.debian())).collect();
    debian::ensure(&needs, yes)?;
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut done = Vec::with_capacity(programs.len());
    for &program in programs {
        let begun = Instant::now();
        let mut is_new = false;
        let compiled = image::compiled::compile(store, program, jobs, &mut |step| {
            is_new |= matches!(step, CompileStep::Compiling(_));
            if let Some(text) = describe(&step) {
                view.progress(&text);
            }
        })?;
        if is_new {
            view.progress(&format!("{} took {:.0} s", program.name(), begun.elapsed().as_secs_f64()));
        }
        done.push((program, compiled));
    }
    Ok(done)
}

fn describe(step: &CompileStep<'_>) -> Option<String> {
    match step {
        CompileStep::Packages(Progress::Resolving | Progress::Unpacking { .. }) => None,
        CompileStep::Packages(Progress::Fetching { bytes, .. }) => {
            Some(format!("Fetching Linux's sources, {} MB", bytes / 1_000_000))
        }
        CompileStep::Fetching { program, bytes } => {
            Some(format!("Fetching the sources of {}, {} MB", program.name(), bytes / 1_000_000))
        }
        CompileStep::Unpacking(program) => Some(format!("Unpacking the sources of {}", program.name())),
        CompileStep::Configuring(program) => Some(format!("Configuring {}", program.name())),
        CompileStep::Compiling(program) => Some(format!("Compiling {}", program.name())),
    }
}
