//! Devices beyond an image file on IDE: hotplug scripts, block devices, SCSI, UEFI firmware.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::harness::command::outrigger;
use crate::harness::config::GuestConfig;
use crate::harness::consoles::Console;
use crate::harness::guest::{HELLO_DISK, Made, scratch};
use crate::harness::loops::LoopDevice;
use crate::harness::network::{BRIDGE, bridge, ports};

pub(super) const CASES: &[Case] = &[
    Case::new("devices::scripts_of_disk_and_vif_run_and_are_taken_back", scripts),
    Case::new("devices::failing_script_undoes_the_create", failing_script),
    Case::new("devices::block_device_and_scsi_disk_are_read", block_and_scsi),
];

/// A disk's script: takes `test:FILE` as the target and serves the file from a loop device of its own.
const BLOCK: &str = r#"#!/bin/sh
log=/tmp/vm-tests/scripts.log
echo "block $1 $XENBUS_PATH" >>$log
case $1 in
add)
    params=$(xenstore-read "$XENBUS_PATH/params")
    device=$(losetup -f) && losetup "$device" "${params#test:}" || exit 1
    xenstore-write "$XENBUS_PATH/node" "$device" \
        "$XENBUS_PATH/physical-device" "$(stat -c %t:%T "$device")" "$XENBUS_PATH/hotplug-status" connected
    ;;
remove) losetup -d "$(xenstore-read "$XENBUS_PATH/node")" ;;
esac
"#;
/// An interface's script: joins the bridge that it was told of.
const VIF: &str = r#"#!/bin/sh
log=/tmp/vm-tests/scripts.log
echo "vif $1 $XENBUS_PATH $vif $2" >>$log
[ "$1" = online ] || exit 0
ip link set "$vif" master "$(xenstore-read "$XENBUS_PATH/bridge")" && ip link set "$vif" up || exit 1
xenstore-write "$XENBUS_PATH/hotplug-status" connected
"#;
const LOG: &str = "/tmp/vm-tests/scripts.log";

fn script(name: &str, text: &str) -> Result<PathBuf> {
    let path = scratch(name, text.as_bytes())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// A copy of the example's second disk, whose text the guest reads as `this is hdb`.
fn data_disk(name: &str) -> Result<PathBuf> {
    scratch(name, &fs::read("/examples/hello-data.img")?)
}

fn scripts() -> Result<()> {
    let _ = fs::remove_file(LOG);
    let (guest, console) = scripted()?.boot()?;
    ensure!(console.seen.contains("this is hdb"), "it has not read the disk: {}", console.seen);
    let expected = what_the_scripts_log(&guest)?;
    logged(&expected)?;
    guest.destroy()?;
    let take_back = |line: &String| line.replace(" add ", " remove ").replace(" online ", " offline ");
    logged(&expected.iter().map(take_back).collect::<Vec<_>>())
}

/// A guest with a disk and an interface that scripts connect.
fn scripted() -> Result<GuestConfig> {
    let (block, data) = (script("block-test", BLOCK)?, data_disk("scripted-data.img")?);
    let target = format!("script={}, target=test:{}", block.display(), data.display());
    let (bridge, vif) = (bridge()?, script("vif-test", VIF)?);
    Ok(GuestConfig::hello("scripted")
        .disk(&format!("format=raw, vdev=hdb, access=rw, {target}"))
        .nic(&format!("bridge={bridge}, script={}", vif.display())))
}

/// The lines of the scripts' log for a guest and its stubdomain, both of which are on the bridge.
fn what_the_scripts_log(guest: &Made) -> Result<Vec<String>> {
    let (domid, stub) = guest.domids()?;
    let ports = ports(BRIDGE)?;
    let mut expected = Vec::new();
    for domain in [domid, stub] {
        let port = format!("vif{domain}.0");
        ensure!(ports.contains(&port), "{port} is not on the bridge, but {ports:?}");
        expected.push(format!("vif online backend/vif/{domain}/0 {port} type_if=vif"));
    }
    // Disk 1 of an IDE bus is 832 (0x340) to the guest, and 51728 (xvdb) to the stubdomain.
    expected.push(format!("block add backend/vbd/{domid}/832"));
    expected.push(format!("block add backend/vbd/{stub}/51728"));
    Ok(expected)
}

/// Fails unless the scripts' log has each of the lines once.
fn logged(lines: &[String]) -> Result<()> {
    let log = fs::read_to_string(LOG).context("no script has run")?;
    for line in lines {
        let times = log.lines().filter(|logged| logged == line).count();
        ensure!(times == 1, "\"{line}\" is {times} times in the scripts' log:\n{log}");
    }
    Ok(())
}

fn failing_script() -> Result<()> {
    let text = "#!/bin/sh\n[ \"$1\" != add ] || { echo no such volume >&2; exit 3; }\n";
    let script = script("block-broken", text)?;
    let disk = |script: &str| format!("format=raw, vdev=hdb, access=rw, script={script}, target=x");
    let config = GuestConfig::hello("broken").disk(&disk(&script.to_string_lossy()));
    config.refused(1, &["block-broken", "status 3", "no such volume"])?;
    let config = GuestConfig::hello("broken").disk(&disk("block-nowhere"));
    config.refused(1, &["/etc/xen/scripts/block-nowhere"])
}

fn block_and_scsi() -> Result<()> {
    let image = scratch("blocky.img", &fs::read(HELLO_DISK)?)?;
    let (boot, data) = (LoopDevice::of(&image)?, data_disk("blocky-data.img")?);
    let config = GuestConfig::hello("blocky")
        .boot_disk(boot.0.as_ref())
        .disk(&format!("format=raw, vdev=sda, access=rw, target={}", data.display()));
    let guest = config.create()?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("disk 0: this is hda", 60)?;
    console.wait_for("disk 1: this is hdb", 60)?;
    second_disk_is_on_scsi("blocky")?;
    guest.destroy()?;
    // The device is its owner's.
    boot.must_be_attached()
}

fn second_disk_is_on_scsi(guest: &str) -> Result<()> {
    let info = outrigger(&["info", guest])?.good()?.stdout;
    for model in ["lsi53c895a", "scsi-hd"] {
        ensure!(info.contains(model), "the second disk is not on SCSI:\n{info}");
    }
    Ok(())
}
