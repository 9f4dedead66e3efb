//! Guests for the cases: configuration files and what became of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use api::types::Guest;
use vm_report::GUEST_CPUS;
use vm_report::places::{DISC_DISK, LINUX_DISK, POWER_DISK};
use xen_types::DomId;

use super::command::{outrigger, run, run_within};
use super::seconds;

/// The boot sector's disk, which the embedded host brings along.
pub(crate) const HELLO_DISK: &str = "/examples/hello-disk.img";
/// Where cases make files.
const SCRATCH: &str = "/tmp/vm-tests";
/// The bridge that guests' NICs join.
pub(crate) const BRIDGE: &str = "xenbr0";

/// Writes a file that the case needs and gives its path.
pub(crate) fn scratch(name: &str, content: &[u8]) -> Result<PathBuf> {
    fs::create_dir_all(SCRATCH)?;
    let path = Path::new(SCRATCH).join(name);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The line of a configuration that keeps the guest where the emulator does not break it; none where it breaks none.
pub(crate) fn cpus() -> String {
    std::env::var(GUEST_CPUS).map_or(String::new(), |cpus| format!("cpus='{cpus}'"))
}

/// A configuration of the boot sector guest, under a name and on a disk of its own, and with more lines.
pub(crate) fn hello(name: &str, more: &str) -> Result<PathBuf> {
    // Two guests must not write one disk.
    let disk = scratch(&format!("{name}.img"), &fs::read(HELLO_DISK)?)?;
    let text = format!(
        "name='{name}'\ntype='hvm'\nmemory=64\nvcpus=1\n{}\nvga='none'\nserial=['pty','pty']\n\
         disk=['format=raw, vdev=hda, access=rw, target={}']\n{more}\n",
        cpus(),
        disk.display()
    );
    scratch(&format!("{name}.cfg"), text.as_bytes())
}

/// A configuration of the guest that powers off (`p` on COM1, or the ACPI button) and reboots (`r`).
pub(crate) fn power(name: &str, more: &str) -> Result<PathBuf> {
    let disk = scratch(&format!("{name}.img"), &fs::read(POWER_DISK)?)?;
    let text = format!(
        "name='{name}'\ntype='hvm'\nmemory=64\nvcpus=1\n{}\nvga='none'\nserial='pty'\n\
         disk=['format=raw, vdev=hda, access=rw, target={}']\n{more}\n",
        cpus(),
        disk.display()
    );
    scratch(&format!("{name}.cfg"), text.as_bytes())
}

/// A configuration of the guest with a screen (`vga`) and an empty CD drive `hdc` that reads its first sector when told
/// so by `r` on COM1.
pub(crate) fn disc(name: &str, vga: &str) -> Result<PathBuf> {
    let disk = scratch(&format!("{name}.img"), &fs::read(DISC_DISK)?)?;
    let text = format!(
        "name='{name}'\ntype='hvm'\nmemory=64\nvcpus=1\n{}\nvga='{vga}'\nserial='pty'\n\
         disk=['format=raw, vdev=hda, access=rw, target={}', 'devtype=cdrom, vdev=hdc, access=ro, format=empty']\n",
        cpus(),
        disk.display()
    );
    scratch(&format!("{name}.cfg"), text.as_bytes())
}

/// Makes the bridge of guests' NICs if it is not there, and gives its name.
pub(crate) fn bridge() -> Result<&'static str> {
    if !Path::new("/sys/class/net").join(BRIDGE).exists() {
        run("ip", &["link", "add", BRIDGE, "type", "bridge"])?.good()?;
    }
    run("ip", &["link", "set", BRIDGE, "up"])?.good()?;
    Ok(BRIDGE)
}

/// A configuration of the Linux guest whose second disk has the shell script `script`.
pub(crate) fn linux(name: &str, script: &str, more: &str) -> Result<PathBuf> {
    let mut disk = script.as_bytes().to_vec();
    disk.resize(1 << 20, 0);
    let disk = scratch(&format!("{name}-script.img"), &disk)?;
    // AHCI, because SeaBIOS reads IDE disks a word at a time, which takes minutes under emulation.
    let text = format!(
        "name='{name}'\ntype='hvm'\nmemory=256\nvcpus=1\n{}\nvga='none'\nserial='pty'\nhdtype='ahci'\n\
         disk=['format=raw, vdev=hda, access=rw, target={LINUX_DISK}',\
         'format=raw, vdev=hdb, access=rw, target={}']\n{more}\n",
        cpus(),
        disk.display()
    );
    scratch(&format!("{name}.cfg"), text.as_bytes())
}

/// A guest that was created and is destroyed when the case ends.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) guest: Guest,
}

impl Made {
    /// Creates a guest.
    pub(crate) fn create(config: &Path, more: &[&str]) -> Result<Self> {
        let config = config.to_string_lossy();
        let mut args = vec!["create", "--json"];
        args.extend(more);
        args.push(&config);
        let output = run_within(seconds(180), "outrigger", &args)?.good()?;
        let last = output.stdout.lines().last().unwrap_or_default();
        let mut progress: serde_json::Value =
            serde_json::from_str(last).with_context(|| format!("not JSON: {last}"))?;
        let guest = serde_json::from_value(progress["guest"].take())
            .with_context(|| format!("no guest in the last line: {last}"))?;
        Ok(Self { guest })
    }

    /// The stubdomain's domid.
    pub(crate) fn stub(&self) -> Result<DomId> {
        self.guest.stub_domid.with_context(|| format!("{} has no stubdomain", self.guest.name))
    }

    /// Destroys it now, and fails when that fails.
    pub(crate) fn destroy(self) -> Result<()> {
        let result = outrigger(&["destroy", &self.guest.domid.to_string()])?.good();
        std::mem::forget(self);
        result.map(drop)
    }

    /// It is expected to go by itself.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // Only on a failure's way out; the comparison afterwards tells what is left.
        let _ = outrigger(&["destroy", &self.guest.domid.to_string()]);
    }
}

/// The guests that the daemon lists.
pub(crate) fn list() -> Result<Vec<Guest>> {
    let output = outrigger(&["list", "--json"])?.good()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("not JSON: {}", output.stdout))
}

/// Fails unless the guest is listed.
pub(crate) fn must_run(name: &str) -> Result<Guest> {
    match list()?.into_iter().find(|guest| guest.name == name) {
        Some(guest) => Ok(guest),
        None => bail!("{name} is not listed"),
    }
}
