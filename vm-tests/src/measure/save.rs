//! Saving and restoring guests: xl with QEMU in dom0, xl with the stubdomain, ours. And a plain copy of the same bytes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::create::{Configs, Kind, NAME};
use super::example::Example;
use super::sources::precise;
use super::{FOLDER, Failures, figure, timed};
use crate::harness::command::{run, run_within};
use crate::harness::daemons::{ConsoleDaemon, Daemon};
use crate::harness::seconds;

/// The guest's memory, in MiB: a small one, and one whose memory takes most of the time.
const SIZES: [u64; 2] = [64, 256];
/// How long one command may take.
const PATIENCE: u64 = 300;

/// Measures all three, `runs` times.
pub(super) fn measure(runs: u32) -> Result<()> {
    let mut failures = Failures::default();
    room()?;
    for run in 1..=runs {
        println!("-- run {run} of {runs}");
        for mib in SIZES {
            let configs = Configs::of(Example::read()?.set("memory", &mib.to_string()))?;
            let toolstack = Daemon::stop()?;
            let console = ConsoleDaemon::stock(&["--log=none", super::STOCK_PID])?;
            for kind in [Kind::XlDom0, Kind::XlStub] {
                let outcome = once(&configs, kind, mib);
                failures.tried(kind.name(), outcome);
            }
            drop(console);
            toolstack.start()?;
            let outcome = once(&configs, Kind::Ours, mib);
            failures.tried(Kind::Ours.name(), outcome);
        }
    }
    failures.end()
}

/// dom0's root has no room for a guest's memory.
fn room() -> Result<()> {
    fs::create_dir_all(FOLDER)?;
    run("mount", &["-t", "tmpfs", "-o", "size=600m", "none", FOLDER])?.good().map(drop)
}

fn once(configs: &Configs, kind: Kind, mib: u64) -> Result<()> {
    let file = Path::new(FOLDER).join("saved");
    let path = file.to_string_lossy();
    let of = |what: &str| format!("{what}_{mib}.{}", kind.name());
    let (program, config) = (kind.program(), configs.of_kind(kind));
    let ask = |args: &[&str]| run_within(seconds(PATIENCE), program, args)?.good().map(drop);
    let _guest = Guest(program);
    ask(&["create", &config.to_string_lossy()]).context("create")?;
    // It goes on first, so that nothing of what follows is for the first time.
    timed(&of("checkpoint"), || ask(&["save", "-c", NAME, &path]))?;
    timed(&of("save"), || ask(&["save", NAME, &path]))?;
    figure(&of("file"), precise(fs::metadata(&file)?.len()) / f64::from(1 << 20), "MiB");
    timed(&of("restore"), || ask(&["restore", &path]))?;
    timed(&of("copy"), || copy(&file))?;
    ask(&["destroy", NAME])?;
    Ok(fs::remove_file(&file)?)
}

/// The guest is destroyed on a failure's way out.
struct Guest(&'static str);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = run(self.0, &["destroy", NAME]);
    }
}

fn copy(file: &Path) -> Result<()> {
    let to: PathBuf = file.with_extension("copy");
    io::copy(&mut File::open(file)?, &mut File::create(&to)?)?;
    Ok(fs::remove_file(to)?)
}
