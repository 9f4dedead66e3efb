//! Builds the host: Xen, Debian's kernel, and an initramfs that is dom0.
//!
//! Everything comes out of Debian packages, without root and without running anything from them. A host is kept
//! under a name that is a hash of all that went into it, so an unchanged one is found rather than built.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use image::closure::Closure;
use image::initramfs::{Compression, Initramfs};
use image::modules::Kernel;
use image::packages::{Progress, Store, Take};
use image::root::{Found, Kind, Root};
use sha2::{Digest as _, Sha256};
use xen_types::Release;

use crate::error::AtPath as _;
use crate::hash::hex;
use crate::{Host, HostError, Observer, Put, contents};

/// Raised when the same inputs have to make another host.
const FORMAT: &str = "2";
/// Hosts that are kept, those used last.
const KEPT: usize = 6;

/// What goes into a host besides Xen, the kernel and a minimal dom0.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The release of Xen, which is that of the packages' Debian.
    pub xen: Release,
    /// Adds stock `xl`, `xenconsoled`, QEMU for dom0, and the hotplug scripts with all that they run.
    pub with_xen_tools: bool,
    /// Programs of the caller; the libraries that they need are found in the packages.
    pub programs: Vec<Put>,
    /// Other files of the caller.
    pub files: Vec<Put>,
}

impl Recipe {
    /// Xen, the kernel and a minimal dom0, without Xen's own tools.
    #[must_use]
    pub const fn minimal(xen: Release) -> Self {
        Self { xen, with_xen_tools: false, programs: Vec::new(), files: Vec::new() }
    }
}

/// Builds the host, or finds it built, in a folder of `hosts` that is named after its contents.
///
/// # Errors
/// [`HostError::Packages`] when packages cannot be had or lack a file, [`HostError::File`] when a file cannot be written.
pub fn build(
    recipe: &Recipe,
    store: &Store,
    hosts: &Path,
    observer: &mut dyn Observer,
) -> Result<Host, HostError> {
    let packages = contents::packages(recipe.xen);
    let mut wanted: Vec<&str> = packages.iter().map(String::as_str).collect();
    if recipe.with_xen_tools {
        wanted.extend(contents::TOOLS_PACKAGES);
    }
    let root = store
        .root(&wanted, Take::Libraries, &mut |step| show(&step, observer))
        .map_err(gather("the Debian packages"))?;
    fs::create_dir_all(hosts).at("make the folder", hosts)?;
    let lock_path = hosts.join("lock");
    let lock = File::create(&lock_path).at("open", &lock_path)?;
    lock.lock().at("lock", &lock_path)?;
    let host = Host { folder: hosts.join(key(recipe, &root)?) };
    if host.folder.join("initramfs.img").exists() {
        // The time of the last use decides what is kept. If it cannot be set, an older host may stay instead.
        let _ = File::open(&host.folder).and_then(|folder| folder.set_modified(SystemTime::now()));
        return Ok(host);
    }
    observer.progress("Building the embedded host");
    let temporary =
        tempfile::Builder::new().prefix("building-").tempdir_in(hosts).at("make a folder in", hosts)?;
    write(recipe, &root, temporary.path())?;
    fs::rename(temporary.keep(), &host.folder).at("rename to", &host.folder)?;
    sweep(hosts, &host);
    Ok(host)
}

/// Tells the observer what a person waits for.
pub(crate) fn show(step: &Progress<'_>, observer: &mut dyn Observer) {
    match step {
        Progress::Resolving => {}
        Progress::Fetching { packages, bytes } => {
            observer.progress(&format!("Fetching {packages} Debian packages ({} MB)", bytes / 1_000_000));
        }
        Progress::Unpacking { package } => observer.progress(&format!("Unpacking {}", package.name)),
    }
}

/// Turns an error of the image crate into ours.
pub(crate) fn gather<E: std::error::Error + Send + Sync + 'static>(
    what: &str,
) -> impl FnOnce(E) -> HostError {
    let what = what.to_owned();
    move |source| HostError::Packages { what, source: Box::new(source) }
}

/// Writes the three files.
fn write(recipe: &Recipe, root: &Root, folder: &Path) -> Result<(), HostError> {
    let hypervisor = root.find(&recipe.xen.hypervisor()).map_err(gather("the hypervisor"))?;
    let packed = File::open(&hypervisor.host).at("open", &hypervisor.host)?;
    let mut xen = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut xen).at("unpack", &hypervisor.host)?;
    let path = folder.join("xen");
    fs::write(&path, xen).at("write", &path)?;
    let kernel = Kernel::find(root).map_err(gather("the kernel"))?;
    let image = kernel.image().map_err(gather("the kernel"))?;
    fs::copy(&image.host, folder.join("vmlinuz")).at("copy", &image.host)?;

    let archive = dom0(recipe, root, &kernel)?;
    let path = folder.join("initramfs.img");
    let mut output = BufWriter::new(File::create(&path).at("make", &path)?);
    archive.write(&mut output, Compression::None, "initramfs.img").map_err(gather("dom0's initramfs"))?;
    output.flush().at("write", &path)
}

/// Puts dom0 together.
fn dom0(recipe: &Recipe, root: &Root, kernel: &Kernel<'_>) -> Result<Initramfs, HostError> {
    let mut archive = Initramfs::new();
    skeleton(recipe.xen, &mut archive).map_err(gather("dom0's skeleton"))?;
    modules(kernel, &mut archive).map_err(gather("dom0's kernel modules"))?;
    let mut closure = Closure::new(root);
    for program in contents::programs(recipe.xen) {
        closure.add(&program).map_err(gather(&program))?;
    }
    for path in contents::files(recipe.xen) {
        tree(root, &path, &mut archive).map_err(gather(&path))?;
    }
    if recipe.with_xen_tools {
        for program in contents::tools_programs(recipe.xen) {
            closure.add(&program).map_err(gather(&program))?;
        }
        for path in contents::TOOLS_FILES {
            tree(root, path, &mut archive).map_err(gather(path))?;
        }
        // libxl looks for it there, Debian has it elsewhere.
        let proxy = "/usr/bin/vchan-socket-proxy";
        archive.link(proxy, &recipe.xen.tool("vchan-socket-proxy")).map_err(gather(proxy))?;
    }
    for put in &recipe.programs {
        closure.add_needs_of(&put.source).map_err(gather(&put.source.display().to_string()))?;
    }
    let mut place = |path: &str, mode, source: &Path| archive.copy(path, mode, source);
    for file in closure.files() {
        place(&file.path, 0o755, &file.host).map_err(gather(&file.path))?;
    }
    for put in &recipe.programs {
        place(&put.target.to_string_lossy(), 0o755, &put.source).map_err(gather("our programs"))?;
    }
    for put in &recipe.files {
        place(&put.target.to_string_lossy(), 0o644, &put.source).map_err(gather("our files"))?;
    }
    Ok(archive)
}

fn skeleton(xen: Release, archive: &mut Initramfs) -> image::Result<()> {
    for folder in contents::FOLDERS {
        archive.directory(folder, 0o755)?;
    }
    archive.directory("/tmp", 0o1777)?;
    archive.device("/dev/console", 0o600, 5, 1)?;
    archive.device("/dev/null", 0o666, 1, 3)?;
    archive.bytes("/init", 0o755, contents::init(xen))?;
    archive.link("/bin/sh", "busybox")?;
    archive.link("/var/run", "/run")?;
    archive.bytes("/etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")?;
    archive.bytes("/etc/group", 0o644, "root:x:0:\ntty:x:5:\n")?;
    archive.bytes("/etc/profile", 0o644, contents::PROFILE)
}

/// Puts the modules that dom0 loads, their order, and those that a test may load by hand.
fn modules(kernel: &Kernel<'_>, archive: &mut Initramfs) -> image::Result<()> {
    let booted = kernel.modules(&contents::MODULES)?;
    let [mut disk, mut pair] =
        [kernel.modules(&contents::DISK_MODULES)?, kernel.modules(&contents::PAIR_MODULES)?];
    for later in [&mut disk, &mut pair] {
        later.retain(|module| booted.iter().all(|other| other.name != module.name));
    }
    for (path, modules) in
        [("/modules/order", booted), ("/modules/disk-order", disk), ("/modules/pair-order", pair)]
    {
        let order: String = modules.iter().map(|module| format!("{}.ko\n", module.name)).collect();
        archive.bytes(path, 0o644, order)?;
    }
    let all: [&[&str]; 4] =
        [&contents::MODULES, &contents::MORE_MODULES, &contents::DISK_MODULES, &contents::PAIR_MODULES];
    let all = all.concat();
    for module in kernel.modules(&all)? {
        archive.put(&format!("/modules/{}.ko", module.name), 0o644, module.node()?)?;
    }
    Ok(())
}

/// Puts a file, or a folder with all below it.
fn tree(root: &Root, path: &str, archive: &mut Initramfs) -> image::Result<()> {
    let found = root.find(path)?;
    if found.kind != Kind::Directory {
        return file(path, &found, archive);
    }
    for inner in root.walk(&found.path)? {
        let target = format!("{path}{}", inner.strip_prefix(&found.path).unwrap_or(&inner));
        let found = root.find(&inner)?;
        if found.kind != Kind::Directory {
            file(&target, &found, archive)?;
        }
    }
    Ok(())
}

fn file(path: &str, found: &Found, archive: &mut Initramfs) -> image::Result<()> {
    let mode = if found.kind == (Kind::File { executable: true }) { 0o755 } else { 0o644 };
    archive.copy(path, mode, &found.host)
}

/// The hash of all that goes into a host.
fn key(recipe: &Recipe, root: &Root) -> Result<String, HostError> {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update(part.as_bytes());
        hash.update([0]);
    };
    for part in [FORMAT, &contents::init(recipe.xen), contents::PROFILE] {
        add(part);
    }
    add(&format!("{:?}", contents::all(recipe.xen)));
    for package in root.packages() {
        add(&package.sha256);
    }
    add(&recipe.with_xen_tools.to_string());
    for put in recipe.programs.iter().chain(&recipe.files) {
        add(&put.target.to_string_lossy());
        add(&hash_file(&put.source)?);
    }
    Ok(hex(&hash.finalize()))
}

fn hash_file(path: &Path) -> Result<String, HostError> {
    Ok(hex(&Sha256::digest(fs::read(path).at("read", path)?)))
}

/// Removes all but the hosts used last. What cannot be removed stays until the next time.
fn sweep(hosts: &Path, current: &Host) {
    let Ok(entries) = fs::read_dir(hosts) else { return };
    let mut folders: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && *path != current.folder)
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .collect();
    folders.sort();
    let surplus = folders.len().saturating_sub(KEPT - 1);
    for (_, folder) in folders.into_iter().take(surplus) {
        let _ = fs::remove_dir_all(folder);
    }
}
