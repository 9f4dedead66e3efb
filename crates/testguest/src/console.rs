//! A PV guest of one page of code whose only device is its console.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{GuestError, Result, io_error};

/// Makes the guest's kernel at `output`, with binutils. `console.S` says what its command line can ask for.
///
/// # Errors
/// That binutils are missing, or the file cannot be written; nothing is left at `output`.
pub fn console_guest(output: &Path) -> Result<()> {
    let folder =
        tempfile::tempdir().map_err(io_error("make a temporary folder in", &std::env::temp_dir()))?;
    let [text, object, kernel] = ["console.S", "console.o", "console"].map(|name| folder.path().join(name));
    fs::write(&text, include_str!("console.S")).map_err(io_error("write", &text))?;
    run("as", Command::new("as").args(["--64", "-o"]).args([&object, &text]))?;
    let layout = ["-m", "elf_x86_64", "-static", "-N", "-Ttext", "0x100000", "-o"];
    run("ld", Command::new("ld").args(layout).args([&kernel, &object]))?;
    let bytes = fs::read(&kernel).map_err(io_error("read", &kernel))?;
    crate::write_atomically(output, |file| std::io::Write::write_all(&mut &*file, &bytes))
}

fn run(program: &'static str, command: &mut Command) -> Result<()> {
    let output = command.output().map_err(io_error("run", Path::new(program)))?;
    if output.status.success() {
        return Ok(());
    }
    Err(GuestError::Assembler {
        program,
        complaint: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_has_xen_s_notes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console-guest");
        console_guest(&path).unwrap();
        let kernel = fs::read(&path).unwrap();
        assert!(kernel.starts_with(b"\x7fELF"));
        let name = b"outrigger-console-guest";
        assert!(kernel.windows(name.len()).any(|part| part == name));
    }
}
