//! Guests that are changed while they run: disks, network interfaces, bridges, memory, names, keys.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use api::types::{Disk, Nic};
use serde::de::DeserializeOwned;

use super::Case;
use crate::harness::clean::{self, Host};
use crate::harness::command::{outrigger, run};
use crate::harness::consoles::Console;
use crate::harness::guest::{BRIDGE, Made, hello, scratch};

pub(super) const CASES: &[Case] = &[
    Case::new("hotplug::devices_come_and_go_without_drivers", without_drivers),
    Case::new("hotplug::mistakes_are_refused_and_change_nothing", mistakes),
];

/// A second bridge.
const OTHER_BRIDGE: &str = "xenbr1";

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

fn disks(guest: &str) -> Result<Vec<Disk>> {
    devices("block-list", "disks", guest)
}

fn nics(guest: &str) -> Result<Vec<Nic>> {
    devices("network-list", "nics", guest)
}

/// An image of 1 MiB that begins with a text.
fn image(name: &str, text: &str) -> Result<String> {
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
    // A guest without drivers gets an emulated card beside the PV one.
    let mut all = vec![format!("vif{domid}.1"), format!("vif{stub}.1")];
    all.sort();
    ensure!(ports(OTHER_BRIDGE)? == all, "on {OTHER_BRIDGE}: {:?}", ports(OTHER_BRIDGE)?);
    // The emulated card's interface moves with the PV one.
    outrigger(&["network-set-bridge", "plug", "0", OTHER_BRIDGE])?.good()?;
    ensure!(ports(BRIDGE)?.is_empty(), "left on {BRIDGE}: {:?}", ports(BRIDGE)?);
    all.extend([format!("vif{domid}.0"), format!("vif{stub}.0")]);
    all.sort();
    ensure!(ports(OTHER_BRIDGE)? == all, "on {OTHER_BRIDGE}: {:?}", ports(OTHER_BRIDGE)?);
    outrigger(&["network-set-bridge", "plug", "0", BRIDGE])?.good()?;
    // A boot sector lets no card go.
    outrigger(&["network-detach", "--force", "plug", &listed[1].mac])?.good()?;
    outrigger(&["block-detach", "plug", "xvdc"])?.good()?;
    clean::compare(&before)?;
    ensure!(ports(BRIDGE)?.len() == 2 && ports(OTHER_BRIDGE)?.is_empty(), "the bridges are not as before");
    // One that is still attached goes with the guest.
    outrigger(&["block-attach", "plug", &format!("{extra},raw,xvdc,ro")])?.good()?;
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
    refused(&["block-attach", "wrong", "/nowhere.img,raw,xvdb,w"], 1, "/nowhere.img is missing")?;
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
