//! `cargo xtask bench console`.

use std::process::ExitCode;

use anyhow::Result;

use super::results::Goal;
use super::{Needs, Options};
use crate::guest;

/// What has to be reached. Of rates, how often ours goes into the other's.
const GOALS: [Goal; 14] = [
    // 20 times stock xenconsoled, twice QEMU; or nearly what comes through the rings when a program does nothing but
    // take bytes out of them and write them where they belong.
    rate("file_one.stock", "file_one.ours", 0.05, "file_one.relay"),
    rate("file_eight.stock", "file_eight.ours", 0.05, "file_eight.relay"),
    rate("pty_one.stock", "pty_one.ours", 0.05, "pty_one.relay"),
    rate("pty_eight.stock", "pty_eight.ours", 0.05, "pty_eight.relay"),
    rate("file_one.qemu", "file_one.ours", 0.5, "file_one.relay"),
    rate("file_eight.qemu", "file_eight.ours", 0.5, "file_eight.relay"),
    rate("pty_one.qemu", "pty_one.ours", 0.5, "pty_one.relay"),
    rate("pty_eight.qemu", "pty_eight.ours", 0.5, "pty_eight.relay"),
    Goal::ratio("key.ours", "key.stock", 1.2),
    Goal::ratio("key_in_flood.ours", "key_in_flood.stock", 1.2),
    Goal::at_most("idle_time.ours", 0.0),
    Goal::at_most("idle_wakes.ours", 0.0),
    Goal::at_most("memory_idle.ours", 64.0),
    Goal::at_most("memory_full.ours", 64.0),
];

const fn rate(theirs: &'static str, ours: &'static str, at_most: f64, relay: &'static str) -> Goal {
    Goal { limit: Some((relay, 1.25)), ..Goal::ratio(theirs, ours, at_most) }
}

/// Measures, prints the table, and succeeds when every goal is met.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    let needs = Needs { files: vec![guest::console()?], ..Needs::default() };
    super::measure("console", needs, &GOALS, options)
}
