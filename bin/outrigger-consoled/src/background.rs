use std::fs::{DirBuilder, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::options::Options;

/// Starts this program again in the background and waits until it serves consoles, so that the caller can rely on it.
///
/// # Errors
/// The messages of the process in the background, if it ended.
pub(crate) fn start(options: &Options) -> Result<()> {
    if let Some(folder) = options.own_log.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .with_context(|| format!("Cannot make the folder {} (--own-log)", folder.display()))?;
    }
    let mut own_log = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&options.own_log)
        .with_context(|| format!("Cannot open {} (--own-log)", options.own_log.display()))?;
    let before = own_log.metadata().context("Cannot read the daemon's own log")?.len();
    let program = std::env::current_exe().context("Cannot find this program's own file")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .args(["--foreground", "--ready-fd=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(own_log.try_clone().context("Cannot use the daemon's own log")?)
        // Its own process group: signals from the terminal are not for it.
        .process_group(0)
        .spawn()
        .context("Cannot start the daemon in the background")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).context("Cannot read from the daemon")?;
    }
    if line == "ready\n" {
        return Ok(());
    }
    let status = child.wait().context("Cannot wait for the daemon")?;
    let mut said = String::new();
    own_log.seek(std::io::SeekFrom::Start(before)).context("Cannot read the daemon's own log")?;
    own_log.take(4096).read_to_string(&mut said).context("Cannot read the daemon's own log")?;
    let last = said.lines().last().unwrap_or_default();
    bail!("The daemon failed to start ({status}): {}", last.trim_start_matches("outrigger-consoled: "));
}
