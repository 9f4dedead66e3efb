//! Stock Xen tools beside ours: they are at ease with our domains.

use std::fs;
use std::io::Read as _;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use xenstore::{Store as _, Xenstore, XsPath};

use super::Case;
use crate::harness::command::{outrigger, run, run_within};
use crate::harness::events::Events;
use crate::harness::guest::{Made, hello, power, scratch};
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::new("stock::xl_list_shows_guest_and_stubdomain", xl_list),
    Case::new("stock::xl_destroy_ends_guest_and_stubdomain", xl_destroy),
    Case::new("stock::xl_creates_saves_restores_and_shuts_down_with_our_image", xl_life),
];

const XL: &str = "/usr/lib/xen-4.17/bin/xl";
/// What xl has to be told for our image. A tmpfs as root would be limited to half of the memory; without its version,
/// the device model of a stubdomain would be the traditional one.
const IMAGE: &str = "device_model_version='qemu-xen'\n\
     device_model_stubdomain_override=1\n\
     stubdomain_kernel='/usr/lib/outrigger/stubdom/vmlinuz'\n\
     stubdomain_ramdisk='/usr/lib/outrigger/stubdom/initramfs.img'\n\
     stubdomain_cmdline='console=hvc0 quiet rootfstype=ramfs xen_privcmd.unrestricted=1'\n\
     stubdomain_memory=64\n\
     vnc=0";

fn xl_list() -> Result<()> {
    let guest = Made::create(&hello("shown", "")?, &[])?;
    let text = run(XL, &["list"])?.good()?.stdout;
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
    run(XL, &["vcpu-list", "shown"])?.good()?;
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
    // xl leaves the directory of its device models in dom0, empty.
    let (store, left) = (Xenstore::open()?, XsPath::new("/local/domain/0/device-model")?);
    if store.list(&left)?.is_some_and(|models| models.is_empty()) {
        store.rm(&left)?;
    }
    Ok(())
}

/// The older way to plug a PCI device in and out, as libxl goes it, with a device that is not there.
fn pci_commands(name: &str) -> Result<()> {
    let (target, stub) = (domid(name)?, domid(&format!("{name}-dm"))?);
    let store = Xenstore::open()?;
    let key = |key: &str| XsPath::new(format!("/local/domain/{stub}/device-model/{target}/{key}"));
    for (command, state) in [("pci-ins", "pci-insert-failed"), ("pci-rem", "pci-removed")] {
        store.write(&key("parameter")?, b"0000:00:10.0,msitranslate=0,power_mgmt=0")?;
        store.write(&key("command")?, command.as_bytes())?;
        let is_there = |value: Option<&[u8]>| (value == Some(state.as_bytes())).then_some(());
        store.wait_for(&key("state")?, Instant::now() + seconds(20), is_there)?;
    }
    Ok(store.write(&key("state")?, b"running")?)
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
