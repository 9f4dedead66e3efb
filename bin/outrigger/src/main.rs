//! The command line of Outrigger: parses, asks the daemon, shows the answer.
#![forbid(unsafe_code)]

mod cli;
mod closed_pipe;
mod commands;
mod qmp;
mod report;
mod table;
mod timeline;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    closed_pipe::end_quietly();
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => report::print(&error),
    }
}
