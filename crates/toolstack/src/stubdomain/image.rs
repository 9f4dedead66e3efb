//! The stubdomain's image: kernel, RAM disk, and what its manifest says.

use std::path::{Path, PathBuf};

use config::GuestConfig;
use qemu_args::QemuFeatures;
use serde::Deserialize;
use stubdom_abi::QemuAbilities;
use xen_types::KiB;

use crate::dom0::{FileKind, HostDevices};
use crate::error::Cause;
use crate::paths::Paths;

/// The stubdomain's memory when neither configuration nor manifest says anything, without video memory.
///
/// Debian's kernel takes about 50 MiB of it, and for a moment the image is there packed (13 MiB) and unpacked (30 MiB)
/// at once: with 128 MiB, 4 of 21 starts ended in "System is deadlocked on memory".
const DEFAULT_MEMORY: KiB = KiB::from_mib(160);
/// The largest manifest that is read, in bytes.
const MANIFEST_LIMIT: u64 = 1 << 20;
/// What every stubdomain's kernel is told. `xen_privcmd.unrestricted`: QEMU makes hypercalls that a restricted
/// privcmd refuses since XSA-482; Xen's own check of the target holds nevertheless. `rootfstype=ramfs`: a tmpfs would
/// give the initramfs only half of the memory. `xen_blkfront.max_indirect_segments`: a disk's ring keeps a page for each
/// segment that all of its requests can have; with Linux's default that is 4 MiB a disk, and a stubdomain of 64 MiB with
/// four disks runs out of memory. And that the state goes in frames, which others pass over.
const COMMAND_LINE: &str = "console=hvc0 quiet rootfstype=ramfs xen_privcmd.unrestricted=1 \
                            xen_blkfront.max_indirect_segments=11";
/// What a disk's ring keeps: 32 requests of 11 pages.
const DISK_MEMORY: KiB = KiB(32 * 11 * 4);
/// How many disks there are in an image's usual memory.
const USUAL_DISKS: usize = 4;

/// What the stubdomain boots.
#[derive(Clone, Debug, Default)]
pub(crate) struct StubImage {
    pub(crate) kernel: PathBuf,
    pub(crate) ramdisk: PathBuf,
    pub(crate) cmdline: String,
    /// Whether the kernel can start in a PVH domain, as far as that is known.
    pub(crate) pvh: PvhSupport,
    /// Without the guest's video memory.
    pub(crate) memory: KiB,
    pub(crate) qemu: QemuFeatures,
}

/// Whether an image's kernel can start in a PVH domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PvhSupport {
    /// The manifest says so.
    Yes,
    /// The manifest does not say so: the kernel cannot, or the image is of an older builder.
    #[default]
    No,
    /// The configuration names the kernel, which has no manifest. libxenguest looks at it.
    Unknown,
}

/// The keys of `manifest.json` that matter here; others are passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Manifest {
    memory_kib: Option<u64>,
    cmdline: Option<String>,
    kernel: ManifestKernel,
    qemu: ManifestQemu,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ManifestKernel {
    pvh: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ManifestQemu {
    sandbox: bool,
    abilities: Option<QemuAbilities>,
}

impl StubImage {
    /// Finds the image that the configuration names, or the installed one.
    pub(crate) fn find(config: &GuestConfig, paths: &Paths, host: &dyn HostDevices) -> Result<Self, Cause> {
        let dm = &config.device_model;
        let kernel = named_or(dm.kernel.as_deref(), &paths.stubdomain, "vmlinuz");
        let ramdisk = named_or(dm.ramdisk.as_deref(), &paths.stubdomain, "initramfs.img");
        must_be_there(host, "stubdomain kernel", &kernel)?;
        must_be_there(host, "stubdomain RAM disk", &ramdisk)?;
        // Another image's traits are unknown, and the least is assumed of them.
        let is_installed = dm.kernel.is_none() && dm.ramdisk.is_none();
        let manifest = if is_installed {
            Manifest::read(&paths.stubdomain.join("manifest.json"), host)?
        } else {
            Manifest::default()
        };
        let pvh = match (is_installed, manifest.kernel.pvh) {
            (true, true) => PvhSupport::Yes,
            (true, false) => PvhSupport::No,
            (false, _) => PvhSupport::Unknown,
        };
        let mut cmdline = format!("{COMMAND_LINE} {}", stubdom_abi::STATE_FRAMES_WORD);
        for more in [manifest.cmdline.as_deref(), dm.cmdline.as_deref()].into_iter().flatten() {
            cmdline.push(' ');
            cmdline.push_str(more);
        }
        let memory = dm.memory.unwrap_or_else(|| {
            manifest.memory_kib.map_or(DEFAULT_MEMORY, KiB) + for_disks(config.disks.len())
        });
        let ManifestQemu { sandbox, abilities } = manifest.qemu;
        Ok(Self { kernel, ramdisk, cmdline, pvh, memory, qemu: QemuFeatures { sandbox, abilities } })
    }
}

impl Manifest {
    fn read(path: &Path, host: &dyn HostDevices) -> Result<Self, Cause> {
        if host.file_kind(path)? == FileKind::Missing {
            return Ok(Self::default());
        }
        let text = host.read_file(path, MANIFEST_LIMIT)?;
        serde_json::from_slice(&text)
            .map_err(|error| Cause::Record { path: path.to_owned(), why: error.to_string() })
    }
}

/// What more disks than usual need, in whole MiB, as a PV domain is built.
fn for_disks(disks: usize) -> KiB {
    let more = u64::try_from(disks.saturating_sub(USUAL_DISKS)).unwrap_or(0);
    KiB::from_mib(DISK_MEMORY.0.saturating_mul(more).div_ceil(1024))
}

fn named_or(named: Option<&str>, folder: &Path, file: &str) -> PathBuf {
    named.map_or_else(|| folder.join(file), PathBuf::from)
}

fn must_be_there(host: &dyn HostDevices, what: &'static str, path: &Path) -> Result<(), Cause> {
    match host.file_kind(path)? {
        FileKind::Regular { bytes } if bytes > 0 => Ok(()),
        _ => Err(Cause::Missing {
            what,
            path: path.display().to_string(),
            hint: "build it with `outrigger image build --output DIR`, or name another in the configuration",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_disks_beyond_the_usual() {
        assert_eq!((for_disks(0), for_disks(4)), (KiB(0), KiB(0)));
        assert_eq!((for_disks(5), for_disks(6)), (KiB::from_mib(2), KiB::from_mib(3)));
    }
}
