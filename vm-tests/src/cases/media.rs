//! Discs that are changed and pictures that are taken, under a guest without drivers.

use anyhow::{Context as _, Result, bail, ensure};

use super::Case;
use crate::harness::command::outrigger;
use crate::harness::config::{GuestConfig, padded};
use crate::harness::consoles::Console;
use crate::harness::qmp;
use crate::harness::screen;

pub(super) const CASES: &[Case] = &[
    Case::new("media::discs_are_changed_and_the_screen_is_seen_without_drivers", discs_and_screen),
    Case::new("media::discs_and_screen_with_debians_kernel_and_qemu", debian),
];

/// The image of Debian's kernel and QEMU, which the test command brings in.
const DEBIAN: &str = vm_report::places::DEBIAN_STUBDOM;

/// Discs, and the texts with which they begin.
pub(super) const FIRST: (&str, &str) = ("first.iso", "the first disc");
pub(super) const SECOND: (&str, &str) = ("second.iso", "the second disc");

/// Lets the guest read, and after an error reset the drive and try again. Says what it has read, or the last error.
pub(super) fn read(console: &mut Console) -> Result<String> {
    const TRIES: usize = 2;
    for attempt in 1..=TRIES {
        console.type_text("r")?;
        console.wait_for("disc: ", 60)?;
        let said = console.line(60)?;
        if attempt == TRIES || !said.starts_with("error") {
            return Ok(said);
        }
        console.type_text("x")?;
        console.wait_for("reset", 60)?;
    }
    bail!("the guest was not asked")
}

fn locked(guest: &str) -> Result<bool> {
    let drives = qmp::by_command(guest, "query-block")?;
    let drives = drives.as_array().context("not a list of drives")?;
    let drive = drives.iter().find(|drive| drive["removable"] == true).context("no CD drive")?;
    drive["locked"].as_bool().context("not told whether it is locked")
}

/// Puts a disc in, and fails unless the guest reads it.
pub(super) fn insert_and_read(guest: &str, console: &mut Console, disc: (&str, &str)) -> Result<()> {
    let image = padded(disc.0, disc.1)?;
    outrigger(&["cd-insert", guest, "hdc", &image.to_string_lossy()])?.good()?;
    let said = read(console)?;
    ensure!(said == disc.1, "of {} it read: {said}", disc.0);
    Ok(())
}

fn discs_and_screen() -> Result<()> {
    let (guest, mut console) = GuestConfig::disc("disco").boot()?;
    screen::shows_what_disc_draws("disco")?;
    ensure!(read(&mut console)?.starts_with("error"), "it reads from an empty drive");
    insert_and_read("disco", &mut console, FIRST)?;
    insert_and_read("disco", &mut console, SECOND)?;
    outrigger(&["cd-eject", "disco", "hdc"])?.good()?;
    ensure!(read(&mut console)?.starts_with("error"), "it reads from a drive whose disc was taken out");
    insert_and_read("disco", &mut console, FIRST).context("again")?;
    ensure!(!locked("disco")?, "who has locked the tray?");
    guest.destroy()
}

/// The quick start's image has the QEMU that Debian has built.
fn debian() -> Result<()> {
    let (guest, mut console) = GuestConfig::disc("quick")
        .line(&format!("stubdomain_kernel='{DEBIAN}/vmlinuz'"))
        .line(&format!("stubdomain_ramdisk='{DEBIAN}/initramfs.img'"))
        .boot()?;
    // A device that the compiled QEMU has not.
    outrigger(&["qmp", "quick", "device-list-properties", "typename=virtio-rng-pci"])?.good()?;
    screen::shows_what_disc_draws("quick")?;
    for disc in [FIRST, SECOND] {
        insert_and_read("quick", &mut console, disc)?;
    }
    guest.destroy()
}
