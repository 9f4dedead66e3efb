//! Stock Xen tools beside ours: they are at ease with our domains.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use xen_types::DomId;
use xenstore::{Store as _, Xenstore, XsPath};

use super::Case;
use crate::harness::command::{XL, run, run_within};
use crate::harness::config::{GuestConfig, OfXl, cpus, padded};
use crate::harness::events::Events;
use crate::harness::seconds;
use crate::harness::xl_serial::Serial;

pub(super) const CASES: &[Case] = &[
    Case::new("stock::xl_list_shows_guest_and_stubdomain", xl_list),
    Case::new("stock::xl_destroy_ends_guest_and_stubdomain", xl_destroy),
    Case::new("stock::xl_creates_saves_restores_and_shuts_down_with_our_image", xl_life),
    Case::new("stock::xl_plugs_in_a_pci_device_of_the_host", xl_pci),
];

/// What xl has to be told for our image. A tmpfs as root would be limited to half of the memory; without its version,
/// the device model of a stubdomain would be the traditional one. No guest of these cases reboots by itself; one that the
/// emulator broke is not to come again behind the case's back.
const IMAGE: &str = "device_model_version='qemu-xen'\n\
     device_model_stubdomain_override=1\n\
     stubdomain_kernel='/usr/lib/outrigger/stubdom/vmlinuz'\n\
     stubdomain_ramdisk='/usr/lib/outrigger/stubdom/initramfs.img'\n\
     stubdomain_cmdline='console=hvc0 quiet rootfstype=ramfs xen_privcmd.unrestricted=1'\n\
     stubdomain_memory=64\n\
     on_reboot='destroy'\n\
     vnc=0";

fn xl_list() -> Result<()> {
    let config = GuestConfig::hello("shown");
    let config = if cpus().is_none() { config.line("cpus='1'") } else { config };
    let guest = config.create()?;
    // Where the configuration's `cpus` keeps it, by Xen's word; the stubdomain may run anywhere.
    for (name, domid, cpus) in [("shown", guest.guest.domid, "1"), ("shown-dm", guest.stub()?, "all")] {
        may_run_on(name, cpus)?;
        is_shown_by_xl_list(name, domid)?;
    }
    let domid = domid("shown")?;
    ensure!(domid == guest.guest.domid.to_string(), "xl domid says {domid}");
    run(XL, &["list", "-v"])?.good()?;
    run(XL, &["block-list", "shown"])?.good()?;
    guest.destroy()
}

fn may_run_on(name: &str, cpus: &str) -> Result<()> {
    let text = run(XL, &["vcpu-list", name])?.good()?.stdout;
    let hard = |line: &str| line.split_whitespace().rev().nth(2).map(str::to_owned);
    let listed: Vec<String> = text.lines().skip(1).filter_map(hard).collect();
    ensure!(listed == [cpus], "{name} may run on {listed:?}:\n{text}");
    Ok(())
}

fn is_shown_by_xl_list(name: &str, domid: DomId) -> Result<()> {
    let text = run(XL, &["list"])?.good()?.stdout;
    let is_its = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some(name) && words.next() == Some(&domid.to_string())
    };
    ensure!(text.lines().any(is_its), "xl list does not show {name}:\n{text}");
    Ok(())
}

fn xl_destroy() -> Result<()> {
    let guest = GuestConfig::hello("taken").create()?;
    let mut events = Events::subscribe()?;
    run(XL, &["destroy", "taken"])?.good()?;
    // The daemon clears what xl does not know of.
    events.wait_for("taken", "destroyed", 60)?;
    guest.must_be_gone()
}

/// A guest with a screen, two disks and a CD drive, at the memory that our toolstack gives.
fn with_screen_and_disks(name: &str) -> Result<GuestConfig> {
    let (data, disc) = (padded("stocked-data.img", "")?, padded("stocked.iso", "")?);
    let config = GuestConfig::power(name).line(IMAGE).vga("stdvga").line("videoram=16").memory(32);
    let config = config.disk(&format!("{},raw,hdb,w", data.display()));
    Ok(config.disk(&format!("{},raw,hdc,cdrom", disc.display())))
}

/// From the guest's creation to its own end, and once through a file.
fn xl_life() -> Result<()> {
    const NAME: &str = "stocked";
    let config = with_screen_and_disks(NAME)?;
    if !dom0_serves_stubdomains()? {
        return stubdomain_is_refused(&config);
    }
    let mut serial = Serial::of(NAME);
    let guest = config.create_with_xl()?;
    serial.wait_for("TESTGUEST ready")?;
    cd_cannot_be_changed(NAME)?;
    pci_commands(NAME)?;
    let serial = through_a_file(NAME, &guest)?;
    ends_by_the_power_button(NAME, serial)
}

fn ends_by_the_power_button(name: &str, mut serial: Serial) -> Result<()> {
    run(XL, &["shutdown", "-F", name])?.good()?;
    serial.wait_for("TESTGUEST power button")?;
    wait_until_gone(name)?;
    remove_empty_folder()
}

/// QEMU of dom0, which serves the consoles of xl's stubdomains.
const QEMU: &str = "/usr/libexec/xen-qemu-system-i386";

/// Up to QEMU 8. Debian 13's 10.0 ends on the second of the consoles that libxl gives each Linux stubdomain, so that xl
/// cannot start one there at all.
fn dom0_serves_stubdomains() -> Result<bool> {
    let said = run(QEMU, &["--version"])?.good()?.stdout;
    let major = said.split("version ").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    Ok(major.with_context(|| format!("no version: {said}"))? < 9)
}

/// Whether xl can start a stubdomain here; if not, says so.
pub(super) fn can_be_tried() -> Result<bool> {
    let can = dom0_serves_stubdomains()?;
    if !can {
        println!("     not tried: QEMU in dom0 does not serve xl's stubdomains");
    }
    Ok(can)
}

/// Fails when xl can do it now: then the cases are to run there too.
fn stubdomain_is_refused(config: &GuestConfig) -> Result<()> {
    ensure!(config.create_with_xl().is_err(), "xl starts a stubdomain with this QEMU in dom0 now");
    let log = format!("/var/log/xen/qemu-dm-{}-dm.log", config.name());
    let said = fs::read_to_string(&log)?;
    ensure!(said.contains("No serial device #2 found"), "xl fails for another reason: {said}");
    println!("     not tried: QEMU in dom0 does not serve xl's stubdomains: {}", said.trim_end());
    remove_empty_folder()
}

/// It goes on after a save, and starts from what was saved when it is gone.
fn through_a_file(name: &str, guest: &OfXl) -> Result<Serial> {
    const FILE: &str = "/tmp/vm-tests/stocked.save";
    run_within(seconds(180), XL, &["save", "-c", name, FILE])?.good()?;
    guest.destroy()?;
    let serial = Serial::of(name);
    run_within(seconds(180), XL, &["restore", FILE])?.good()?;
    fs::remove_file(FILE)?;
    Ok(serial)
}

/// This xl changes no CD of a guest with a stubdomain.
fn cd_cannot_be_changed(name: &str) -> Result<()> {
    for args in
        [["cd-eject", name, "hdc"].as_slice(), &["cd-insert", name, "hdc", "/tmp/vm-tests/stocked.iso"]]
    {
        let said = run(XL, args)?.stderr;
        ensure!(said.contains("doesn't work for stub domains"), "xl {args:?} can do more now");
    }
    Ok(())
}

/// xl leaves the directory of its device models in dom0, empty.
pub(super) fn remove_empty_folder() -> Result<()> {
    let (store, left) = (Xenstore::open()?, XsPath::new("/local/domain/0/device-model")?);
    if store.list(&left)?.is_some_and(|models| models.is_empty()) {
        store.rm(&left)?;
    }
    Ok(())
}

/// The older way to plug a PCI device in and out, as libxl goes it, where QEMU kept nothing for one.
fn pci_commands(name: &str) -> Result<()> {
    pci_command(name, "pci-ins", "pci-insert-failed")?;
    pci_command(name, "pci-rem", "pci-removed")
}

/// The embedded host's device for this: QEMU's `edu`, which says 0x010000ed at the start of its memory.
const PCI_DEVICE: &str = "0000:00:10.0";

/// Gives a command of the older protocol and waits for its answer.
fn pci_command(name: &str, command: &str, answer: &str) -> Result<()> {
    let (target, stub) = (domid(name)?, domid(&format!("{name}-dm"))?);
    let store = Xenstore::open()?;
    let key = |key: &str| XsPath::new(format!("/local/domain/{stub}/device-model/{target}/{key}"));
    store.write(&key("parameter")?, format!("{PCI_DEVICE},msitranslate=0,power_mgmt=0").as_bytes())?;
    store.write(&key("command")?, command.as_bytes())?;
    let answered = |value: Option<&[u8]>| (value == Some(answer.as_bytes())).then_some(());
    store.wait_for(&key("state")?, Instant::now() + seconds(20), answered)?;
    Ok(store.write(&key("state")?, b"running")?)
}

/// Looks for the device and reads its memory, twice, with its absence between.
const PCI_SCRIPT: &str = "\
edu() { for d in /sys/bus/pci/devices/*; do \
  [ \"$(cat $d/vendor)$(cat $d/device)\" = 0x12340x11e8 ] && echo $d && return; done; return 1; }
for turn in 1 2; do
  echo TESTGUEST waits $turn
  until d=$(edu); do usleep 100000; done
  echo 1 >$d/enable
  echo TESTGUEST reads $turn $(devmem $(head -n 1 $d/resource | cut -d ' ' -f 1) 32)
  while edu >/dev/null; do usleep 100000; done
done
";

/// A device of the host is dom0's to give away, until it is dropped.
struct Assignable;

impl Assignable {
    /// With the addresses of the host in the stubdomain too: xl asks QEMU for those.
    fn new() -> Result<Self> {
        run("insmod", &["/modules/xen_pciback.ko", "passthrough=1"])?.good()?;
        let assignable = Self;
        run(XL, &["pci-assignable-add", PCI_DEVICE])?.good()?;
        Ok(assignable)
    }
}

impl Drop for Assignable {
    fn drop(&mut self) {
        let _ = run(XL, &["pci-assignable-remove", PCI_DEVICE]);
        let _ = run("rmmod", &["xen-pciback"]);
        // xl leaves its note of the driver that the device had before.
        if let (Ok(store), Ok(notes)) = (Xenstore::open(), XsPath::new("/libxl/pci")) {
            let _ = store.rm(&notes);
        }
    }
}

/// A guest whose stubdomain can have devices of the host.
fn with_pci(name: &str) -> Result<GuestConfig> {
    let image = IMAGE.replace("unrestricted=1'", "unrestricted=1 outrigger.pci=on'");
    ensure!(image != IMAGE, "the word for PCI has no place");
    Ok(GuestConfig::linux(name, PCI_SCRIPT).line(&image).line("passthrough='enabled'"))
}

fn xl_pci() -> Result<()> {
    const NAME: &str = "plugged";
    let config = with_pci(NAME)?;
    if !can_be_tried()? {
        return Ok(());
    }
    let _assignable = Assignable::new()?;
    let serial = Serial::of(NAME);
    let guest = config.create_with_xl()?;
    device_goes_in_out_and_in(NAME, serial)?;
    guest.destroy()?;
    wait_until_gone(NAME)?;
    remove_empty_folder()
}

/// Into the guest by xl's own command, out and in again by the older protocol. The guest reads the device's memory.
fn device_goes_in_out_and_in(name: &str, mut serial: Serial) -> Result<()> {
    serial.wait_for("TESTGUEST waits 1")?;
    run(XL, &["pci-attach", name, PCI_DEVICE])?.good()?;
    serial.wait_for("TESTGUEST reads 1 0x010000ED")?;
    pci_command(name, "pci-rem", "pci-removed")?;
    serial.wait_for("TESTGUEST waits 2")?;
    pci_command(name, "pci-ins", "pci-inserted")?;
    serial.wait_for("TESTGUEST reads 2 0x010000ED")
}

fn domid(name: &str) -> Result<String> {
    Ok(run(XL, &["domid", name])?.good()?.stdout.trim().to_owned())
}

fn wait_until_gone(name: &str) -> Result<()> {
    let store = Xenstore::open()?;
    let watch = store.watch(&XsPath::new("/local/domain")?)?;
    let deadline = Instant::now() + seconds(60);
    while run(XL, &["domid", name])?.status == 0 {
        ensure!(Instant::now() < deadline, "xl still has {name}");
        let _ = watch.recv_deadline(deadline);
    }
    Ok(())
}
