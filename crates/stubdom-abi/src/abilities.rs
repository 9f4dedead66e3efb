//! What an image's QEMU can be asked for, as the image's manifest lists it.

use serde::{Deserialize, Serialize};

/// The machine types, devices and formats that a QEMU was built with, each sorted.
///
/// Builder of images and toolstack share it; the stubdomain itself has no part in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QemuAbilities {
    /// Names of machine types, aliases (`xenfv`, `pc`) among them.
    pub machines: Vec<String>,
    /// Names of devices for `-device`, aliases among them.
    pub devices: Vec<String>,
    /// Formats and protocols of disks, which may be opened for writing.
    pub formats: Vec<String>,
}

impl QemuAbilities {
    /// Whether it has a machine type.
    #[must_use]
    pub fn has_machine(&self, name: &str) -> bool {
        self.machines.iter().any(|machine| machine == name)
    }

    /// Whether it has a device.
    #[must_use]
    pub fn has_device(&self, name: &str) -> bool {
        self.devices.iter().any(|device| device == name)
    }

    /// Whether it has a format.
    #[must_use]
    pub fn has_format(&self, name: &str) -> bool {
        self.formats.iter().any(|format| format == name)
    }
}
