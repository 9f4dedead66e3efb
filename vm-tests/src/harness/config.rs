//! Configurations of the guests that cases make.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use vm_report::GUEST_CPUS;
use vm_report::places::{DISC_DISK, LINUX_DISK, POWER_DISK};

use super::command::{XL, outrigger, run};
use super::console_guest::KERNEL;
use super::consoles::Console;
use super::guest::{HELLO_DISK, Made, scratch};
use super::shell::BOOT;

/// The setting that keeps the guest on the CPUs where the emulator does not break it; `None` if it breaks none.
pub(crate) fn cpus() -> Option<String> {
    std::env::var(GUEST_CPUS).ok()
}

/// A guest's configuration file, and the images that it names.
///
/// Nothing is written before [`write`](Self::write), [`create`](Self::create) and what else makes a guest of it. Each of
/// these writes the images again, so none may be called while such a guest runs.
#[derive(Debug, Clone)]
pub(crate) struct GuestConfig {
    name: String,
    /// The name of its file, without the extension.
    file: String,
    keys: Vec<(&'static str, String)>,
    disks: Vec<String>,
    nics: Vec<String>,
    lines: Vec<String>,
    images: Vec<(String, Content)>,
    /// What it says on its first serial port once it has booted, and within how many seconds.
    greeting: (&'static str, u64),
}

/// What is in an image.
#[derive(Debug, Clone)]
enum Content {
    /// A copy of a file.
    CopyOf(&'static str),
    /// A text, and zeros up to 1 MiB.
    Text(String),
}

impl GuestConfig {
    /// The boot sector guest: it echoes on both of its serial ports, and reads two disks.
    pub(crate) fn hello(name: &str) -> Self {
        Self::hvm(name, 64, ("echoing COM1", 60)).set("serial", "['pty','pty']").copy_of(HELLO_DISK)
    }

    /// The guest that powers off (`p` on COM1, or the ACPI button) and reboots (`r`).
    pub(crate) fn power(name: &str) -> Self {
        Self::hvm(name, 64, ("TESTGUEST ready", 60)).copy_of(POWER_DISK)
    }

    /// The guest with a screen and an empty CD drive `hdc`, of which it reads the first sector at `r` on COM1.
    pub(crate) fn disc(name: &str) -> Self {
        Self::hvm(name, 64, ("TESTGUEST ready", 60))
            .vga("stdvga")
            .copy_of(DISC_DISK)
            .disk("devtype=cdrom, vdev=hdc, access=ro, format=empty")
    }

    /// The Linux guest, whose second disk has the shell script `script`.
    pub(crate) fn linux(name: &str, script: &str) -> Self {
        let disk = format!("{name}-script.img");
        // AHCI, because SeaBIOS reads IDE disks a word at a time, which takes minutes under emulation.
        let config = Self::hvm(name, 256, ("TESTGUEST up", BOOT)).set("hdtype", "'ahci'");
        config
            .disk(&format!("format=raw, vdev=hda, access=rw, target={LINUX_DISK}"))
            .disk(&format!("format=raw, vdev=hdb, access=rw, target={}", path_of(&disk).display()))
            .image(disk, Content::Text(script.to_owned()))
    }

    /// A PV guest for xl, which only uses its console, as `command` says (see `console.S`). Its file has a name of its
    /// own: a guest of ours may have the same name.
    pub(crate) fn pv(name: &str, command: &str) -> Self {
        let config = Self { file: format!("xl-{name}"), ..Self::new(name, ("", 0)) };
        config
            .set("type", "'pv'")
            .set("kernel", &format!("'{KERNEL}'"))
            .set("cmdline", &format!("'{command}'"))
            .memory(4)
    }

    fn new(name: &str, greeting: (&'static str, u64)) -> Self {
        Self {
            name: name.to_owned(),
            file: name.to_owned(),
            keys: Vec::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            lines: Vec::new(),
            images: Vec::new(),
            greeting,
        }
    }

    fn hvm(name: &str, memory: u64, greeting: (&'static str, u64)) -> Self {
        let config = Self::new(name, greeting).set("type", "'hvm'").memory(memory).set("vcpus", "1");
        let config = config.vga("none").set("serial", "'pty'");
        match cpus() {
            Some(cpus) => config.set("cpus", &format!("'{cpus}'")),
            None => config,
        }
    }

    /// Sets a key, in the place of what it was.
    pub(crate) fn set(mut self, key: &'static str, value: &str) -> Self {
        self.keys.retain(|(known, _)| *known != key);
        self.keys.push((key, value.to_owned()));
        self
    }

    fn image(mut self, file: String, content: Content) -> Self {
        self.images.push((file, content));
        self
    }

    /// It boots from a copy of its own: two guests must not write one disk.
    fn copy_of(self, image: &'static str) -> Self {
        let file = format!("{}.img", self.name);
        let disk = format!("format=raw, vdev=hda, access=rw, target={}", path_of(&file).display());
        self.disk(&disk).image(file, Content::CopyOf(image))
    }

    /// Boots from this file or device instead of a copy of its own.
    pub(crate) fn boot_disk(mut self, target: &Path) -> Self {
        self.images.clear();
        if let Some(first) = self.disks.first_mut() {
            *first = format!("format=raw, vdev=hda, access=rw, target={}", target.display());
        }
        self
    }

    /// Has its second disk there.
    pub(crate) fn second_disk(mut self, target: &Path) -> Self {
        if let Some(second) = self.disks.get_mut(1) {
            *second = format!("format=raw, vdev=hdb, access=rw, target={}", target.display());
        }
        self
    }

    /// The guest's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Sets the memory, in MiB.
    pub(crate) fn memory(self, mib: u64) -> Self {
        self.set("memory", &mib.to_string())
    }

    /// Sets the graphics card.
    pub(crate) fn vga(self, model: &str) -> Self {
        self.set("vga", &format!("'{model}'"))
    }

    /// Adds a disk.
    pub(crate) fn disk(mut self, disk: &str) -> Self {
        self.disks.push(disk.to_owned());
        self
    }

    /// Adds a network interface.
    pub(crate) fn nic(mut self, nic: &str) -> Self {
        self.nics.push(nic.to_owned());
        self
    }

    /// Adds lines as they are.
    pub(crate) fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    fn text(&self) -> String {
        let list = |key: &str, items: &[String]| {
            let items: Vec<String> = items.iter().map(|item| format!("'{item}'")).collect();
            if items.is_empty() { String::new() } else { format!("{key}=[{}]\n", items.join(", ")) }
        };
        let keys: String = self.keys.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        let lines: String = self.lines.iter().map(|line| format!("{line}\n")).collect();
        format!("name='{}'\n{keys}{}{}{lines}", self.name, list("disk", &self.disks), list("vif", &self.nics))
    }

    /// Writes the file and the images, and returns the file's path.
    pub(crate) fn write(&self) -> Result<PathBuf> {
        for (file, content) in &self.images {
            match content {
                Content::CopyOf(image) => scratch(file, &fs::read(image)?)?,
                Content::Text(text) => padded(file, text)?,
            };
        }
        scratch(&format!("{}.cfg", self.file), self.text().as_bytes())
    }

    /// Creates the guest.
    pub(crate) fn create(&self) -> Result<Made> {
        Made::create(&self.write()?, &[])
    }

    /// Creates the guest without starting it.
    pub(crate) fn create_paused(&self) -> Result<Made> {
        Made::create(&self.write()?, &["--paused"])
    }

    /// Creates the guest and waits until it has booted; returns its first serial port too.
    pub(crate) fn boot(&self) -> Result<(Made, Console)> {
        let guest = self.create()?;
        let console = self.booted(&guest)?;
        Ok((guest, console))
    }

    /// Waits until a guest that was created from this has booted, and returns its first serial port.
    pub(crate) fn booted(&self, guest: &Made) -> Result<Console> {
        let mut console = Console::serial(guest, 0)?;
        console.wait_for(self.greeting.0, self.greeting.1)?;
        Ok(console)
    }

    /// Fails unless `outrigger create` exits with `status` and says all of `words`. A guest that is made is destroyed.
    pub(crate) fn refused(&self, status: i32, words: &[&str]) -> Result<()> {
        let output = outrigger(&["create", &self.write()?.to_string_lossy()])?;
        if output.status == 0 {
            outrigger(&["destroy", &self.name])?.good()?;
        }
        output.refused(status, words).map(drop)
    }

    /// Creates the guest with xl; it is destroyed when the value is dropped.
    pub(crate) fn create_with_xl(&self) -> Result<OfXl> {
        let config = self.write()?;
        let guest = OfXl { name: self.name.clone() };
        super::command::run_within(super::seconds(180), XL, &["create", &config.to_string_lossy()])?
            .good()?;
        Ok(guest)
    }
}

/// A guest of xl's, destroyed when the case fails.
#[derive(Debug)]
pub(crate) struct OfXl {
    name: String,
}

impl OfXl {
    /// Destroys it now, and fails when that fails.
    pub(crate) fn destroy(&self) -> Result<()> {
        run(XL, &["destroy", &self.name])?.good().map(drop)
    }
}

impl Drop for OfXl {
    fn drop(&mut self) {
        // Gone already when the case succeeded.
        let _ = run(XL, &["destroy", &self.name]);
    }
}

/// Where [`scratch`] writes a file of this name.
pub(crate) fn path_of(name: &str) -> PathBuf {
    Path::new(super::guest::SCRATCH).join(name)
}

/// Writes an image of 1 MiB that begins with a text, and returns its path.
pub(crate) fn padded(name: &str, text: &str) -> Result<PathBuf> {
    let mut content = text.as_bytes().to_vec();
    content.resize(1 << 20, 0);
    scratch(name, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_has_what_was_asked_for_once() {
        let config = GuestConfig::linux("tux", "poweroff\n")
            .memory(32)
            .vga("stdvga")
            .disk("/a.iso,raw,hdc,cdrom")
            .nic("bridge=xenbr0")
            .nic("bridge=xenbr1")
            .line("maxvcpus=2");
        assert_eq!(
            config.text(),
            "name='tux'\ntype='hvm'\nvcpus=1\nserial='pty'\nhdtype='ahci'\nmemory=32\nvga='stdvga'\n\
             disk=['format=raw, vdev=hda, access=rw, target=/root/linux-guest.img', \
             'format=raw, vdev=hdb, access=rw, target=/tmp/vm-tests/tux-script.img', '/a.iso,raw,hdc,cdrom']\n\
             vif=['bridge=xenbr0', 'bridge=xenbr1']\nmaxvcpus=2\n"
        );
    }

    #[test]
    fn given_disk_takes_the_place_of_the_copy() {
        let config = GuestConfig::hello("heir").boot_disk("/dev/loop7".as_ref()).disk("/b.img,raw,sda,rw");
        assert!(config.images.is_empty());
        assert_eq!(config.disks, ["format=raw, vdev=hda, access=rw, target=/dev/loop7", "/b.img,raw,sda,rw"]);
    }

    #[test]
    fn linux_guest_may_have_both_disks_elsewhere() {
        let config =
            GuestConfig::linux("tux", "").boot_disk("/dev/vda".as_ref()).second_disk("/dev/vdb".as_ref());
        let disk = |vdev, target| format!("format=raw, vdev={vdev}, access=rw, target={target}");
        assert_eq!(config.disks, [disk("hda", "/dev/vda"), disk("hdb", "/dev/vdb")]);
        assert!(config.images.is_empty());
    }

    #[test]
    fn guest_for_xl_does_not_overwrite_ours() {
        let config = GuestConfig::pv("reused", "i");
        assert_eq!(config.file, "xl-reused");
        assert!(config.text().starts_with("name='reused'\ntype='pv'\n"));
        assert!(!config.text().contains("disk="));
    }
}
