//! The stubdomain that ours is measured against: Debian's kernel and QEMU with busybox and Xen's own tools.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use image::closure::Closure;
use image::initramfs::{Compression, Initramfs};
use image::modules::Kernel;
use image::packages::{Progress, Store, Take};
use image::root::{Kind, Root};
use xen_types::Release;

use crate::{Result, io_error};

const PACKAGES: [&str; 7] = [
    "linux-image-amd64",
    "busybox-static",
    "qemu-system-xen",
    "qemu-system-data",
    "seabios",
    "ipxe-qemu",
    "xenstore-utils",
];
const QEMU: &str = "/usr/libexec/xen-qemu-system-i386";
const PROXY: &str = "vchan-socket-proxy";
const TOOLS: [&str; 2] = ["/usr/bin/xenstore-list", "/usr/bin/xenstore-read"];
/// The folders of QEMU's data, each copied as a whole. The last exists up to Debian 12 only.
const DATA: [&str; 3] = ["/usr/share/qemu/keymaps", "/usr/share/seabios", "/usr/lib/ipxe/qemu"];
const MODULES: [&str; 7] =
    ["xen-privcmd", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-blkfront", "xen-netfront", "xenfs"];

/// Makes `vmlinuz` and `initramfs.img` of the reference stubdomain in a folder.
///
/// # Errors
/// That a package or something in it is missing, or a file cannot be written.
pub fn reference_stubdom(store: &Store, output: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
    let xen = store.debian().xen();
    let xen_utils = xen.utils_package();
    let packages = [&PACKAGES[..], &[&xen_utils]].concat();
    let root = store.root(&packages, Take::Libraries, progress)?;
    let kernel = Kernel::find(&root)?;
    let archive = archive(xen, &root, &kernel)?;
    fs::create_dir_all(output).map_err(io_error("make the folder", output))?;
    let path = output.join("vmlinuz");
    fs::write(&path, root.read(&kernel.image()?.path)?).map_err(io_error("write", &path))?;
    let path = output.join("initramfs.img");
    let file = File::create(&path).map_err(io_error("make", &path))?;
    Ok(archive.write(BufWriter::new(file), Compression::Gzip, "the reference's initramfs")?)
}

fn archive(xen: Release, root: &Root, kernel: &Kernel<'_>) -> Result<Initramfs> {
    let mut archive = Initramfs::new();
    for folder in ["/bin", "/dev", "/proc", "/run", "/sys", "/tmp"] {
        archive.directory(folder, 0o755)?;
    }
    archive.device("/dev/console", 0o600, 5, 1)?;
    let proxy = xen.tool(PROXY);
    archive.bytes("/init", 0o755, include_str!("reference-init.sh").replace("@PROXY@", &proxy))?;
    archive.copy("/bin/busybox", 0o755, root.find("/bin/busybox")?.host)?;
    let mut closure = Closure::new(root);
    for program in [QEMU, &proxy].into_iter().chain(TOOLS) {
        closure.add(program)?;
    }
    for file in closure.files() {
        archive.copy(&file.path, 0o755, &file.host)?;
    }
    for folder in DATA {
        let Some(found) = root.lookup(folder)? else { continue };
        let place = found.path;
        for path in root.walk(&place)? {
            let found = root.find(&path)?;
            if found.kind != Kind::Directory {
                let target = format!("{folder}{}", path.strip_prefix(&place).unwrap_or(&path));
                archive.copy(&target, 0o644, found.host)?;
            }
        }
    }
    let mut order = String::new();
    for module in kernel.modules(&MODULES)? {
        let path = format!("/modules/{}.ko", module.name);
        archive.put(&path, 0o644, module.node()?)?;
        order.push_str(&format!("{path}\n"));
    }
    archive.bytes("/modules/order", 0o644, order)?;
    Ok(archive)
}
