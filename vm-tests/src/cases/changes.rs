//! A Linux guest with PV drivers that is changed while it runs, and uses what it gets.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use vm_report::HostState;

use super::Case;
use crate::harness::clean::{self, Host};
use crate::harness::command::{Output, outrigger};
use crate::harness::files::md5;
use crate::harness::idle;
use crate::harness::network::{BRIDGE, no_ports};
use crate::harness::qmp::{Qmp, socket};
use crate::harness::shell::Shell;

pub(super) const CASES: &[Case] = &[
    Case::on(HostState::LinuxGuest, "changes::linux_reads_the_discs_that_it_is_given", discs),
    Case::on(HostState::LinuxGuest, "changes::linux_uses_a_disk_and_a_nic_that_come_and_go", disk_and_nic),
    Case::on(HostState::LinuxGuest, "changes::linux_hears_what_is_said_while_it_runs", rest),
];

/// Looks at a disc that was changed, as udev does. To the first who reads it, QEMU's drive says that the disc has
/// changed, which Linux takes for an error of that one reading.
fn notice(shell: &mut Shell) -> Result<()> {
    shell.run("head -c 1 /dev/sr0 >/dev/null 2>&1", 60).map(drop)
}

fn disk_and_nic() -> Result<()> {
    let mut shell = idle::shell()?;
    let before = Host::look()?;
    disk(&mut shell)?;
    nic(&mut shell)?;
    clean::compare(&before)
}

fn rest() -> Result<()> {
    let mut shell = idle::shell()?;
    memory(&mut shell)?;
    processors(&mut shell)?;
    signals(&mut shell)?;
    name(&mut shell)
}

fn discs() -> Result<()> {
    let shell = &mut idle::shell()?;
    let (first, second) = (&idle::first_disc()?, &idle::file("second-disc.iso", 2)?);
    shell.good("for module in $(cat /modules/more); do insmod $module; done", 60)?;
    shell.until("[ -b /dev/sr0 ]", 30)?;
    must_read(shell, "/dev/sr0", first).context("the first disc")?;
    insert(second)?.good()?;
    notice(shell)?;
    must_read(shell, "/dev/sr0", second).context("the second disc")?;
    locked_tray_keeps_its_disc(shell, second, first)?;
    insert(first)?.good()?;
    notice(shell)?;
    must_read(shell, "/dev/sr0", first).context("the first disc again")?;
    forced_eject_empties_the_drive(shell)
}

fn insert(disc: &str) -> Result<Output> {
    outrigger(&["cd-insert", idle::NAME, "hdc", disc])
}

/// Fails unless a device of the guest has what a file of dom0's has.
fn must_read(shell: &mut Shell, device: &str, file: &str) -> Result<()> {
    ensure!(shell.md5(device)? == md5(file)?, "the guest does not read {file} from {device}");
    Ok(())
}

/// Linux locks the tray as long as somebody has the disc open.
fn locked_tray_keeps_its_disc(shell: &mut Shell, disc: &str, other: &str) -> Result<()> {
    shell.good("exec 5</dev/sr0", 30)?;
    insert(other)?.refused(1, &["locked the tray", "--force"])?;
    must_read(shell, "/dev/sr0", disc).context("the disc in the locked tray")?;
    shell.good("exec 5<&-", 30).map(drop)
}

fn forced_eject_empties_the_drive(shell: &mut Shell) -> Result<()> {
    shell.good("exec 5</dev/sr0", 30)?;
    outrigger(&["cd-eject", "--force", idle::NAME, "hdc"])?.good()?;
    shell.good("exec 5<&-", 30)?;
    let (status, said) = shell.run("head -c 1 /dev/sr0", 60)?;
    ensure!(status != 0, "there is a disc in the empty drive: {said}");
    Ok(())
}

fn disk(shell: &mut Shell) -> Result<()> {
    let image = idle::file("more.img", 4)?;
    outrigger(&["block-attach", idle::NAME, &format!("{image},raw,xvdd,rw")])?.good()?;
    shell.until("[ -b /dev/xvdd ]", 30)?;
    must_read(shell, "/dev/xvdd", &image)?;
    let write = "dd if=/dev/urandom of=/dev/xvdd bs=64k seek=32 count=16 && sync";
    shell.good(&format!("mke2fs -F /dev/xvdd >/dev/null && {write}"), 60)?;
    let sum = shell.md5("/dev/xvdd")?;
    outrigger(&["block-detach", idle::NAME, "xvdd"])?.good()?;
    shell.until("[ ! -e /dev/xvdd ]", 30)?;
    ensure!(md5(&image)? == sum, "what the guest wrote is not in the file");
    // The magic number of an ext2 file system.
    ensure!(fs::read(&image)?.get(1080..1082) == Some(&[0x53, 0xef]), "the guest's file system is not there");
    Ok(())
}

fn nic(shell: &mut Shell) -> Result<()> {
    let mac = "00:16:3e:77:00:09";
    outrigger(&["network-attach", idle::NAME, &format!("bridge={BRIDGE},mac={mac}")])?.good()?;
    shell.until("[ -e /sys/class/net/eth0 ]", 30)?;
    let said = shell.good("cat /sys/class/net/eth0/address", 30)?;
    ensure!(said == mac, "its address is {said}");
    shell.good("ip addr add 10.79.0.9/24 dev eth0 && ip link set eth0 up", 30)?;
    shell.ping(idle::DOM0)?;
    outrigger(&["network-detach", idle::NAME, mac])?.good()?;
    shell.until("[ ! -e /sys/class/net/eth0 ]", 30)?;
    no_ports()
}

fn memory(shell: &mut Shell) -> Result<()> {
    let total = "$(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo)";
    let all: u64 = shell.good(&format!("echo {total}"), 30)?.parse().context("no MemTotal")?;
    outrigger(&["mem-set", idle::NAME, "200m"])?.good()?;
    let less = all - (256 - 200) * 1024;
    shell.until(&format!("[ {total} -le {less} ]"), 60)?;
    outrigger(&["mem-set", idle::NAME, "256m"])?.good()?;
    shell.until(&format!("[ {total} -ge {all} ]"), 60)
}

fn processors(shell: &mut Shell) -> Result<()> {
    outrigger(&["vcpu-set", "-i", idle::NAME, "2"])?.good()?;
    let online = "/sys/devices/system/cpu/cpu1/online";
    shell.until(&format!("[ -e {online} ]"), 60)?;
    shell.good(&format!("[ $(cat {online}) = 1 ] || echo 1 >{online}"), 60)?;
    let count = shell.good("grep -c ^processor /proc/cpuinfo", 30)?;
    ensure!(count == "2", "the guest has {count} processors");
    Ok(())
}

fn signals(shell: &mut Shell) -> Result<()> {
    // The power button is an input device: it gives an event of 24 bytes.
    let find =
        "button=$(sed -n '/LNXPWRBN/,/^$/s/.*\\(event[0-9]*\\).*/\\1/p' /proc/bus/input/devices | head -n 1)";
    shell.good(find, 30)?;
    // It is open before the shell answers.
    shell.good("exec 7</dev/input/$button; { head -c 24 <&7 >/dev/null && echo PRESSED & }", 30)?;
    outrigger(&["trigger", idle::NAME, "power"])?.good()?;
    shell.hear("PRESSED", 30)?;
    outrigger(&["sysrq", idle::NAME, "h"])?.good()?;
    shell.hear("sysrq: HELP", 30)?;
    outrigger(&["trigger", idle::NAME, "nmi"])?.good()?;
    shell.hear("NMI received", 30)
}

fn name(shell: &mut Shell) -> Result<()> {
    let mut before = Qmp::connect(idle::NAME)?;
    outrigger(&["rename", idle::NAME, "renamed"])?.good()?;
    let answer = Qmp::connect("renamed")?.ask(&json!({"execute": "query-name"}))?;
    ensure!(!Path::new(&socket(idle::NAME)).exists(), "the old name's socket is still there");
    ensure!(answer["return"]["name"].is_string(), "{answer}");
    let answer = before.ask(&json!({"execute": "query-status"}))?;
    ensure!(answer["return"]["running"] == true, "the rename has ended a connection: {answer}");
    shell.good("true", 30).map(drop)
}
