//! Files that grow while a case looks at them, and their checksums.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::command::run;
use super::seconds;

/// Waits until a file has what is looked for, and returns what is in it.
pub(crate) fn wait_for(path: &Path, found: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
    let deadline = Instant::now() + seconds(60);
    loop {
        let bytes = fs::read(path).unwrap_or_default();
        if found(&bytes) {
            return Ok(bytes);
        }
        let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(200)..]).into_owned();
        ensure!(Instant::now() < deadline, "{} has not what was expected but …{end:?}", path.display());
        std::thread::yield_now();
    }
}

/// Waits until a file has so many bytes.
pub(crate) fn wait_for_size(path: &Path, size: u64) -> Result<()> {
    let deadline = Instant::now() + seconds(60);
    while fs::metadata(path).map_or(0, |meta| meta.len()) < size {
        ensure!(Instant::now() < deadline, "{} does not get {size} bytes", path.display());
        std::thread::yield_now();
    }
    Ok(())
}

/// Waits until a file is gone; `complaint` says what it means that it stays.
pub(crate) fn wait_until_gone(path: &Path, complaint: &str) -> Result<()> {
    let deadline = Instant::now() + seconds(30);
    while path.exists() {
        ensure!(Instant::now() < deadline, "{complaint}");
        std::thread::yield_now();
    }
    Ok(())
}

/// The MD5 sum of a file of dom0's.
pub(crate) fn md5(path: &str) -> Result<String> {
    let said = run("md5sum", &[path])?.good()?.stdout;
    said.split_whitespace().next().map(str::to_owned).context("md5sum says nothing")
}
