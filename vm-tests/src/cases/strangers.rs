//! What is not ours is never touched: neither a domid, a name nor a path is an identity.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::harness::command::{Output, XL, outrigger, run};
use crate::harness::consoles::Console;
use crate::harness::daemons::Daemon;
use crate::harness::disk;
use crate::harness::guest::{Made, hello, must_run, scratch};
use crate::harness::state_file::{self, Ghost, Replaced, wait_until_forgotten};
use crate::harness::stranger::{Stranger, loops_of};

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

/// The state file of a guest that is gone, of this boot and of another, names domains of xl's: one that runs, one that is
/// paused.
fn stale_file() -> Result<()> {
    let ghost = Ghost::of_a_real_guest()?;
    let strangers = [Stranger::running("runner", "")?, Stranger::paused("sleeper", "")?];
    let [runner, sleeper] = [&strangers[0], &strangers[1]].map(|stranger| stranger.domid);
    for (boot, phase, domids) in [
        (Some(ANOTHER_BOOT), "running", [runner, sleeper]),
        (Some(ANOTHER_BOOT), "destroying", [sleeper, runner]),
        (None, "running", [sleeper, runner]),
        (None, "creating", [runner, sleeper]),
    ] {
        let turn = || -> Result<()> {
            let _file = Replaced::with(&state_file::path(&ghost.uuid), &ghost.text(domids, phase, boot)?)?;
            // Asked for before and after the file was dealt with.
            let early = cannot_be_destroyed(&domids);
            let forgotten = wait_until_forgotten(&ghost.uuid);
            strangers.iter().try_for_each(Stranger::must_be_untouched)?;
            early.and(forgotten)?;
            cannot_be_destroyed(&domids)?;
            strangers.iter().try_for_each(Stranger::must_be_untouched)
        };
        let which = if boot.is_some() { "another" } else { "this" };
        turn().with_context(|| format!("the file is of {which} boot and says \"{phase}\""))?;
    }
    Ok(())
}

fn cannot_be_destroyed(domids: &[u16]) -> Result<()> {
    domids.iter().try_for_each(|domid| outrigger(&["destroy", &domid.to_string()])?.refused(4, &[]).map(drop))
}

/// Our guest was destroyed while the daemon was away, and xl made another with its name and UUID.
fn uuid_and_name() -> Result<()> {
    const UUID: &str = "0c5f2d3e-7b1a-4c8d-9e6f-1a2b3c4d5e6f";
    let ours = Made::create(&hello("reused", &format!("uuid='{UUID}'"))?, &[])?;
    let _file = Replaced::gone_afterwards(&state_file::path(UUID));
    let daemon = Daemon::stop()?;
    for domid in [ours.stub()?, ours.guest.domid] {
        run(XL, &["destroy", &domid.to_string()])?.good()?;
    }
    let stranger = Stranger::running("reused", &format!("uuid='{UUID}'"))?;
    daemon.start()?;
    let forgotten = wait_until_forgotten(UUID);
    stranger.must_be_untouched()?;
    forgotten?;
    cannot_be_destroyed(&[stranger.domid])?;
    stranger.must_be_untouched()?;
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
    let guest = Made::create(&hello("elder", "")?, &[])?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("echoing COM1", 60)?;
    let (image, file) = (Path::new("/tmp/vm-tests/elder.img"), state_file::path(&guest.guest.uuid));
    let loops = loops_of(image)?;
    ensure!(!loops.is_empty(), "the guest has no loop device");
    let spoiled = Replaced::with(&file, &spoil(&fs::read_to_string(&file)?)?)?;
    ensure!(loops_of(image)? == loops, "its loop devices were {loops:?} and are {:?}", loops_of(image)?);
    let listed = outrigger(&["list"])?;
    let said = format!("{}{}", listed.stdout, listed.stderr);
    ensure!(said.contains(&*file.to_string_lossy()), "outrigger list does not name the file: {listed}");
    ensure!(said.contains(advice), "outrigger list does not advise \"{advice}\": {listed}");
    // Nobody else gets its disk.
    let config = hello("heir", "")?;
    let text = fs::read_to_string(&config)?.replace("/tmp/vm-tests/heir.img", &image.to_string_lossy());
    fs::write(&config, text)?;
    must_be_refused("heir", &config, &["elder.img"])?;
    // It has noticed nothing of all this.
    console.type_text("still here?")?;
    console.wait_for("still here?", 30)?;
    drop(spoiled);
    let again = must_run("elder")?;
    ensure!(again.domid == guest.guest.domid && again.stub_domid == guest.guest.stub_domid, "{again:?}");
    ensure!(loops_of(image)? == loops, "its loop devices were {loops:?} and are {:?}", loops_of(image)?);
    guest.destroy()
}

/// Fails unless the guest cannot be created, for a reason that has these words.
fn must_be_refused(name: &str, config: &Path, words: &[&str]) -> Result<()> {
    let output = outrigger(&["create", &config.to_string_lossy()])?;
    if output.status == 0 {
        outrigger(&["destroy", name])?.good()?;
    }
    output.refused(1, words).map(drop)
}

/// A disk of xl's guest, under whichever name, is not for a guest of ours; one that both only read is.
fn other_names() -> Result<()> {
    let shared = scratch("shared.img", &[0; 1 << 20])?;
    let holder = Stranger::running("holder", &format!("disk+=['{},raw,xvdb,r']", shared.display()))?;
    let guest = Made::create(&hello("seeker", "")?, &[])?;
    let links = Links::to(&holder.image)?;
    let mut taken = Vec::new();
    for (what, disk) in [
        ("itself", holder.image.clone()),
        ("a longer path", "/tmp/../tmp//vm-tests/xl-holder.img".into()),
        ("a symbolic link", links.symbolic.clone()),
        ("a hard link", links.hard.clone()),
        ("xl's loop device", holder.loop_device()?.into()),
    ] {
        for access in ["rw", "ro"] {
            let outcome = must_not_attach(&disk, access, "the guest holder");
            taken.extend(outcome.err().map(|why| format!("{what}, {access}: {why}")));
        }
    }
    let written = must_not_attach(&shared, "rw", "the guest holder");
    taken.extend(written.err().map(|why| format!("what xl's guest reads, rw: {why}")));
    let own_loop = LoopOf::attach(&holder.image)?;
    let another = must_not_attach(Path::new(&own_loop.0), "rw", "in use");
    taken.extend(another.err().map(|why| format!("a loop device of dom0's, rw: {why}")));
    ensure!(taken.is_empty(), "{} attachments of the disk of another: {}", taken.len(), taken.join("\n"));
    // A new guest is no other than one that runs.
    let config = hello("late", &format!("disk+=['{},raw,hdb,rw']", links.symbolic.display()))?;
    drop(own_loop);
    must_be_refused("late", &config, &["the guest holder"])?;
    attach(&shared, "ro")?.good()?;
    outrigger(&["block-detach", "seeker", "xvdc"])?.good()?;
    holder.must_be_untouched()?;
    drop(holder);
    attach(&links.symbolic, "rw")?.good()?;
    guest.destroy()
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

/// A loop device of the case's own.
struct LoopOf(String);

impl LoopOf {
    fn attach(file: &Path) -> Result<Self> {
        let device = run("losetup", &["-f"])?.good()?.stdout.trim().to_owned();
        run("losetup", &[&device, &file.to_string_lossy()])?.good()?;
        Ok(Self(device))
    }
}

impl Drop for LoopOf {
    fn drop(&mut self) {
        let _ = run("losetup", &["-d", &self.0]);
    }
}

/// A file whose file system dom0 itself uses.
fn mounted() -> Result<()> {
    let image = scratch("mounted.img", &[0; 1 << 20])?;
    let config = hello("user", &format!("disk+=['{},raw,hdb,rw']", image.display()))?;
    disk::load_modules()?;
    let device = LoopOf::attach(&image)?;
    run("mke2fs", &[&device.0])?.good()?;
    let mounted = Mounted::at("/tmp/vm-tests/mounted", &device.0)?;
    must_be_refused("user", &config, &["mounted.img"])?;
    drop((mounted, device));
    Made::create(&config, &[])?.destroy()
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
