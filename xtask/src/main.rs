//! Development tasks: demo, test, tidy, prepush, host, image, bench, bindings.
//!
//! Started as `cargo xtask`. It needs neither Xen nor its headers to build.
#![forbid(unsafe_code)]

mod bench;
mod binaries;
mod bindings;
mod checks;
mod debian;
mod demo;
mod emulator;
mod git;
mod guest;
mod host;
mod long;
mod meter;
mod native;
mod pair;
mod prepush;
mod releases;
mod stages;
mod stubdom;
mod suite;
mod sysroot;
mod test;
mod tidy;
mod view;
mod watch;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of the Outrigger workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Demonstration: builds everything, boots the embedded host, creates the example guest and shows its output.
    Demo(demo::Options),
    /// Format, lints, every test, and the end-to-end suite on the embedded host.
    Test(test::Options),
    /// Checks sizes of files and functions, circular dependencies, titles of commits, and pages about interfaces.
    Tidy(tidy::Options),
    /// Before a push: format, tidy, lints, and the unit tests of what changed.
    Prepush,
    /// The embedded Xen host: real Xen, dom0 and guests under QEMU's software emulation.
    #[command(subcommand)]
    Host(host::Command),
    /// The stubdomain's image, with its kernel and QEMU compiled from Debian's sources.
    Image(stubdom::Options),
    /// Measurements on the embedded host.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Regenerates the committed bindings to Xen's libraries, or checks them.
    Bindings(bindings::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(options) => demo::main(&options),
        Command::Test(options) => test::main(&options),
        Command::Tidy(options) => tidy::main(&options),
        Command::Prepush => prepush::main(),
        Command::Host(command) => host::main(command),
        Command::Image(options) => stubdom::main(&options),
        Command::Bench(command) => bench::main(&command),
        Command::Bindings(options) => bindings::main(&options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("  because: {cause}");
        }
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_can_be_parsed() {
        Arguments::command().debug_assert();
    }
}
