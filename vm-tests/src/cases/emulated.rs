//! A Linux guest without PV drivers: what is plugged in and moved while it runs has to come to its emulated devices.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::harness::clean::{self, Host};
use crate::harness::command::{outrigger, run};
use crate::harness::events::Events;
use crate::harness::guest::{BRIDGE, Made, bridge, linux, must_run, scratch};
use crate::harness::shell::{SCRIPT, Shell};

pub(super) const CASES: &[Case] =
    &[Case::new("emulated::linux_uses_what_is_plugged_and_moved_and_reboots", all)];

/// How long the guest may take to its shell, under emulation.
const BOOT: u64 = 300;
/// Finds the guest's SCSI disk: names are given in any order.
const FIND: &str =
    "disk=$(ls -d /sys/bus/pci/drivers/sym53c8xx/*/host*/target*/*/block/sd* 2>/dev/null | sed 's,.*/,,')";
/// The other bridge.
const OTHER: &str = "xenbr1";

/// In one boot, and the one after it.
fn all() -> Result<()> {
    bridge()?;
    if !Path::new("/sys/class/net").join(OTHER).exists() {
        run("ip", &["link", "add", OTHER, "type", "bridge"])?.good()?;
    }
    run("ip", &["link", "set", OTHER, "up"])?.good()?;
    for (name, address) in [(BRIDGE, "10.77.0.1/24"), (OTHER, "10.78.0.1/24")] {
        run("ip", &["addr", "replace", address, "dev", name])?.good()?;
    }
    let more = format!("xen_platform_pci=0\nvif=['bridge={BRIDGE}, model=rtl8139']");
    let mut events = Events::subscribe()?;
    let guest = Made::create(&linux("bare", SCRIPT, &more)?, &[])?;
    let mut shell = Shell::wait(&guest, BOOT)?;
    traffic_moves(&mut shell)?;
    sleep_button(&mut shell)?;
    let before = Host::look()?;
    disk(&mut shell)?;
    clean::compare(&before)?;
    // What is attached stays when the guest reboots.
    let image = file("stays.img")?;
    outrigger(&["block-attach", "bare", &format!("{image},raw,sdb,rw")])?.good()?;
    shell.send("reboot -f\n")?;
    events.wait_for("bare", "rebooted", 60)?;
    events.wait_for("bare", "created", 180)?;
    let again = Made { guest: must_run("bare")? };
    ensure!(again.guest.domid != guest.guest.domid, "it is the same domain");
    guest.leave();
    let mut shell = Shell::wait(&again, BOOT)?;
    shell.until(&format!("{{ {FIND}; [ -b \"/dev/$disk\" ]; }}"), 30)?;
    ensure!(shell.good("md5sum </dev/$disk", 60)? == md5(&image)?, "the disk has not stayed");
    again.destroy()
}

/// A file of 1 MiB whose content depends on its name.
fn file(name: &str) -> Result<String> {
    let line = format!("this is {name}\n").into_bytes();
    let content: Vec<u8> = line.iter().copied().cycle().take(1 << 20).collect();
    Ok(scratch(name, &content)?.display().to_string())
}

fn md5(path: &str) -> Result<String> {
    Ok(run("sh", &["-c", &format!("md5sum <{path}")])?.good()?.stdout.trim().to_owned())
}

/// A SCSI disk is plugged in with its controller, used, and taken by force; an IDE disk cannot be.
fn disk(shell: &mut Shell) -> Result<()> {
    let image = file("scsi.img")?;
    outrigger(&["block-attach", "bare", &format!("{image},raw,sda,rw")])?.good()?;
    shell.until(&format!("{{ {FIND}; [ -b \"/dev/$disk\" ]; }}"), 60)?;
    ensure!(shell.good("md5sum </dev/$disk", 60)? == md5(&image)?, "the guest reads something else");
    shell.good("dd if=/dev/urandom of=/dev/$disk bs=64k count=1 conv=notrunc,fsync 2>/dev/null", 60)?;
    let sum = shell.good("md5sum </dev/$disk", 60)?;
    outrigger(&["block-detach", "bare", "sda"])?.refused(1, &["emulated SCSI disk", "--force"])?;
    shell.good("echo 1 >/sys/block/$disk/device/delete", 60)?;
    outrigger(&["block-detach", "--force", "bare", "sda"])?.good()?;
    ensure!(md5(&image)? == sum, "what the guest wrote is not in the file");
    let drives = outrigger(&["qmp", "--json", "bare", "query-block"])?.good()?.stdout;
    ensure!(!drives.contains("scsi0-hd0"), "QEMU still has it: {drives}");
    let said = outrigger(&["block-attach", "bare", &format!("{image},raw,hdd,rw")])?.good()?;
    ensure!(said.to_string().contains("QEMU cannot hot-plug IDE or AHCI disks"), "{said}");
    outrigger(&["block-detach", "--force", "bare", "hdd"])?.good().map(drop)
}

/// The emulated card's traffic comes out at the bridge that the interface was moved to, and no more at the old one.
fn traffic_moves(shell: &mut Shell) -> Result<()> {
    let driver = shell.good("readlink /sys/class/net/eth0/device/driver", 30)?;
    ensure!(driver.ends_with("/8139cp"), "eth0 is not the emulated card but {driver}");
    shell.good(
        "ip link set eth0 up && ip addr add 10.77.0.9/24 dev eth0 && ip addr add 10.78.0.9/24 dev eth0",
        30,
    )?;
    let mut reaches = |here: &str, not: &str| -> Result<()> {
        shell.good(&format!("ping -c 3 -W 20 {here}"), 90)?;
        let (status, said) = shell.run(&format!("ping -c 2 -W 2 {not}"), 30)?;
        ensure!(status != 0, "what is sent to {not} still reaches it: {said}");
        Ok(())
    };
    reaches("10.77.0.1", "10.78.0.1").context("before the move")?;
    outrigger(&["network-set-bridge", "bare", "0", OTHER])?.good()?;
    reaches("10.78.0.1", "10.77.0.1").context("after the move")
}

/// The sleep button is an input device: it gives events of 24 bytes.
fn sleep_button(shell: &mut Shell) -> Result<()> {
    let find =
        "button=$(sed -n '/LNXSLPBN/,/^$/s/.*\\(event[0-9]*\\).*/\\1/p' /proc/bus/input/devices | head -n 1)";
    shell.good(find, 30)?;
    shell.good("exec 7</dev/input/$button; { head -c 24 <&7 >/dev/null && echo ASLEEP & }", 30)?;
    outrigger(&["trigger", "bare", "sleep"])?.good()?;
    shell.hear("ASLEEP", 30)
}
