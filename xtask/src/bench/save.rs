//! `cargo xtask bench save`.

use std::process::ExitCode;

use anyhow::Result;

use super::results::Goal;
use super::{Needs, Options};

/// What has to be reached.
const GOALS: [Goal; 4] = [
    Goal::ratio("save_64.ours", "save_64.xl_dom0", 0.7),
    Goal::ratio("save_256.ours", "save_256.xl_dom0", 0.7),
    Goal::ratio("restore_64.ours", "restore_64.xl_dom0", 0.6),
    Goal::ratio("restore_256.ours", "restore_256.xl_dom0", 0.6),
];

/// Measures, prints the table, and succeeds when every goal is met.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    super::measure("save", Needs::default(), &GOALS, options)
}
