//! A Linux guest without PV drivers: what is plugged in and moved while it runs has to come to its emulated devices.

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::harness::clean::{self, Host};
use crate::harness::command::outrigger;
use crate::harness::config::GuestConfig;
use crate::harness::events::Events;
use crate::harness::files::md5;
use crate::harness::guest::Made;
use crate::harness::idle;
use crate::harness::network::{BRIDGE, OTHER_BRIDGE, bridge_with};
use crate::harness::shell::{BOOT, SCRIPT, Shell};

pub(super) const CASES: &[Case] =
    &[Case::new("emulated::linux_uses_what_is_plugged_and_moved_and_reboots", all)];

/// Finds the guest's SCSI disk: names are given in any order.
const FIND: &str =
    "disk=$(ls -d /sys/bus/pci/drivers/sym53c8xx/*/host*/target*/*/block/sd* 2>/dev/null | sed 's,.*/,,')";

/// In one boot, and the one after it.
fn all() -> Result<()> {
    bridge_with(BRIDGE, "10.77.0.1/24")?;
    bridge_with(OTHER_BRIDGE, "10.78.0.1/24")?;
    let config = GuestConfig::linux("bare", SCRIPT).line("xen_platform_pci=0");
    let config = config.nic(&format!("bridge={BRIDGE}, model=rtl8139"));
    let events = Events::subscribe()?;
    let guest = config.create()?;
    let mut shell = Shell::wait(&guest, BOOT)?;
    traffic_moves(&mut shell)?;
    sleep_button(&mut shell)?;
    let before = Host::look()?;
    disk_comes_and_goes(&mut shell)?;
    clean::compare(&before)?;
    disk_stays_over_a_reboot(guest, shell, events)?.destroy()
}

/// Waits until the guest has its SCSI disk, as `$disk`.
fn wait_for_disk(shell: &mut Shell, within: u64) -> Result<()> {
    shell.until(&format!("{{ {FIND}; [ -b \"/dev/$disk\" ]; }}"), within)
}

/// The sum of the guest's SCSI disk.
fn sum_of_disk(shell: &mut Shell) -> Result<String> {
    let said = shell.good("md5sum </dev/$disk", 60)?;
    said.split_whitespace().next().map(str::to_owned).with_context(|| format!("no sum: {said}"))
}

/// A SCSI disk is plugged in with its controller, used, and taken by force; an IDE disk cannot be.
fn disk_comes_and_goes(shell: &mut Shell) -> Result<()> {
    let image = idle::file("scsi.img", 1)?;
    outrigger(&["block-attach", "bare", &format!("{image},raw,sda,rw")])?.good()?;
    wait_for_disk(shell, 60)?;
    ensure!(sum_of_disk(shell)? == md5(&image)?, "the guest reads something else");
    shell.good("dd if=/dev/urandom of=/dev/$disk bs=64k count=1 conv=notrunc,fsync 2>/dev/null", 60)?;
    let sum = sum_of_disk(shell)?;
    outrigger(&["block-detach", "bare", "sda"])?.refused(1, &["emulated SCSI disk", "--force"])?;
    shell.good("echo 1 >/sys/block/$disk/device/delete", 60)?;
    outrigger(&["block-detach", "--force", "bare", "sda"])?.good()?;
    ensure!(md5(&image)? == sum, "what the guest wrote is not in the file");
    let drives = outrigger(&["qmp", "--json", "bare", "query-block"])?.good()?.stdout;
    ensure!(!drives.contains("scsi0-hd0"), "QEMU still has it: {drives}");
    ide_disk_is_not_emulated(&image)
}

/// It is attached as a PV disk only, which is said.
fn ide_disk_is_not_emulated(image: &str) -> Result<()> {
    let said = outrigger(&["block-attach", "bare", &format!("{image},raw,hdd,rw")])?.good()?;
    ensure!(said.to_string().contains("QEMU cannot hot-plug IDE or AHCI disks"), "{said}");
    outrigger(&["block-detach", "--force", "bare", "hdd"])?.good().map(drop)
}

/// What is attached stays when the guest reboots. Returns the guest as it is then.
fn disk_stays_over_a_reboot(guest: Made, mut shell: Shell, mut events: Events) -> Result<Made> {
    let image = idle::file("stays.img", 1)?;
    outrigger(&["block-attach", "bare", &format!("{image},raw,sdb,rw")])?.good()?;
    shell.send("reboot -f\n")?;
    events.wait_for("bare", "rebooted", 60)?;
    events.wait_for("bare", "created", 180)?;
    let again = guest.successor()?;
    let mut shell = Shell::wait(&again, BOOT)?;
    wait_for_disk(&mut shell, 30)?;
    ensure!(sum_of_disk(&mut shell)? == md5(&image)?, "the disk has not stayed");
    Ok(again)
}

/// The emulated card's traffic comes out at the bridge that the interface was moved to, and no more at the old one.
fn traffic_moves(shell: &mut Shell) -> Result<()> {
    let driver = shell.good("readlink /sys/class/net/eth0/device/driver", 30)?;
    ensure!(driver.ends_with("/8139cp"), "eth0 is not the emulated card but {driver}");
    shell.good("ip link set eth0 up", 30)?;
    shell.good("ip addr add 10.77.0.9/24 dev eth0 && ip addr add 10.78.0.9/24 dev eth0", 30)?;
    reaches(shell, "10.77.0.1", "10.78.0.1").context("before the move")?;
    outrigger(&["network-set-bridge", "bare", "0", OTHER_BRIDGE])?.good()?;
    reaches(shell, "10.78.0.1", "10.77.0.1").context("after the move")
}

/// Fails unless what the guest sends comes to one address and not to the other.
fn reaches(shell: &mut Shell, here: &str, not: &str) -> Result<()> {
    shell.ping(here)?;
    let (status, said) = shell.run(&format!("ping -c 2 -W 2 {not}"), 30)?;
    ensure!(status != 0, "what is sent to {not} still reaches it: {said}");
    Ok(())
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
