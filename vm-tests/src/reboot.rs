//! A host that loses its power and boots again, with its disk: two runs of this program, one for each boot.
//!
//! Xen counts its domains from 1 again, so that the state files of the first boot name domains which are xl's in the
//! second.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::command::{outrigger, run};
use crate::harness::config::GuestConfig;
use crate::harness::daemons::Daemon;
use crate::harness::disk;
use crate::harness::guest::{Made, list};
use crate::harness::network::bridge;
use crate::harness::state_file::{FOLDER, wait_until_forgotten};
use crate::harness::stranger::Stranger;

/// Our guests.
const NAMES: [&str; 2] = ["first", "second"];

/// Our guests run when the power fails; all that was written is on the disk.
pub(crate) fn before() -> Result<()> {
    disk::load_modules()?;
    disk::format()?;
    let daemon = Daemon::stop()?;
    disk::mount()?;
    daemon.start()?;
    for name in NAMES {
        GuestConfig::hello(name).nic(&format!("bridge={}", bridge()?)).create()?.leave();
    }
    println!("     the power fails while these run:\n{}", outrigger(&["list"])?.good()?.stdout);
    run("sync", &[])?.good()?;
    Ok(())
}

/// xl's guests are up before our daemon looks at its state files.
pub(crate) fn after() -> Result<()> {
    disk::load_modules()?;
    let daemon = Daemon::stop()?;
    disk::mount()?;
    let files = files()?;
    ensure!(files.len() == NAMES.len(), "the state files of the first boot are {files:?}");
    let strangers = [
        Stranger::running(GuestConfig::pv("xls-first", "i"))?,
        Stranger::paused(GuestConfig::pv("xls-second", "i"))?,
    ];
    for stranger in &strangers {
        let named = files.iter().any(|(_, domids)| domids.contains(&u64::from(stranger.domid)));
        ensure!(named, "no state file names domain {}, so nothing is tried: {files:?}", stranger.domid);
    }
    daemon.start()?;
    for (uuid, _) in &files {
        wait_until_forgotten(uuid)?;
    }
    ensure!(list()?.is_empty(), "guests of the first boot are listed: {:?}", list()?);
    strangers.iter().try_for_each(Stranger::must_be_untouched)?;
    // What ran can be created again, and ends as any other.
    bridge()?;
    let configs = NAMES.map(|name| PathBuf::from(format!("/tmp/vm-tests/{name}.cfg")));
    let again = configs.iter().map(|config| Made::create(config, &[])).collect::<Result<Vec<_>>>()?;
    again.into_iter().try_for_each(Made::destroy)?;
    strangers.iter().try_for_each(Stranger::must_be_untouched)
}

/// The UUIDs that the names of the state files are, and the numbers of domains in each.
fn files() -> Result<Vec<(String, Vec<u64>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(FOLDER))? {
        let path = entry?.path();
        let file: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let uuid = path.file_stem().context("a state file without a name")?.to_string_lossy().into_owned();
        let domids = ["domid", "stub_domid"].iter().filter_map(|key| file[*key].as_u64()).collect();
        found.push((uuid, domids));
    }
    Ok(found)
}
