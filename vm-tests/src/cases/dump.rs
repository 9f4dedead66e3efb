//! Guests whose memory is dumped to a core file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::harness::command::{Output, XL, outrigger, run_within};
use crate::harness::config::GuestConfig;
use crate::harness::consoles::Console;
use crate::harness::core_file::{compare, touched};
use crate::harness::guest::{must_run, unused};
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    // libxc asks for each page below 4 GiB by itself: minutes in the emulator.
    Case::new("dump::core_file_is_that_of_xl", as_xl).long(),
    Case::new("dump::guest_that_has_ended_is_dumped", ended).long(),
];

/// Pages that Xen, or xenstored, may write to while a guest is paused: clocks and rings.
const OTHERS: u64 = 8;

fn dump(words: &[&str], file: &Path) -> Result<Output> {
    let file = file.to_string_lossy();
    let args = [&["dump-core"], words, &[&*file]].concat();
    let begin = Instant::now();
    let output = run_within(seconds(300), "outrigger", &args)?;
    println!("-- dump-core {words:?} took {:.1} s", begin.elapsed().as_secs_f32());
    Ok(output)
}

fn no_part_of(file: &Path) -> Result<()> {
    let (folder, name) = (file.parent().context("no folder")?, file.file_name().context("no name")?);
    for entry in fs::read_dir(folder)? {
        let found = entry?.file_name();
        let is_part = found != name && found.to_string_lossy().starts_with(&*name.to_string_lossy());
        ensure!(!is_part, "{} is left", found.display());
    }
    Ok(())
}

fn as_xl() -> Result<()> {
    let (guest, _) = GuestConfig::hello("dumped").boot()?;
    let (ours, xls) = (unused("ours.core")?, unused("xls.core")?);
    dump(&["dumped"], &ours)?.good()?;
    must_run("dumped")?;
    Console::serial(&guest, 0)?.echo("dumped and going on")?;
    mistakes(&ours)?;
    outrigger(&["pause", "dumped"])?.good()?;
    dump(&["--live", "dumped"], &ours)?.good()?;
    run_within(seconds(300), XL, &["dump-core", "dumped", &xls.to_string_lossy()])?.good()?;
    same(&ours, &xls)?;
    outrigger(&["unpause", "dumped"])?.good()?;
    Console::serial(&guest, 0)?.echo("unpaused")?;
    guest.destroy()
}

/// What exists is not overwritten; afterwards it is gone.
fn mistakes(file: &Path) -> Result<()> {
    dump(&["dumped"], file)?.refused(1, &["not empty", "remove it"])?;
    ensure!(fs::metadata(file)?.permissions().mode() & 0o077 == 0, "others can read the guest's memory");
    dump(&["dumped"], Path::new("/dev/full"))?.refused(1, &["not a regular file"])?;
    Ok(fs::remove_file(file)?)
}

fn same(ours: &PathBuf, xls: &PathBuf) -> Result<()> {
    ensure!(fs::metadata(ours)?.len() == fs::metadata(xls)?.len(), "one file is longer");
    let (pages, differing) = compare(ours, xls)?;
    // 64 MiB, without what is not mapped.
    ensure!(pages > 15_000 && differing <= OTHERS, "{differing} of {pages} pages differ");
    no_part_of(ours)?;
    fs::remove_file(ours)?;
    Ok(fs::remove_file(xls)?)
}

fn ended() -> Result<()> {
    let config = GuestConfig::power("over").line("on_poweroff='preserve'");
    let guest = config.create()?;
    config.booted(&guest)?;
    outrigger(&["shutdown", "-w", "over"])?.good()?;
    // Those that have ended are left out.
    outrigger(&["shutdown", "-a", "-w"])?.good()?;
    outrigger(&["shutdown", "over"])?.refused(1, &["over"])?;
    let file = unused("over.core")?;
    dump(&["over"], &file)?.good()?;
    ensure!(touched(&file)? > 0, "nothing of the guest's memory is in the file");
    no_part_of(&file)?;
    fs::remove_file(&file)?;
    guest.destroy()
}
