//! Makes the disks of the example guests.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::AtPath as _;
use crate::{HostError, Put};

/// The BIOS loads this much, and the guest's text begins right behind it.
const SECTOR: u64 = 512;
/// Size of each disk in bytes.
const DISK: u64 = 1 << 20;
/// Where guests of the embedded host run. On CPU 0 its emulator breaks one now and then (`docs/embedded-host.md`).
const GUEST_CPUS: &str = "cpus = \"1\"";
/// The folder of examples in dom0.
const EXAMPLES: &str = "/examples";

/// Assembles `hello.S` of the folder `examples` and makes the two disks of `hello.cfg` in the folder `output`.
///
/// Returns the configuration, with a line more for the embedded host, and the disks with their places in dom0. The second sector of each disk holds a text
/// that the guest reads and prints: `this is hda` and `this is hdb`.
///
/// # Errors
/// [`HostError::Program`] when binutils are missing, [`HostError::ProgramFailed`] when the source does not assemble to one
/// sector, [`HostError::File`] when a file cannot be written.
pub fn hello(examples: &Path, output: &Path) -> Result<Vec<Put>, HostError> {
    fs::create_dir_all(output).at("make the folder", output)?;
    let sector = assemble(&examples.join("hello.S"), output)?;
    let boot_disk = disk(&output.join("hello-disk.img"), &sector, b"this is hda\0")?;
    let data_disk = disk(&output.join("hello-data.img"), &[], b"this is hdb\0")?;
    let config = pinned_config(&examples.join("hello.cfg"), &output.join("embedded"))?;
    Ok(vec![in_dom0(config), in_dom0(boot_disk), in_dom0(data_disk)])
}

/// The example's configuration with a line that keeps the guest off the CPU where the emulator breaks guests.
fn pinned_config(source: &Path, folder: &Path) -> Result<PathBuf, HostError> {
    let text = fs::read_to_string(source).at("read", source)?;
    fs::create_dir_all(folder).at("make the folder", folder)?;
    let path = folder.join("hello.cfg");
    let text = format!(
        "{}\n\n# On CPU 0 of the embedded host the emulator breaks a guest now and then.\n{GUEST_CPUS}\n",
        text.trim_end()
    );
    fs::write(&path, text).at("write", &path)?;
    Ok(path)
}

fn in_dom0(source: PathBuf) -> Put {
    let target = Path::new(EXAMPLES).join(source.file_name().unwrap_or_default());
    Put { source, target }
}

fn disk(path: &Path, sector: &[u8], text: &[u8]) -> Result<PathBuf, HostError> {
    let mut file = File::create(path).at("make", path)?;
    file.write_all(sector).at("write", path)?;
    file.seek(SeekFrom::Start(SECTOR)).at("write", path)?;
    file.write_all(text).at("write", path)?;
    file.set_len(DISK).at("size", path)?;
    Ok(path.to_owned())
}

/// Assembles a boot sector, linked for the address at which the BIOS loads it.
fn assemble(source: &Path, output: &Path) -> Result<Vec<u8>, HostError> {
    let object = output.join("hello.o");
    let binary = output.join("hello.bin");
    tool(Command::new("as").arg("--32").arg("-o").args([&object, source]), "as")?;
    let mut link = Command::new("ld");
    link.args(["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"]).args([&binary, &object]);
    tool(&mut link, "ld")?;
    let sector = fs::read(&binary).at("read", &binary)?;
    if sector.len() as u64 != SECTOR {
        return Err(HostError::ProgramFailed {
            program: "as".to_owned(),
            status: format!("{} bytes", sector.len()),
            message: format!("{} has to be {SECTOR} bytes", source.display()),
        });
    }
    Ok(sector)
}

fn tool(command: &mut Command, program: &'static str) -> Result<(), HostError> {
    let output =
        command.output().map_err(|source| HostError::Program { program, package: "binutils", source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(HostError::ProgramFailed {
        program: program.to_owned(),
        status: output.status.to_string(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_a_boot_sector_and_their_texts() {
        let folder = tempfile::tempdir().unwrap();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let puts = hello(&examples, folder.path()).unwrap();
        let targets: Vec<_> = puts.iter().map(|put| put.target.to_str().unwrap()).collect();
        assert_eq!(targets, ["/examples/hello.cfg", "/examples/hello-disk.img", "/examples/hello-data.img"]);
        let disk = fs::read(&puts[1].source).unwrap();
        assert_eq!(disk.len() as u64, DISK);
        assert_eq!(disk[510..512], [0x55, 0xaa]);
        assert!(disk[512..].starts_with(b"this is hda\0"));
        assert!(fs::read(&puts[2].source).unwrap()[512..].starts_with(b"this is hdb\0"));
    }
}
