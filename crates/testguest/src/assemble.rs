//! Turns assembler sources into flat binaries with binutils.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{GuestError, Result, io_error};

/// What a binary is for.
#[derive(Clone, Copy)]
pub(crate) enum Machine {
    /// A boot sector: 16 bits, loaded at 0x7c00.
    BootSector,
    /// A whole file that knows its own layout: 64 bits, at home at 0.
    Flat64,
}

/// Assembles and links `source`.
pub(crate) fn assemble(source: &str, machine: Machine) -> Result<Vec<u8>> {
    let (bits, emulation, start) = match machine {
        Machine::BootSector => ("--32", "elf_i386", "0x7c00"),
        Machine::Flat64 => ("--64", "elf_x86_64", "0"),
    };
    let folder =
        tempfile::tempdir().map_err(io_error("make a temporary folder in", &std::env::temp_dir()))?;
    let [text, object, binary] = ["guest.S", "guest.o", "guest.bin"].map(|name| folder.path().join(name));
    fs::write(&text, source).map_err(io_error("write", &text))?;
    run("as", Command::new("as").args([bits, "-o"]).args([&object, &text]))?;
    let layout = ["-m", emulation, "-e", start, "-Ttext", start, "--oformat", "binary", "-o"];
    run("ld", Command::new("ld").args(layout).args([&binary, &object]))?;
    fs::read(&binary).map_err(io_error("read", &binary))
}

fn run(program: &'static str, command: &mut Command) -> Result<()> {
    let run = command.output().map_err(io_error("run", Path::new(program)))?;
    if run.status.success() {
        return Ok(());
    }
    Err(GuestError::Assembler { program, complaint: String::from_utf8_lossy(&run.stderr).trim().to_owned() })
}
