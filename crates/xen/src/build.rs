use std::path::{Path, PathBuf};

use xen_types::{DomId, EventPort, Gfn, KiB};

use crate::error::{Result, XenError};

/// Bytes that go into a domain's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blob {
    /// The contents of a file.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Blob {
    /// Largest file that is read into memory for a domain: 1 GiB, the limit of libxenguest
    /// (`XC_DOM_DECOMPRESS_MAX` in `xenguest.h`).
    pub const MAX_SIZE: u64 = 1 << 30;

    /// Reads the bytes.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or is larger than [`Self::MAX_SIZE`].
    pub fn read(&self, what: &'static str) -> Result<Vec<u8>> {
        let bytes = match self {
            Self::File(path) => Self::read_file(path, what)?,
            Self::Bytes(bytes) => bytes.clone(),
        };
        if bytes.is_empty() {
            let name = self.name();
            return Err(XenError::Invalid {
                operation: "load a file into a domain",
                reason: format!("{what} {name} is empty"),
            });
        }
        Ok(bytes)
    }

    fn read_file(path: &Path, what: &'static str) -> Result<Vec<u8>> {
        let wrap = |source| XenError::ReadFile { what, path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(wrap)?.len();
        if size > Self::MAX_SIZE {
            return Err(XenError::Invalid {
                operation: "load a file into a domain",
                reason: format!("{what} {} has {size} bytes, at most {} fit", path.display(), Self::MAX_SIZE),
            });
        }
        std::fs::read(path).map_err(wrap)
    }

    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Bytes(_) => "(given as bytes)".to_owned(),
        }
    }
}

/// One of the two event channels that every domain is born with: its own end, and who holds the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The new domain's port, from `Hypervisor::alloc_unbound_port`.
    pub port: EventPort,
    /// The domain that binds to it and maps the ring.
    pub peer: DomId,
}

/// An HVM guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestMemory {
    /// What it has at its start, video memory included (`memory` of xl.cfg(5)).
    pub target: KiB,
    /// What it can ever have, video memory included (`maxmem`). Larger than `target` means populate on demand.
    pub max: KiB,
    /// What of it the device model takes for its graphics adapter.
    pub video: KiB,
}

/// What goes into an HVM domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HvmBuild {
    /// The first code in the guest: Xen's hvmloader.
    pub hvmloader: Blob,
    /// The system firmware that hvmloader starts: SeaBIOS or OVMF.
    pub firmware: Blob,
    /// More SMBIOS tables.
    pub smbios: Option<Blob>,
    /// More ACPI tables.
    pub acpi: Option<Blob>,
    /// Memory.
    pub memory: GuestMemory,
    /// Virtual CPUs that it can have: 1 to 128.
    pub max_vcpus: u32,
    /// How many of them are online at its start, counted from the first.
    pub online_vcpus: u32,
    /// Whether it has local APICs and tables that say so.
    pub apic: bool,
    /// Size of the hole below 4 GiB for devices' memory; `None` for 256 MiB. Taken only when it is larger than that.
    pub mmio_hole: Option<KiB>,
    /// Whether Xen must hold all of the memory before anything is built (`claim_mode` of xl.conf(5)).
    pub claim: bool,
    /// The xenstore ring's event channel.
    pub store: Channel,
    /// The console ring's event channel.
    pub console: Channel,
}

/// What an HVM domain that has been built tells its toolstack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvmBuilt {
    /// The xenstore ring's frame.
    pub store_gfn: Gfn,
    /// The console ring's frame.
    pub console_gfn: Gfn,
    /// Where the SMBIOS tables are, for hvmloader to be told through xenstore
    /// (`xen/include/public/hvm/hvm_xs_strings.h`).
    pub smbios: Option<Placed>,
    /// Where the ACPI tables are, likewise.
    pub acpi: Option<Placed>,
}

/// Where something is in a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Guest-physical address in bytes.
    pub address: u64,
    /// Size in bytes.
    pub length: u32,
}

/// What goes into a domain that starts a kernel at once, without firmware: a PV or PVH domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelBuild {
    /// The kernel: an ELF file, or a Linux bzImage whose inner ELF file libxenguest unpacks. Its notes must name an entry
    /// for the kind of domain.
    pub kernel: Blob,
    /// The first RAM disk. A gzip-compressed one may be unpacked by libxenguest.
    pub ramdisk: Option<Blob>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Memory.
    pub memory: KiB,
    /// Virtual CPUs that it can have.
    pub max_vcpus: u32,
    /// Whether Xen must hold all of the memory before anything is built.
    pub claim: bool,
    /// The xenstore ring's event channel.
    pub store: Channel,
    /// The console ring's event channel.
    pub console: Channel,
}

/// What such a domain tells its toolstack once it is built. The frames are machine frames for a PV domain and guest frames
/// for a PVH one, which is what xenstore's INTRODUCE and `store/ring-ref` mean for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelBuilt {
    /// The xenstore ring's frame.
    pub store_frame: Gfn,
    /// The console ring's frame.
    pub console_frame: Gfn,
}
