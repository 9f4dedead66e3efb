//! What goes into a stubdomain's initramfs.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
};

use stubdom_abi::{ImageConfig, QemuAbilities};

use super::{QEMU, StubdomSpec};
use crate::{
    ImageError, Result,
    abilities::ask,
    closure::{Closure, inspect},
    files::{sha256_bytes, sha256_file, size_of},
    initramfs::{Initramfs, Node},
    manifest::{Content, Qemu, Source, Totals, licence},
    modules::Kernel,
    packages::Package,
    root::{Found, Kind, Root},
    stand_in::stand_in,
};

/// Modules in the order in which the agent needs them; dependencies are put before each.
const MODULES: [&str; 9] = [
    // Hypercalls, event channels, grants: QEMU and vchan.
    "xen-privcmd",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    // The target's disks and NICs, and what connects a NIC with QEMU's tap.
    "xen-blkfront",
    "xen-netfront",
    "tun",
    "bridge",
    // /proc/xen, which older libraries fall back to.
    "xenfs",
];

/// Options of modules, by file name without `.ko`.
const MODULE_OPTIONS: [(&str, &str); 2] = [
    // Without it, kernels with the fix of XSA-482 keep QEMU from mapping its guest's memory.
    ("xen-privcmd", "unrestricted=1"),
    // One open file may share this many pages; the default of 1024 is short for several vchans with large rings.
    ("xen-gntalloc", "limit=8192"),
];

/// Folders of QEMU's data. Debian's QEMU looks there by itself; the agent names them to other builds.
const DATA: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu"];

/// Firmware and key maps that QEMU reads for the devices that a guest configuration can ask for. A name ending in
/// `/` is a whole folder. SeaBIOS itself comes to the guest through hvmloader, not through QEMU.
pub(super) const DATA_FILES: [&str; 18] = [
    "/usr/share/qemu/keymaps/",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/multiboot_dma.bin",
    "/usr/share/seabios/vgabios-ati.bin",
    "/usr/share/seabios/vgabios-bochs-display.bin",
    "/usr/share/seabios/vgabios-cirrus.bin",
    "/usr/share/seabios/vgabios-stdvga.bin",
    "/usr/share/seabios/vgabios-virtio.bin",
    "/usr/share/seabios/vgabios-vmware.bin",
    "/usr/lib/ipxe/qemu/efi-e1000.rom",
    "/usr/lib/ipxe/qemu/efi-e1000e.rom",
    "/usr/lib/ipxe/qemu/efi-ne2k_pci.rom",
    "/usr/lib/ipxe/qemu/efi-pcnet.rom",
    "/usr/lib/ipxe/qemu/efi-rtl8139.rom",
    "/usr/lib/ipxe/qemu/efi-virtio.rom",
    "/usr/lib/ipxe/qemu/efi-vmxnet3.rom",
    "/usr/lib/ipxe/qemu/pxe-eepro100.rom",
];

/// The same for the QEMU that is compiled for stubdomains, which has fewer devices and boots no kernel itself.
pub(super) const MINIMAL_DATA_FILES: [&str; 8] = [
    "/usr/share/qemu/keymaps/",
    "/usr/share/seabios/vgabios-cirrus.bin",
    "/usr/share/seabios/vgabios-stdvga.bin",
    "/usr/lib/ipxe/qemu/efi-e1000.rom",
    "/usr/lib/ipxe/qemu/efi-ne2k_pci.rom",
    "/usr/lib/ipxe/qemu/efi-pcnet.rom",
    "/usr/lib/ipxe/qemu/efi-rtl8139.rom",
    "/usr/lib/ipxe/qemu/pxe-eepro100.rom",
];

/// The devices that a guest configuration can ask for, as far as QEMU's arguments name them. A QEMU that is compiled for
/// stubdomains has to have them: its configuration may lose one that another brought along in older versions.
const DEVICES: [&str; 26] = [
    "AC97",
    "VGA",
    "adlib",
    "ahci",
    "cirrus-vga",
    "cs4231a",
    "e1000",
    "gus",
    "hda-duplex",
    "i82551",
    "ich9-usb-ehci1",
    "ich9-usb-uhci1",
    "ide-cd",
    "ide-hd",
    "intel-hda",
    "lsi53c895a",
    "ne2k_pci",
    "nec-usb-xhci",
    "pcnet",
    "piix3-usb-uhci",
    "rtl8139",
    "sb16",
    "scsi-hd",
    "usb-kbd",
    "usb-mouse",
    "usb-tablet",
];

/// Folders that the agent mounts something on, or that programs expect.
const FOLDERS: [(&str, u32); 8] = [
    ("/dev", 0o755),
    ("/proc", 0o555),
    ("/run", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/var/lib", 0o755),
    ("/var/log", 0o755),
    ("/var/tmp", 0o1777),
];

/// Firmware of the display adapter that works with SPICE only.
pub(super) const SPICE_DATA: &str = "/usr/share/seabios/vgabios-qxl.bin";

/// The library that Debian's QEMU is linked with for SPICE.
const SPICE: &str = "libspice-server.so.1";

/// Where boot ROMs of network cards are in Debian 12, and from Debian 13 on.
const ROMS: (&str, &str) = ("/usr/lib/ipxe/qemu/", "/usr/share/qemu/");

/// The package name of what the project itself puts in.
const OURS: &str = "outrigger";

/// The devices of guests that a QEMU does not have.
pub(super) fn lacking(abilities: &QemuAbilities) -> Vec<&'static str> {
    DEVICES.into_iter().filter(|device| !abilities.has_device(device)).collect()
}

/// Finds a data file where this or a later release of Debian has it.
fn find_data(root: &Root, path: String) -> Result<(String, Found)> {
    if let Some(name) = path.strip_prefix(ROMS.0) {
        let moved = format!("{}{name}", ROMS.1);
        if let Some(found) = root.lookup(&moved)? {
            return Ok((moved, found));
        }
    }
    let found = root.find(&path)?;
    Ok((path, found))
}

/// A hash over all choices that are made in this file.
pub(super) fn recipe() -> String {
    let choices =
        (MODULES, MODULE_OPTIONS, DATA, (DATA_FILES, MINIMAL_DATA_FILES, SPICE_DATA), FOLDERS, SPICE, RECIPE);
    sha256_bytes(format!("{choices:?}").as_bytes())
}

/// To be raised when the code of this crate makes other images of the same choices.
const RECIPE: u32 = 6;

/// The chosen contents.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) archive: Initramfs,
    pub(super) qemu: Qemu,
    pub(super) modules: Vec<String>,
    /// By path: the package of each file that has one.
    packages: BTreeMap<String, Package>,
    agent_version: String,
    with_spice: bool,
}

impl Contents {
    /// Chooses everything.
    pub(super) fn choose(root: &Root, kernel: &Kernel<'_>, spec: &StubdomSpec) -> Result<Self> {
        let found = root.find(QEMU)?;
        let package = found.package.clone();
        let mut this = Self {
            archive: Initramfs::new(),
            qemu: Qemu {
                package: package.as_ref().map_or_else(String::new, |package| package.name.clone()),
                version: package.map_or_else(String::new, |package| package.version),
                path: QEMU.to_owned(),
                sandbox: false,
                spice: false,
                abilities: None,
            },
            modules: Vec::new(),
            packages: BTreeMap::new(),
            agent_version: spec.agent_version.clone(),
            with_spice: spec.spice,
        };
        for (path, mode) in FOLDERS {
            this.archive.directory(path, mode)?;
        }
        // Before devtmpfs is mounted: what the kernel opens for its first program.
        this.archive.device("/dev/console", 0o600, 5, 1)?;
        this.archive.device("/dev/null", 0o666, 1, 3)?;
        this.archive.copy("/init", 0o755, &spec.agent)?;
        // The agent tells by its name what it is called for.
        for path in ImageConfig::HELPERS {
            this.archive.link(path, "/init")?;
        }
        this.add_qemu(root)?;
        if spec.qemu.is_compiled() {
            this.check_devices()?;
        }
        this.add_data(root, if spec.qemu.is_compiled() { &MINIMAL_DATA_FILES } else { &DATA_FILES })?;
        this.add_modules(kernel)?;
        this.add_config()?;
        Ok(this)
    }

    fn add_qemu(&mut self, root: &Root) -> Result<()> {
        let mut closure = Closure::new(root);
        if let Some(path) = self.leave_spice_out(root, &mut closure)? {
            let program = root.read(QEMU)?;
            self.archive.bytes(&path, 0o755, stand_in(QEMU, &program, SPICE)?)?;
        }
        closure.add(QEMU)?;
        for file in closure.files() {
            self.qemu.sandbox |= file.path.contains("/libseccomp.so.");
            self.add(&file.path, 0o755, &file.host, file.package.as_ref())?;
        }
        self.ask_qemu(root)
    }

    /// Finds out what QEMU has. One without a loader is for no Linux at all, and the closure has refused it.
    fn ask_qemu(&mut self, root: &Root) -> Result<()> {
        let qemu = root.find(QEMU)?.host;
        let Some(loader) = inspect(&qemu)?.interpreter else { return Ok(()) };
        let loader = root.find(&loader)?.host;
        self.qemu.abilities = ask(&self.archive, &loader, &qemu, self.qemu.spice)?;
        Ok(())
    }

    /// Refuses a compiled QEMU that lacks what guests may be given.
    fn check_devices(&self) -> Result<()> {
        match self.qemu.abilities.as_ref().map(lacking) {
            Some(missing) if !missing.is_empty() => {
                Err(ImageError::QemuLacks { devices: missing.join(", ") })
            }
            _ => Ok(()),
        }
    }

    /// Leaves SPICE out if QEMU is linked with it, and says where its stand-in belongs.
    fn leave_spice_out(&mut self, root: &Root, closure: &mut Closure<'_>) -> Result<Option<String>> {
        let linked = inspect(&root.find(QEMU)?.host)?.needed.iter().any(|soname| soname == SPICE);
        self.qemu.spice = linked && self.with_spice;
        if linked && !self.with_spice { closure.leave_out(SPICE).map(Some) } else { Ok(None) }
    }

    fn add_data(&mut self, root: &Root, paths: &[&str]) -> Result<()> {
        for path in paths.iter().copied().chain(self.qemu.spice.then_some(SPICE_DATA)) {
            let paths = match path.strip_suffix('/') {
                Some(folder) => root.walk(folder)?,
                None => vec![path.to_owned()],
            };
            for path in paths {
                let (path, found) = find_data(root, path)?;
                if !matches!(found.kind, Kind::File { .. }) {
                    return Err(ImageError::NotInRoot { path, hint: "it is not a regular file".to_owned() });
                }
                self.add(&path, 0o644, &found.host, found.package.as_ref())?;
            }
        }
        Ok(())
    }

    fn add_modules(&mut self, kernel: &Kernel<'_>) -> Result<()> {
        for module in kernel.modules(&MODULES)? {
            let file = module.path.rsplit('/').next().unwrap_or(&module.path);
            let path = format!("/lib/modules/{file}");
            self.archive.put(&path, 0o644, module.node()?)?;
            self.belongs(&path, module.package.as_ref());
            self.modules.push(path);
        }
        Ok(())
    }

    /// Writes what the agent reads.
    fn add_config(&mut self) -> Result<()> {
        let sandbox: &[&str] = if self.qemu.sandbox { &["-sandbox", ImageConfig::SANDBOX] } else { &[] };
        let config = ImageConfig {
            qemu: QEMU.to_owned(),
            qemu_args: sandbox.iter().map(|word| (*word).to_owned()).collect(),
            data: DATA.map(str::to_owned).to_vec(),
            modules: self.modules.clone(),
            module_options: MODULE_OPTIONS.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        };
        let mut text = serde_json::to_vec_pretty(&config).expect("strings always make JSON");
        text.push(b'\n');
        self.archive.bytes(ImageConfig::PATH, 0o644, text)
    }

    fn add(&mut self, path: &str, mode: u32, host: &PathBuf, package: Option<&Package>) -> Result<()> {
        self.belongs(path, package);
        self.archive.copy(path, mode, host)
    }

    fn belongs(&mut self, path: &str, package: Option<&Package>) {
        if let Some(package) = package {
            self.packages.insert(path.to_owned(), package.clone());
        }
    }

    /// Lists all files and links with their hashes.
    pub(super) fn list(&self, root: &Root) -> Result<(Vec<Content>, Totals)> {
        let mut licences: BTreeMap<&str, String> = BTreeMap::new();
        let (mut files, mut totals) = (Vec::new(), Totals::default());
        for (path, _, node) in self.archive.entries() {
            let (size, sha256, link) = match node {
                Node::Directory | Node::Device { .. } => continue,
                Node::Bytes(bytes) => (bytes.len() as u64, sha256_bytes(bytes), None),
                Node::Copy(host) => (size_of(host)?, sha256_file(host)?, None),
                Node::Link(target) => {
                    (target.len() as u64, sha256_bytes(target.as_bytes()), Some(target.clone()))
                }
            };
            if link.is_none() {
                totals.files += 1;
                totals.bytes += size;
            }
            let (name, version, licence) = match self.packages.get(path) {
                None => (OURS, self.agent_version.as_str(), "MIT OR Apache-2.0".to_owned()),
                Some(package) => {
                    let licence = match licences.entry(&package.name) {
                        Entry::Occupied(known) => known.get().clone(),
                        Entry::Vacant(new) => new.insert(licence(root, package)?).clone(),
                    };
                    (package.name.as_str(), package.version.as_str(), licence)
                }
            };
            files.push(Content {
                path: path.to_owned(),
                size,
                sha256,
                package: name.to_owned(),
                version: version.to_owned(),
                licence,
                link,
            });
        }
        Ok((files, totals))
    }

    /// Sums the files up by package.
    pub(super) fn sources(&self, files: &[Content]) -> Vec<Source> {
        let mut sources: BTreeMap<&str, Source> = BTreeMap::new();
        for file in files.iter().filter(|file| file.link.is_none()) {
            let source = sources.entry(&file.package).or_insert_with(|| Source {
                name: file.package.clone(),
                version: file.version.clone(),
                sha256: self
                    .packages
                    .get(&file.path)
                    .map_or_else(String::new, |package| package.sha256.clone()),
                licence: file.licence.clone(),
                files: 0,
                bytes: 0,
            });
            source.files += 1;
            source.bytes += file.size;
        }
        sources.into_values().collect()
    }
}
