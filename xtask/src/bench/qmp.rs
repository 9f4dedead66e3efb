//! `cargo xtask bench qmp`.

use super::Options;
use super::results::Goal;
use crate::binaries::{self, Profile};
use anyhow::Result;
use std::process::ExitCode;
use testhost::Put;

/// The part that runs in dom0.
const SCRIPT: &str = include_str!("qmp.sh");
/// What has to be reached. The stock proxy has a single client, so its rate is that of one.
const GOALS: [Goal; 2] = [
    Goal::ratio("qmp.latency.ours_1", "qmp.latency.stock_1", 0.7),
    Goal::ratio("qmp.rate.stock_1", "qmp.rate.ours_8", 0.2),
];

/// Measures, prints the table, and succeeds when every goal is met.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    let load = Put {
        source: binaries::example("qmp", "qmp_load", Profile::Release)?,
        target: "/usr/bin/qmp-load".into(),
    };
    super::measure("qmp", SCRIPT, &[load], Vec::new(), &GOALS, options)
}
