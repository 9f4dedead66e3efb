//! `outrigger image`.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use image::compiled::CompileStep;
use image::manifest::{Content, Manifest};
use image::packages::{Mirrors, Progress, Store};
use image::stubdom::{self, Origin, Step, StubdomSpec};

use crate::cli::{Image, ImagePart};
use crate::table;

/// Does what was asked of images.
pub(crate) fn run(command: &Image) -> Result<ExitCode> {
    match command {
        Image::Build { output, agent, debian, mirror, security_mirror, kernel, qemu, jobs } => {
            std::fs::metadata(agent).with_context(|| {
                format!(
                    "Cannot find outrigger-agent at {}; install it there, or specify it with --agent",
                    agent.display()
                )
            })?;
            let store = Store::from_environment()?;
            let mirrors = Mirrors { archive: mirror.clone(), security: security_mirror.clone() };
            let store = store.of(debian.unwrap_or(store.debian()), &mirrors);
            let mut spec = StubdomSpec::usual(&store, output, agent, env!("CARGO_PKG_VERSION"));
            if let Some(part) = kernel {
                spec.kernel = origin(*part, Origin::debian_kernel);
            }
            if let Some(part) = qemu {
                spec.qemu = origin(*part, Origin::debian_qemu);
            }
            if let Some(jobs) = jobs {
                spec.jobs = *jobs;
            }
            build(&store, &spec)
        }
        Image::Info { json, dir } => info(dir, *json),
    }
}

fn origin(part: ImagePart, debian: fn() -> Origin) -> Origin {
    match part {
        ImagePart::Debian => debian(),
        ImagePart::Minimal => Origin::Minimal,
    }
}

fn build(store: &Store, spec: &StubdomSpec) -> Result<ExitCode> {
    let live = std::io::stderr().is_terminal();
    let manifest = stubdom::build_in(store, spec, &mut |step| {
        let text = describe(&step);
        if live {
            eprint!("\r\x1b[K{text}");
        } else {
            eprintln!("{text}");
        }
    })?;
    if live {
        eprint!("\r\x1b[K");
    }
    print_summary(&spec.output, &manifest);
    Ok(ExitCode::SUCCESS)
}

fn describe(step: &Step<'_>) -> String {
    match step {
        Step::Packages(step) | Step::Compiling(CompileStep::Packages(step)) => describe_packages(step),
        Step::Compiling(CompileStep::Fetching { program, bytes }) => {
            format!("fetching the sources of {}, {}", program.name(), mib(*bytes))
        }
        Step::Compiling(CompileStep::Unpacking(program)) => {
            format!("unpacking the sources of {}", program.name())
        }
        Step::Compiling(CompileStep::Configuring(program)) => format!("configuring {}", program.name()),
        Step::Compiling(CompileStep::Compiling(program)) => {
            format!("compiling {} (a few minutes, once)", program.name())
        }
        Step::Choosing => "selecting files".to_owned(),
        Step::Kernel => "unpacking the kernel".to_owned(),
        Step::Packing { bytes } => format!("packing {}", mib(*bytes)),
    }
}

fn describe_packages(step: &Progress<'_>) -> String {
    match step {
        Progress::Resolving => "asking apt which packages are needed".to_owned(),
        Progress::Fetching { packages, bytes } => format!("fetching {packages} packages, {}", mib(*bytes)),
        Progress::Unpacking { package } => format!("unpacking {}", package.name),
    }
}

fn info(dir: &Path, json: bool) -> Result<ExitCode> {
    let manifest = Manifest::read(dir).context("`outrigger image build` builds an image")?;
    if json {
        println!("{}", serde_json::to_string_pretty(&manifest)?);
    } else {
        print_summary(dir, &manifest);
        let rows: Vec<Vec<String>> = manifest
            .packages
            .iter()
            .map(|source| {
                vec![
                    source.name.clone(),
                    source.version.clone(),
                    source.files.to_string(),
                    source.bytes.to_string(),
                    source.licence.clone(),
                ]
            })
            .collect();
        print!("\n{}", table::render(&["PACKAGE", "VERSION", ">FILES", ">BYTES", "LICENCE"], &rows));
        let rows: Vec<Vec<String>> = manifest.files.iter().map(file_row).collect();
        print!("\n{}", table::render(&["FILE", ">BYTES", "PACKAGE", "VERSION", "LICENCE"], &rows));
    }
    Ok(ExitCode::SUCCESS)
}

fn file_row(file: &Content) -> Vec<String> {
    let path = match &file.link {
        Some(target) => format!("{} -> {target}", file.path),
        None => file.path.clone(),
    };
    vec![path, file.size.to_string(), file.package.clone(), file.version.clone(), file.licence.clone()]
}

fn print_summary(dir: &Path, manifest: &Manifest) {
    println!("Image     {}", dir.display());
    if let Some(debian) = manifest.debian {
        println!("Debian    {debian}");
    }
    println!("Kernel    {} {}", manifest.kernel.package, manifest.kernel.version);
    println!("QEMU      {} {}", manifest.qemu.package, manifest.qemu.version);
    match &manifest.qemu.abilities {
        Some(has) => println!(
            "          {} machine types, {} devices, {} disk formats",
            has.machines.len(),
            has.devices.len(),
            has.formats.len()
        ),
        None => {
            println!("          its devices are not known, and are not checked before a guest is created");
        }
    }
    println!("Agent     {}", manifest.agent.version);
    println!("Memory    {} of a stubdomain, without video memory", mib(manifest.memory_kib * 1024));
    println!("Contents  {} files, {}", manifest.totals.files, mib(manifest.totals.bytes));
    for output in &manifest.outputs {
        println!("{:<9} {}, SHA-256 {}", output.name, mib(output.size), output.sha256);
    }
}

fn mib(bytes: u64) -> String {
    // Tenths of a MiB, without going through a float.
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
