//! Guests that are changed while they run: disks, network interfaces, bridges, memory, names, keys.

use anyhow::{Context, Result, ensure};
use api::types::{Disk, Nic};
use serde::de::DeserializeOwned;

use super::Case;
use crate::harness::clean::{self, Host};
use crate::harness::command::outrigger;
use crate::harness::config::{GuestConfig, padded};
use crate::harness::guest::Made;
use crate::harness::network::{BRIDGE, OTHER_BRIDGE, bridge_with, ports};

pub(super) const CASES: &[Case] = &[
    Case::new("hotplug::devices_come_and_go_without_drivers", without_drivers),
    Case::new("hotplug::mistakes_are_refused_and_change_nothing", mistakes),
];

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

fn without_drivers() -> Result<()> {
    bridge_with(BRIDGE, "10.77.0.1/24")?;
    bridge_with(OTHER_BRIDGE, "10.78.0.1/24")?;
    let (guest, _) = GuestConfig::hello("plug").nic(&format!("bridge={BRIDGE}, model=e1000")).boot()?;
    let before = Host::look()?;
    let extra = padded("extra.img", "extra")?.display().to_string();
    come_and_go(&guest, &extra)?;
    clean::compare(&before)?;
    ensure!(ports(BRIDGE)?.len() == 2 && ports(OTHER_BRIDGE)?.is_empty(), "the bridges are not as before");
    // One that is still attached goes with the guest.
    outrigger(&["block-attach", "plug", &format!("{extra},raw,xvdc,ro")])?.good()?;
    guest.destroy()
}

fn come_and_go(guest: &Made, image: &str) -> Result<()> {
    attach_disk(image)?;
    let mac = attach_nic()?;
    bridges_are_changed(guest)?;
    // A boot sector lets no card go.
    outrigger(&["network-detach", "--force", "plug", &mac])?.good()?;
    outrigger(&["block-detach", "plug", "xvdc"])?.good().map(drop)
}

fn attach_disk(image: &str) -> Result<()> {
    // Asked for again, as after a daemon that was killed: it is there.
    for _ in 0..2 {
        outrigger(&["block-attach", "plug", &format!("{image},raw,xvdc,rw")])?.good()?;
    }
    let listed = disks("plug")?;
    ensure!(listed.len() == 2 && listed[1].vdev == "xvdc" && listed[1].source == image, "{listed:?}");
    let is_emulated = [listed[0].emulated_by.as_deref(), listed[1].emulated_by.as_deref()];
    ensure!(is_emulated == [Some("xvda"), None], "{listed:?}");
    Ok(())
}

/// Returns its address.
fn attach_nic() -> Result<String> {
    outrigger(&["network-attach", "plug", &format!("bridge={OTHER_BRIDGE}")])?.good()?;
    let listed = nics("plug")?;
    ensure!(listed.len() == 2 && listed[1].devid == 1 && listed[1].bridge == OTHER_BRIDGE, "{listed:?}");
    Ok(listed[1].mac.clone())
}

/// The first interface goes to the other bridge, where the second one is, and back.
fn bridges_are_changed(guest: &Made) -> Result<()> {
    let (domid, stub) = guest.domids()?;
    // A guest without drivers gets an emulated card beside the PV one.
    let second = [format!("vif{domid}.1"), format!("vif{stub}.1")];
    must_have_ports(OTHER_BRIDGE, &second)?;
    // The emulated card's interface moves with the PV one.
    outrigger(&["network-set-bridge", "plug", "0", OTHER_BRIDGE])?.good()?;
    must_have_ports(BRIDGE, &[])?;
    let first = [format!("vif{domid}.0"), format!("vif{stub}.0")];
    must_have_ports(OTHER_BRIDGE, &[first, second].concat())?;
    outrigger(&["network-set-bridge", "plug", "0", BRIDGE])?.good().map(drop)
}

fn must_have_ports(bridge: &str, wanted: &[String]) -> Result<()> {
    let (found, mut wanted) = (ports(bridge)?, wanted.to_vec());
    wanted.sort();
    ensure!(found == wanted, "on {bridge} are {found:?} and not {wanted:?}");
    Ok(())
}

fn mistakes() -> Result<()> {
    bridge_with(BRIDGE, "10.77.0.1/24")?;
    let guest = GuestConfig::hello("wrong").create()?;
    let before = Host::look()?;
    for (args, status, words) in MISTAKES {
        outrigger(args)?.refused(*status, &[words])?;
        clean::compare(&before).with_context(|| format!("after {args:?}"))?;
    }
    guest.destroy()
}

/// A command, its exit status, and what it says.
type Mistake = (&'static [&'static str], i32, &'static str);

const MISTAKES: &[Mistake] = &[
    (&["block-attach", "wrong", "/srv/x.qcow2,qcow2,xvdb,w"], 3, "qemu-img convert"),
    (&["block-attach", "wrong", "/nowhere.img,raw,xvdb,w"], 1, "/nowhere.img is missing"),
    (&["block-attach", "nobody", "/x.img,raw,xvdb,w"], 4, "nobody"),
    (&["block-detach", "wrong", "xvdz"], 1, "has no disk xvdz"),
    (&["block-detach", "wrong", "hda"], 1, "cannot be unplugged"),
    (&["network-attach", "wrong", "bridge=nobridge"], 1, "There is no bridge nobridge"),
    (&["network-detach", "wrong", "5"], 1, "has no network interface 5"),
    (&["mem-set", "wrong", "1t"], 1, "maxmem"),
    (&["vcpu-set", "-i", "wrong", "9"], 1, "maxvcpus"),
    (&["vcpu-set", "wrong", "512"], 1, "-i"),
    (&["sysrq", "wrong", "h"], 1, "no PV drivers"),
    (&["rename", "wrong", "a/b"], 1, "slash"),
];
