//! Completion scripts and man pages, made from the grammar.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::xl;

/// Prints a completion script.
pub(crate) fn completion(shell: Shell) -> Result<ExitCode> {
    // It panics when it cannot write, so it writes where it always can.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut script);
    match std::io::stdout().write_all(&script) {
        // The reader may close the pipe early.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            return Err(error).context("Cannot write the completion script");
        }
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes `outrigger.1` and a page for each command.
pub(crate) fn man(dir: &Path) -> Result<ExitCode> {
    fs::create_dir_all(dir).with_context(|| format!("Cannot make the folder {}", dir.display()))?;
    clap_mangen::generate_to(xl::compared(Cli::command()), dir)
        .with_context(|| format!("Cannot write man pages into {}", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
