use core::fmt;

use serde::{Deserialize, Serialize};

/// One disk or CD drive (`xl-disk-configuration(5)`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// `vdev`: the device as the guest sees it.
    pub vdev: Vdev,
    /// `target`: what is behind it.
    pub source: DiskSource,
    /// `format`: default raw. A drive without a medium is [`DiskSource::Empty`], whatever its format.
    pub format: DiskFormat,
    /// `access`: default read-write, read-only for CD drives.
    pub access: Access,
    /// `devtype`: disk or CD drive.
    pub kind: DiskKind,
    /// `backend`: name or number of the backend domain; absent: dom0.
    pub backend: Option<String>,
    /// `discard` or `no-discard`; absent: yes unless the disk is read-only (libxl leaves that to the backend).
    pub discard: Option<bool>,
    /// `direct-io-safe`: the backend may use direct I/O although pages of the guest may still be on their way when
    /// a request is answered.
    pub direct_io_safe: bool,
    /// `trusted` (true, the default) or `untrusted`: what the guest's frontend is told of its backend.
    pub trusted: bool,
}

impl Disk {
    /// Whether the guest sees a CD drive.
    #[must_use]
    pub fn is_cdrom(&self) -> bool {
        self.kind == DiskKind::CdRom
    }

    /// Whether the guest may write.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite
    }
}

/// What is behind a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// A CD drive without a medium.
    Empty,
    /// An absolute path in the backend domain: a block device, or a raw image file.
    Path(String),
    /// A hotplug script in the backend domain and the text that it interprets.
    Script {
        /// `script`: absolute, or a name in Xen's script directory.
        script: String,
        /// `target`, for the script alone.
        target: String,
    },
}

/// The format of a disk's image. There is no QEMU in dom0 to read any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The image is the disk.
    Raw,
}

/// What the guest may do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// What kind of drive the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// A hard disk.
    Disk,
    /// A CD drive.
    CdRom,
}

/// The controller of emulated `hd*` disks (`hdtype`). CD drives are on IDE in both cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskController {
    /// PIIX3 IDE: four drives.
    #[default]
    Ide,
    /// ICH9 AHCI: six.
    Ahci,
}

/// The bus that a virtual device's name claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VdevBus {
    /// `xvd*` and `d<N>p<M>`: PV only.
    Xvd,
    /// `hd*`: IDE or AHCI, and PV.
    Hd,
    /// `sd*`: SCSI, and PV.
    Sd,
}

/// A virtual device: bus, disk and partition (`docs/man/xen-vbd-interface.7.pandoc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "VdevParts", try_from = "VdevParts")]
pub struct Vdev {
    bus: VdevBus,
    disk: u32,
    partition: u32,
}

#[derive(Serialize, Deserialize)]
struct VdevParts {
    bus: VdevBus,
    disk: u32,
    #[serde(default)]
    partition: u32,
}

impl From<Vdev> for VdevParts {
    fn from(vdev: Vdev) -> Self {
        Self { bus: vdev.bus, disk: vdev.disk, partition: vdev.partition }
    }
}

impl TryFrom<VdevParts> for Vdev {
    type Error = String;

    fn try_from(parts: VdevParts) -> Result<Self, Self::Error> {
        Self::new(parts.bus, parts.disk, parts.partition).ok_or_else(|| {
            format!("no {:?} device has disk {} partition {}", parts.bus, parts.disk, parts.partition)
        })
    }
}

impl Vdev {
    /// Makes a virtual device, unless the interface has no number for it: `hd` has disks 0 to 3 and partitions 0
    /// to 63, `sd` 0 to 15 of both, `xvd` disks below 2^20 and partitions below 256.
    #[must_use]
    pub const fn new(bus: VdevBus, disk: u32, partition: u32) -> Option<Self> {
        let (disks, partitions) = match bus {
            VdevBus::Xvd => (1 << 20, 256),
            VdevBus::Hd => (4, 64),
            VdevBus::Sd => (16, 16),
        };
        if disk < disks && partition < partitions { Some(Self { bus, disk, partition }) } else { None }
    }

    /// The bus.
    #[must_use]
    pub const fn bus(self) -> VdevBus {
        self.bus
    }

    /// The disk's number on its bus, from 0.
    #[must_use]
    pub const fn disk(self) -> u32 {
        self.disk
    }

    /// The partition; 0 is the whole disk.
    #[must_use]
    pub const fn partition(self) -> u32 {
        self.partition
    }

    /// The number in xenstore: the name of the device's directory and its `virtual-device` key.
    #[must_use]
    pub const fn devid(self) -> u32 {
        match self.bus {
            VdevBus::Xvd if self.disk < 16 && self.partition < 16 => {
                202 << 8 | self.disk << 4 | self.partition
            }
            VdevBus::Xvd => 1 << 28 | self.disk << 8 | self.partition,
            VdevBus::Hd if self.disk < 2 => 3 << 8 | self.disk << 6 | self.partition,
            VdevBus::Hd => 22 << 8 | (self.disk - 2) << 6 | self.partition,
            VdevBus::Sd => 8 << 8 | self.disk << 4 | self.partition,
        }
    }
}

impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bus = match self.bus {
            VdevBus::Xvd => "xvd",
            VdevBus::Hd => "hd",
            VdevBus::Sd => "sd",
        };
        let mut letters = Vec::new();
        let mut rest = u64::from(self.disk) + 1;
        while rest > 0 {
            rest -= 1;
            letters.push(char::from(b'a' + u8::try_from(rest % 26).expect("a remainder of 26 fits")));
            rest /= 26;
        }
        f.write_str(bus)?;
        for letter in letters.iter().rev() {
            write!(f, "{letter}")?;
        }
        if self.partition == 0 { Ok(()) } else { write!(f, "{}", self.partition) }
    }
}
