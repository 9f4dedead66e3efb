//! Discs that are changed and pictures that are taken, under a guest without drivers.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::Case;
use crate::harness::command::outrigger;
use crate::harness::consoles::Console;
use crate::harness::guest::{Made, disc, scratch};

pub(super) const CASES: &[Case] = &[
    Case::new("media::discs_are_changed_and_the_screen_is_seen_without_drivers", discs_and_screen),
    Case::new("media::discs_and_screen_with_debians_kernel_and_qemu", debian),
];

/// The image of Debian's kernel and QEMU, which the test command brings in.
const DEBIAN: &str = vm_report::places::DEBIAN_STUBDOM;

/// Rows and columns of a character in text mode.
const CHARACTER: (u32, u32) = (16, 9);
/// The screen in text mode: 80 columns, 25 rows.
const SCREEN: (u32, u32) = (80 * CHARACTER.1, 25 * CHARACTER.0);

/// A disc of 1 MiB that begins with a text.
fn disc_image(name: &str, text: &str) -> Result<String> {
    let mut content = text.as_bytes().to_vec();
    content.resize(1 << 20, 0);
    Ok(scratch(name, &content)?.display().to_string())
}

/// Lets the guest read, and after an error reset the drive and try again. Says what it has read, or the last error.
fn read(console: &mut Console) -> Result<String> {
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
    let said = outrigger(&["qmp", "--json", guest, "query-block"])?.good()?.stdout;
    let drives: Vec<Value> = serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))?;
    let drive = drives.iter().find(|drive| drive["removable"] == true).context("no CD drive")?;
    drive["locked"].as_bool().context("not told whether it is locked")
}

/// A picture: width, height, and three bytes a pixel.
struct Picture {
    size: (u32, u32),
    rgb: Vec<u8>,
}

impl Picture {
    fn read(path: &Path) -> Result<Self> {
        let mut reader = png::Decoder::new(BufReader::new(File::open(path)?)).read_info()?;
        ensure!(reader.info().color_type == png::ColorType::Rgb, "{:?}", reader.info());
        let size = reader.info().size();
        let mut rgb = vec![0; size.0 as usize * size.1 as usize * 3];
        reader.next_frame(&mut rgb)?;
        Ok(Self { size, rgb })
    }

    /// How many pixels of a row of characters have a colour.
    fn count(&self, row: u32, colour: [u8; 3]) -> usize {
        let line = self.size.0 as usize * 3 * CHARACTER.0 as usize;
        self.rgb
            .chunks_exact(line)
            .nth(row as usize)
            .map_or(0, |lines| lines.chunks_exact(3).filter(|pixel| **pixel == colour).count())
    }
}

/// What `disc.S` draws.
fn check_screen(guest: &str) -> Result<()> {
    let path = Path::new("/tmp/vm-tests/screen.png");
    outrigger(&["screenshot", guest, &path.to_string_lossy()])?.good()?;
    let picture = Picture::read(path)?;
    ensure!(picture.size == SCREEN, "the picture has {:?} pixels", picture.size);
    let whole = (SCREEN.0 * CHARACTER.0) as usize;
    for (row, colour) in [(4, [168, 0, 0]), (6, [0, 168, 0]), (20, [0, 0, 0])] {
        ensure!(picture.count(row, colour) == whole, "{} pixels of row {row}", picture.count(row, colour));
    }
    // A text of 21 letters.
    let grey = picture.count(5, [168, 168, 168]);
    ensure!((400..2000).contains(&grey), "{grey} pixels of the text");
    Ok(fs::remove_file(path)?)
}

fn discs_and_screen() -> Result<()> {
    let guest = Made::create(&disc("disco", "stdvga")?, &[])?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("TESTGUEST ready", 60)?;
    check_screen("disco")?;
    ensure!(read(&mut console)?.starts_with("error"), "it reads from an empty drive");
    let [first, second] = [("first.iso", "the first disc"), ("second.iso", "the second disc")];
    outrigger(&["cd-insert", "disco", "hdc", &disc_image(first.0, first.1)?])?.good()?;
    let said = read(&mut console)?;
    ensure!(said == first.1, "it read: {said}");
    outrigger(&["cd-insert", "disco", "hdc", &disc_image(second.0, second.1)?])?.good()?;
    let said = read(&mut console)?;
    ensure!(said == second.1, "it read: {said}");
    outrigger(&["cd-eject", "disco", "hdc"])?.good()?;
    ensure!(read(&mut console)?.starts_with("error"), "it reads from a drive whose disc was taken out");
    outrigger(&["cd-insert", "disco", "hdc", &disc_image(first.0, first.1)?])?.good()?;
    ensure!(read(&mut console)? == first.1, "it does not read the first disc again");
    ensure!(!locked("disco")?, "who has locked the tray?");
    guest.destroy()
}

/// The quick start's image has the QEMU that Debian has built.
fn debian() -> Result<()> {
    let config = disc("quick", "stdvga")?;
    let image =
        format!("stubdomain_kernel='{DEBIAN}/vmlinuz'\nstubdomain_ramdisk='{DEBIAN}/initramfs.img'\n");
    fs::write(&config, fs::read_to_string(&config)? + &image)?;
    let guest = Made::create(&config, &[])?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("TESTGUEST ready", 60)?;
    // A device that the compiled QEMU has not.
    outrigger(&["qmp", "quick", "device-list-properties", "typename=virtio-rng-pci"])?.good()?;
    check_screen("quick")?;
    for (name, text) in [("first.iso", "the first disc"), ("second.iso", "the second disc")] {
        outrigger(&["cd-insert", "quick", "hdc", &disc_image(name, text)?])?.good()?;
        let said = read(&mut console)?;
        ensure!(said == text, "it read: {said}");
    }
    guest.destroy()
}
