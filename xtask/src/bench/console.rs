//! `cargo xtask bench console`.

use std::process::ExitCode;

use anyhow::Result;
use testhost::Put;

use super::Options;
use super::results::Goal;
use crate::binaries::{self, Profile};
use crate::guest;

/// The part that runs in dom0.
const SCRIPT: &str = "exec vm-tests measure console --runs $RUNS\n";
/// What has to be reached. Of rates, how often ours goes into the other's.
const GOALS: [Goal; 14] = [
    // 20 times stock xenconsoled, twice QEMU.
    over("file_one.stock", "file_one.ours", 0.05),
    over("file_eight.stock", "file_eight.ours", 0.05),
    over("pty_one.stock", "pty_one.ours", 0.05),
    over("pty_eight.stock", "pty_eight.ours", 0.05),
    over("file_one.qemu", "file_one.ours", 0.5),
    over("file_eight.qemu", "file_eight.ours", 0.5),
    over("pty_one.qemu", "pty_one.ours", 0.5),
    over("pty_eight.qemu", "pty_eight.ours", 0.5),
    over("key.ours", "key.stock", 1.2),
    over("key_in_flood.ours", "key_in_flood.stock", 1.2),
    Goal { figure: "idle_time.ours", over: None, at_most: 0.0 },
    Goal { figure: "idle_wakes.ours", over: None, at_most: 0.0 },
    Goal { figure: "memory_idle.ours", over: None, at_most: 64.0 },
    Goal { figure: "memory_busy.ours", over: None, at_most: 64.0 },
];

const fn over(figure: &'static str, over: &'static str, at_most: f64) -> Goal {
    Goal { figure, over: Some(over), at_most }
}

/// Measures, prints the table, and succeeds when every goal is met.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    let program =
        Put { source: binaries::program("vm-tests", Profile::Release)?, target: "/usr/bin/vm-tests".into() };
    super::measure("console", SCRIPT, &[program], vec![guest::console()?], &GOALS, options)
}
