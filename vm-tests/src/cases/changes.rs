//! A Linux guest with PV drivers that is changed while it runs, and uses what it gets.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use vm_report::HostState;

use super::Case;
use crate::harness::clean::{self, Host};
use crate::harness::command::{outrigger, run};
use crate::harness::guest::BRIDGE;
use crate::harness::idle;
use crate::harness::qmp::{Qmp, socket};
use crate::harness::shell::Shell;

pub(super) const CASES: &[Case] = &[
    Case::on(HostState::LinuxGuest, "changes::linux_reads_the_discs_that_it_is_given", discs),
    Case::on(HostState::LinuxGuest, "changes::linux_uses_a_disk_and_a_nic_that_come_and_go", disk_and_nic),
    Case::on(HostState::LinuxGuest, "changes::linux_hears_what_is_said_while_it_runs", rest),
];

fn md5_here(path: &str) -> Result<String> {
    let said = run("md5sum", &[path])?.good()?.stdout;
    said.split_whitespace().next().map(str::to_owned).context("md5sum says nothing")
}

/// Looks at a disc that was changed, as udev does. To the first who reads it, QEMU's drive says that the disc has
/// changed, which Linux takes for an error of that one reading.
fn notice(shell: &mut Shell) -> Result<()> {
    shell.run("head -c 1 /dev/sr0 >/dev/null 2>&1", 60).map(drop)
}

fn md5_there(shell: &mut Shell, path: &str) -> Result<String> {
    let said = shell.good(&format!("md5sum {path}"), 120)?;
    let sum = said.lines().find_map(|line| line.strip_suffix(path));
    sum.map(|sum| sum.trim().to_owned()).with_context(|| format!("no sum: {said}"))
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
    memory_and_processors(&mut shell)?;
    signals(&mut shell)?;
    name(&mut shell)
}

fn discs() -> Result<()> {
    let shell = &mut idle::shell()?;
    let first = &idle::first_disc()?;
    let insert = |path: &str| outrigger(&["cd-insert", idle::NAME, "hdc", path]);
    shell.good("for module in $(cat /modules/more); do insmod $module; done", 60)?;
    shell.until("[ -b /dev/sr0 ]", 30)?;
    ensure!(md5_there(shell, "/dev/sr0")? == md5_here(first)?, "the first disc is not what it was made of");
    let second = idle::file("second-disc.iso", 2)?;
    insert(&second)?.good()?;
    notice(shell)?;
    ensure!(md5_there(shell, "/dev/sr0")? == md5_here(&second)?, "the guest does not read the second disc");
    // Linux locks the tray as long as somebody has the disc open.
    shell.good("exec 5</dev/sr0", 30)?;
    insert(first)?.refused(1, &["locked the tray", "--force"])?;
    ensure!(md5_there(shell, "/dev/sr0")? == md5_here(&second)?, "the second disc is gone");
    shell.good("exec 5<&-", 30)?;
    insert(first)?.good()?;
    notice(shell)?;
    ensure!(
        md5_there(shell, "/dev/sr0")? == md5_here(first)?,
        "the guest does not read the first disc again"
    );
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
    ensure!(md5_there(shell, "/dev/xvdd")? == md5_here(&image)?, "the guest reads something else");
    shell.good(
        "mke2fs -F /dev/xvdd >/dev/null && dd if=/dev/urandom of=/dev/xvdd bs=64k seek=32 count=16 && sync",
        60,
    )?;
    let sum = md5_there(shell, "/dev/xvdd")?;
    outrigger(&["block-detach", idle::NAME, "xvdd"])?.good()?;
    shell.until("[ ! -e /dev/xvdd ]", 30)?;
    ensure!(md5_here(&image)? == sum, "what the guest wrote is not in the file");
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
    shell.good(
        &format!(
            "ip addr add 10.79.0.9/24 dev eth0 && ip link set eth0 up && ping -c 3 -W 20 {}",
            idle::DOM0
        ),
        90,
    )?;
    outrigger(&["network-detach", idle::NAME, mac])?.good()?;
    shell.until("[ ! -e /sys/class/net/eth0 ]", 30)?;
    let ports = fs::read_dir(Path::new("/sys/class/net").join(BRIDGE).join("brif"))?.count();
    ensure!(ports == 0, "{ports} ports are left on the bridge");
    Ok(())
}

fn memory_and_processors(shell: &mut Shell) -> Result<()> {
    let total = "$(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo)";
    let all: u64 = shell.good(&format!("echo {total}"), 30)?.parse().context("no MemTotal")?;
    outrigger(&["mem-set", idle::NAME, "200m"])?.good()?;
    let less = all - (256 - 200) * 1024;
    shell.until(&format!("[ {total} -le {less} ]"), 60)?;
    outrigger(&["mem-set", idle::NAME, "256m"])?.good()?;
    shell.until(&format!("[ {total} -ge {all} ]"), 60)?;
    outrigger(&["vcpu-set", idle::NAME, "2"])?.good()?;
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
    ensure!(!Path::new(&socket(idle::NAME)).exists(), "the old name's socket is still there");
    let answer = Qmp::connect("renamed")?.ask(&json!({"execute": "query-name"}))?;
    ensure!(answer["return"]["name"].is_string(), "{answer}");
    let answer = before.ask(&json!({"execute": "query-status"}))?;
    ensure!(answer["return"]["running"] == true, "the rename has ended a connection: {answer}");
    shell.good("true", 30).map(drop)
}
