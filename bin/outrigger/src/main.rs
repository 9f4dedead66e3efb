//! The command line of Outrigger: parses, asks the daemon, shows the answer.
#![forbid(unsafe_code)]

mod cli;
mod closed_pipe;
mod commands;
mod qmp;
mod report;
mod table;
mod timeline;
mod xl;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

fn main() -> ExitCode {
    closed_pipe::end_quietly();
    let matches = xl::with_missing(xl::compared(cli::Cli::command())).get_matches();
    if let Some(refusal) = xl::refusal(&matches) {
        return report::print(&report::Usage(refusal).into());
    }
    let cli = cli::Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => report::print(&error),
    }
}
