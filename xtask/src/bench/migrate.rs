//! `cargo xtask bench migrate`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use testhost::pair::PairRequest;
use testhost::{Host, Put, Report, Request};
use vm_report::places::LINUX_DISK;

use super::results::Goal;
use super::{Needs, Options};
use crate::view::View;
use crate::{guest, pair};

/// What has to be reached.
const GOALS: [Goal; 2] = [
    Goal::ratio("downtime_256.ours", "downtime_256.xl_dom0", 0.3),
    Goal::ratio("downtime_1024.ours", "downtime_1024.xl_dom0", 0.3),
];
/// A run boots six Linux guests, on two emulated hosts at once; before scaling.
const RUN_LIMIT: Duration = Duration::from_secs(7200);

/// Measures, prints the table, and succeeds when every goal is met.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    let linux = guest::linux_disk(&mut View::new(false, false))?;
    let files = vec![Put { source: linux, target: LINUX_DISK.into() }];
    let limit = RUN_LIMIT * options.runs.max(1);
    let run = |host: &Host, each: Request, view: &mut View| {
        on_both(host, Request { timeout: Some(limit), ..each }, view)
    };
    super::measure_by("migrate", Needs { files, ..Needs::default() }, &GOALS, options, run)
}

/// Makes the run on a pair. host-a prints the figures.
fn on_both(host: &Host, each: Request, view: &mut View) -> Result<Report> {
    let disks = pair::disks()?;
    let shared_disks = disks.iter().map(|disk| disk.path().to_owned()).collect();
    let reports = pair::run(host, &PairRequest { each, shared_disks }, view)?;
    let status = pair::status(&reports);
    let [a, _] = reports;
    Ok(Report { status, ..a })
}
