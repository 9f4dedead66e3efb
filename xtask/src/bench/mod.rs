//! `cargo xtask bench`: measurements on the embedded host, ours beside stock xl in one boot.

mod create;
mod results;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, first guest byte, destroy and dom0's memory: xl with QEMU in dom0, xl with the stubdomain, ours.
    Create(Options),
}

/// How to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Runs of each; the medians count.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Writes the figures to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Installs missing Debian packages without asking.
    #[arg(long)]
    yes: bool,
    /// Takes our programs as they were compiled last.
    #[arg(long)]
    no_build: bool,
    /// Boots the embedded host from scratch.
    #[arg(long, env = "OUTRIGGER_FRESH")]
    fresh: bool,
}

/// Measures.
pub(crate) fn main(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Create(options) => create::main(options),
    }
}
