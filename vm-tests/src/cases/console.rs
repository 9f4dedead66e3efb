//! The console daemon with guests that only have a console: hostile rings, ends, bad input.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Case;
use crate::harness::console_guest::ConsoleGuest;
use crate::harness::daemons::{ConsoleDaemon, start_ours};
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::new("console::second_daemon_refuses_and_bad_options_are_named", bad_input),
    Case::new("console::lying_ring_is_closed_with_one_line", lying_ring),
    Case::new("console::last_words_of_a_domain_are_kept", last_words),
];

const LOG_DIR: &str = "/var/log/outrigger/console";

/// Waits until a file has what is looked for.
fn wait_for(path: &Path, found: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
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

fn ends_with(bytes: &[u8], line: u64) -> bool {
    bytes.ends_with(format!("{line:015x}\n").as_bytes())
}

/// Fails unless the bytes are the lines from 0 to `count`, each once.
fn all_lines(bytes: &[u8], count: u64) -> Result<()> {
    let mut lines = bytes.chunks(16);
    for number in 0..count {
        let line = lines.next().with_context(|| format!("line {number} is missing"))?;
        ensure!(
            line == format!("{number:015x}\n").as_bytes(),
            "{:?} stands where line {number} should",
            String::from_utf8_lossy(line)
        );
    }
    ensure!(lines.next().is_none(), "there are more than {count} lines");
    Ok(())
}

fn bad_input() -> Result<()> {
    start_ours(&["--log-dir=/tmp"])?
        .refused(1, &["Another outrigger-consoled runs as process", "stop it first"])?;
    start_ours(&["--log=everything"])?.refused(2, &["everything", "guest", "hv"])?;
    start_ours(&["--no-such-option"])?.refused(2, &["--no-such-option"])?;
    let _none = ConsoleDaemon::none()?;
    start_ours(&["--log-dir=/proc/nowhere"])?.refused(1, &["/proc/nowhere", "who may write"])?;
    Ok(())
}

fn lying_ring() -> Result<()> {
    let own_log = Path::new("/var/log/outrigger/consoled.log");
    let liar = ConsoleGuest::start("liar", "l", &[])?;
    let claim = format!("console={}.0", liar.domid);
    let about = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.lines().filter(|line| line.contains(&claim) && line.contains("WARN")).count()
    };
    let said = wait_for(own_log, |bytes| about(bytes) > 0)?;
    ensure!(String::from_utf8_lossy(&said).contains("claims 2147483648 bytes"), "another complaint");
    // Another console does not notice.
    let honest = ConsoleGuest::start("honest", "s100", &[])?;
    wait_for(&Path::new(LOG_DIR).join("honest.0.log"), |bytes| ends_with(bytes, 0xff))?;
    ensure!(about(&fs::read(own_log)?) == 1, "the lie was told more than once");
    drop((liar, honest));
    forget(&["liar.0.log", "honest.0.log"])
}

fn last_words() -> Result<()> {
    let guest = ConsoleGuest::start("mortal", "x1000", &[])?;
    guest.wait_for_end()?;
    // What it wrote is there although it is gone, and the ring is let go of.
    drop(guest);
    let log = Path::new(LOG_DIR).join("mortal.0.log");
    let bytes = wait_for(&log, |bytes| ends_with(bytes, 0xfff))?;
    all_lines(&bytes, 0x1000)?;
    forget(&["mortal.0.log"])
}

/// Removes logs, so that the next case of a guest with this name begins with none.
fn forget(logs: &[&str]) -> Result<()> {
    for log in logs {
        fs::remove_file(Path::new(LOG_DIR).join(log)).with_context(|| format!("cannot remove {log}"))?;
    }
    Ok(())
}
