//! Guests that are saved to files and restored.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use api::types::{Progress, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Case;
use super::media::{FIRST, SECOND, insert_and_read, read};
use super::stock::{can_be_tried, remove_empty_folder};
use crate::harness::command::{XL, outrigger, run, run_within};
use crate::harness::config::{GuestConfig, path_of};
use crate::harness::consoles::Console;
use crate::harness::daemons::{kill_hard, start_outriggerd};
use crate::harness::guest::{Made, must_be_gone, must_run};
use crate::harness::network::{BRIDGE, bridge_with, no_ports};
use crate::harness::peer::until;
use crate::harness::screen;
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::new("save::guest_without_drivers_goes_on_where_it_was", without_drivers),
    Case::new("save::linux_guest_goes_on_with_its_counters_file_and_network", linux),
    Case::new("save::screen_and_disc_of_a_guest_without_drivers_go_on", screen_and_disc),
    Case::new("save::stock_xl_and_ours_restore_each_others_guests", with_xl),
    Case::new("save::killed_daemon_or_cancelled_save_leaves_a_running_guest", interrupted),
    Case::new("save::mistakes_are_refused_and_the_guest_runs_on", mistakes),
];

/// What the boot sector guest says once, at its start.
const BANNER: &str = "Hello from an HVM guest on COM1";

/// Saves a guest, which is destroyed then.
fn save(guest: Made, file: &Path) -> Result<()> {
    run_within(seconds(180), "outrigger", &["save", &guest.guest.name, &file.to_string_lossy()])?.good()?;
    guest.must_be_gone()
}

/// Restores a guest.
fn restore(file: &Path, more: &[&str]) -> Result<Made> {
    let file = file.to_string_lossy();
    let args = [&["restore", "--json"], more, &[&*file]].concat();
    let said = run_within(seconds(180), "outrigger", &args)?.good()?.stdout;
    let last = said.lines().last().context("no progress")?;
    let progress: Progress = serde_json::from_str(last).with_context(|| format!("no progress: {last}"))?;
    Ok(Made { guest: progress.guest.with_context(|| format!("no guest: {said}"))? })
}

/// It echoes, and has not started anew.
fn must_echo(guest: &Made) -> Result<()> {
    let mut console = Console::serial(guest, 0)?;
    console.echo("still there")?;
    ensure!(!console.seen.contains(BANNER), "it has started anew: {}", console.seen);
    Ok(())
}

fn without_drivers() -> Result<()> {
    let (guest, _) = GuestConfig::hello("plain").boot()?;
    let uuid = guest.guest.uuid.clone();
    let file = path_of("plain.save");
    save(guest, &file)?;
    let guest = restore(&file, &[])?;
    ensure!(guest.guest.uuid == uuid, "another guest: {:?}", guest.guest);
    must_echo(&guest)?;
    goes_on_after_each_save(&guest, &file)?;
    through_pipes(guest, &file)?;
    stays_in_memory()?;
    Ok(fs::remove_file(file)?)
}

/// It is saved twice and goes on; the second file is of the second time.
fn goes_on_after_each_save(guest: &Made, file: &Path) -> Result<()> {
    let file = file.to_string_lossy();
    for _ in 0..2 {
        run_within(seconds(180), "outrigger", &["save", "-c", "plain", &file])?.good()?;
        guest.must_be_the_same()?;
        Console::serial(guest, 0)?.echo("goes on")?;
    }
    Ok(())
}

/// It is saved to standard output, restored from standard input, and paused once.
fn through_pipes(guest: Made, file: &Path) -> Result<()> {
    let file = file.to_string_lossy();
    through(&format!("outrigger save plain - >{file}"))?;
    guest.leave();
    through(&format!("outrigger restore -p --name other - <{file}"))?;
    let guest = Made::named("other")?;
    ensure!(guest.guest.state == State::Paused, "{:?}", guest.guest);
    outrigger(&["unpause", "other"])?.good()?;
    must_echo(&guest)?;
    guest.destroy()
}

/// Runs a line of a shell, which fails with any of its commands.
fn through(line: &str) -> Result<()> {
    run_within(seconds(180), "sh", &["-c", &format!("set -o pipefail; {line}")])?.good().map(drop)
}

fn stays_in_memory() -> Result<()> {
    let (guest, mut console) = GuestConfig::hello("asleep").boot()?;
    outrigger(&["suspend", "asleep"])?.good()?;
    ensure!(must_run("asleep")?.state == State::Suspended, "{:?}", must_run("asleep")?);
    outrigger(&["suspend", "asleep"])?.refused(1, &["asleep"])?;
    outrigger(&["resume", "asleep"])?.good()?;
    guest.must_be_the_same()?;
    console.echo("awake")?;
    outrigger(&["resume", "asleep"])?.refused(1, &["not suspended"])?;
    guest.destroy()
}

/// Counts in memory and in a file system of its own; answers pings.
const COUNTS: &str = "ip link set eth0 up; ip addr add 10.77.0.2/24 dev eth0\n\
    exec 5>/tmp/counts; n=0\n\
    while :; do n=$((n+1)); echo COUNT $n; echo $n >&5; \
    [ $(wc -l </tmp/counts) = $n ] || echo LOST; head -c 512 /dev/xvda >/dev/null || echo NO DISK; \
    usleep 200000; done\n";

fn linux() -> Result<()> {
    bridge_with(BRIDGE, "10.77.0.1/24")?;
    let nic = format!("mac=00:16:3e:77:00:02, bridge={BRIDGE}, model=e1000");
    let (guest, mut console) =
        GuestConfig::linux("counts", &format!("mkdir -p /tmp; {COUNTS}")).nic(&nic).boot()?;
    let before = count(&mut console)?;
    let guest = through_a_packed_file(guest)?;
    goes_on_from(before, Console::serial(&guest, 0)?)?;
    run_within(seconds(60), "ping", &["-c", "3", "-W", "20", "10.77.0.2"])?.good()?;
    guest.destroy()?;
    no_ports()
}

/// Saves and restores the guest; packed, because dom0 has little room.
fn through_a_packed_file(guest: Made) -> Result<Made> {
    let file = path_of("counts.save.gz");
    through(&format!("outrigger save counts - | gzip -1 >{}", file.display()))?;
    guest.must_be_gone()?;
    through(&format!("gzip -dc {} | outrigger restore -", file.display()))?;
    fs::remove_file(file)?;
    Made::named("counts")
}

/// It has lost no number, its clock goes on, and its disk answers.
fn goes_on_from(before: u64, mut console: Console) -> Result<()> {
    let after = count(&mut console)?;
    ensure!(after > before && after < before + 200, "it counted {before}, then {after}");
    let much_later = count(&mut console)?;
    ensure!(much_later > after, "it counts no longer");
    for words in ["LOST", "NO DISK", "TESTGUEST up"] {
        ensure!(!console.seen.contains(words), "{words}: {}", console.seen);
    }
    Ok(())
}

/// The next number that it says.
fn count(console: &mut Console) -> Result<u64> {
    console.wait_for("COUNT ", 60)?;
    let line = console.line(30)?;
    line.trim().parse().with_context(|| format!("{line:?} is no number"))
}

fn still_drawn(console: &mut Console) -> Result<()> {
    screen::shows_what_disc_draws("drawn")?;
    let said = read(console)?;
    ensure!(said == FIRST.1, "it read of its disc: {said}");
    Ok(())
}

/// What it has drawn is still on its screen, its disc is in the drive and can be changed.
fn screen_and_disc() -> Result<()> {
    let (mut guest, mut console) = GuestConfig::disc("drawn").boot()?;
    insert_and_read("drawn", &mut console, FIRST)?;
    let file = path_of("drawn.save");
    // The second time as a restored guest.
    for turn in ["created", "restored"] {
        save(guest, &file)?;
        guest = restore(&file, &[])?;
        console = Console::serial(&guest, 0)?;
        still_drawn(&mut console).with_context(|| format!("saved after it was {turn}"))?;
    }
    insert_and_read("drawn", &mut console, SECOND)?;
    guest.destroy()?;
    Ok(fs::remove_file(file)?)
}

fn with_xl() -> Result<()> {
    if !can_be_tried()? {
        return Ok(());
    }
    let (guest, _) = GuestConfig::hello("shared").boot()?;
    let file = path_of("shared.save");
    save(guest, &file)?;
    run_within(seconds(240), XL, &["restore", &file.to_string_lossy()])?.good()?;
    of_xl(&file)?;
    // And one whose QEMU runs in dom0.
    let config = GuestConfig::hello("shared").line("device_model_stubdomain_override=0").line("vnc=0");
    let _guest = config.create_with_xl()?;
    of_xl(&file)?;
    remove_empty_folder()
}

/// xl saves the guest, and we restore it.
fn of_xl(file: &Path) -> Result<()> {
    let _ = fs::remove_file(file);
    run_within(seconds(180), XL, &["save", "shared", &file.to_string_lossy()])?.good()?;
    // xl does not wait until Xen has released all of the domain, and nobody else can have its UUID before.
    until("xl's domain is not gone", || {
        let left = run(XL, &["list"]).map_err(std::io::Error::other)?.stdout;
        // The heading, and dom0.
        if left.lines().count() <= 2 { Ok(()) } else { Err(std::io::Error::other(left)) }
    })?;
    let guest = restore(file, &[])?;
    Console::serial(&guest, 0)?.echo("from xl")?;
    fs::remove_file(file)?;
    guest.destroy()
}

/// The daemon is killed, or the client is interrupted, while the memory is written.
fn interrupted() -> Result<()> {
    let (guest, mut console) = GuestConfig::hello("cut").boot()?;
    let folder = path_of("cuts");
    fs::create_dir_all(&folder)?;
    for (turn, interrupt) in [("killed", kill_daemon as Interruption), ("cancelled", cancel)] {
        interrupt_a_save(&folder, interrupt).context(turn)?;
        console.echo(turn)?;
        guest.must_be_the_same()?;
        ensure!(fs::read_dir(&folder)?.count() == 0, "{turn}: a part of a file is left");
    }
    fs::remove_dir(folder)?;
    guest.destroy()
}

/// What ends a save before its end, whose client this is.
type Interruption = fn(&Child) -> Result<()>;

fn kill_daemon(_: &Child) -> Result<()> {
    kill_hard("outriggerd")?;
    start_outriggerd()
}

fn cancel(client: &Child) -> Result<()> {
    Ok(kill(Pid::from_raw(client.id().try_into()?), Signal::SIGINT)?)
}

fn interrupt_a_save(folder: &Path, interrupt: Interruption) -> Result<()> {
    let mut save = Command::new("outrigger");
    save.args(["save", "cut"]).arg(folder.join("cut.save")).stderr(Stdio::null());
    let mut client = save.spawn()?;
    wait_for_content(folder)?;
    interrupt(&client)?;
    let status = client.wait()?;
    ensure!(!status.success(), "the client says {status}");
    Ok(())
}

/// Waits until some memory is in a file there.
fn wait_for_content(folder: &Path) -> Result<()> {
    let deadline = Instant::now() + seconds(60);
    loop {
        for entry in fs::read_dir(folder)? {
            if entry?.metadata()?.len() > 1 << 20 {
                return Ok(());
            }
        }
        ensure!(Instant::now() < deadline, "nothing is saved");
        std::thread::yield_now();
    }
}

fn mistakes() -> Result<()> {
    let (guest, mut console) = GuestConfig::hello("kept").boot()?;
    let letters = path_of("letters");
    fs::write(&letters, "dear diary")?;
    wrong_places(&letters.to_string_lossy())?;
    full_disk()?;
    guest.must_be_the_same()?;
    console.echo("not saved")?;
    letters_are_no_guest(&letters)?;
    let file = path_of("kept.save");
    twin(&file)?;
    guest.must_be_the_same()?;
    guest.destroy()?;
    cut_files(&file)
}

fn wrong_places(letters: &str) -> Result<()> {
    for (file, words) in [
        (letters, &["letters", "lost"][..]),
        ("/proc/kept.save", &["/proc/kept.save"]),
        ("/nowhere/kept.save", &["/nowhere"]),
        ("/dev/null", &["neither"]),
    ] {
        outrigger(&["save", "kept", file])?.refused(1, words)?;
    }
    Ok(())
}

fn letters_are_no_guest(letters: &Path) -> Result<()> {
    ensure!(fs::read_to_string(letters)? == "dear diary", "the letters are gone");
    outrigger(&["restore", &letters.to_string_lossy()])?.refused(1, &["letters"])?;
    Ok(fs::remove_file(letters)?)
}

/// A guest that goes on after its save cannot be restored beside itself.
fn twin(file: &Path) -> Result<()> {
    let file = file.to_string_lossy();
    run_within(seconds(180), "outrigger", &["save", "-c", "kept", &file])?.good()?;
    outrigger(&["restore", "--name", "twin", &file])?.refused(1, &["UUID"]).map(drop)
}

/// There is no room for the guest's memory.
fn full_disk() -> Result<()> {
    let folder = path_of("small");
    fs::create_dir_all(&folder)?;
    let at = folder.to_string_lossy();
    run("mount", &["-t", "tmpfs", "-o", "size=16m", "none", &at])?.good()?;
    let file = folder.join("kept.save");
    let said = outrigger(&["save", "kept", &file.to_string_lossy()]);
    let left = fs::read_dir(&folder)?.count();
    run("umount", &[&at])?.good()?;
    said?.refused(1, &["Not enough space"])?;
    ensure!(left == 0, "{left} files are left");
    Ok(fs::remove_dir(folder)?)
}

/// A whole file, and the same cut at places of each kind.
fn cut_files(file: &Path) -> Result<()> {
    let whole = fs::read(file)?;
    let cut = path_of("cut.save");
    let length = whole.len();
    for end in [10, 60, 4000, length / 2, length - 7000, length - 30, length - 1] {
        fs::write(&cut, &whole[..end])?;
        let output = outrigger(&["restore", &cut.to_string_lossy()])?;
        ensure!(output.status == 1, "a file cut at {end} of {length}: {output}");
        must_be_gone("kept")?;
    }
    fs::remove_file(cut)?;
    Ok(fs::remove_file(file)?)
}
