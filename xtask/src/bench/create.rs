//! `cargo xtask bench create`.

use std::process::ExitCode;

use anyhow::Result;

use super::results::Goal;
use super::{Needs, Options};

/// What has to be reached.
const GOALS: [Goal; 3] = [
    Goal::ratio("create.ours", "create.xl_stub", 0.5),
    Goal::at_most("dom0_memory.ours", 2.0),
    Goal::at_most("qemu_processes.ours", 0.0),
];

/// Measures, prints the table, and succeeds when every goal is met.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    super::measure("create", Needs::default(), &GOALS, options)
}
