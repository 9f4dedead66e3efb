//! Project chores: demo, test, host, bench, bindings.
//!
//! Started as `cargo xtask`. It needs neither Xen nor its headers to build.
#![forbid(unsafe_code)]

mod binaries;
mod debian;
mod guest;
mod host;
mod view;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the Outrigger workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The embedded Xen host: real Xen, dom0 and guests under QEMU's software emulation.
    #[command(subcommand)]
    Host(host::Command),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Host(command) => host::main(command),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("  because: {cause}");
        }
        ExitCode::FAILURE
    })
}
