//! A RAM disk of one program (cpio's `newc`, which Linux unpacks at its start).

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// A RAM disk whose first process is `program`.
pub(crate) fn of_one(program: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    entry(&mut archive, "dev", DIRECTORY, &[])?;
    entry(&mut archive, "init", PROGRAM, program)?;
    entry(&mut archive, "TRAILER!!!", 0, &[])?;
    Ok(archive)
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).context("the program is too large")?;
    let length = u32::try_from(name.len() + 1)?;
    // Inode, mode, owner, group, links, time, size, device, its own device, length of the name, checksum.
    let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
    Ok(())
}
