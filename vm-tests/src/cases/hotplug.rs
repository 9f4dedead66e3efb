//! Guests that are changed while they run: disks, network interfaces, bridges, memory, names, keys.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use api::types::{Disk, Nic};
use serde::de::DeserializeOwned;

use super::Case;
use crate::harness::clean::{self, Host};
use crate::harness::command::{outrigger, run};
use crate::harness::consoles::Console;
use crate::harness::guest::{BRIDGE, Made, hello, linux, must_run, scratch};

pub(super) const CASES: &[Case] = &[
    Case::new("hotplug::devices_come_and_go_without_drivers", without_drivers),
    Case::new("hotplug::mistakes_are_refused_and_change_nothing", mistakes),
    Case::new("hotplug::renamed_guest_keeps_name_consoles_and_devices", renamed),
    Case::new("hotplug::linux_uses_new_disk_nic_bridge_and_memory", linux_uses),
];

/// A second bridge.
const OTHER_BRIDGE: &str = "xenbr1";
/// How long the Linux guest may take from its first byte to its script, under emulation.
const BOOT: u64 = 300;

fn bridge(name: &str, address: &str) -> Result<()> {
    if !Path::new("/sys/class/net").join(name).exists() {
        run("ip", &["link", "add", name, "type", "bridge"])?.good()?;
    }
    run("ip", &["addr", "replace", address, "dev", name])?.good()?;
    run("ip", &["link", "set", name, "up"])?.good()?;
    Ok(())
}

fn ports(bridge: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(Path::new("/sys/class/net").join(bridge).join("brif"))?;
    let mut names: Vec<String> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn devices<T: DeserializeOwned>(command: &str, what: &str, guest: &str) -> Result<Vec<T>> {
    let output = outrigger(&[command, "--json", guest])?.good()?;
    let mut lists: serde_json::Value = serde_json::from_str(&output.stdout)?;
    Ok(serde_json::from_value(lists[0][what].take())?)
}

pub(super) fn disks(guest: &str) -> Result<Vec<Disk>> {
    devices("block-list", "disks", guest)
}

fn nics(guest: &str) -> Result<Vec<Nic>> {
    devices("network-list", "nics", guest)
}

/// An image of 1 MiB that begins with a text.
pub(super) fn image(name: &str, text: &str) -> Result<String> {
    let mut content = text.as_bytes().to_vec();
    content.resize(1 << 20, 0);
    Ok(scratch(name, &content)?.display().to_string())
}

fn without_drivers() -> Result<()> {
    bridge(BRIDGE, "10.77.0.1/24")?;
    bridge(OTHER_BRIDGE, "10.78.0.1/24")?;
    let nic = format!("vif=['bridge={BRIDGE}, model=e1000']");
    let guest = Made::create(&hello("plug", &nic)?, &[])?;
    Console::serial(&guest, 0)?.wait_for("echoing COM1", 60)?;
    let before = Host::look()?;
    let extra = image("extra.img", "extra")?;
    outrigger(&["block-attach", "plug", &format!("{extra},raw,xvdc,rw")])?.good()?;
    // Asked for again, as after a daemon that was killed: it is there.
    outrigger(&["block-attach", "plug", &format!("{extra},raw,xvdc,rw")])?.good()?;
    let listed = disks("plug")?;
    ensure!(listed.len() == 2 && listed[1].vdev == "xvdc" && listed[1].source == extra, "{listed:?}");
    ensure!(
        listed[0].emulated_by.as_deref() == Some("xvda") && listed[1].emulated_by.is_none(),
        "{listed:?}"
    );
    outrigger(&["network-attach", "plug", &format!("bridge={OTHER_BRIDGE}")])?.good()?;
    let listed = nics("plug")?;
    ensure!(listed.len() == 2 && listed[1].devid == 1 && listed[1].bridge == OTHER_BRIDGE, "{listed:?}");
    let (domid, stub) = (guest.guest.domid, guest.stub()?);
    ensure!(ports(OTHER_BRIDGE)? == [format!("vif{domid}.1")], "{:?}", ports(OTHER_BRIDGE)?);
    // The emulated card's interface moves with the PV one.
    outrigger(&["network-set-bridge", "plug", "0", OTHER_BRIDGE])?.good()?;
    ensure!(ports(BRIDGE)?.is_empty(), "left on {BRIDGE}: {:?}", ports(BRIDGE)?);
    let mut all = vec![format!("vif{domid}.0"), format!("vif{domid}.1"), format!("vif{stub}.0")];
    all.sort();
    ensure!(ports(OTHER_BRIDGE)? == all, "on {OTHER_BRIDGE}: {:?}", ports(OTHER_BRIDGE)?);
    outrigger(&["network-set-bridge", "plug", "0", BRIDGE])?.good()?;
    outrigger(&["network-detach", "plug", &listed[1].mac])?.good()?;
    outrigger(&["block-detach", "plug", "xvdc"])?.good()?;
    clean::compare(&before)?;
    ensure!(ports(BRIDGE)?.len() == 2 && ports(OTHER_BRIDGE)?.is_empty(), "the bridges are not as before");
    // One that is still attached goes with the guest.
    outrigger(&["block-attach", "plug", &format!("{extra},raw,xvdc,ro")])?.good()?;
    outrigger(&["network-attach", "plug", &format!("bridge={BRIDGE}")])?.good()?;
    guest.destroy()
}

fn mistakes() -> Result<()> {
    bridge(BRIDGE, "10.77.0.1/24")?;
    let guest = Made::create(&hello("wrong", "")?, &[])?;
    let before = Host::look()?;
    let refused = |args: &[&str], status: i32, words: &str| -> Result<()> {
        outrigger(args)?.refused(status, &[words])?;
        clean::compare(&before).with_context(|| format!("after {args:?}"))
    };
    refused(&["block-attach", "wrong", "/srv/x.qcow2,qcow2,xvdb,w"], 3, "qemu-img convert")?;
    refused(&["block-attach", "wrong", "/nowhere.img,raw,xvdb,w"], 1, "/nowhere.img is not there")?;
    refused(&["block-attach", "nobody", "/x.img,raw,xvdb,w"], 4, "nobody")?;
    refused(&["block-detach", "wrong", "xvdz"], 1, "has no disk xvdz")?;
    refused(&["block-detach", "wrong", "hda"], 1, "cannot be unplugged")?;
    refused(&["network-attach", "wrong", "bridge=nobridge"], 1, "There is no bridge nobridge")?;
    refused(&["network-detach", "wrong", "5"], 1, "has no network interface 5")?;
    refused(&["mem-set", "wrong", "1t"], 1, "maxmem")?;
    refused(&["vcpu-set", "wrong", "9"], 1, "maxvcpus")?;
    refused(&["sysrq", "wrong", "h"], 1, "no PV drivers")?;
    refused(&["rename", "wrong", "a/b"], 1, "slash")?;
    guest.destroy()
}

fn renamed() -> Result<()> {
    let guest = Made::create(&hello("before", "")?, &[])?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("echoing COM1", 60)?;
    outrigger(&["rename", "before", "after"])?.good()?;
    let again = must_run("after")?;
    ensure!(again.domid == guest.guest.domid, "{again:?}");
    outrigger(&["domid", "before"])?.refused(4, &["before"])?;
    for (domid, name) in [(guest.guest.domid, "after"), (guest.stub()?, "after-dm")] {
        let said = run("xenstore-read", &[&format!("/local/domain/{domid}/name")])?.good()?.stdout;
        ensure!(said.trim() == name, "domain {domid} is called {said}");
    }
    console.type_text("still there?")?;
    console.wait_for("still there?", 30)?;
    // Its old name is free.
    let second = Made::create(&hello("second", "")?, &[])?;
    outrigger(&["rename", "second", "before"])?.good()?;
    outrigger(&["rename", "after", "before"])?.refused(1, &["taken"])?;
    let log = outrigger(&["dm-log", "after"])?.good()?.stdout;
    ensure!(log.contains("outrigger-agent"), "the stubdomain's log is not found: {log}");
    second.destroy()?;
    guest.destroy()
}

/// A shell on the first serial port of the Linux guest.
pub(super) struct Shell {
    console: Console,
    count: u32,
}

impl Shell {
    /// What the guest's script has to be for it.
    pub(super) const SCRIPT: &'static str =
        "stty -echo 2>/dev/null; echo SHELL; exec sh </dev/ttyS0 >/dev/ttyS0 2>&1\n";

    pub(super) fn of(guest: &Made) -> Result<Self> {
        let mut console = Console::serial(guest, 0)?;
        console.wait_for("SHELL", BOOT)?;
        Ok(Self { console, count: 0 })
    }

    /// Runs a command and waits until it has ended well.
    pub(super) fn run(&mut self, command: &str) -> Result<()> {
        self.count += 1;
        // The marks are not in the line itself, which may be echoed.
        let count = self.count;
        let line =
            format!("if {{ {command}; }}; then echo \"GO\"OD{count}.; else echo \"B\"AD{count}.; fi\n");
        self.console.type_text(&line)?;
        let good = format!("GOOD{count}.");
        self.console.wait_for(&good, 60).with_context(|| format!("in the guest: {command}"))
    }
}

/// Waits in the guest until something holds.
pub(super) fn until(condition: &str) -> String {
    format!(
        "n=0; while ! {{ {condition}; }}; do n=$((n+1)); [ $n -lt 200 ] || break; usleep 100000; done; {condition}"
    )
}

fn linux_uses() -> Result<()> {
    bridge(BRIDGE, "10.77.0.1/24")?;
    bridge(OTHER_BRIDGE, "10.78.0.1/24")?;
    let nic = format!("vif=['mac=00:16:3e:77:00:05, bridge={BRIDGE}, model=e1000']");
    let guest = Made::create(&linux("hot", Shell::SCRIPT, &nic)?, &[])?;
    let mut shell = Shell::of(&guest)?;
    let before = Host::look()?;

    let extra = image("hot-extra.img", "brought along")?;
    outrigger(&["block-attach", "hot", &format!("{extra},raw,xvdf,rw")])?.good()?;
    shell.run(&until("[ -b /dev/xvdf ]"))?;
    shell.run("[ \"$(head -c 13 /dev/xvdf)\" = 'brought along' ]")?;
    shell
        .run("echo 'written by the guest' | dd of=/dev/xvdf bs=512 seek=1 conv=notrunc,fsync 2>/dev/null")?;
    let listed = disks("hot")?;
    ensure!(listed.last().is_some_and(|disk| disk.vdev == "xvdf" && disk.state == Some(4)), "{listed:?}");
    outrigger(&["block-detach", "hot", "xvdf"])?.good()?;
    shell.run(&until("[ ! -e /dev/xvdf ]"))?;
    let mut found = [0; 20];
    fs::File::open(&extra)?.read_exact_at(&mut found, 512)?;
    ensure!(found == *b"written by the guest", "the image has {:?}", String::from_utf8_lossy(&found));

    outrigger(&["network-attach", "hot", &format!("mac=00:16:3e:77:00:06,bridge={BRIDGE}")])?.good()?;
    shell.run(&until("[ -e /sys/class/net/eth1 ]"))?;
    shell.run("ip link set eth1 up; ip addr add 10.77.0.6/24 dev eth1; ping -c 2 -W 20 10.77.0.1")?;
    outrigger(&["network-detach", "hot", "00:16:3e:77:00:06"])?.good()?;
    shell.run(&until("[ ! -e /sys/class/net/eth1 ]"))?;
    clean::compare(&before)?;

    shell.run("ip link set eth0 up; ip addr add 10.77.0.5/24 dev eth0; ip addr add 10.78.0.5/24 dev eth0")?;
    shell.run("ping -c 2 -W 20 10.77.0.1; ! ping -c 1 -W 2 10.78.0.1")?;
    outrigger(&["network-set-bridge", "hot", "00:16:3e:77:00:05", OTHER_BRIDGE])?.good()?;
    ensure!(ports(BRIDGE)?.is_empty() && ports(OTHER_BRIDGE)?.len() == 2, "not both sides have moved");
    shell.run("ping -c 2 -W 20 10.78.0.1; ! ping -c 1 -W 2 10.77.0.1")?;

    shell.run("T=$(grep MemTotal /proc/meminfo | tr -dc 0-9)")?;
    outrigger(&["mem-set", "hot", "192"])?.good()?;
    shell.run(&until("[ $(grep MemTotal /proc/meminfo | tr -dc 0-9) -le $((T - 60000)) ]"))?;
    ensure!(must_run("hot")?.memory_kib.mib() < 200, "{:?}", must_run("hot")?);
    outrigger(&["mem-set", "hot", "256"])?.good()?;
    shell.run(&until("[ $(grep MemTotal /proc/meminfo | tr -dc 0-9) -ge $((T - 4000)) ]"))?;

    outrigger(&["sysrq", "hot", "h"])?.good()?;
    shell.run("dmesg | grep -q 'sysrq: HELP'")?;
    outrigger(&["trigger", "hot", "nmi"])?.good()?;
    shell.run(&until("dmesg | grep -q 'NMI received'"))?;
    guest.destroy()
}
