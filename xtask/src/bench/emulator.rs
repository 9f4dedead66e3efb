//! `cargo xtask bench emulator`.

use std::process::ExitCode;

use anyhow::Result;
use testhost::Put;

use super::Options;
use super::results::Goal;
use crate::view::View;
use crate::{guest, workspace};

/// The part that runs in dom0.
const SCRIPT: &str = include_str!("emulator.sh");
/// What has to be reached.
const GOALS: [Goal; 2] = [Goal::at_most("exits.broken", 0.0), Goal::at_most("linux.broken", 0.0)];

/// Measures, prints the table, and succeeds when no guest was broken.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    let linux = guest::linux_disk(&mut View::new(false, false))?;
    let exits = workspace::kept("guests").join("exits.img");
    testguest::exits_disk(&exits)?;
    let files = vec![
        Put { source: linux, target: vm_report::places::LINUX_DISK.into() },
        Put { source: exits, target: "/root/exits-guest.img".into() },
    ];
    super::measure("emulator", SCRIPT, &[], files, &GOALS, options)
}
