//! Stock Xen tools beside ours: they are at ease with our domains.

use std::fs;
use std::io::Read as _;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use xenstore::{Store as _, Xenstore, XsPath};

use super::Case;
use crate::harness::command::{XL, outrigger, run, run_within};
use crate::harness::events::Events;
use crate::harness::guest::{Made, cpus, hello, linux, power, scratch};
use crate::harness::seconds;

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
    let pinned = if cpus().is_empty() { "cpus='1'" } else { "" };
    let guest = Made::create(&hello("shown", pinned)?, &[])?;
    let text = run(XL, &["list"])?.good()?.stdout;
    // Where the configuration's `cpus` keeps it, by Xen's word; the stubdomain may run anywhere.
    for (name, cpus) in [("shown", "1"), ("shown-dm", "all")] {
        let text = run(XL, &["vcpu-list", name])?.good()?.stdout;
        let hard = |line: &str| line.split_whitespace().rev().nth(2).map(str::to_owned);
        let listed: Vec<String> = text.lines().skip(1).filter_map(hard).collect();
        ensure!(listed == [cpus], "{name} may run on {listed:?}:\n{text}");
    }
    for (name, domid) in [("shown", guest.guest.domid), ("shown-dm", guest.stub()?)] {
        ensure!(
            text.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(name) && words.next() == Some(&domid.to_string())
            }),
            "xl list does not show {name}:\n{text}"
        );
    }
    let domid = run(XL, &["domid", "shown"])?.good()?.stdout;
    ensure!(domid.trim() == guest.guest.domid.to_string(), "xl domid says {domid}");
    run(XL, &["list", "-v"])?.good()?;
    run(XL, &["block-list", "shown"])?.good()?;
    guest.destroy()
}

fn xl_destroy() -> Result<()> {
    let guest = Made::create(&hello("taken", "")?, &[])?;
    let mut events = Events::subscribe()?;
    run(XL, &["destroy", "taken"])?.good()?;
    // The daemon clears what xl does not know of.
    events.wait_for("taken", "destroyed", 60)?;
    ensure!(outrigger(&["domid", "taken"])?.status == 4, "the guest is still listed");
    guest.leave();
    Ok(())
}

/// A guest of xl's, destroyed when the case fails.
struct Stock(&'static str);

impl Drop for Stock {
    fn drop(&mut self) {
        // Gone already when the case succeeded.
        let _ = run(XL, &["destroy", self.0]);
    }
}

/// A guest with a screen, two disks and a CD drive, at the memory that our toolstack gives: from its creation to its own
/// end, and once through a file.
fn xl_life() -> Result<()> {
    const NAME: &str = "stocked";
    const FILE: &str = "/tmp/vm-tests/stocked.save";
    let data = scratch("stocked-data.img", &[0; 1 << 20])?;
    let disc = scratch("stocked.iso", &[0; 1 << 20])?;
    let more = format!(
        "{IMAGE}\nvga='stdvga'\nvideoram=16\nmemory=32\ndisk+=['{},raw,hdb,w','{},raw,hdc,cdrom']",
        data.display(),
        disc.display()
    );
    let config = power(NAME, &more)?;
    let guest = Stock(NAME);
    let mut serial = Serial::of(NAME);
    run_within(seconds(180), XL, &["create", &config.to_string_lossy()])?.good()?;
    serial.wait_for("TESTGUEST ready")?;

    // This xl changes no CD of a guest with a stubdomain.
    for args in
        [["cd-eject", NAME, "hdc"].as_slice(), &["cd-insert", NAME, "hdc", "/tmp/vm-tests/stocked.iso"]]
    {
        ensure!(
            run(XL, args)?.stderr.contains("doesn't work for stub domains"),
            "xl {args:?} can do more now"
        );
    }
    pci_commands(NAME)?;

    // It goes on after a save, and starts from what was saved when it is gone.
    run_within(seconds(180), XL, &["save", "-c", NAME, FILE])?.good()?;
    run(XL, &["destroy", guest.0])?.good()?;
    let mut serial = Serial::of(NAME);
    run_within(seconds(180), XL, &["restore", FILE])?.good()?;
    fs::remove_file(FILE)?;
    run(XL, &["shutdown", "-F", NAME])?.good()?;
    serial.wait_for("TESTGUEST power button")?;
    wait_until_gone(NAME)?;
    remove_empty_folder()
}

/// xl leaves the directory of its device models in dom0, empty.
fn remove_empty_folder() -> Result<()> {
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

/// A device goes into a guest by xl's own command, out and in again by the older protocol. The guest reads its memory.
fn xl_pci() -> Result<()> {
    const NAME: &str = "plugged";
    let image = IMAGE.replace("unrestricted=1'", "unrestricted=1 outrigger.pci=on'");
    ensure!(image != IMAGE, "the word for PCI has no place");
    let config = linux(NAME, PCI_SCRIPT, &format!("{image}\npassthrough='enabled'"))?;
    let _assignable = Assignable::new()?;
    let guest = Stock(NAME);
    let mut serial = Serial::of(NAME);
    run_within(seconds(180), XL, &["create", &config.to_string_lossy()])?.good()?;
    serial.wait_for("TESTGUEST waits 1")?;
    run(XL, &["pci-attach", NAME, PCI_DEVICE])?.good()?;
    serial.wait_for("TESTGUEST reads 1 0x010000ED")?;
    pci_command(NAME, "pci-rem", "pci-removed")?;
    serial.wait_for("TESTGUEST waits 2")?;
    pci_command(NAME, "pci-ins", "pci-inserted")?;
    serial.wait_for("TESTGUEST reads 2 0x010000ED")?;
    run(XL, &["destroy", guest.0])?.good()?;
    wait_until_gone(NAME)?;
    remove_empty_folder()
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

/// What comes out of the first serial port of xl's guest.
struct Serial {
    name: String,
    texts: Receiver<Result<String>>,
    seen: String,
}

impl Serial {
    /// To be called before the guest starts: xl's QEMU in dom0 throws away what nobody reads.
    fn of(name: &str) -> Self {
        Self { name: name.to_owned(), texts: serial_of(format!("{name}-dm")), seen: String::new() }
    }

    fn wait_for(&mut self, words: &str) -> Result<()> {
        let deadline = Instant::now() + seconds(120);
        while !self.seen.contains(words) {
            match self.texts.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(text) => self.seen.push_str(&text?),
                Err(_) => bail!("{} did not say \"{words}\", but {:?}", self.name, self.seen),
            }
        }
        Ok(())
    }
}

/// Sends what comes out of the first serial port of xl's guest, whose stubdomain has this name, from its creation on.
fn serial_of(stub: String) -> Receiver<Result<String>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let read = || -> Result<()> {
            let mut file = fs::File::open(wait_for_tty(&stub)?)?;
            let mut bytes = [0; 256];
            loop {
                let count = file.read(&mut bytes)?;
                if count == 0
                    || sender.send(Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())).is_err()
                {
                    return Ok(());
                }
            }
        };
        if let Err(error) = read() {
            // Nobody listens any more when the guest was destroyed.
            let _ = sender.send(Err(error.context("cannot read the guest's serial port")));
        }
    });
    receiver
}

/// Waits until the stubdomain of this name has a pty for its console 3, and gives its path.
fn wait_for_tty(stub: &str) -> Result<String> {
    let store = Xenstore::open()?;
    let domains = XsPath::new("/local/domain")?;
    let watch = store.watch(&domains)?;
    let deadline = Instant::now() + seconds(120);
    loop {
        for domain in store.list(&domains)?.unwrap_or_default() {
            let domain = domains.join(&domain)?;
            if store.read_string(&domain.join("name")?, 256)?.as_deref() != Some(stub) {
                continue;
            }
            let tty = XsPath::new(format!("{domain}/device/console/3/tty"))?;
            if let Some(tty) = store.read_string(&tty, 64)?.filter(|tty| !tty.is_empty()) {
                return Ok(tty);
            }
        }
        ensure!(Instant::now() < deadline, "{stub} got no serial port");
        // Writes come one by one; after a quiet second the tree is looked at anyway.
        let _ = watch.recv_deadline(deadline.min(Instant::now() + Duration::from_secs(1)));
    }
}
