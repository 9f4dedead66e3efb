//! More of Xen's stock tools that are at ease with our guests: those that look and those that attach.

use anyhow::{Context, Result, ensure};

use super::Case;
use super::console::echo_through;
use crate::harness::command::{XL, run};
use crate::harness::config::GuestConfig;

pub(super) const CASES: &[Case] = &[Case::new("ease::xl_console_xentop_and_xenstore_ls", tools)];

const XENTOP: &str = "xentop";

fn tools() -> Result<()> {
    let (guest, console) = GuestConfig::hello("easy").boot()?;
    drop(console);
    // Without an option it is the guest's first serial port, console 3 of the stubdomain.
    echo_through(XL, &["console", "easy"], "typed in xl console")?;
    shown_by_xentop("easy")?;
    let (domid, stub) = guest.domids()?;
    let nodes = run("xenstore-ls", &["-f", &format!("/local/domain/{stub}")])?.good()?.stdout;
    ensure!(nodes.contains(&format!("/local/domain/{stub}/target = \"{domid}\"")), "no target:\n{nodes}");
    guest.destroy()
}

/// The guest and its stubdomain, with all columns.
fn shown_by_xentop(guest: &str) -> Result<()> {
    // Twice: the first round has no rates.
    let top = run(XENTOP, &["-b", "-i", "2", "-d", "1"])?.good()?.stdout;
    for name in [guest, &format!("{guest}-dm")] {
        let line = top.lines().rev().find(|line| line.split_whitespace().next() == Some(name));
        let line = line.with_context(|| format!("xentop does not show {name}:\n{top}"))?;
        ensure!(line.split_whitespace().count() >= 19, "xentop shows less of {name}: {line}");
    }
    Ok(())
}
