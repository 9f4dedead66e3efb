//! `cargo xtask bench emulator`.

use std::process::ExitCode;

use anyhow::Result;
use testhost::Put;
use vm_report::places::{EXITS_DISK, LINUX_DISK};

use super::results::Goal;
use super::{Needs, Options};
use crate::view::View;
use crate::{guest, workspace};

/// What has to be reached.
const GOALS: [Goal; 2] = [Goal::at_most("exits.broken", 0.0), Goal::at_most("linux.broken", 0.0)];

/// Measures, prints the table, and succeeds when no guest was broken.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    let linux = guest::linux_disk(&mut View::new(false, false))?;
    let exits = workspace::kept("guests").join("exits.img");
    testguest::exits_disk(&exits)?;
    let files = vec![
        Put { source: linux, target: LINUX_DISK.into() },
        Put { source: exits, target: EXITS_DISK.into() },
    ];
    super::measure("emulator", Needs { files, ..Needs::default() }, &GOALS, options)
}
