//! What is not ours is never touched: neither a domid, a name nor a path is an identity.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::harness::command::{Output, XL, outrigger, run};
use crate::harness::config::{GuestConfig, padded, path_of};
use crate::harness::daemons::Daemon;
use crate::harness::disk;
use crate::harness::loops::{LoopDevice, loops_of};
use crate::harness::state_file::{self, Ghost, Replaced, wait_until_forgotten};
use crate::harness::stranger::Stranger;

pub(super) const CASES: &[Case] = &[
    Case::new("strangers::with_the_numbers_of_a_guest_that_is_gone_live_on", stale_file),
    Case::new("strangers::with_the_uuid_and_name_of_a_guest_live_on", uuid_and_name),
    Case::new("strangers::state_file_of_another_release_costs_a_guest_nothing", another_release),
    Case::new("strangers::damaged_state_file_costs_a_guest_nothing", damaged_file),
    Case::new("strangers::disk_by_any_other_name_is_refused", other_names),
    Case::new("strangers::disk_that_dom0_has_mounted_is_refused", mounted),
];

/// A boot of dom0 that was never.
const ANOTHER_BOOT: &str = "6f1c1e0a-4f0d-4d0e-9c51-0d6f5b1f8f3e";

/// The state file of a guest that is gone, of this boot and of another, names domains of xl's.
fn stale_file() -> Result<()> {
    let ghost = Ghost::of_a_real_guest()?;
    let strangers = of_xl()?;
    let [runner, sleeper] = [&strangers[0], &strangers[1]].map(|stranger| stranger.domid);
    for (boot, phase, domids) in [
        (Some(ANOTHER_BOOT), "running", [runner, sleeper]),
        (Some(ANOTHER_BOOT), "destroying", [sleeper, runner]),
        (None, "running", [sleeper, runner]),
        (None, "creating", [runner, sleeper]),
    ] {
        file_names_strangers(&ghost.uuid, &ghost.text(domids, phase, boot)?, &strangers)
            .with_context(|| format!("the file is of boot {} and says {phase}", boot.unwrap_or("this")))?;
    }
    Ok(())
}

/// A domain of xl's that runs, and one that is paused.
fn of_xl() -> Result<[Stranger; 2]> {
    let runner = Stranger::running(GuestConfig::pv("runner", "i"))?;
    Ok([runner, Stranger::paused(GuestConfig::pv("sleeper", "i"))?])
}

/// The daemon forgets the file's guest, and touches none of the domains that the file names.
fn file_names_strangers(uuid: &str, text: &str, strangers: &[Stranger; 2]) -> Result<()> {
    let domids = [strangers[0].domid, strangers[1].domid];
    let _file = Replaced::with(&state_file::path(uuid), text)?;
    // Asked for before and after the file was dealt with.
    let early = cannot_be_destroyed(&domids);
    let forgotten = is_forgotten(uuid, strangers);
    early.and(forgotten)
}

/// The daemon forgets a guest. It does nothing to the strangers when it does, nor when it is asked to.
fn is_forgotten(uuid: &str, strangers: &[Stranger]) -> Result<()> {
    let forgotten = wait_until_forgotten(uuid);
    strangers.iter().try_for_each(Stranger::must_be_untouched)?;
    forgotten?;
    strangers.iter().try_for_each(|stranger| cannot_be_destroyed(&[stranger.domid]))?;
    strangers.iter().try_for_each(Stranger::must_be_untouched)
}

fn cannot_be_destroyed(domids: &[u16]) -> Result<()> {
    domids.iter().try_for_each(|domid| outrigger(&["destroy", &domid.to_string()])?.refused(4, &[]).map(drop))
}

/// Our guest was destroyed while the daemon was away, and xl made another with its name and UUID.
fn uuid_and_name() -> Result<()> {
    const UUID: &str = "0c5f2d3e-7b1a-4c8d-9e6f-1a2b3c4d5e6f";
    let uuid = format!("uuid='{UUID}'");
    let ours = GuestConfig::hello("reused").line(&uuid).create()?;
    let _file = Replaced::gone_afterwards(&state_file::path(UUID));
    let daemon = Daemon::stop()?;
    for domid in [ours.stub()?, ours.guest.domid] {
        run(XL, &["destroy", &domid.to_string()])?.good()?;
    }
    let stranger = Stranger::running(GuestConfig::pv("reused", "i").line(&uuid))?;
    daemon.start()?;
    is_forgotten(UUID, &[stranger])?;
    ours.leave();
    Ok(())
}

fn another_release() -> Result<()> {
    let spoil = |text: &str| {
        let mut file: serde_json::Value = serde_json::from_str(text)?;
        file["form"] = 99.into();
        Ok(file.to_string())
    };
    unreadable(spoil, "Install the later release")
}

fn damaged_file() -> Result<()> {
    unreadable(|_| Ok("{".to_owned()), "Restore the file")
}

/// A guest whose state file cannot be read goes on with all that it has, and is managed again once it can.
fn unreadable(spoil: fn(&str) -> Result<String>, advice: &str) -> Result<()> {
    let (guest, mut console) = GuestConfig::hello("elder").boot()?;
    let (image, file) = (path_of("elder.img"), state_file::path(&guest.guest.uuid));
    let loops = loops_in_use(&image)?;
    let spoiled = Replaced::with(&file, &spoil(&fs::read_to_string(&file)?)?)?;
    must_have_loops(&image, &loops)?;
    list_names_the_file(&file, advice)?;
    nobody_else_gets(&image)?;
    // It has noticed nothing of all this.
    console.echo("still here?")?;
    drop(spoiled);
    guest.must_be_the_same()?;
    must_have_loops(&image, &loops)?;
    guest.destroy()
}

fn nobody_else_gets(image: &Path) -> Result<()> {
    GuestConfig::hello("heir").boot_disk(image).refused(1, &["elder.img"])
}

fn loops_in_use(image: &Path) -> Result<BTreeMap<String, String>> {
    let loops = loops_of(image)?;
    ensure!(!loops.is_empty(), "the guest has no loop device");
    Ok(loops)
}

fn must_have_loops(image: &Path, wanted: &BTreeMap<String, String>) -> Result<()> {
    let loops = loops_of(image)?;
    ensure!(loops == *wanted, "its loop devices were {wanted:?} and are {loops:?}");
    Ok(())
}

fn list_names_the_file(file: &Path, advice: &str) -> Result<()> {
    let listed = outrigger(&["list"])?;
    let said = format!("{}{}", listed.stdout, listed.stderr);
    ensure!(said.contains(&*file.to_string_lossy()), "outrigger list does not name the file: {listed}");
    ensure!(said.contains(advice), "outrigger list does not advise \"{advice}\": {listed}");
    Ok(())
}

/// A disk of xl's guest, under whichever name, is not for a guest of ours; one that both only read is.
fn other_names() -> Result<()> {
    let shared = padded("shared.img", "")?;
    let holder = GuestConfig::pv("holder", "i").disk(&format!("{},raw,xvdb,r", shared.display()));
    let holder = Stranger::running(holder)?;
    let guest = GuestConfig::hello("seeker").create()?;
    let links = Links::to(&holder.image)?;
    all_are_taken(&holder, &links, &shared)?;
    attach(&shared, "ro")?.good()?;
    outrigger(&["block-detach", "seeker", "xvdc"])?.good()?;
    holder.must_be_untouched()?;
    drop(holder);
    attach(&links.symbolic, "rw")?.good()?;
    guest.destroy()
}

/// Neither a guest that runs nor a new one gets the holder's disks.
fn all_are_taken(holder: &Stranger, links: &Links, shared: &Path) -> Result<()> {
    let mut free = names_that_are_free(holder, links)?;
    free.extend(what_is_in_use_is_free(holder, shared)?);
    ensure!(free.is_empty(), "{} attachments of the disk of another: {}", free.len(), free.join("\n"));
    let late = GuestConfig::hello("late").disk(&format!("{},raw,hdb,rw", links.symbolic.display()));
    late.refused(1, &["the guest holder"])
}

/// The names of the holder's disk by which it can be attached, each with why it should not have been.
fn names_that_are_free(holder: &Stranger, links: &Links) -> Result<Vec<String>> {
    let mut free = Vec::new();
    for (what, disk) in [
        ("itself", holder.image.clone()),
        ("a longer path", "/tmp/../tmp//vm-tests/xl-holder.img".into()),
        ("a symbolic link", links.symbolic.clone()),
        ("a hard link", links.hard.clone()),
        ("xl's loop device", holder.loop_device()?.into()),
    ] {
        free.extend(
            ["rw", "ro"].iter().filter_map(|access| is_free(what, &disk, access, "the guest holder")),
        );
    }
    Ok(free)
}

/// The same for the disk that the holder only reads, and for dom0's own loop device.
fn what_is_in_use_is_free(holder: &Stranger, shared: &Path) -> Result<Vec<String>> {
    let written = is_free("what xl's guest reads", shared, "rw", "the guest holder");
    let own_loop = LoopDevice::of(&holder.image)?;
    let another = is_free("a loop device of dom0's", own_loop.0.as_ref(), "rw", "in use");
    Ok(written.into_iter().chain(another).collect())
}

/// Why a disk should not have been attached, if it was.
fn is_free(what: &str, disk: &Path, access: &str, refusal: &str) -> Option<String> {
    let outcome = must_not_attach(disk, access, refusal);
    outcome.err().map(|why| format!("{what}, {access}: {why}"))
}

fn attach(disk: &Path, access: &str) -> Result<Output> {
    outrigger(&["block-attach", "seeker", &format!("{},raw,xvdc,{access}", disk.display())])
}

/// Fails unless the guest `seeker` cannot have the disk, for a reason that has these words.
fn must_not_attach(disk: &Path, access: &str, words: &str) -> Result<()> {
    let output = attach(disk, access)?;
    if output.status == 0 {
        outrigger(&["block-detach", "seeker", "xvdc"])?.good()?;
    }
    output.refused(1, &[words]).map(drop)
}

/// Two more names of a file, removed when this is dropped.
struct Links {
    symbolic: PathBuf,
    hard: PathBuf,
}

impl Links {
    fn to(file: &Path) -> Result<Self> {
        let links = Self { symbolic: "/tmp/vm-tests/symbolic".into(), hard: "/tmp/vm-tests/hard".into() };
        links.remove();
        symlink(file, &links.symbolic)?;
        fs::hard_link(file, &links.hard)?;
        Ok(links)
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.symbolic);
        let _ = fs::remove_file(&self.hard);
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A file whose file system dom0 itself uses.
fn mounted() -> Result<()> {
    let image = padded("mounted.img", "")?;
    let config = GuestConfig::hello("user").disk(&format!("{},raw,hdb,rw", image.display()));
    disk::load_modules()?;
    let device = LoopDevice::of(&image)?;
    run("mke2fs", &[&device.0])?.good()?;
    let mounted = Mounted::at("/tmp/vm-tests/mounted", &device.0)?;
    config.refused(1, &["mounted.img"])?;
    drop((mounted, device));
    config.create()?.destroy()
}

/// A file system of dom0's own, until this is dropped.
struct Mounted(&'static str);

impl Mounted {
    fn at(folder: &'static str, device: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        run("mount", &["-t", "ext4", device, folder])?.good()?;
        Ok(Self(folder))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &[self.0]);
    }
}
