//! Bootable guests for the end-to-end tests, made from packages without root.
//!
//! [`linux_disk`] makes a disk that boots Debian's kernel through the firmware and GRUB. It has no file system: GRUB
//! reads the kernel and the initramfs by their sectors. What the guest then does is said by its second disk, which
//! holds a shell script (see `init.sh`). [`uefi_disk`] makes one from which UEFI firmware starts a small application, [`power_disk`] one
//! with a boot sector that powers off and reboots, [`disc_disk`] one with a boot sector that draws and reads discs. [`console_guest`] makes a PV kernel of one page that only uses its
//! console, [`reference_stubdom`] a stubdomain by hand, for measurements.
#![forbid(unsafe_code)]

mod assemble;
mod console;
mod reference;
mod uefi;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::ImageError;
use image::closure::Closure;
use image::initramfs::{Compression, Initramfs};
use image::modules::Kernel;
use image::packages::{Progress, Store, Take};
use image::root::Root;
use thiserror::Error;

use assemble::{Machine, assemble};
pub use console::console_guest;
pub use reference::reference_stubdom;
pub use uefi::uefi_disk;

/// Bytes in a sector.
const SECTOR: u64 = 512;
/// Where the kernel begins: behind GRUB's core image, which has the first mebibyte to itself.
const KERNEL_SECTOR: u64 = 2048;
/// The disk ends at a multiple of this, as the image files of real disks do.
const DISK_GRAIN: u64 = 1 << 20;
/// Space that the init script's disk gets; the guest reads no more of it.
const SCRIPT_LIMIT: usize = 4096;

/// Why a guest's disk could not be made.
#[derive(Debug, Error)]
pub enum GuestError {
    /// A package, or something in it, is missing.
    #[error("Cannot obtain the parts of the test guest")]
    Parts(#[from] ImageError),
    /// A file operation failed.
    #[error("Cannot {action} {} for the test guest", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// `grub-mkimage` failed.
    #[error("grub-mkimage could not make the boot loader: {complaint}")]
    Grub {
        /// What it said.
        complaint: String,
    },
    /// The assembler or the linker failed.
    #[error("{program} could not make the guest: {complaint}")]
    Assembler {
        /// Which one.
        program: &'static str,
        /// What it said.
        complaint: String,
    },
    /// The script for the guest is too long.
    #[error("The guest's script has {length} bytes, more than the {SCRIPT_LIMIT} that the guest reads")]
    ScriptTooLong {
        /// Its length.
        length: usize,
    },
}

type Result<T> = std::result::Result<T, GuestError>;

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GuestError {
    let path = path.to_owned();
    move |source| GuestError::Io { action, path, source }
}

/// Makes the disk of the Linux guest at `output`, about 16 MiB.
///
/// # Errors
/// That a package is missing, GRUB's image cannot be made, or the file cannot be written; nothing is left at `output`.
pub fn linux_disk(store: &Store, output: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
    let system = store.root(&["linux-image-amd64", "busybox-static"], Take::Libraries, progress)?;
    let kernel = Kernel::find(&system)?;
    let kernel_bytes = system.read(&kernel.image()?.path)?;
    let mut initramfs = Vec::new();
    guest_initramfs(&system, &kernel)?.write(&mut initramfs, Compression::Gzip, "the test guest")?;
    let initramfs_sector = KERNEL_SECTOR + sectors(kernel_bytes.len()).next_multiple_of(8);
    let tools = store.root(&["grub-common", "grub-pc-bin"], Take::Libraries, progress)?;
    let script = format!(
        "serial --unit=0 --speed=115200\nterminal_output serial\n\
         linux (hd0){KERNEL_SECTOR}+{} console=ttyS0 quiet panic=1 net.ifnames=0\n\
         initrd (hd0){initramfs_sector}+{}\nboot\n",
        sectors(kernel_bytes.len()),
        sectors(initramfs.len())
    );
    let (boot, core) = grub(&tools, &script)?;
    let end = (initramfs_sector + sectors(initramfs.len())) * SECTOR;
    write_atomically(output, |file| {
        file.set_len(end.next_multiple_of(DISK_GRAIN))?;
        file.write_all_at(&boot, 0)?;
        file.write_all_at(&core, SECTOR)?;
        file.write_all_at(&kernel_bytes, KERNEL_SECTOR * SECTOR)?;
        file.write_all_at(&initramfs, initramfs_sector * SECTOR)
    })
}

/// Makes the disk that tells the Linux guest what to do: a shell script of at most 4 KiB, 1 MiB in all.
///
/// # Errors
/// That the script is too long, or the file cannot be written.
pub fn script_disk(script: &str, output: &Path) -> Result<()> {
    if script.len() > SCRIPT_LIMIT {
        return Err(GuestError::ScriptTooLong { length: script.len() });
    }
    write_atomically(output, |file| {
        file.set_len(DISK_GRAIN)?;
        file.write_all_at(script.as_bytes(), 0)
    })
}

/// Makes the disk of a guest that powers off (`p` on COM1, or the ACPI power button) and reboots (`r`), 1 MiB.
///
/// # Errors
/// That binutils are missing, or the file cannot be written; nothing is left at `output`.
pub fn power_disk(output: &Path) -> Result<()> {
    boot_sector_disk(include_str!("power.S"), output)
}

/// Makes the disk of a guest that draws on its screen and reads its CD drive (`disc.S` says how), 1 MiB.
///
/// # Errors
/// That binutils are missing, or the file cannot be written; nothing is left at `output`.
pub fn disc_disk(output: &Path) -> Result<()> {
    boot_sector_disk(include_str!("disc.S"), output)
}

/// Makes the disk of a guest that leaves to the hypervisor as often as it can (`exits.S` says how), 1 MiB.
///
/// # Errors
/// That binutils are missing, or the file cannot be written; nothing is left at `output`.
pub fn exits_disk(output: &Path) -> Result<()> {
    boot_sector_disk(include_str!("exits.S"), output)
}

fn boot_sector_disk(source: &str, output: &Path) -> Result<()> {
    let sector = assemble(source, Machine::BootSector)?;
    write_atomically(output, |file| {
        file.set_len(DISK_GRAIN)?;
        file.write_all_at(&sector, 0)
    })
}

fn sectors(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(SECTOR)
}

fn guest_initramfs(system: &Root, kernel: &Kernel<'_>) -> Result<Initramfs> {
    let mut initramfs = Initramfs::new();
    for dir in ["/bin", "/dev", "/proc", "/sys", "/sbin", "/modules"] {
        initramfs.directory(dir, 0o755)?;
    }
    initramfs.copy("/bin/busybox", 0o755, system.find("/bin/busybox")?.host)?;
    initramfs.bytes("/init", 0o755, include_str!("init.sh"))?;
    // What the kernel runs when the toolstack asks for power-off or reboot (`control/shutdown`).
    initramfs.bytes("/sbin/poweroff", 0o755, "#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n")?;
    initramfs.bytes("/sbin/reboot", 0o755, "#!/bin/busybox sh\nexec /bin/busybox reboot -f\n")?;
    // What the init loads: to find out, with PV drivers, or where the guest has the emulated devices alone. Then what a
    // script loads when it wants it: the IDE CD drive.
    let lists: [(&str, &[&str]); 4] = [
        ("first", &["xen-blkfront"]),
        ("pv", &["xen-netfront", "evdev", "button"]),
        ("emulated", &["ahci", "sd_mod", "sym53c8xx", "8139cp", "evdev", "button"]),
        ("more", &["ata_piix", "sr_mod"]),
    ];
    let mut known = BTreeSet::new();
    for (list, names) in lists {
        let mut text = String::new();
        for module in kernel.modules(names)? {
            let path = format!("/modules/{}.ko", module.name);
            text.push_str(&format!("{path}\n"));
            if known.insert(path.clone()) {
                initramfs.put(&path, 0o644, module.node()?)?;
            }
        }
        initramfs.bytes(&format!("/modules/{list}"), 0o644, text)?;
    }
    Ok(initramfs)
}

/// Makes GRUB's boot sector and core image, with the script built in.
fn grub(tools: &Root, script: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut closure = Closure::new(tools);
    closure.add("/usr/bin/grub-mkimage")?;
    let folders: Vec<&Path> = closure.files().filter_map(|file| file.host.parent()).collect();
    let library_path = std::env::join_paths(folders).unwrap_or_else(|_| OsString::new());
    let boot = tools.find("/usr/lib/grub/i386-pc/boot.img")?;
    let modules = boot.host.parent().unwrap_or_else(|| Path::new("/"));
    let dir = tempfile::tempdir().map_err(io_error("make a temporary folder in", &std::env::temp_dir()))?;
    let config = dir.path().join("grub.cfg");
    fs::write(&config, script).map_err(io_error("write", &config))?;
    let core = dir.path().join("core.img");
    let program = tools.find("/usr/bin/grub-mkimage")?.host;
    let run = Command::new(&program)
        .env("LD_LIBRARY_PATH", library_path)
        .arg("--directory")
        .arg(modules)
        .args(["--format", "i386-pc", "--prefix", "/", "--config"])
        .arg(&config)
        .arg("--output")
        .arg(&core)
        .args(["biosdisk", "linux", "serial", "terminal", "boot"])
        .output()
        .map_err(io_error("run", &program))?;
    if !run.status.success() {
        return Err(GuestError::Grub { complaint: String::from_utf8_lossy(&run.stderr).trim().to_owned() });
    }
    let boot = tools.read(&boot.path)?;
    let core = fs::read(&core).map_err(io_error("read", &core))?;
    Ok((boot, core))
}

fn write_atomically(output: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(folder).map_err(io_error("create a file in", folder))?;
    fill(temp.as_file()).and_then(|()| temp.flush()).map_err(io_error("write", output))?;
    temp.persist(output).map_err(|error| io_error("write", output)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_is_at_the_start_of_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.img");
        script_disk("poweroff -f\n", &path).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        assert!(bytes.starts_with(b"poweroff -f\n\0"));
    }

    #[test]
    fn boot_sector_guests_are_one_sector() {
        for source in [include_str!("power.S"), include_str!("disc.S")] {
            let sector = assemble(source, Machine::BootSector).unwrap();
            assert_eq!((sector.len() as u64, &sector[510..]), (SECTOR, &[0x55, 0xaa][..]));
        }
    }

    #[test]
    fn long_script_is_refused_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.img");
        assert!(matches!(
            script_disk(&"x".repeat(5000), &path),
            Err(GuestError::ScriptTooLong { length: 5000 })
        ));
        assert!(!path.exists());
    }
}
