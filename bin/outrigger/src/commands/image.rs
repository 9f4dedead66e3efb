//! `outrigger image`.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use image::manifest::Manifest;
use image::packages::Progress;
use image::stubdom::{self, Step, StubdomSpec};

use crate::cli::Image;
use crate::table;

/// Does what was asked of images.
pub(crate) fn run(command: &Image) -> Result<ExitCode> {
    match command {
        Image::Build { output, agent } => build(output, agent),
        Image::Info { json, dir } => info(dir, *json),
    }
}

fn build(output: &Path, agent: &Path) -> Result<ExitCode> {
    std::fs::metadata(agent).with_context(|| {
        format!(
            "Cannot find outrigger-agent at {}; install it there, or name it with --agent",
            agent.display()
        )
    })?;
    let spec = StubdomSpec::debian(output, agent, env!("CARGO_PKG_VERSION"));
    let live = std::io::stderr().is_terminal();
    let manifest = stubdom::build(&spec, &mut |step| {
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
    print_summary(output, &manifest);
    Ok(ExitCode::SUCCESS)
}

fn describe(step: &Step<'_>) -> String {
    match step {
        Step::Packages(Progress::Resolving) => "asking apt which packages are needed".to_owned(),
        Step::Packages(Progress::Fetching { packages, bytes }) => {
            format!("fetching {packages} packages, {}", mib(*bytes))
        }
        Step::Packages(Progress::Unpacking { package }) => format!("unpacking {}", package.name),
        Step::Choosing => "choosing files".to_owned(),
        Step::Kernel => "unpacking the kernel".to_owned(),
        Step::Packing { bytes } => format!("packing {}", mib(*bytes)),
    }
}

fn info(dir: &Path, json: bool) -> Result<ExitCode> {
    let manifest = Manifest::read(dir).context("outrigger image build makes an image")?;
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
    }
    Ok(ExitCode::SUCCESS)
}

fn print_summary(dir: &Path, manifest: &Manifest) {
    println!("Image     {}", dir.display());
    println!("Kernel    {} {}", manifest.kernel.package, manifest.kernel.version);
    println!("QEMU      {} {}", manifest.qemu.package, manifest.qemu.version);
    println!("Agent     {}", manifest.agent.version);
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
