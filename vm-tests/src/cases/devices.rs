//! Devices beyond an image file on IDE: hotplug scripts, block devices, SCSI, UEFI firmware.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::harness::command::{outrigger, run};
use crate::harness::consoles::Console;
use crate::harness::guest::{Made, bridge, hello, scratch};

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
    let bridge = bridge()?;
    let _ = fs::remove_file(LOG);
    let (block, vif, data) =
        (script("block-test", BLOCK)?, script("vif-test", VIF)?, data_disk("scripted-data.img")?);
    let more = format!(
        "disk+=['format=raw, vdev=hdb, access=rw, script={}, target=test:{}']\nvif=['bridge={bridge}, script={}']",
        block.display(),
        data.display(),
        vif.display()
    );
    let guest = Made::create(&hello("scripted", &more)?, &[])?;
    let (domid, stub) = (guest.guest.domid, guest.stub()?);
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("this is hdb", 60)?;
    let mut expected = Vec::new();
    for domain in [domid, stub] {
        let port = Path::new("/sys/class/net").join(bridge).join(format!("brif/vif{domain}.0"));
        ensure!(port.exists(), "{} is not there", port.display());
        expected.push(format!("vif online backend/vif/{domain}/0 vif{domain}.0 type_if=vif"));
    }
    // Disk 1 of an IDE bus is 832 (0x340) to the guest, and 51728 (xvdb) to the stubdomain.
    expected.push(format!("block add backend/vbd/{domid}/832"));
    expected.push(format!("block add backend/vbd/{stub}/51728"));
    logged(&expected)?;
    guest.destroy()?;
    let taken_back: Vec<String> = expected
        .iter()
        .map(|line| line.replace(" add ", " remove ").replace(" online ", " offline "))
        .collect();
    logged(&taken_back)
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
    let script =
        script("block-broken", "#!/bin/sh\n[ \"$1\" != add ] || { echo no such volume >&2; exit 3; }\n")?;
    let more = format!("disk+=['format=raw, vdev=hdb, access=rw, script={}, target=x']", script.display());
    let config = hello("broken", &more)?.display().to_string();
    outrigger(&["create", &config])?.refused(1, &["block-broken", "status 3", "no such volume"])?;
    let missing = "disk+=['format=raw, vdev=hdb, access=rw, script=block-nowhere, target=x']";
    let config = hello("broken", missing)?.display().to_string();
    outrigger(&["create", &config])?.refused(1, &["/etc/xen/scripts/block-nowhere"])?;
    Ok(())
}

/// A loop device of the case's own, as any block device of dom0.
struct Block(String);

impl Block {
    fn of(file: &Path) -> Result<Self> {
        let device = run("losetup", &["-f"])?.good()?.stdout.trim().to_owned();
        run("losetup", &[&device, &file.to_string_lossy()])?.good()?;
        Ok(Self(device))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // What stays is seen by the comparison after the case.
        let _ = run("losetup", &["-d", &self.0]);
    }
}

fn block_and_scsi() -> Result<()> {
    let config = hello("blocky", "")?;
    let (boot, data) = (Block::of(Path::new("/tmp/vm-tests/blocky.img"))?, data_disk("blocky-data.img")?);
    let text = fs::read_to_string(&config)?.replace("/tmp/vm-tests/blocky.img", &boot.0)
        + &format!("disk+=['format=raw, vdev=sda, access=rw, target={}']\n", data.display());
    fs::write(&config, text)?;
    let guest = Made::create(&config, &[])?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("disk 0: this is hda", 60)?;
    console.wait_for("disk 1: this is hdb", 60)?;
    let info = outrigger(&["info", "blocky"])?.good()?.stdout;
    ensure!(
        info.contains("lsi53c895a") && info.contains("scsi-hd"),
        "the second disk is not on SCSI:\n{info}"
    );
    guest.destroy()?;
    // The device is its owner's: it is still attached.
    let backing = format!("/sys/block/{}/loop/backing_file", boot.0.trim_start_matches("/dev/"));
    ensure!(Path::new(&backing).exists(), "{} was detached", boot.0);
    Ok(())
}
