use serde::{Deserialize, Serialize};
use xen_types::KiB;

/// Graphics and keyboard of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Display {
    /// `vga`, and the older `stdvga`: default Cirrus.
    pub vga: Vga,
    /// `videoram` in KiB; default 16 MiB for the standard VGA, 8 MiB for Cirrus, 0 for none.
    pub video_memory: KiB,
    /// `keymap`: QEMU's name of the keyboard layout (`de`, `en-us`, …); absent: QEMU's default.
    pub keymap: Option<String>,
}

impl Default for Display {
    fn default() -> Self {
        Self { vga: Vga::Cirrus, video_memory: KiB::from_mib(8), keymap: None }
    }
}

/// The emulated graphics card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vga {
    /// Cirrus Logic GD5446.
    Cirrus,
    /// The standard VGA with VBE.
    StdVga,
    /// No card.
    None,
}

/// USB of the guest, as QEMU emulates it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usb {
    /// Which controller is there.
    pub controller: UsbController,
    /// `usbdevice`: names as QEMU's `-usbdevice` takes them (`tablet`, `mouse`, `keyboard`, …).
    pub devices: Vec<String>,
}

/// The emulated USB controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsbController {
    /// None: neither `usb`, `usbdevice` nor `usbversion`.
    #[default]
    None,
    /// `usb = 1` or any `usbdevice`: the machine's own UHCI.
    Machine,
    /// `usbversion = 1`: a PIIX3 UHCI.
    Uhci,
    /// `usbversion = 2`: an ICH9 EHCI and its three companions.
    Ehci,
    /// `usbversion = 3`: an NEC xHCI.
    Xhci,
}

/// An extra emulated device for a vendor's drivers (`vendor_device`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VendorDevice {
    /// None.
    #[default]
    None,
    /// The XenServer PV device (`xen-pvdevice`, device 0xc000).
    XenServer,
}
